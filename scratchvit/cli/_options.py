"""Turns the fields of a configuration into command-line options: `batch_size` becomes `--batch-size`."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import itertools
import math
import os
import re
import shlex
import subprocess
import textwrap
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from scratchvit import loopback
from scratchvit.backend import default_device, gpu_number
from scratchvit.cli._output import heed
from scratchvit.cli._text import columns
from scratchvit.cli._words import COMPLETING, complete_with, completed_by
from scratchvit.data.folder import SUFFIXES, picture_files
from scratchvit.errors import ScratchvitError
from scratchvit.models import list_models, model_config
from scratchvit.weights.pretrained import trained

# What users of other programs type first → the option here.
_KNOWN_ELSEWHERE = {
    "--arch": "--model", "--architecture": "--model", "--backbone": "--model", "--batch": "--batch-size",
    "--bs": "--batch-size", "--config": "--recipe", "--cuda": "--device", "--dataset": "--data",
    "--data-path": "--data",
    "--drop": "--drop-rate", "--drop-path": "--drop-path-rate", "--dropout": "--drop-rate", "--ema": "--ema-decay",
    "--finetune": "--init", "--gpu": "--device", "--image-size": "--img-size", "--imgsz": "--img-size",
    "--input-size": "--img-size", "--learning-rate": "--lr", "--lr-scheduler": "--schedule", "--name": "--out",
    "--num-epochs": "--epochs", "--num-workers": "--workers", "--opt": "--optimizer", "--output": "--out",
    "--output-dir": "--out", "--pretrained": "--init", "--project": "--out", "--run-dir": "--out",
    "--save-dir": "--out",
    "--sched": "--schedule", "--scheduler": "--schedule", "--size": "--img-size", "--smoothing": "--label-smoothing",
    "--source": "--data", "--topk": "--top-k", "--val-split": "--val-fraction", "--wd": "--weight-decay",
    "--weights": "--init", "--conf": "--threshold",
}
_COMPLETED: dict[str, Callable[[], Collection[str]]] = {       # of fields whose values are not listed
    "model": list_models, "device": lambda: ("cpu", "gpu"),
}
_OF_DETECTORS = {"--img-size": "--short-side"}      # pictures of any shape have no one size


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Help as wide as the terminal, at most 100 columns. Prose is filled; indented lines, such as commands, stay."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=28, width=columns(100))

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        blocks = itertools.groupby(text.strip("\n").split("\n"), key=lambda line: not line or line[0] == " ")
        filled: list[str] = []
        for is_kept, lines in blocks:
            filled += lines if is_kept else [textwrap.fill(" ".join(lines), width)]
        return "\n".join(filled)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that fits its help to the terminal and reports a wrong option in one sentence.

    elsewhere: {option that the command lacks: the rest of a sentence that begins with it}
    """

    def __init__(self, **kwargs: Any):
        super().__init__(formatter_class=_Formatter, allow_abbrev=False, **kwargs)
        self.elsewhere: Mapping[str, str] = {}

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see `{self.prog} --help`)\n")

    def parse_strictly(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parse all arguments. An unknown option is an error that suggests the closest known one."""
        if COMPLETING in os.environ:
            complete_with(self)
        namespace, unknown = self.parse_known_args(argv)
        if unknown:
            name = unknown[0].split("=")[0]
            known = self._option_string_actions
            typed = name.replace("_", "-")
            meant = _KNOWN_ELSEWHERE.get(typed, typed)
            if meant in self.elsewhere:
                self.error(f"{meant} {self.elsewhere[meant]}")
            close = [option for option in (meant, _OF_DETECTORS.get(meant)) if option in known]
            close = close or difflib.get_close_matches(typed, known, n=1, cutoff=0.5)
            hint = f"; did you mean {close[0]}?" if close else ""
            self.error(f"there is no {'option' if name.startswith('-') else 'argument'} {name}{hint}")
        heed(namespace)
        return namespace


def add_fields(
    group: Any, config_type: type, names: Sequence[str], defaults: Mapping[str, Any], prefix: str = ""
) -> None:
    """Add an option for each named field of a configuration dataclass. Only given options enter the namespace.

    Help texts and choices come from `scratchvit.options.option`.
    prefix: put before the names in the namespace, to keep two configurations apart.
    """
    types = typing.get_type_hints(config_type)
    fields = {field.name: field for field in dataclasses.fields(config_type)}
    for name in names:
        metadata = fields[name].metadata
        default = shown(defaults[name])
        help_text = f"{metadata.get('help', '')} (default: {default})".strip().replace("%", "%%")
        how: dict[str, Any] = {"action": argparse.BooleanOptionalAction} if types[name] is bool else {
            "type": _checked(metadata["check"]) if metadata.get("check") else _reader(types[name]),
            "choices": metadata.get("choices") or None,
            "metavar": None if metadata.get("choices") else name.rsplit("_", 1)[-1].upper(),
        }
        flag = option_of(name)
        action = group.add_argument(flag, dest=prefix + name, default=argparse.SUPPRESS, help=help_text, **how)
        if name in _COMPLETED:
            completed_by(action, _COMPLETED[name])


def add_model(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    """Add MODEL, and an option for each size of the model that argv names. If it names none, those of a ViT.

    Raises ScratchvitError if argv begins with a name that is no model's.
    """
    known = list_models()
    first = [word for word in argv[:1] if not word.startswith("-")]
    name, *_ = [word for word in argv if word in known] or first or known
    defaults = model_config(name)
    action = parser.add_argument("model", metavar="MODEL", help="name of the model (see `scratchvit models`)")
    completed_by(action, list_models)
    add_fields(parser.add_argument_group("model"), type(defaults), list(vars(defaults)), vars(defaults))


def option_of(name: str) -> str:
    """The option for a field of a configuration: batch_size → --batch-size."""
    return f"--{name.replace('_', '-')}"


def shown(default: Any) -> Any:
    """A value of a setting as it is typed and shown in the help."""
    if default is None or isinstance(default, bool):
        return {None: "none", True: "yes", False: "no"}[default]
    return ",".join(map(str, default)) if isinstance(default, tuple | list) else default     # a list in a JSON file


def _reader(hint: Any) -> Any:
    """A function that converts an option's text to the annotated type."""
    if hint == tuple[int, ...]:
        return numbers
    kinds = set(typing.get_args(hint)) or {hint}
    if int in kinds and len(kinds) > 1:
        return size
    return next(reader for kind, reader in ((int, int), (float, number), (str, str)) if kind in kinds)


def _checked(check: Callable[[str], object]) -> Callable[[str], str]:
    """A function that returns an option's text, unless `check` raises ScratchvitError for it."""
    def read(text: str) -> str:
        try:
            check(text)
        except ScratchvitError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        return text

    return read


def number(text: str) -> float:
    """Parse a finite number. (`float` also accepts "nan" and "inf".)"""
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number")
    return value


def positive(text: str) -> int:
    """Parse a whole number of at least 1."""
    if not re.fullmatch(r"[+-]?\d+", text):
        raise argparse.ArgumentTypeError(f"expected a whole number, not {text!r}")
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {text}")
    return int(text)


def port(text: str) -> int:
    """Parse the number of a port."""
    number = positive(text)
    if number > 65_535:
        raise argparse.ArgumentTypeError(f"ports go to 65,535, not {text}")
    return number


def numbers(text: str) -> tuple[int, ...]:
    """Parse a list of integers such as `3,4,9`; the empty string is the empty list."""
    if not re.fullmatch(r"(\d+(,\d+)*)?", text):
        raise argparse.ArgumentTypeError(f"expected numbers such as 3,4,9, not {text!r}")
    return tuple(int(part) for part in text.split(",") if part)


def size(text: str) -> int | tuple[int, int]:
    """Parse a size in pixels: `28` or `28x32` (height x width); `28x28` becomes 28."""
    if not re.fullmatch(r"\d+(x\d+)?", text):
        raise argparse.ArgumentTypeError(f"expected a size such as 28 or 28x32 (height x width), not {text!r}")
    sides = [int(side) for side in text.split("x")]
    if min(sides) < 1:
        raise argparse.ArgumentTypeError(f"a size must be at least 1 pixel, not {text}")
    return (sides[0], sides[1]) if len(set(sides)) > 1 else sides[0]


def add_run(parser: argparse.ArgumentParser, what: str) -> None:
    """Add the argument RUN, which can also be given as --checkpoint; `run_of` returns it. what: its help text."""
    action = parser.add_argument("run", nargs="?", type=Path, metavar="RUN", help=what)
    parser.usage = f"{parser.prog} RUN [options]"
    completed_by(action, runs_and_trained)
    parser.add_argument("--checkpoint", type=Path, metavar="RUN", help="the same as the argument RUN")


def run_of(parser: argparse.ArgumentParser, given: argparse.Namespace) -> Path:
    """The RUN of a command. Ends the program if it was not given, or given twice."""
    if given.run and given.checkpoint:
        parser.error(f"two runs were given, {given.run} and --checkpoint {given.checkpoint}: leave out one of them")
    if not (given.run or given.checkpoint):
        parser.error(f"name a run: {parser.prog} RUN, a folder such as {next(iter(run_folders()), 'runs/NAME')}")
    return given.run or given.checkpoint


def add_run_and_images(parser: argparse.ArgumentParser, what: str) -> None:
    """Add RUN and IMAGE …; with --checkpoint, all are images. `run_and_images` returns both."""
    action = parser.add_argument(
        "words", nargs="*", type=Path, metavar="RUN IMAGE …", help=f"{what}; then picture files, or folders of them"
    )
    parser.usage = f"{parser.prog} RUN IMAGE [IMAGE …] [options]"
    completed_by(action, lambda: [*runs_and_trained(), *map(str, Path().glob("*"))])
    parser.add_argument("--checkpoint", type=Path, metavar="RUN", help="the same as the argument RUN")


def run_and_images(parser: argparse.ArgumentParser, given: argparse.Namespace) -> tuple[Path, list[Path]]:
    """The RUN and the picture files of a command. Ends the program if one of them was not given."""
    if not given.words:
        parser.error(f"name a run and pictures: {parser.prog} {given.checkpoint or 'RUN'} a.jpg b.jpg")
    run, images = (given.checkpoint, given.words) if given.checkpoint else (given.words[0], given.words[1:])
    if run.suffix.lower() in SUFFIXES:
        parser.error(f"{run} is a picture, and the run comes first: {parser.prog} RUN {run}")
    if not images:
        parser.error(f"name pictures too: {parser.prog} {run} a.jpg b.jpg")
    return run, [path for named in images for path in picture_files(named)]


def run_folders() -> list[str]:
    """The folders of runs below runs/, the latest first."""
    found = [path.parent for path in Path("runs").glob("*/config.json")]
    return [str(path) for path in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)]


def runs_and_trained() -> list[str]:
    """What RUN can be, for completion: the folders of runs, then the names of the trained models of the package."""
    return [*run_folders(), *trained()]


def add_page(parser: argparse.ArgumentParser) -> None:
    """Add the options of a command that serves a page: --port and --no-browser."""
    parser.add_argument(
        "--port", type=port, metavar="N", help=f"port of the page (default: {loopback.USUAL}, or a free one)"
    )
    parser.add_argument("--no-browser", action="store_true", help="print the address, and do not open a browser")


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add the option --device."""
    action = parser.add_argument(
        "--device", type=_checked(gpu_number), metavar="DEVICE", default=default_device(),
        help=f"device to compute on: cpu, gpu, or gpu:1, the second GPU (default: {default_device()})",
    )
    completed_by(action, _COMPLETED["device"])


def command_line(words: Sequence[str], windows: bool = os.name == "nt") -> str:
    """The words of a command as one line that can be pasted into a shell (Windows: with double quotes only)."""
    return subprocess.list2cmdline(words) if windows else shlex.join(words)
