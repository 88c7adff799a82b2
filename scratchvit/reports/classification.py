"""The report of a classifier's run: one self-contained HTML file.

    write_report(open_run("runs/digits-vit_tiny_patch16_224-1"), "report.html")

The page has no scripts and loads nothing. For a run that is not finished, it shows the validation split, because the
test split is used only once, at the end. Without Matplotlib, its pictures are replaced by a note.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from xml.etree.ElementTree import Element

import numpy as np
from PIL import Image

from scratchvit.data import Dataset, Normalize
from scratchvit.errors import ScratchvitError
from scratchvit.files import counted
from scratchvit.inspect.augmentations import draw_batches
from scratchvit.inspect.figures import (
    CURVES,
    first_of_each_class,
    last_and_rollout,
    overlay,
    read_metrics,
    shows_attention,
)
from scratchvit.models.igpt import IGPT
from scratchvit.models.interface import TokenModel, config_of, generates
from scratchvit.nn import Module
from scratchvit.reports.generative import GENERATIVE_CURVES, bits_and_baseline, completions, in_bits
from scratchvit.reports.page import (
    configuration,
    curves,
    data_uri,
    duration,
    element,
    footer,
    header,
    next_steps,
    numbers,
    picture,
    section,
    table,
    write_page,
)
from scratchvit.training.checkpoint import current_versions, model_from_checkpoint
from scratchvit.training.classification.data import TrainingData, augments, load_data
from scratchvit.training.classification.evaluate import Predictions, class_scores, predict
from scratchvit.training.classification.objective import make_mix
from scratchvit.training.config import TrainConfig
from scratchvit.training.folder import RunFolder, read_config

CLASSES_IN_FULL = 20    # with more classes, the confusion matrix is an image, and only the worst classes are listed
MISTAKES, PAIRS, WORST = 24, 15, 15
ATTENTION_PICTURES, AUGMENTED_PICTURES, DRAWS = 10, 6, 6


@dataclass(frozen=True)
class Run:
    """The content of a report. Before the end of the first epoch there are no model and no predictions."""

    path: Path                                      # the run folder
    config: TrainConfig
    history: Sequence[Mapping[str, Any]]            # the rows of metrics.csv
    data: TrainingData
    model: Module | None = None                     # with its best weights
    best_epoch: int = 0                             # from 1
    predictions: Predictions | None = None          # on the split `split`
    bits: tuple[float, float] | None = None         # of a generative model: see `bits_and_baseline`
    versions: Mapping[str, str] = field(default_factory=current_versions)
    commands: Mapping[str, str] = field(default_factory=dict)       # {what it does: command line}

    @property
    def finished(self) -> bool:
        return len(self.history) >= self.config.epochs

    @property
    def on_test(self) -> bool:
        """Whether the predictions are on the test split: not before the end, and not if the data have none."""
        return self.finished and self.data.splits.held_out[0] == "test"

    @property
    def split(self) -> Dataset:
        """The split of the predictions."""
        return self.data.splits.test if self.on_test else self.data.splits.val

    @property
    def has_answers(self) -> bool:
        """Whether there is a predicted class for each image; generative models of pixels have none."""
        return self.predictions is not None and self.predictions.labels.size > 0

    @property
    def names(self) -> list[str]:
        """The names of the classes and, if the head is larger, of its further outputs."""
        classes = [*self.split.classes]
        outputs = getattr(config_of(self.model), "num_classes", 0)
        return classes + [f"output {number}" for number in range(len(classes), outputs)]


def open_run(path: str | Path, data: str | None = None, data_dir: str | None = None) -> Run:
    """Open a run, finished, interrupted or still in progress, with the predictions of its best weights so far.

    data, data_dir: the data of the run, if they were moved.
    Raises ScratchvitError for a folder without a run, damaged files, and data that are not those of the run.
    """
    folder = RunFolder(Path(path))
    config = written = read_config(folder.path, TrainConfig)
    if data is not None or data_dir is not None:
        config = config.replace(data=data or config.data, data_dir=data_dir or config.data_dir)
    if not folder.best.exists():
        return Run(folder.path, written, [], load_data(config, config.init))
    model, checkpoint = model_from_checkpoint(folder.best)
    loaded = load_data(config, folder.best, checkpoint)     # mean and std are in the checkpoint
    if list(loaded.splits.train.classes) != list(checkpoint.data["classes"]):
        raise ScratchvitError(f"{config.data}: its classes are not those of the run in {path}; use the run's --data")
    history = read_metrics(folder.metrics) if folder.metrics.exists() else checkpoint.progress["history"]
    run = Run(
        folder.path, written, history, loaded, model, checkpoint.progress["epoch"], versions=checkpoint.versions
    )
    return dataclasses.replace(run, predictions=predict(model, loaded.eval_loader(run.split, config.batch_size)))


def write_report(run: Run, path: str | Path) -> None:
    """Write the report of a run into an HTML file. Raises ScratchvitError if it cannot be written."""
    config = run.config
    sections = [
        _header(run),
        section("Curves", run.history, lambda: _curves(run)),
        section("Confusion matrix", run.has_answers, lambda: _confusion(run)),
        section("Most confident mistakes", run.has_answers, lambda: _mistakes(run)),
        section("Attention maps", shows_attention(run.model), lambda: _attention(run)),
        section("Completions", generates(run.model), lambda: _completions(run)),
        section("Augmentation", True, lambda: _augmentation(run)),
        section("Configuration", True, lambda: configuration(config, config_of(run.model))),
        section("What to do next", run.commands, lambda: next_steps(run.commands)),
        footer(run.path, run.versions),
    ]
    write_page(path, f"{config.model} on {run.split.name}", sections)


def _header(run: Run) -> Element:
    config, made = run.config, len(run.history)
    if run.predictions is None:
        lead = "No epoch of this run is finished yet."
    elif run.finished:
        lead = f"The weights of epoch {run.best_epoch}, the best on the validation images, on the {_count(run)}."
        if not run.on_test:
            lead += " There is no test split; as the epoch was chosen by these images, new ones may be harder."
    else:
        lead = (
            f"The run has finished {made} of {counted(config.epochs, 'epoch')}. Until it ends, it is evaluated on the "
            f"{_count(run)}; the test images are used only once, at the end."
        )
    facts = []
    if run.predictions is not None and run.model is not None:
        part, seconds = "test" if run.on_test else "validation", sum(row["seconds"] for row in run.history)
        facts = [
            *_measured(run, part),
            ("best epoch", f"{run.best_epoch} of {config.epochs}"),
            ("time", duration(seconds)),
            ("images per second", f"{sum(row['images_per_second'] for row in run.history) / max(1, made):,.0f}"),
            ("parameters", f"{run.model.num_parameters():,}"),
        ]
        if isinstance(run.model, TokenModel):
            facts.append(("tokens", f"{run.model.num_tokens:,}"))
    facts += [("training images", f"{len(run.data.splits.train):,}"), ("device", config.device)]
    return header(f"{config.model} on {run.split.name}", lead, facts, stress=bool(made))


def _measured(run: Run, part: str) -> list[tuple[str, str]]:
    assert run.predictions is not None
    meter = run.predictions.meter
    if not generates(run.model):
        return [(f"{part} accuracy", f"{meter.accuracy:.2%}"), (f"{part} loss", f"{meter.loss:.4f}")]
    bits, baseline = run.bits or bits_and_baseline(run.model, run.data.splits, run.split, meter.loss)
    return [
        (f"{part} bits per pixel", f"{bits:.3f}"),
        ("baseline: colour frequencies by position, bits per pixel", f"{baseline:.3f}"),
        (f"{part} accuracy of the next pixel", f"{meter.accuracy:.2%}"),
    ]


def _count(run: Run) -> str:
    return counted(len(run.split), f"{'test' if run.on_test else 'validation'} image")


def _curves(run: Run) -> list[Element]:
    rows, plots, lead = run.history, CURVES, []
    if generates(run.model):
        rows, plots = in_bits(rows), GENERATIVE_CURVES
        words = "Bits per pixel: the mean of −log₂ p, where p is the predicted probability of the true colour."
        lead = [element("p", words, class_="faint")]
    columns = ("epoch", *(column for lines in plots.values() for column, _, _ in lines), "images_per_second")
    return [*lead, *curves(rows, plots), numbers(rows, columns)]


def _completions(run: Run) -> list[Element]:
    return completions(cast(IGPT, run.model), run.split, run.config.seed)


def _confusion(run: Run) -> list[Element]:
    assert run.predictions is not None
    counts, names = run.predictions.confusion(len(run.names)), run.names
    scores = class_scores(counts)
    shares = [["–" if np.isnan(value) else f"{value:.1%}" for value in values] for values in zip(*scores.values())]
    rows = [[name, f"{counts[i].sum():,}", *shares[i]] for i, name in enumerate(names)]
    head = ["class", "images", *scores]
    lead = element("p", f"Rows: true classes of the {_count(run)}. Columns: predicted classes.", class_="faint")
    if len(names) <= CLASSES_IN_FULL:
        return [lead, element("div", _confusion_table(counts, names), table(head, rows), class_="beside")]

    wrong = counts * ~np.eye(len(names), dtype=bool)
    pairs = [np.unravel_index(k, wrong.shape) for k in np.argsort(-wrong, axis=None, kind="stable")[:PAIRS]]
    confused = [
        [names[i], names[j], f"{wrong[i, j]:,}", f"{wrong[i, j] / counts[i].sum():.1%}"]
        for i, j in pairs if wrong[i, j]
    ]
    worst = np.argsort(scores["F1"], kind="stable")[:WORST]        # NaN, classes without images, come last
    tables = [
        element("div", element("h3", "Most frequent confusions"),
                table(["true", "predicted", "images", "of the class"], confused, names=2)),
        element("div", element("h3", "The hardest classes, by F1"), table(head, [rows[i] for i in worst])),
    ]
    return [
        lead, element("div", _confusion_map(counts), *tables, class_="beside"),
        element("details", element("summary", f"all {len(names)} classes"), table(head, rows)),
    ]


def _confusion_table(counts: np.ndarray, names: Sequence[str]) -> Element:
    def cell(i: int, j: int) -> Element:
        share = counts[i, j] / max(1, counts[i].sum())
        if not counts[i, j]:
            return element("td", "·", class_="none")
        style = f"background: rgba(var(--{'right' if i == j else 'wrong'}), {0.12 + 0.88 * share:.2f})"
        title = f"{names[i]}, predicted as {names[j]}: {share:.1%}"
        return element("td", f"{counts[i, j]}", style=style, title=title, class_="strong" if share > 0.5 else None)

    size = range(len(names))
    head = element("tr", element("th"), *(element("th", element("span", name)) for name in names))
    rows = [element("tr", element("th", names[i], title=names[i]), *(cell(i, j) for j in size)) for i in size]
    matrix = element("table", element("thead", head), element("tbody", *rows), class_="confusion")
    return element("div", matrix, class_="scroll")


def _confusion_map(counts: np.ndarray) -> Element:
    """A pixel for each pair of classes: blue on the diagonal, red elsewhere; opacity is its fraction of the row."""
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    diagonal = np.eye(len(counts), dtype=bool)
    pixels = np.empty((*counts.shape, 4), np.uint8)
    pixels[..., :3] = np.where(diagonal[..., None], (68, 119, 170), (221, 85, 102))
    pixels[..., 3] = (255 * np.sqrt(shares)).round()        # so that a few mistakes can be seen
    words = f"confusion matrix of {len(counts)} classes"
    return element("img", src=data_uri(Image.fromarray(pixels), "png"), alt=words, class_="pixels map")


def _mistakes(run: Run) -> list[Element]:
    assert run.predictions is not None
    predictions, names, files = run.predictions, run.names, getattr(run.split, "paths", None)
    chosen = predictions.confident_mistakes(MISTAKES)
    wrong = int((predictions.predicted != predictions.labels).sum())
    if not wrong:
        return [element("p", f"None: all {_count(run)} are classified correctly.")]
    figures = []
    for index, pixels in zip(chosen, run.split.images(chosen)):
        file = files[index].name if files else f"no. {index}"
        predicted, true = names[predictions.predicted[index]], names[predictions.labels[index]]
        caption = element(
            "figcaption", "predicted ", element("b", predicted), f" {predictions.probability[index]:.1%}",
            element("br"), "true ", element("b", true), element("br"), element("small", file),
        )
        img = picture(pixels, f"{true}, predicted as {predicted}", str(files[index]) if files else file)
        figures.append(element("figure", img, caption))
    lead = f"{wrong:,} of the {_count(run)} are misclassified; these are the ones with the highest confidence."
    return [element("p", lead, class_="faint"), element("div", *figures, class_="pictures")]


def _attention(run: Run) -> list[Element]:
    assert run.model is not None
    split, names = run.split, run.names
    places = first_of_each_class(split.labels, ATTENTION_PICTURES)
    pictures = split.images(places)
    last, flow, predicted = last_and_rollout(run.model, Normalize(run.data.mean, run.data.std)(pictures))
    figures = []
    for pixels, label, prediction, *maps in zip(pictures, split.labels[places], predicted, last, flow):
        heats = [picture(overlay(pixels, heat), "attention map") for heat in maps]
        words = f"{names[label]}, predicted as {names[prediction]}" if prediction != label else names[label]
        caption = element("figcaption", words, class_="wrong" if prediction != label else None)
        triple = element("div", picture(pixels, names[label]), *heats, class_="triple")
        figures.append(element("figure", triple, caption))
    lead = "An image, the attention of the last layer (mean over heads), and the rollout of attention over all layers."
    return [element("p", lead, class_="faint"), element("div", *figures, class_="triples")]


def _augmentation(run: Run) -> list[Element]:
    config, data, train = run.config, run.data, run.data.splits.train
    if not augments(config):
        return [element("p", "None: the training images of this run are not augmented.")]
    transform: Any = data.train_loader(config).transform
    mix = make_mix(config, len(run.names))
    smoothed = config.label_smoothing / max(1, len(run.names))
    places = first_of_each_class(train.labels, AUGMENTED_PICTURES)
    pictures, labels = train.images(places), train.labels[places]
    draws = draw_batches(pictures, labels, transform, mix, (data.mean, data.std), DRAWS, config.seed)

    cells = [element("div", "original", class_="head")]
    cells += [element("div", "mixed" if draw.shares is not None else "augmented", class_="head") for draw in draws]
    for row, pixels in enumerate(pictures):
        name = train.classes[labels[row]]
        cells.append(element("figure", picture(pixels, name), element("figcaption", name)))
        for draw in draws:
            words = None if draw.shares is None else _shares(draw.shares[row], run.names, smoothed)
            caption = None if words is None else element("figcaption", words)
            cells.append(element("figure", picture(draw.pictures[row], words or f"{name}, augmented"), caption))
    steps = [type(step).__name__ for step in transform.transforms]
    if mix:
        steps += ["MixUp"] * (mix.mixup_alpha > 0) + ["CutMix"] * (mix.cutmix_alpha > 0)
    lead = f"Training images and random augmentations of them, as in this run: {', '.join(steps)}."
    columns = f"grid-template-columns: repeat({1 + len(draws)}, minmax(5rem, 1fr))"
    grid = element("div", *cells, class_="draws", style=columns)
    return [element("p", lead, class_="faint"), element("div", grid, class_="scroll")]


def _shares(shares: np.ndarray, names: Sequence[str], smoothed: float) -> str:
    """A soft target as text: the classes whose probability is larger than label smoothing alone gives them."""
    mixed = [c for c in np.argsort(-shares, kind="stable")[:2] if shares[c] - smoothed >= 0.005]
    return ", ".join(f"{shares[c]:.0%} {names[c]}" for c in mixed)
