"""An excerpt of our own source, taken from the file while the page is made, so that the two cannot differ."""

from __future__ import annotations

import inspect
import textwrap
from pathlib import Path
from typing import Any, NamedTuple

import scratchvit
from scratchvit.errors import WrongValue


class Excerpt(NamedTuple):
    """Lines of a file: `first` and `last` count from 1."""

    code: str
    path: str
    first: int
    last: int


def excerpt(thing: Any, begin: str | None = None, end: str | None = None) -> Excerpt:
    """The source of a function, op, class or module, or of a part of it.

    begin, end: the part is from the first line that begins with `begin`, not counting indentation, to the next one that
        begins with `end`, both included.
    Raises ScratchvitError if there is no such line.
    """
    thing = inspect.unwrap(thing)
    lines, start = inspect.getsourcelines(thing)
    start = max(start, 1)               # 0 for a module
    first = 0 if begin is None else _find(lines, begin, 0, thing)
    last = len(lines) - 1 if end is None else _find(lines, end, first, thing)
    file = Path(inspect.getsourcefile(thing) or "")
    root = Path(scratchvit.__file__).resolve().parents[1]
    path = file.resolve().relative_to(root).as_posix() if file.resolve().is_relative_to(root) else file.name
    return Excerpt(textwrap.dedent("".join(lines[first : last + 1])).rstrip(), path, start + first, start + last)


def _find(lines: list[str], beginning: str, after: int, thing: Any) -> int:
    for number in range(after, len(lines)):
        if lines[number].lstrip().startswith(beginning):
            return number
    raise WrongValue(f"no line of {thing.__name__} begins with {beginning!r}: its source has changed")
