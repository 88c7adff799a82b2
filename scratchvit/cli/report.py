"""`scratchvit report`: a run on one page, to open in a browser; and the command lines that it tells."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from scratchvit import backend
from scratchvit.cli.options import Parser, add_device, command_line
from scratchvit.detection.config import DetectConfig
from scratchvit.errors import ScratchvitError
from scratchvit.inspect.report import open_run, write_report
from scratchvit.recipes import list_recipes, load_recipe
from scratchvit.training.config import RunConfig
from scratchvit.training.folder import command_of


def report(argv: Sequence[str]) -> int:
    """Write the report of a run into its folder."""
    parser = Parser(
        prog="scratchvit report",
        description="Write a run's report.html anew: how it learned, what it confuses, its surest mistakes, where it\n"
        "looks, its augmentation and settings, on one page that opens without a server. The run may have ended, been\n"
        "stopped, or still be going.\n\n"
        "  scratchvit report runs/digits-vit_tiny_patch16_224-1\n"
        "  scratchvit report runs/scenes-detr_tiny-1",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="the run's folder")
    parser.add_argument("--data", help="its images, if they are elsewhere now")
    parser.add_argument("--data-dir", metavar="DIR", help="where the files of a named data set are now")
    parser.add_argument("--out", type=Path, metavar="FILE", help="(default: report.html in the run's folder)")
    add_device(parser)
    given = parser.parse_strictly(argv)

    backend.use(given.device)
    out = given.out or given.run / "report.html"
    write = _of_detector if command_of(given.run) == DetectConfig.command else _of_classifier
    write(given, out)
    print(out)
    return 0


# What trains is imported where it is needed: it imports this module.


def _of_classifier(given: argparse.Namespace, out: Path) -> None:
    from scratchvit.cli.train import parse

    run = open_run(given.run, given.data, given.data_dir)
    write_report(dataclasses.replace(run, commands=commands(run.config, run.path, parse)), out)


def _of_detector(given: argparse.Namespace, out: Path) -> None:
    from scratchvit.cli.detect_train import parse
    from scratchvit.inspect.detection_report import open_detection_run, write_detection_report

    if given.data_dir is not None:
        raise ScratchvitError(f"{given.run} is a detector's run, whose pictures are in one folder: name it with --data")
    run = open_detection_run(given.run, given.data)
    write_detection_report(dataclasses.replace(run, commands=commands(run.config, run.path, parse)), out)


Parse = Callable[[Sequence[str]], tuple[RunConfig, Path, bool]]


def commands(config: RunConfig, folder: Path, parse: Parse) -> dict[str, str]:
    """What a report tells to type: {what it does: command line}. parse: that of the command which began the run."""
    resume = ["scratchvit", config.command, "--resume", str(folder)]
    told = {
        "Go on with it, also for longer (--epochs):": command_line(resume),
        "Write this page anew:": command_line(["scratchvit", "report", str(folder)]),
    }
    again = command_for(config, parse)
    return ({"Run it again:": again} if again else {}) | told


def command_for(config: RunConfig, parse: Parse) -> str | None:
    """A command line that `parse` reads as this configuration; None for one that only Python can ask for."""
    wanted = config.as_read_back()
    kind = type(config)
    recipes = [name for name in list_recipes(kind) if load_recipe(name, kind).model == config.model]
    # A model that is not named has the sizes of the data's recipe, one that is named those of its paper.
    for begin in ([], ["--model", config.model], *(["--recipe", name] for name in recipes)):
        words = ["--data", config.data, *begin]
        with contextlib.suppress(SystemExit, ScratchvitError), contextlib.redirect_stderr(io.StringIO()):
            base, _, _ = parse(words)
            words += [*_options(vars(config), vars(base)), *_options(config.model_args, base.model_args)]
            if parse(words)[0].as_read_back() == wanted:
                return command_line(["scratchvit", config.command, *words])
    return None


def _options(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> Iterator[str]:
    """The options for those values that are not the defaults."""
    for name, value in values.items():
        if name == "model_args" or value is None or value == defaults.get(name):
            continue
        option = name.replace("_", "-")
        if isinstance(value, bool):
            yield f"--{option}" if value else f"--no-{option}"
        else:
            yield f"--{option}"
            yield ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
