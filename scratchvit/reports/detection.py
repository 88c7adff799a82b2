"""The report of a detector's run: one self-contained HTML file, like a classifier's (classification.py).

    write_detection_report(open_detection_run("runs/scenes-detr_tiny-1"), "report.html")

Every figure is explained, with what a bad one means: why AP stays at zero, or why an object is found twice. Sections
(§) and figures are those of DETR, Carion et al., ECCV 2020, arXiv 2005.12872.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np
from PIL import Image

from scratchvit.detection import draw_boxes
from scratchvit.detection.config import DetectConfig
from scratchvit.detection.data.annotations import Annotations, DetectionDataset, DetectionSplits
from scratchvit.detection.data.batches import DetectionBatch, DetectionLoader, pad
from scratchvit.detection.detector import Detector, open_detector
from scratchvit.detection.evaluation import CocoFigures, can_evaluate, evaluate_boxes, results_of
from scratchvit.detection.run_data import load_data
from scratchvit.detection.task import make_criterion
from scratchvit.errors import ScratchvitError
from scratchvit.files import counted
from scratchvit.inspect.detection import as_seen, cross_attention, encoder_attention, matching, query_boxes
from scratchvit.inspect.detection_pictures import (
    POINTS,
    THRESHOLD,
    Seen,
    cross_attention_panels,
    encoder_attention_panels,
    query_box_panels,
)
from scratchvit.inspect.figures import read_metrics
from scratchvit.reports.detection_curves import detection_curves
from scratchvit.reports.page import (
    configuration,
    data_uri,
    duration,
    element,
    footer,
    header,
    next_steps,
    section,
    table,
    write_page,
)
from scratchvit.reports.panels import groups, matchings, squares
from scratchvit.training.checkpoint import current_versions
from scratchvit.training.folder import RunFolder, read_config

PREDICTIONS, ATTENTION_PICTURES, MATCHED = 8, 3, 2      # numbers of pictures in the sections
QUERY_PICTURES = 200        # pictures for which the boxes of every query are drawn


@dataclass(frozen=True)
class DetectionRun:
    """The content of a report. Before the end of the first epoch there are no detector and no figures."""

    path: Path                                      # the run folder
    config: DetectConfig
    history: Sequence[Mapping[str, Any]]            # the rows of metrics.csv
    splits: DetectionSplits
    detector: Detector | None = None                # with its best weights
    figures: CocoFigures | None = None              # of `split`, by these weights
    best_epoch: int = 0                             # from 1
    versions: Mapping[str, str] = field(default_factory=current_versions)
    commands: Mapping[str, str] = field(default_factory=dict)       # {what it does: command line}

    @property
    def finished(self) -> bool:
        return len(self.history) >= self.config.epochs

    @property
    def part(self) -> str:
        return "test" if self.finished else "validation"

    @property
    def split(self) -> DetectionDataset:
        """The split that is evaluated: the test split only once, at the end of the run."""
        return self.splits.test if self.finished else self.splits.val


@dataclass(frozen=True)
class _Example:
    """A picture, the model's view of it, uint8 (H, W, 3) and float32 (3, H, W), and its target."""

    original: Image.Image
    annotations: Annotations
    picture: np.ndarray
    image: np.ndarray
    target: dict[str, Any]


def open_detection_run(path: str | Path, data: str | None = None) -> DetectionRun:
    """Open a run, finished, interrupted or still in progress, and evaluate its best weights so far.

    data: the data of the run, if they were moved.
    Raises ScratchvitError for a folder without a detector's run, damaged files, and data that are not those of the run.
    """
    folder = RunFolder(Path(path))
    written = read_config(folder.path, DetectConfig)
    config = written.replace(data=data) if data is not None else written
    if not folder.best.exists():
        return DetectionRun(folder.path, written, [], load_data(config, config.init).splits)
    detector = open_detector(folder.best)
    splits = load_data(config, folder.best).splits
    if splits.train.classes != detector.classes:
        raise ScratchvitError(f"{config.data}: its classes are not those of the run in {path}; use the run's --data")
    assert detector.checkpoint is not None
    progress, versions = detector.checkpoint.progress, detector.checkpoint.versions
    history = read_metrics(folder.metrics) if folder.metrics.exists() else progress["history"]
    run = DetectionRun(
        folder.path, written, history, splits, detector, best_epoch=progress["epoch"], versions=versions
    )
    if not can_evaluate():
        return run
    results = results_of(*detector.in_dataset(run.split, config.batch_size), detector.category_ids)
    return dataclasses.replace(run, figures=evaluate_boxes(run.split.ground_truth(), results))


