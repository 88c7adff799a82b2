"""The state of the current thread: whether ops are recorded for the backward pass, whether they are replaced, and in
which numbers they store their values.

It is a context variable, so `no_grad` in one thread or coroutine does not affect another.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, NamedTuple

from scratchvit.errors import WrongState


class Mode(NamedTuple):
    """no_grads: the number of active `no_grad` blocks; ops are recorded if it is 0. stand_in: see `replace_ops`.
    half: the 16-bit numbers of `autocast`, a `precision.Half`; None outside of it."""

    no_grads: int
    stand_in: Callable[..., Any] | None
    half: Any = None


NORMAL = Mode(0, None)
mode: ContextVar[Mode] = ContextVar("mode", default=NORMAL)


def is_recording() -> bool:
    """Whether ops are recorded for the backward pass in this thread, that is, no `no_grad` is active."""
    return mode.get().no_grads == 0


class no_grad(contextlib.ContextDecorator):
    """Context manager and decorator in which ops are not recorded and nothing is saved for the backward pass.

    It affects the current thread only. Active blocks are counted: if two overlap without being nested (in two
    generators that alternate), recording starts again when both have ended.
    Raises RuntimeError if it is left in a thread other than the one in which it was entered.
    """

    def __enter__(self) -> None:
        no_grads, stand_in, half = mode.get()
        mode.set(Mode(no_grads + 1, stand_in, half))

    def __exit__(self, *error: object) -> None:
        no_grads, stand_in, half = mode.get()
        if no_grads == 0:
            raise WrongState("a no_grad block ends in another thread or context than it began in")
        mode.set(Mode(no_grads - 1, stand_in, half))


@contextlib.contextmanager
def setting(variable: ContextVar[Any], value: Any) -> Iterator[None]:
    """Context manager that sets a context variable to a value and restores it afterwards."""
    before = variable.get()
    variable.set(value)
    try:
        yield
    finally:
        variable.set(before)


@contextlib.contextmanager
def enable_grad() -> Iterator[None]:
    """Context manager and decorator in which ops are recorded, even inside `no_grad`."""
    before = mode.get().no_grads
    mode.set(mode.get()._replace(no_grads=0))
    try:
        yield
    finally:
        mode.set(mode.get()._replace(no_grads=mode.get().no_grads + before))


@contextlib.contextmanager
def replace_ops(stand_in: Callable[..., Any] | None) -> Iterator[None]:
    """Context manager in which ops call `stand_in(function, args, kwargs)` instead of `function(*args, **kwargs)`.

    It gets plain arrays and returns (value, backward). costs/counting.py uses it to propagate shapes through a model
    without computing, costs/profiling.py to time every op. With None, ops are called as always.
    """
    before = mode.get().stand_in
    mode.set(mode.get()._replace(stand_in=stand_in))
    try:
        yield
    finally:
        mode.set(mode.get()._replace(stand_in=before))


@contextlib.contextmanager
def storing(half: Any) -> Iterator[None]:
    """Context manager in which ops store 16-bit numbers, a `precision.Half`, or with None what they are given."""
    before = mode.get().half
    mode.set(mode.get()._replace(half=half))
    try:
        yield
    finally:
        mode.set(mode.get()._replace(half=before))
