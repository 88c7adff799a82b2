"""Placeholder arrays with a shape, a layout and a lifetime, but without memory, on which memory.py runs models."""

from __future__ import annotations

import types
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from scratchvit import backend
from scratchvit.backend import is_array


class Ledger:
    """Adds up the bytes of all existing blanks: `live` now, `peak` at the maximum, which was reached at `worst`."""

    def __init__(self, live: int = 0, kind: type[Blank] | None = None):
        """live: bytes that exist anyway. kind: of the blanks, Blank if not given."""
        self.live = self.peak = live
        self.kind = kind or Blank
        self.by_path: Counter[str] = Counter()      # live bytes by the module that allocated them
        self.path = self.doing = self.worst = ""

    def new(self, shape: Sequence[int], dtype: Any, order: Sequence[int] | None = None) -> Blank:
        """Allocate a blank whose axes have this order in memory."""
        return self.kind(layout(shape, dtype, order), None, self)

    def need(self, nbytes: int) -> None:
        """Note a temporary need of nbytes in addition to the live blanks."""
        if self.live + nbytes > self.peak:
            self.peak, self.worst = self.live + nbytes, f"{self.path or 'the model'}: {self.doing}"


class Blank:
    """An array with a shape and a layout but without memory. `base`: the blank that it is a view of, or None."""

    __slots__ = ("base", "layout", "ledger", "path")
    __array_ufunc__ = None          # so that `gradient += blank` calls the blank's operator

    def __init__(self, layout: np.ndarray, base: Blank | None, ledger: Ledger | None):
        self.layout, self.base = layout, base
        self.ledger = None if base is not None else ledger    # views are not counted
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

    # The operations that the autograd engine itself does with gradients.

    def __add__(self, other: Blank) -> Blank:
        ledger = self.owner.ledger or other.owner.ledger
        return ledger.new(self.shape, self.dtype)

    def __iadd__(self, other: Blank) -> Blank:
        return self

    def copy(self) -> Blank:
        """A new blank of the same shape, with its own memory."""
        return self._new(self.dtype)

    def astype(self, dtype: Any, copy: bool = True) -> Blank:
        """Returns self, or a new blank of another dtype."""
        if dtype == self.dtype and not copy:
            return self
        return self._new(dtype)

    def _new(self, dtype: Any) -> Blank:
        ledger = self.owner.ledger
        return ledger.new(self.shape, dtype) if ledger else type(self)(layout(self.shape, dtype), None, None)


class GpuBlank(Blank):
    """A Blank that stands for an array on a GPU, which need not be there: `autocast` stores 16 bits on it."""

    __slots__ = ()
    device = types.SimpleNamespace(id=None)


_ZERO = bytes(16)       # of any dtype


def broadcast_zero(shape: Sequence[int], dtype: Any) -> np.ndarray:
    """An array of zeros that takes the memory of a single zero (stride 0)."""
    return np.ndarray(shape := tuple(shape), dtype, _ZERO, strides=(0,) * len(shape))


BLANKS = backend.Backend("cpu", np, backend.CPU.special, Blank, lambda x: broadcast_zero(x.shape, x.dtype))


GPU_BLANKS = backend.Backend("gpu", np, backend.CPU.special, GpuBlank, BLANKS.to_host, has_cuda=True)


def layout(shape: Sequence[int], dtype: Any, order: Sequence[int] | None = None) -> np.ndarray:
    """An array of which only shape and strides are valid; it must not be read, as its memory does not exist.

    order: its axes in memory, the outermost first; by default in order.
    """
    shape, strides, step = tuple(shape), [0] * len(shape), np.dtype(dtype).itemsize
    for axis in reversed(range(len(shape)) if order is None else order):
        strides[axis] = step
        step *= max(1, shape[axis])
    return as_strided(np.zeros((), dtype), shape, strides)


def mapped(x: Any, function: Callable[[Any], Any]) -> Any:
    """x with function(element) for each of its elements, also of those in nested lists, tuples and dicts."""
    if isinstance(x, list | tuple):
        return type(x)(mapped(element, function) for element in x)
    if isinstance(x, dict):
        return {key: mapped(value, function) for key, value in x.items()}
    return function(x)


def as_blanks(x: Any, kind: type[Blank] = Blank) -> Any:
    """Replace real floating-point arrays in x (images, weights) by blanks that are not counted."""

    def as_blank(x: Any) -> Any:
        if isinstance(x, Blank) or not is_array(x) or x.dtype.kind != "f":
            return x
        return kind(layout(x.shape, x.dtype), None, None)

    return mapped(x, as_blank)


def layouts(x: Any) -> Any:
    """Replace the blanks in x by their layouts, for the rules of an op's facts."""
    return mapped(x, lambda x: x.layout if isinstance(x, Blank) else x)
