"""Arrays that have a shape, a layout and a lifetime, and no memory: what memory.py lets models run on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from scratchvit import backend
from scratchvit.backend import is_array


class Ledger:
    """Adds up the bytes of the blanks that live: `live` now, `peak` at the worst moment, which was at `worst`."""

    def __init__(self, live: int = 0):
        self.live = self.peak = live
        self.by_path: Counter[str] = Counter()      # what lives, by the module that made it
        self.path = self.doing = self.worst = ""

    def new(self, shape: Sequence[int], dtype: Any, order: Sequence[int] | None = None) -> Blank:
        """An array of its own memory, in which its axes lie in this order."""
        return Blank(layout(shape, dtype, order), None, self)

    def need(self, nbytes: int) -> None:
        """So much is needed for a moment, beside what lives."""
        if self.live + nbytes > self.peak:
            self.peak, self.worst = self.live + nbytes, f"{self.path or 'the model'}: {self.doing}"


class Blank:
    """An array of a shape and a layout and no memory. `base`: the blank whose memory it looks at, None for its own."""

    __slots__ = ("base", "layout", "ledger", "path")
    __array_ufunc__ = None          # so that a gradient += blank asks the blank

    def __init__(self, layout: np.ndarray, base: Blank | None, ledger: Ledger | None):
        self.layout, self.base = layout, base
        self.ledger = None if base is not None else ledger    # of what looks at another's memory, nothing is counted
        if self.ledger:
            self.path = self.ledger.path
            self.ledger.live += layout.nbytes
            self.ledger.by_path[self.path] += layout.nbytes
            self.ledger.need(0)

    def __del__(self) -> None:
        if self.ledger:
            self.ledger.live -= self.layout.nbytes
            self.ledger.by_path[self.path] -= self.layout.nbytes

    shape = property(lambda self: self.layout.shape)
    dtype = property(lambda self: self.layout.dtype)
    ndim = property(lambda self: self.layout.ndim)
    size = property(lambda self: self.layout.size)
    nbytes = property(lambda self: self.layout.nbytes)
    flags = property(lambda self: self.layout.flags)
    owner = property(lambda self: self if self.base is None else self.base)

    def __len__(self) -> int:
        return len(self.layout)

    # All that the engine does with gradients itself.

    def __add__(self, other: Blank) -> Blank:
        ledger = self.owner.ledger or other.owner.ledger
        return ledger.new(self.shape, self.dtype)

    def __iadd__(self, other: Blank) -> Blank:
        return self

    def copy(self) -> Blank:
        """An array of its own."""
        return self.owner.ledger.new(self.shape, self.dtype)

    def astype(self, dtype: Any, copy: bool = True) -> Blank:
        """Blanks are made with the dtype that they keep."""
        assert dtype == self.dtype and not copy
        return self


_ZERO = bytes(16)       # of any dtype


def broadcast_zero(shape: Sequence[int], dtype: Any) -> np.ndarray:
    """An array of zeros that is one zero in memory."""
    return np.ndarray(shape := tuple(shape), dtype, _ZERO, strides=(0,) * len(shape))


BLANKS = backend.Backend("cpu", np, backend.CPU.special, Blank, lambda x: broadcast_zero(x.shape, x.dtype))


def layout(shape: Sequence[int], dtype: Any, order: Sequence[int] | None = None) -> np.ndarray:
    """An array that must not be read, since most of it is not there: only its shape and strides have a meaning.

    order: its axes in memory, the outermost first; as they stand if not given.
    """
    shape, strides, step = tuple(shape), [0] * len(shape), np.dtype(dtype).itemsize
    for axis in reversed(range(len(shape)) if order is None else order):
        strides[axis] = step
        step *= max(1, shape[axis])
    return as_strided(np.zeros((), dtype), shape, strides)


def as_blanks(x: Any) -> Any:
    """x with its real arrays of floats (the images, the weights) as blanks that are not counted."""
    if isinstance(x, list | tuple):
        return type(x)(as_blanks(element) for element in x)
    if isinstance(x, dict):
        return {key: as_blanks(value) for key, value in x.items()}
    if isinstance(x, Blank) or not is_array(x) or x.dtype.kind != "f":
        return x
    return Blank(layout(x.shape, x.dtype), None, None)


def layouts(x: Any) -> Any:
    """x with the layouts of its blanks, which an op's facts are asked about."""
    if isinstance(x, list | tuple):
        return type(x)(layouts(element) for element in x)
    return x.layout if isinstance(x, Blank) else x
