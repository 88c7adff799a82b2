"""Progress bars, and lines printed above them. A bar is drawn on a terminal only: never into a file or a pipe."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

from tqdm import tqdm

_hidden: ContextVar[bool] = ContextVar("hidden", default=False)


def bar(total: int, description: str, done: int = 0, unit: str = "img") -> tqdm[Any]:
    """A bar of `total` units, of which `done` are done already. It disappears when it is closed."""
    disable = True if _hidden.get() else None       # None: tqdm asks whether stderr is a terminal
    return tqdm(
        total=total, initial=done, desc=description, unit=unit, leave=False, disable=disable, dynamic_ncols=True
    )


@contextlib.contextmanager
def hidden() -> Iterator[None]:
    """No bars within this block."""
    token = _hidden.set(True)
    try:
        yield
    finally:
        _hidden.reset(token)
