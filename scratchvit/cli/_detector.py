"""What the commands of detection share: naming a detector, and telling which it is and how good."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from scratchvit.cli._options import table
from scratchvit.detection.detector import Detector
from scratchvit.detection.evaluation import CocoFigures
from scratchvit.files import printable

SENTENCES = 5       # of what was left out, beyond which only their number is told


def add_detector(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """--checkpoint, --model and --labels, as `open_detector` takes them."""
    parser.add_argument(
        "--checkpoint", type=Path, required=required, metavar="FILE",
        help="of `scratchvit detect-train`, or the run's folder; or DETR's weights from elsewhere: .safetensors, .pth, "
        ".bin, .npz",
    )
    parser.add_argument("--model", metavar="NAME", help="the model of the weights (default: what config.json says)")
    parser.add_argument("--labels", type=Path, metavar="FILE", help="names of the classes: one a line, or JSON")


def print_detector(detector: Detector, path: Path) -> None:
    """Which model it is, what was done with its weights, how pictures are prepared, and where its classes are from."""
    print(f"model     {detector.name} from {printable(path)}")
    for line in detector.loading:
        print(f"          {line}")
    print(f"pictures  {printable(detector.prepares)}")
    print(f"classes   {len(detector.classes):,}, {printable(detector.classes_from)}\n")


def print_figures(figures: CocoFigures) -> None:
    """The twelve figures, and those of each class."""
    print(f"\n{table(figures.rows())}\n")
    print(f"{table([[printable(cell) for cell in row] for row in figures.class_rows()])}\n")


def print_skipped(skipped: Sequence[str]) -> None:
    """How much --skip-bad left out or clipped, and the first sentences on it; nothing where there was none."""
    if skipped:
        print(f"{len(skipped)} bad entries left out or clipped")
        for sentence in skipped[:SENTENCES]:
            print(f"  {printable(sentence)}")
        if len(skipped) > SENTENCES:
            print(f"  … and {len(skipped) - SENTENCES} more")