def write_detection_report(run: DetectionRun, path: str | Path) -> None:
    """Write the report of a detector's run. Raises ScratchvitError if the file cannot be written.

    A figure that cannot be drawn, without Matplotlib or because the model has diverged, is replaced by a sentence.
    """
    detector = run.detector
    count = min(PREDICTIONS, len(run.split)) if detector else 0

    @functools.cache
    def examples() -> list[_Example]:
        assert detector is not None
        return [_example(run.split, index, detector) for index in range(count)]

    def about(build: Callable[[DetectionRun, Detector, Sequence[_Example]], list[Element]]) -> list[Element]:
        assert detector is not None
        return build(run, detector, examples())

    sections = [
        _header(run),
        section("Curves", run.history, lambda: detection_curves(run.history)),
        section("Average precision and recall", run.figures, lambda: _figures(run)),
        section("Detections", detector, lambda: about(_predictions)),
        section("Cross-attention of the decoder", detector, lambda: about(_cross_attention)),
        section("Self-attention of the encoder", _depth(detector), lambda: about(_encoder_attention)),
        section("Boxes of each query", detector, lambda: about(_query_boxes)),
        section("Matching of objects and queries", detector, lambda: about(_matching)),
        section("Data", run.splits.notes or run.splits.skipped, lambda: _data(run)),
        section("Configuration", True, lambda: configuration(
            run.config, detector.model.config if detector else None
        )),
        section("What to do next", run.commands, lambda: next_steps(run.commands)),
        footer(run.path, run.versions),
    ]
    write_page(path, _title(run), sections)


def _depth(detector: Detector | None) -> int:
    return detector.model.config.enc_layers if detector else 0


def _example(split: DetectionDataset, index: int, detector: Detector) -> _Example:
    original, annotations = split.example(index)
    return _Example(original, annotations, *as_seen(detector, original), split.target(index))


def _title(run: DetectionRun) -> str:
    return f"{run.config.model} on {run.split.name}"


def _header(run: DetectionRun) -> Element:
    made, epochs = len(run.history), run.config.epochs
    if not made or run.detector is None:
        lead = "No epoch of this run is finished yet."
    elif run.finished:
        lead = f"The weights of epoch {run.best_epoch}, the best on the validation pictures, on the {_count(run)}."
    else:
        lead = (
            f"The run has finished {made} of {counted(epochs, 'epoch')}. Until it ends, it is evaluated on the "
            f"{_count(run)}; the test pictures are used only once, at the end."
        )
    facts = []
    if run.figures is not None:
        facts += [(f"{run.part} {name}", _shown(getattr(run.figures, name))) for name in ("AP", "AP50", "AP75")]
    if made:
        facts += [
            ("best epoch", f"{run.best_epoch} of {epochs}"),
            ("time", duration(sum(row["seconds"] for row in run.history))),
            ("images per second", f"{sum(row['images_per_second'] for row in run.history) / made:,.1f}"),
        ]
    if run.detector is not None:
        model = run.detector.model
        facts += [("parameters", f"{model.num_parameters():,}"), ("object queries", f"{model.config.num_queries}")]
    facts += [("training pictures", f"{len(run.splits.train):,}"), ("device", run.config.device)]
    return header(_title(run), lead, facts, stress=run.figures is not None)


def _count(run: DetectionRun) -> str:
    return counted(len(run.split), f"{run.part} picture")


def _shown(figure: float | None) -> str:
    return "–" if figure is None else f"{figure:.3f}"


# --- the run --------------------------------------------------------------------------------------------------------


def _figures(run: DetectionRun) -> list[Element]:
    assert run.figures is not None
    head, *rows = run.figures.rows()
    class_head, *classes = run.figures.class_rows()
    lead = (
        f"COCO's figures on the {_count(run)}. AP50 requires an IoU of 0.50, AP75 of 0.75, and AP is the mean from 0.5 "
        "to 0.95; AR is the share of objects found, with 1, 10 or 100 boxes per picture. High AR and low AP: the boxes "
        "are right, but not their classes or scores. High AP50 and low AP75: objects are found, but their boxes are "
        "not exact. DETR is weak on small objects (under 32² pixels, §4.1); a higher resolution helps."
    )
    return [element("p", lead), element("div", table(head, rows), table(class_head, classes), class_="beside")]


def _data(run: DetectionRun) -> list[Element]:
    skipped = run.splits.skipped
    parts = [element("p", note) for note in run.splits.notes]
    if skipped:
        entries = element("ul", *(element("li", sentence) for sentence in skipped))
        summary = f"{counted(len(skipped), 'bad entry', 'bad entries')} left out or clipped"
        parts.append(element("details", element("summary", summary), entries))
    return parts


# --- inside its model -----------------------------------------------------------------------------------------------


