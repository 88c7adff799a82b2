"""Progress bars, and lines printed above them. A bar is drawn on a terminal only: never into a file or a pipe."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from typing import Any, TypeVar

from tqdm import tqdm

Batch = TypeVar("Batch", bound=tuple[Any, ...])

_hidden: ContextVar[bool] = ContextVar("hidden", default=False)


def bar(total: int, description: str, done: int = 0, unit: str = "img") -> tqdm[Any]:
    """A bar of `total` units, of which `done` are done already. It disappears when it is closed."""
    disable = True if _hidden.get() else None       # None: tqdm asks whether stderr is a terminal
    return tqdm(
        total=total, initial=done, desc=description, unit=unit, leave=False, disable=disable, dynamic_ncols=True
    )


def line(text: str) -> None:
    """Write a line to stderr, above the bars, also where none are drawn; nothing if they are hidden."""
    if not _hidden.get():
        tqdm.write(text, sys.stderr)


@contextlib.contextmanager
def note(text: str) -> Iterator[None]:
    """A line of text below the bars while a block runs. It disappears with its end."""
    disable = True if _hidden.get() else None
    with tqdm(desc=text, bar_format="{desc}", leave=False, disable=disable, dynamic_ncols=True):
        yield


def over(batches: Iterable[Batch], total: int, description: str) -> Iterator[Batch]:
    """The batches one by one, with a bar of `total` images. A batch is a tuple that begins with its images (B, …)."""
    with bar(total, description) as drawn:
        for batch in batches:
            yield batch
            drawn.update(len(batch[0]))


def duration(seconds: float) -> str:
    """A time in words, with two units at most: 8.4 s, 42 s, 3 min 10 s, 2 h 5 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, left = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes_left} min"
    return f"{minutes} min {left} s" if minutes else f"{left} s"


@contextlib.contextmanager
def hidden() -> Iterator[None]:
    """No bars within this block."""
    token = _hidden.set(True)
    try:
        yield
    finally:
        _hidden.reset(token)
