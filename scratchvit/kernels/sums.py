"""Accurate sums of many float32 numbers over any axes.

    plain       x.sum(axis=axes)
    problem     NumPy's summation is pairwise along the last axis in memory, but naive along others. For a million
                equal rows, a naive sum in float32 has an error of 1 %, and for 2²⁵ ones it gives 2²⁴.
    idea        blocks of BLOCK rows are summed by a matrix product with ones, at the speed of memory; the few sums of
                the blocks are added in float64. The error is at most that of BLOCK roundings, for any length.

Sums over the last axes in memory are left to NumPy, which adds pairwise, in pieces of ROW numbers: over millions, NumPy
2.1 is less accurate than that. Sums of float64 are left to the array module, and so are those on a GPU, which adds in a
tree; but columns of contiguous arrays have a kernel there, cuda/column_sums.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np

from scratchvit.backend import CPU, Array, backend_of
from scratchvit.kernels import cuda
from scratchvit.kernels.cuda.column_sums import sum_columns
from scratchvit.plain import is_plain
from scratchvit.precision import is_half
from scratchvit.threads import parallel_rows

SHORT = 32          # sums of at most this many numbers are accurate enough in any order
BLOCK = 64          # rows that are added by one product with ones
ROW = 4_096         # numbers that NumPy adds at once
SMALL = 4_096       # for matrices with fewer entries, a float64 sum is faster than a product


def total(x: Array, axes: tuple[int, ...], keepdims: bool = False, dtype: Any = None) -> Array:
    """The sum of x, of any shape, over the axes (each in 0 … ndim - 1), in the dtype of x, or in another one.

    Sums of numbers of 16 bits are made in float32 or float64, and rounded at the end.
    """
    if dtype is not None and dtype != x.dtype:
        return _in_dtype(x, axes, keepdims, dtype)
    if backend_of(x) is not CPU:
        sums = _on_gpu(x, axes, keepdims)
        return sums.astype(x.dtype) if is_half(x) else sums
    if x.dtype not in (np.float32, np.float16):
        return x.sum(axis=axes, keepdims=keepdims)
    if x.dtype == np.float32 and math.prod([x.shape[axis] for axis in axes]) <= SHORT:
        return x.sum(axis=axes, keepdims=keepdims)
    if is_plain():
        return x.sum(axis=axes, keepdims=keepdims, dtype=np.float64).astype(x.dtype)
    if x.ndim == 2 and axes == (0,) and x.dtype == np.float32 and x.flags.c_contiguous:
        sums = _middle(x[None])         # as below, where most of the time would be spent, as for a bias of few numbers
        return sums if keepdims else sums[0]
    kept_shape = tuple(1 if axis in axes else n for axis, n in enumerate(x.shape))
    shape = kept_shape if keepdims else tuple(n for axis, n in enumerate(x.shape) if axis not in axes)
    if x.dtype == np.float16:
        return x.sum(axis=axes, dtype=np.float64).astype(np.float16).reshape(shape)
    order = sorted(range(x.ndim), key=lambda axis: -abs(x.strides[axis]))       # in memory, the outermost first
    kept = [axis for axis in order if axis not in axes]
    x, reduced = x.transpose(order), [axis in axes for axis in order]
    last = _first_of_the_last_run(x, reduced)
    if last < x.ndim:
        x = _rows(x.reshape(*x.shape[:last], math.prod(x.shape[last:])))
    # From the back: each run of neighbouring axes is the middle of (outer, N, inner).
    for is_reduced, run in reversed([(key, list(group)) for key, group in groupby(range(last), reduced.__getitem__)]):
        if is_reduced:
            before, after = x.shape[: run[0]], x.shape[run[-1] + 1 :]
            N = math.prod(x.shape[run[0] : run[-1] + 1])
            x = _middle(x.reshape(math.prod(before), N, math.prod(after))).reshape((*before, *after))
    return np.asarray(x).transpose(np.argsort(kept)).reshape(shape)


def _in_dtype(x: Array, axes: tuple[int, ...], keepdims: bool, dtype: Any) -> Array:
    """`total` in a dtype that is not that of x; what was summed in float32 is not rounded to 16 bits in between."""
    if backend_of(x) is not CPU:
        return _on_gpu(x, axes, keepdims).astype(dtype, copy=False)
    return total(x.astype(np.float32) if is_half(x) else x, axes, keepdims).astype(dtype)


def _on_gpu(x: Array, axes: tuple[int, ...], keepdims: bool) -> Array:
    """The sum, in float32 for x of 16 bits."""
    are_first = sorted(axes) == list(range(len(axes)))
    rows, columns = math.prod(x.shape[: len(axes)]), math.prod(x.shape[len(axes) :])
    if not are_first or columns <= 1 or not x.flags.c_contiguous or not cuda.takes(x):
        return x.sum(axis=axes, keepdims=keepdims, dtype=np.float32 if is_half(x) else None)
    sums = sum_columns(x.reshape(rows, columns))
    return sums.reshape((*(1,) * len(axes) * keepdims, *x.shape[len(axes) :]))


def unbroadcast(gradient: Array, shape: tuple[int, ...], dtype: Any = None) -> Array:
    """Sum the gradient of a broadcast array over the broadcast axes, to the array's shape and, if given, its dtype."""
    if gradient.shape == shape:
        return gradient if dtype is None else gradient.astype(dtype, copy=False)
    extra = gradient.ndim - len(shape)
    repeated = tuple(i for i, n in enumerate(gradient.shape) if i < extra or (shape[i - extra] == 1 and n != 1))
    return total(gradient, repeated, dtype=dtype).reshape(shape)


