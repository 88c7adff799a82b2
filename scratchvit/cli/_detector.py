"""Shared by the detection commands: options that name a detector, and printing the detector and its scores."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from scratchvit.cli._text import filled, labelled_lines, table
from scratchvit.cli._weights import add_entry, add_label_order
from scratchvit.detection.detector import Detector
from scratchvit.detection.evaluation import CocoFigures
from scratchvit.files import counted, printable

SENTENCES = 5       # largest number of skipped entries that are listed


RUN = (
    "a run folder of `scratchvit detect-train`, a checkpoint in it, the name of a trained detector (`scratchvit models "
    "--trained`), or third-party DETR weights (.safetensors, .pth, .bin, .npz)"
)


def add_detector(parser: argparse.ArgumentParser) -> None:
    """Add --model, --labels, --label-order and --entry, arguments of `open_detector`."""
    parser.add_argument(
        "--model", metavar="NAME", help="name of the model, for third-party weights (default: read from config.json)"
    )
    parser.add_argument("--labels", type=Path, metavar="FILE", help="class names: one per line, or JSON")
    add_label_order(parser)
    add_entry(parser)


def print_detector(detector: Detector, path: Path, precision: str) -> None:
    """Print the model, how its weights were loaded, how pictures are preprocessed, and where class names are from.

    precision: what `precision_text` says.
    """
    rows = [
        ("model", f"{detector.name} from {printable(path)}"),
        *(("", line) for line in detector.loading),
        ("pictures", printable(detector.prepares)),
        ("classes", f"{len(detector.classes):,}, {printable(detector.classes_from)}"),
        ("precision", precision),
    ]
    print(f"{labelled_lines(rows)}\n")


def print_figures(figures: CocoFigures) -> None:
    """Print COCO's twelve figures, then AP class by class."""
    print(f"\n{table(figures.rows())}\n")
    print(f"{table([[printable(cell) for cell in row] for row in figures.class_rows()])}")


def bad_entries(skipped: Sequence[str]) -> str:
    """How many entries --skip-bad left out or clipped, as text; "" if there are none."""
    return f"{counted(len(skipped), 'bad entry', 'bad entries')} left out or clipped" if skipped else ""


def print_skipped(skipped: Sequence[str]) -> None:
    """Print how many entries --skip-bad left out or clipped, and the first of them; nothing if there are none."""
    if skipped:
        print(f"\n{bad_entries(skipped)}")
        for sentence in skipped[:SENTENCES]:
            print(filled(f"  {printable(sentence)}", 2))
        if len(skipped) > SENTENCES:
            print(f"  … and {len(skipped) - SENTENCES} more")
