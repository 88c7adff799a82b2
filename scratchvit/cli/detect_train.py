"""`scratchvit detect-train`: trains a detector, prints COCO's figures, and writes a report."""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from scratchvit import progress
from scratchvit.cli._bugs import bugs_reported
from scratchvit.cli._detector import SENTENCES, bad_entries, print_figures
from scratchvit.cli._options import command_line
from scratchvit.cli._output import note_result
from scratchvit.cli._run_command import (
    TrainingCommand,
    changed_settings,
    describe_device,
    describe_precision,
    describe_ranks,
    describe_resuming,
    describe_settings,
    describe_steps,
    files_and_commands,
)
from scratchvit.cli._text import filled, labelled_lines
from scratchvit.detection.config import DetectConfig
from scratchvit.detection.data.annotations import DetectionDataset
from scratchvit.detection.data.transforms import View
from scratchvit.detection.detector import MANY_TOKENS, encoder_tokens, open_detector
from scratchvit.detection.evaluation import can_evaluate
from scratchvit.detection.task import DetectionResult, DetectionTask, prepare_detector
from scratchvit.errors import ScratchvitError
from scratchvit.files import counted, printable, write_atomically
from scratchvit.models.checks import check_detects
from scratchvit.reports.detection import DetectionRun, write_detection_report
from scratchvit.training import TrainingLoop
from scratchvit.training.log import line_legend
from scratchvit.weights.backbone import options_of_resnet
from scratchvit.weights.load import shapes_in

NAMES = 10              # with more classes, only their number is printed

DESCRIPTION = """\
Train a detector: a DETR, which finds the objects in a picture, with a class and a box for each. By default: a small
one on scenes made of scikit-learn's handwritten digits.

  scratchvit detect-train
  scratchvit detect-train --data street --init resnet18-f37072fd.pth
  scratchvit detect-train --resume runs/NAME

The weights of a classifier become the backbone, here those of torchvision. To fine-tune a DETR, use its weights and
--recipe detect_finetune. A resumed run continues bit for bit.

The format of a folder is detected:
  COCO   annotations/instances_train2017.json, … with pictures in train2017, …;
         or train.json, …; or train/_annotations.coco.json, …;
         or one JSON file for all pictures
  VOC    JPEGImages, Annotations, ImageSets/Main/train.txt, …;
         or XML files beside the pictures or in annotations
  YOLO   images/train, labels/train, … or as in data.yaml;
         names in data.yaml or classes.txt
  CSV    filename,width,height,class,xmin,ymin,xmax,ymax;
         or a CSV file of the VGG Image Annotator (VIA)

If there is no val or test split, it is drawn from train. Bad entries (a box outside its picture, an unknown category, a
missing picture, …) are reported before training begins; --skip-bad leaves them out.

The defaults below are those of a recipe (scratchvit/recipes/detect_*.py). The options of the model depend on the model:
`scratchvit detect-train --model NAME --help` lists those of NAME, and `scratchvit models "*detr*"` lists the names.
"""

# The options in the order of the help. Fields of DetectConfig that are not listed are in the group "run".
GROUPS = {
    "data": ("data", "val_fraction", "epoch_images", "skip_bad", "overfit_one_batch"),
    "model": ("model", "init", "entry", "new_head", "freeze_stem"),
    "pictures": ("short_side", "longest", "multi_scale", "flip", "color_jitter"),
    "optimisation": (
        "epochs", "batch_size", "accumulate", "optimizer", "lr", "lr_scaling", "lr_base_batch", "lr_backbone", "min_lr",
        "momentum", "weight_decay", "clip_grad", "schedule", "warmup_epochs", "ema_decay", "layer_decay", "non_finite",
        "precision", "loss_scale",
    ),
    "matching and loss": (
        "cost_class", "cost_bbox", "cost_giou", "weight_ce", "weight_bbox", "weight_giou", "eos_coef",
    ),
}
# Not options: in_chans and num_classes come from the data, and img_size matters to `scratchvit cost` only.
FROM_THE_DATA = {"in_chans", "num_classes", "img_size"}


def _backbone_of(init: str, entry: str | None) -> dict[str, Any]:
    """The options of a DETR whose backbone is the classifier in a file; {} if it is none."""
    with contextlib.suppress(ScratchvitError):      # the run says what is wrong with the file
        return options_of_resnet(shapes_in(init, entry))
    return {}


COMMAND = TrainingCommand(
    DetectConfig, DESCRIPTION, GROUPS, check_detects, FROM_THE_DATA, from_init=_backbone_of
)


