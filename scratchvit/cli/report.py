"""`scratchvit report`: a run's report, as one HTML page."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from scratchvit import backend
from scratchvit.cli import detect_train, train
from scratchvit.cli._options import Parser, add_device
from scratchvit.detection.config import DetectConfig
from scratchvit.errors import ScratchvitError
from scratchvit.reports.classification import open_run, write_report
from scratchvit.reports.detection import open_detection_run, write_detection_report
from scratchvit.training.folder import command_of, data_of_run
from scratchvit.weights.pretrained import trained


def report(argv: Sequence[str]) -> int:
    """Write the report of a run into its folder."""
    parser = Parser(
        prog="scratchvit report", usage="scratchvit report RUN [options]",
        description="Write a run's report.html again: learning curves, confusion matrix, most confident mistakes,\n"
        "attention maps, augmentation and settings, on one page that opens without a server. The run may be finished,\n"
        "interrupted, or still in progress.\n\n"
        "  scratchvit report runs/NAME",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="the run folder")
    parser.add_argument("--data", help="the data of the run, if they were moved")
    parser.add_argument("--data-dir", metavar="DIR", help="folder with the files of a named data set, if it was moved")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="the file to write (default: report.html in the run folder)"
    )
    add_device(parser)
    given = parser.parse_strictly(argv)

    if not given.run.exists() and str(given.run) in trained():
        raise ScratchvitError(
            f"{given.run} is a trained model of the package, which has no run to report on; `scratchvit eval` and "
            "`detect-eval` measure it, and `scratchvit inspect` draws it"
        )
    backend.use(given.device)
    out = given.out or given.run / "report.html"
    write = _of_detector if command_of(given.run) == DetectConfig.command else _of_classifier
    with data_of_run(given.data):
        write(given, out)
    print(out)
    return 0


def _of_classifier(given: argparse.Namespace, out: Path) -> None:
    run = open_run(given.run, given.data, given.data_dir)
    write_report(dataclasses.replace(run, commands=train.next_commands(run)), out)


def _of_detector(given: argparse.Namespace, out: Path) -> None:
    if given.data_dir is not None:
        raise ScratchvitError(f"{given.run} is the run of a detector, which has no --data-dir: use --data FOLDER")
    run = open_detection_run(given.run, given.data)
    write_detection_report(dataclasses.replace(run, commands=detect_train.next_commands(run)), out)
