"""--quiet and --json: what a command prints for people, and what it prints for programs."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from scratchvit import progress

OUTPUT = ("quiet", "json")      # what the options are called in a namespace


@dataclass
class _Output:
    json: bool = False
    values: dict[str, Any] = field(default_factory=dict)
    stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)


@dataclass(frozen=True)
class Ending:
    """How a command ended: its exit status, and what is printed to stderr; "" if nothing is, or it is printed."""

    status: int
    text: str = ""


_output: ContextVar[_Output | None] = ContextVar("output", default=None)


@contextlib.contextmanager
def output() -> Iterator[None]:
    """The block in which a command runs. At its end, with --json, print what it noted by `note_result`."""
    mine = _Output()
    token = _output.set(mine)
    try:
        with mine.stack:
            yield
        if mine.json:
            print(json.dumps(_without_nan(mine.values)), flush=True)
    finally:
        _output.reset(token)


def add_output(parser: Any) -> None:
    """Add the options --quiet and --json."""
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    parser.add_argument("--json", action="store_true", help="print the result as JSON, in the last line")


def heed(given: argparse.Namespace) -> None:
    """Do what --quiet and --json ask for, until the command ends. Commands without these options are not affected."""
    mine = _output.get()
    if mine is None:        # the function of a command was called by itself
        return
    mine.json = mine.json or getattr(given, "json", False) is True
    if getattr(given, "quiet", False):
        mine.stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        mine.stack.enter_context(progress.hidden())


def note_result(**values: Any) -> None:
    """Note values for the line of --json: numbers, texts, lists and dicts of them; paths become texts."""
    mine = _output.get()
    if mine is not None:
        mine.values |= values


def _without_nan(value: Any) -> Any:
    """JSON has neither NaN nor infinity: they become null."""
    if isinstance(value, Mapping):
        return {str(key): _without_nan(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(each) for each in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)