def detect_train(argv: Sequence[str]) -> int:
    """Train a detector, evaluate it on the test pictures, and print where everything is."""
    config, folder, resume, ranks = COMMAND.on_ranks(argv)
    loop = prepare_detector(config, folder, resume, ranks=ranks)
    is_first = ranks.rank == 0
    where = folder if is_first else None        # of a traceback: only rank 0 writes to the run's folder
    with loop.folder, bugs_reported(where, argv=[COMMAND.kind.command, *argv]):  # until the report is written
        about_ranks = describe_ranks(config, ranks)
        if is_first:
            print(_start_summary(loop, about_ranks), flush=True)
        result = loop.run()
        if not is_first:
            return 0
        evaluated = "the batch" if config.overfit_one_batch else "test pictures"
        print()
        print(filled(
            f"{evaluated}, with the weights of epoch {result.best_epoch} of {result.epochs}; "
            f"trained for {progress.duration(result.seconds)} at {result.images_per_second:,.1f} images/s"
        ))
        if can_evaluate():
            print_figures(result.test)
        if result.skipped:
            print(f"{counted(result.skipped, 'step')} skipped, because the loss or gradient was not finite")
        print(_end_summary(loop, _write_pictures(loop, result)))
    note_result(
        run=folder, checkpoint=loop.folder.best, **dataclasses.asdict(result.test), best_epoch=result.best_epoch,
        epochs=result.epochs, seconds=result.seconds,
    )
    return 0


# --- the summary at the start ---------------------------------------------------------------------------------------


def _start_summary(loop: TrainingLoop[DetectionTask], about_ranks: Sequence[tuple[str, str]]) -> str:
    """The data, model, settings, device and folder of a run, as text."""
    config, splits = loop.task.config, loop.task.data.splits
    model = _model(loop)
    parts = {name: getattr(splits, name) for name in ("train", "val", "test")}
    classes = [printable(name) for name in splits.train.classes]
    named = f": {', '.join(classes)}" if len(classes) <= NAMES else ""
    rows = [
        ("data", f"{config.data}: {', '.join(f'{len(part):,} {name}' for name, part in parts.items())}"),
        ("boxes", ", ".join(f"{_boxes(part)} {name}" for name, part in parts.items())),
        ("classes", f"{len(classes)}{named}"),
        *(("" if place else "files", line) for place, line in enumerate(splits.files)),
        *(("" if place else "notes", printable(note)) for place, note in enumerate(splits.notes[:SENTENCES])),
        ("", _and_more(splits.notes)),
        ("skipped", bad_entries(splits.skipped)),
        *(("", printable(sentence)) for sentence in splits.skipped[:SENTENCES]),
        ("", _and_more(splits.skipped)),
        ("pictures", _pictures(loop)),
        ("model", f"{config.model}: {model.num_parameters():,} parameters, {model.config.num_queries} object queries"),
        *(("warning", sentence) for sentence in _warnings(loop)),
        ("weights", f"initialised from {config.init}" if loop.loaded else ""),
        *(("", line) for line in str(loop.loaded or "").splitlines()),
        ("sizes", describe_settings(config.model_args)),
        ("resumed", describe_resuming(loop)),
        ("steps", describe_steps(config, len(loop.loader))),
        ("settings", changed_settings(config, [*GROUPS["pictures"][2:], *GROUPS["matching and loss"]])),
        ("device", describe_device(config)),
        *about_ranks,
        ("precision", describe_precision(config)),
        ("folder", str(loop.folder.path)),
        ("epochs", line_legend(loop.task.legend)),
    ]
    return labelled_lines(rows)


def _and_more(sentences: Sequence[str]) -> str:
    return f"… and {len(sentences) - SENTENCES} more" if len(sentences) > SENTENCES else ""


def _boxes(dataset: DetectionDataset) -> str:
    """The number of objects, as text. Scenes that are generated anew in every epoch have no fixed number."""
    return "new ones in every epoch of" if dataset.endless else f"{sum(_objects(dataset)):,}"


def _objects(dataset: DetectionDataset) -> Iterator[int]:
    """The number of objects in each picture, without crowds."""
    return (int((~dataset.annotations(index).crowd).sum()) for index in range(len(dataset)))


def _pictures(loop: TrainingLoop[DetectionTask]) -> str:
    """The sizes that pictures are resized to, and the number of encoder tokens of the largest."""
    (height, width), tokens = _largest(loop)
    return f"{loop.task.data.sizes}; the largest is {height}×{width}, {tokens:,} tokens in the encoder"