def _first_of_the_last_run(x: np.ndarray, reduced: list[bool]) -> int:
    """The first of the last axes that are reduced and lie in memory without gaps between them: NumPy adds along these
    as along one axis, pairwise. x.ndim if the last axis is not reduced."""
    first = x.ndim
    while first and reduced[first - 1] and (
        first == x.ndim or x.strides[first - 1] == x.strides[first] * x.shape[first]
    ):
        first -= 1
    return first


def _rows(x: np.ndarray) -> np.ndarray:
    """The sum over the last axis of x."""
    whole = x.shape[-1] // ROW * ROW
    if whole <= ROW:
        return x.sum(axis=-1)
    pieces = x[..., :whole].reshape(*x.shape[:-1], whole // ROW, ROW).sum(axis=-1)
    return (pieces.sum(axis=-1, dtype=np.float64) + x[..., whole:].sum(axis=-1)).astype(x.dtype)


def in_pairs(parts: Sequence[Array]) -> Array:
    """The sum of arrays of one shape: of pairs, then of pairs of these, and so on."""
    parts = list(parts)
    while len(parts) > 1:
        parts = [a + b for a, b in zip(parts[::2], parts[1::2])] + parts[len(parts) // 2 * 2 :]
    return parts[0]


def _middle(x: np.ndarray) -> np.ndarray:
    """The sum over the middle axis of x (outer, N, inner): (outer, inner)."""
    outer, N, inner = x.shape
    if N * inner < SMALL:
        return x.sum(axis=1, dtype=np.float64).astype(x.dtype)
    ones = np.ones((1, min(N, BLOCK)), dtype=x.dtype)
    blocks, rest = divmod(N, BLOCK)
    if blocks == 0:
        return np.matmul(ones, x)[:, 0]
    whole = x[:, : blocks * BLOCK].reshape(outer, blocks, BLOCK, inner)
    sums = np.empty((outer, blocks, 1, inner), x.dtype)
    longest = int(blocks > outer)
    parallel_rows(lambda x, y: np.matmul(ones, x, out=y), whole.swapaxes(0, longest), sums.swapaxes(0, longest))
    y = sums[:, :, 0].sum(axis=1, dtype=np.float64)
    if rest:
        y += np.matmul(ones[:, :rest], x[:, N - rest :])[:, 0]
    return y.astype(x.dtype)