def _predictions(run: DetectionRun, detector: Detector, examples: Sequence[_Example]) -> list[Element]:
    drawn = [
        draw_boxes.draw_boxes(
            one.original, run.split.classes, found, one.annotations, threshold=THRESHOLD, side=320
        )
        for one in examples for found in detector.in_pictures([one.original])
    ]
    lead = (
        f"The first {len(drawn)} of the {_count(run)}. Solid: detections with a score of at least {THRESHOLD}; dashed: "
        "ground truth. Two boxes on one object: there is no non-maximum suppression (NMS) to remove one; queries must "
        "avoid duplicates by self-attention in the decoder (§3.2). Its first layer alone cannot do that (§4.2, Fig. "
        "4), nor can a model after little training. No box at all: all scores are low; the picture says the best one."
    )
    figures = [
        element("figure", element("img", src=data_uri(image, "jpeg"), alt=f"detections in picture {number}",
                                  width=image.width, height=image.height))
        for number, image in enumerate(drawn, 1)
    ]
    return [element("p", lead), element("div", *figures, class_="detections")]


def _cross_attention(run: DetectionRun, detector: Detector, examples: Sequence[_Example]) -> list[Element]:
    seen = []
    for one in examples[:ATTENTION_PICTURES]:
        (found,) = detector.in_pictures([Image.fromarray(one.picture)])
        seen.append(Seen(one.picture, found, cross_attention(detector.model, one.image).mean(axis=0)))
    words = (
        "The cross-attention of the last decoder layer over the picture, mean over heads, for the detections with the "
        "highest scores (Fig. 6). A trained decoder attends to the extremities of an object, which determine its box "
        "(§4.2). The same map for every query, or a uniform one: the queries do not depend on positions yet, and their "
        "boxes are those typical of the data. If an object is found twice, two queries attend to it"
        + (", or one predicts two classes." if detector.model.config.focal else ".")
    )
    return [element("p", words), groups([cross_attention_panels(one, run.split.classes) for one in seen])]


def _encoder_attention(run: DetectionRun, detector: Detector, examples: Sequence[_Example]) -> list[Element]:
    one = max(examples, key=lambda example: min(POINTS, len(example.target["boxes"])))      # the first that has enough
    points = [(float(x), float(y)) for x, y in one.target["boxes"][:POINTS, :2].clip(0, 1)] or [(0.5, 0.5)]
    maps = np.stack([encoder_attention(detector.model, one.image, point).mean(axis=1) for point in points])
    words = (
        "The self-attention of the feature at the centre of an object, in every encoder layer, mean over heads "
        "(Fig. 3). A trained encoder already separates objects: the last maps are bright on the object itself (§4.2). "
        "Equally bright on all objects, or on none: only the decoder separates them."
    )
    return [element("p", words), groups(encoder_attention_panels(one.picture, points, maps))]


def _query_boxes(run: DetectionRun, detector: Detector, examples: Sequence[_Example]) -> list[Element]:
    loader = DetectionLoader(
        run.split, run.config.batch_size, detector.normalize, steps=detector.step, stretch=1
    )
    with closing(iter(loader)) as batches:  # type: ignore[type-var]
        predictions = query_boxes(
            detector.model, itertools.islice(batches, -(-QUERY_PICTURES // run.config.batch_size))
        )
    unused = int((predictions.used(THRESHOLD) == 0).sum())
    count = predictions.scores.shape[1]
    expected = (
        "Trained queries specialise in different positions and sizes (§4.3). All dots in one place: the boxes do not "
        "depend on the picture yet."
    )
    if getattr(detector.model.config, "two_stage", False):
        expected = (
            "With two_stage, queries have no fixed positions: the first starts from the best box of the encoder, "
            "wherever that is, the second from the second best, so the first queries find most objects."
        )
    words = (
        f"A square for each query, most used first, with a dot at the centre of each of its boxes in "
        f"{counted(len(predictions.boxes), f'{run.part} picture')}, pale if its score is below {THRESHOLD} (Fig. 7). "
        f"{expected} {unused} of the {count} queries have no detection here. That is normal, because DETR needs many "
        "more queries than objects (§3.1); in a picture with more objects than queries, some objects are missed."
    )
    return [element("p", words), *squares(*query_box_panels(predictions))]


def _matching(run: DetectionRun, detector: Detector, examples: Sequence[_Example]) -> list[Element]:
    matcher = make_criterion(run.config, detector.model).matcher
    chosen = examples[:MATCHED]
    batch = DetectionBatch(*pad([one.image for one in chosen]), [one.target for one in chosen])
    found = matching(detector.model, matcher, batch)
    least = "" if matcher.focal else f" A perfect prediction costs −{matcher.cost_class + matcher.cost_giou:g}."
    words = (
        "As in a training step, every object (dashed) is matched to one query (solid) such that the sum of costs is "
        f"minimal (§3.1, eq. 1). The cost has three parts, shown with their weights.{least} If the second best query "
        "costs about the same, the object may be matched to it in the next epoch, and neither learns it well: this "
        "makes DETR slow at first, and denoising queries are a remedy (DN-DETR, arXiv 2203.01305). In a trained model "
        "the second best is much worse, because duplicates are penalised."
    )
    return [element("p", words), matchings([one.picture for one in chosen], found, run.split.classes)]