def _largest(loop: TrainingLoop[DetectionTask]) -> tuple[tuple[int, int], int]:
    """The size of the largest training picture after resizing for evaluation, and its number of encoder tokens.

    Augmentation never makes it larger.
    """
    train, rng = loop.task.data.splits.train, np.random.default_rng(0)
    shown = (loop.task.data.sizes(View.whole(train.size(index)), rng).size for index in range(len(train)))
    size = max(shown, key=lambda size: size[0] * size[1])
    return size, encoder_tokens(_model(loop).config, size)


def _model(loop: TrainingLoop[DetectionTask]) -> Any:
    return loop.model


def _warnings(loop: TrainingLoop[DetectionTask]) -> list[str]:
    """Settings that are allowed, but with which the run would learn nothing or take very long."""
    config, train, val = loop.task.config, loop.task.data.splits.train, loop.task.data.splits.val
    model = _model(loop)
    sentences = []
    if model.config.frozen_bn and not config.init:
        sentences.append(
            "frozen_bn freezes the batch norms of a backbone without pretrained weights, which then hardly learns: use "
            "--no-frozen-bn, or pretrained weights with --init"
        )
    if not train.endless:
        most = max(_objects(train))
        if not most:
            sentences.append("no training picture has an object, so the model can only learn to find none")
        if most > model.config.num_queries:
            sentences.append(
                f"a picture has {counted(most, 'object')}, but the model has only "
                f"{counted(model.config.num_queries, 'query', 'queries')}: use --num-queries {2 * most}"
            )
    if not can_evaluate():
        sentences.append(
            "AP is not computed, because pycocotools is not installed (pip install pycocotools): the best epoch will "
            "be that of the lowest val loss"
        )
    if not any(_objects(val)):
        sentences.append("val has no object, so AP is undefined: the best epoch will be that of the lowest val loss")
    if (tokens := _largest(loop)[1]) > MANY_TOKENS:
        sentences.append(
            f"{tokens:,} tokens are many: time and memory of attention grow quadratically; use a smaller --short-side"
        )
    return sentences


# --- the results at the end -----------------------------------------------------------------------------------------


def _write_pictures(loop: TrainingLoop[DetectionTask], result: DetectionResult) -> dict[str, str]:
    """Write the report and a test picture to try `detect` on: {file: description}."""
    folder, splits = loop.folder, loop.task.data.splits
    drawn = {}
    try:
        run = DetectionRun(
            folder.path, loop.task.config, loop.history, splits, open_detector(folder.best),
            result.test if can_evaluate() else None,
            result.best_epoch,
        )
        png = io.BytesIO()
        splits.test.picture(0).save(png, format="png")
        write_atomically(folder.path / "sample.png", png.getvalue())
        write_detection_report(
            dataclasses.replace(run, commands=next_commands(run)), folder.path / "report.html"
        )
        drawn["report.html"] = "the whole run on one page: open it in a browser"
        drawn["sample.png"] = "a test picture"
    except ScratchvitError as error:
        print(f"no pictures: {error}")
    if (folder.path / "predictions").exists():
        drawn["predictions"] = "detections in some validation pictures, epoch by epoch"
    return drawn


def next_commands(run: DetectionRun) -> dict[str, str]:
    """Command lines about a run, for its report: {what it does: command line}."""
    folder, sample = str(run.path), run.path / "sample.png"
    uses = {}
    if run.detector is not None:
        picture = str(sample) if sample.exists() else "picture.png"
        uses["Detect objects in pictures, of the run or your own:"] = ["detect", folder, picture]
        uses["See which parts of a picture the model attends to:"] = ["inspect", folder, "--image", picture]
        if not run.config.overfit_one_batch:        # one batch is not a split that detect-eval could use
            uses["Evaluate it again, or on other data (--data):"] = ["detect-eval", folder]
    return COMMAND.lines(run.config, run.path, run.finished, uses)


def _end_summary(loop: TrainingLoop[DetectionTask], drawn: dict[str, str]) -> str:
    """The files of the run, and commands to try next, as text."""
    folder = loop.folder
    run, sample = str(folder.path), str(folder.path / "sample.png")
    commands = [["detect", run, sample]] if "sample.png" in drawn else []
    commands += [["play", run]]
    if loop.task.config.overfit_one_batch:        # one batch is not a split that detect-eval could use
        commands += [["detect-train", "--data", loop.task.config.data]]
    else:
        commands += [["detect-eval", run]]
        commands += [["detect-eval", run, "--split", "val", "--results", "found.json"]]
    lines = [command_line(["scratchvit", *words]) for words in (*commands, ["detect-train", "--help"])]
    return files_and_commands(folder, "losses and AP", drawn, lines)
