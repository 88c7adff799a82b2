"""Padding with a constant, or with copies of entries, whose gradients are added to those of the copied entries.

    x            a b c d            and with pad (2, 2)
    constant     0 0 a b c d 0 0
    reflect      c b a b c d c b    the first and the last entry are not repeated
    replicate    a a a b c d d d
    circular     c d a b c d a b
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scratchvit.backend import Array, array_module
from scratchvit.facts import moves
from scratchvit.kernels.sums import total
from scratchvit.tensor import op

NUMPY_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


@op(takes="any", facts=moves(
    lambda x, pad, mode, value: tuple(n + sum(added) for n, added in zip(x.shape, _widths(x, pad, mode, value))),
    passes_on=lambda pad, mode: mode == "constant" and min(pad, default=0) >= 0,
))
def pad(x: Array, pad: Sequence[int], mode: str = "constant", value: float | None = None):
    """Pad x along its last axes, or crop it.

    x: any shape and dtype.
    pad: (before, after) of the last axis, then of the second to last, and so on, as in PyTorch. A negative number crops
        that many entries. x is cropped before it is padded, except in the modes "reflect" and "replicate", where it is
        cropped afterwards.
    mode: "constant", "reflect", "replicate" or "circular"; see the top of this file.
    value: the constant; 0 if not given.
    Returns an array in which each of these axes is longer by before + after.
    Raises ValueError if pad has an odd length or more pairs than x has axes, if an axis would get a negative size, if
    there is too little to copy ("reflect" needs more entries than it adds at an end, "circular" as many), or if a value
    is given with another mode than "constant", or is not in the dtype of an x of integers.
    """
    widths = _widths(x, pad, mode, value)
    added = [(max(0, before), max(0, after)) for before, after in widths]
    cut = [(max(0, -before), max(0, -after)) for before, after in widths]
    uncut = [(0, 0)] * x.ndim
    cut_first, cut_then = (uncut, cut) if mode in ("reflect", "replicate") else (cut, uncut)
    constant = {"constant_values": 0 if value is None else value} if mode == "constant" else {}
    shape = x.shape
    padded = array_module(x).pad(_cut(x, cut_first), added, mode=NUMPY_MODES[mode], **constant)
    padded_shape = padded.shape

    def backward(dy):
        dy = _uncut(dy, cut_then, padded_shape)
        for axis, (before, after) in enumerate(added):
            if before or after:
                dy = _unpadded(dy, axis, before, after, mode)
        return _uncut(dy, cut_first, shape)

    return _cut(padded, cut_then), backward


def _cut(x: Array, widths: Sequence[tuple[int, int]]) -> Array:
    return x[tuple(slice(before, n - after) for n, (before, after) in zip(x.shape, widths))]


def _uncut(dy: Array, widths: Sequence[tuple[int, int]], shape: tuple[int, ...]) -> Array:
    """The transpose of `_cut`: zeros for the cropped entries."""
    if dy.shape == shape:
        return dy
    dx = array_module(dy).zeros(shape, dtype=dy.dtype)
    _cut(dx, widths)[...] = dy
    return dx


def _unpadded(dy: Array, axis: int, before: int, after: int, mode: str) -> Array:
    """The transpose of padding one axis: gradients of copies are added to those of the copied entries."""
    dy = dy.swapaxes(0, axis)
    end = len(dy) - after
    first, dx, last = dy[:before], dy[before:end], dy[end:]
    n = len(dx)
    if mode != "constant":
        dx = dx.copy()
    if mode == "reflect":
        dx[1 : 1 + before] += first[::-1]
        dx[n - 1 - after : n - 1] += last[::-1]
    elif mode == "replicate":
        dx[0] += total(first, (0,))
        dx[-1] += total(last, (0,))
    elif mode == "circular":
        dx[n - before :] += first
        dx[:after] += last
    return dx.swapaxes(0, axis)


def _is_in(dtype: np.dtype, value: float) -> bool:
    """Whether an integer dtype has this number."""
    return np.iinfo(dtype).min <= value <= np.iinfo(dtype).max and value == int(value)


def _widths(x: Array, pad: Sequence[int], mode: str, value: float | None) -> list[tuple[int, int]]:
    """(before, after) of every axis, after checking the arguments."""
    if mode not in NUMPY_MODES:
        raise ValueError(f"pad: mode must be one of {', '.join(map(repr, NUMPY_MODES))}, not {mode!r}")
    if value is not None and mode != "constant":
        raise ValueError(f'pad: a value is for mode "constant", not for {mode!r}')
    if value is not None and x.dtype.kind in "iu" and not _is_in(x.dtype, value):
        raise ValueError(f"pad: value {value} does not fit into x, which is {x.dtype}: convert x with astype()")
    if len(pad) % 2 or len(pad) > 2 * x.ndim or not all(isinstance(n, int) for n in pad):
        raise ValueError(
            f"pad: pad must hold two integers for each axis, of at most {x.ndim} axes (x has shape {x.shape}), not "
            f"{tuple(pad)}"
        )
    pairs = list(zip(pad[::2], pad[1::2]))
    widths = [(0, 0)] * (x.ndim - len(pairs)) + pairs[::-1]
    for n, (before, after) in zip(x.shape, widths):
        cut, copied = min(0, before) + min(0, after), max(before, after)
        left = n + cut if mode in ("constant", "circular") else n
        if left < 0 or n + before + after < 0:
            raise ValueError(f"pad: {(before, after)} crops more than the {n} entries of an axis of x {x.shape}")
        needed = {"constant": 0, "reflect": copied + 1, "replicate": 1, "circular": copied}[mode]
        if copied > 0 and left < needed:
            raise ValueError(
                f"pad: mode {mode!r} with {(before, after)} needs at least {needed} entries along the axis, not "
                f"{left}; x has shape {x.shape}"
            )
    return widths
