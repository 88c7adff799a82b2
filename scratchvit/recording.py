"""How ops run in this thread: whether they are recorded, and whether something stands in for them.

Both are kept in a context variable: a `no_grad` in one thread, or in a coroutine, changes nothing in another.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, NamedTuple


class Mode(NamedTuple):
    """no_grads: how many `no_grad` are in force; ops are recorded where there is none."""

    no_grads: int
    stand_in: Callable[..., Any] | None


NORMAL = Mode(0, None)
mode: ContextVar[Mode] = ContextVar("mode", default=NORMAL)


def is_recording() -> bool:
    """Whether ops record how to go back, that is, no `no_grad` is in force in this thread."""
    return mode.get().no_grads == 0


class no_grad(contextlib.ContextDecorator):
    """Inside `with no_grad():` ops record nothing, and keep nothing for a backward. Also a decorator of functions.

    It holds for the thread that entered it. Blocks are counted, so two that overlap without being nested (in two
    generators that take turns) end with the later of them.
    Raises RuntimeError where it is left in another thread than it was entered in.
    """

    def __enter__(self) -> None:
        no_grads, stand_in = mode.get()
        mode.set(Mode(no_grads + 1, stand_in))

    def __exit__(self, *error: object) -> None:
        no_grads, stand_in = mode.get()
        if no_grads == 0:
            raise RuntimeError("a no_grad block ends in another thread or context than it began in")
        mode.set(Mode(no_grads - 1, stand_in))


@contextlib.contextmanager
def setting(variable: ContextVar[Any], value: Any) -> Iterator[None]:
    """Inside, the context variable has this value."""
    before = variable.get()
    variable.set(value)
    try:
        yield
    finally:
        variable.set(before)


@contextlib.contextmanager
def recording() -> Iterator[None]:
    """Inside, ops are recorded, whatever `no_grad` is in force."""
    before = mode.get().no_grads
    mode.set(Mode(0, mode.get().stand_in))
    try:
        yield
    finally:
        no_grads, stand_in = mode.get()
        mode.set(Mode(no_grads + before, stand_in))


@contextlib.contextmanager
def replace_ops(stand_in: Callable[..., Any]) -> Iterator[None]:
    """Inside, `stand_in(function, args, kwargs)` gives (value, backward) where an op would have called its function.

    args and kwargs are plain arrays. This is how costs/counting.py follows shapes through a model without computing.
    """
    before = mode.get().stand_in
    mode.set(Mode(mode.get().no_grads, stand_in))
    try:
        yield
    finally:
        mode.set(Mode(mode.get().no_grads, before))
