"""Functions that move numbers without changing them. Their gradients are moved back; where a number was used several
times (repeated indices, broadcasting) its gradients add up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from scratchvit.backend import Array, array_module, asarray, is_array
from scratchvit.ops.elementwise import unbroadcast
from scratchvit.tensor import Tensor, op


@op(takes="any")
def reshape(x: Array, shape: int | Sequence[int]):
    """The same values, in row-major order, in another shape; -1 stands for what is left."""
    before = x.shape
    return x.reshape(shape), lambda dy: dy.reshape(before)


@op(takes="any")
def permute(x: Array, dims: Sequence[int]):
    """The axes in the given order."""
    back = [0] * x.ndim
    for position, axis in enumerate(dims):
        back[axis] = position
    return x.transpose(dims), lambda dy: dy.transpose(back)


@op(takes="any")
def transpose(x: Array, dim0: int, dim1: int):
    """Two axes exchanged."""
    return x.swapaxes(dim0, dim1), lambda dy: dy.swapaxes(dim0, dim1)


@op(takes="any")
def expand(x: Array, shape: Sequence[int]):
    """Repeat axes of size 1, and put new ones in front, until the shape is reached."""
    before = x.shape
    return array_module(x).broadcast_to(x, shape), lambda dy: unbroadcast(dy, before)


@op(takes="any")
def concatenate(tensors: Sequence[Array], dim: int = 0):
    """Join along an existing axis."""
    xp = array_module(tensors[0])
    ends = np.cumsum([t.shape[dim] for t in tensors])[:-1].tolist()
    return xp.concatenate(tensors, axis=dim), lambda dy: xp.split(dy, ends, axis=dim)


@op(takes="any")
def stack(tensors: Sequence[Array], dim: int = 0):
    """Join along a new axis."""
    xp = array_module(tensors[0])
    return xp.stack(tensors, axis=dim), lambda dy: list(xp.moveaxis(dy, dim, 0))


@op(takes="any")
def split(x: Array, split_size: int | Sequence[int], dim: int = 0):
    """Cut into parts of the given size (the last may be smaller), or of the given sizes. A tuple of tensors."""
    total = x.shape[dim]
    sizes = [split_size] * -(-total // split_size) if isinstance(split_size, int) else list(split_size)
    ends = np.cumsum(sizes).tolist()
    if not isinstance(split_size, int) and ends[-1] != total:
        raise ValueError(f"split: sizes {sizes} add up to {ends[-1]}, the axis has {total}")
    parts = tuple(array_module(x).split(x, ends[:-1], axis=dim))
    prefix = (slice(None),) * (dim % x.ndim)
    places = [(*prefix, slice(end - size, end)) for size, end in zip(sizes, ends)]
    return parts, lambda dys: _put_together(x, dys, places)


@op(takes="any")
def unbind(x: Array, dim: int = 0):
    """Cut into slices along an axis, which disappears. A tuple of tensors."""
    prefix = (slice(None),) * (dim % x.ndim)
    places = [(*prefix, i) for i in range(x.shape[dim])]
    return tuple(x[place] for place in places), lambda dys: _put_together(x, dys, places)


def _put_together(x: Array, dys: Sequence[Array | None], places: Sequence[tuple]) -> Array:
    # In x's own memory order: the transposed q, k, v of attention then go back into the projection without a copy.
    dx = array_module(x).empty_like(x)
    for place, dy in zip(places, dys):
        dx[place] = 0 if dy is None else dy
    return dx


@op(takes="any")
def pad(x: Array, pad: Sequence[int], value: float = 0.0):
    """Surround with a constant. pad: (before, after) of the last axis, then of the one before it, … as in PyTorch."""
    pairs = [(pad[i], pad[i + 1]) for i in range(0, len(pad), 2)]
    widths = [(0, 0)] * (x.ndim - len(pairs)) + pairs[::-1]
    inside = tuple(slice(before, before + n) for (before, _), n in zip(widths, x.shape))
    return array_module(x).pad(x, widths, constant_values=value), lambda dy: dy[inside]


@op(takes="any")
def roll(x: Array, shifts: int | Sequence[int], dims: int | Sequence[int]):
    """Shift along axes; what leaves at one end enters at the other."""
    xp = array_module(x)
    back = -shifts if isinstance(shifts, int) else [-s for s in shifts]
    return xp.roll(x, shifts, dims), lambda dy: xp.roll(dy, back, dims)


@op(takes="any")
def flip(x: Array, dims: int | Sequence[int]):
    """Reverse the order along axes."""
    xp = array_module(x)
    return xp.flip(x, dims), lambda dy: xp.flip(dy, dims)


# --- picking --------------------------------------------------------------------------------------------------------


@op(takes="any")
def getitem(x: Array, index: Any):
    """x[index] with ints, slices, None, Ellipsis, integer arrays and masks. Repeated indices add up their gradients."""
    index = tuple(_on_device(i) for i in (index if isinstance(index, tuple) else (index,)))
    picks = any(is_array(i) for i in index)
    xp, shape, size = array_module(x), x.shape, x.size

    def backward(dy):
        if not picks:
            dx = xp.zeros(shape, dtype=dy.dtype)
            dx[index] = dy
            return dx
        # Which entry of x each entry of dy came from: the same index, applied to the entries' own numbers.
        source = xp.arange(size).reshape(shape)[index]
        return _sum_by_index(source.reshape(-1), dy.reshape(-1), size).reshape(shape)

    return x[index], backward


@op(takes="any")
def gather(x: Array, dim: int, index: Any):
    """out[i][j] = x[index[i][j]][j] for dim 0, and likewise for the other axes (PyTorch's `gather`, index not larger
    than x along the other axes). Repeated indices add up their gradients."""
    xp, shape, size = array_module(x), x.shape, x.size
    index = asarray(index)
    within = tuple(slice(None) if a == dim % x.ndim else slice(n) for a, n in enumerate(index.shape))

    def backward(dy):
        source = xp.take_along_axis(xp.arange(size).reshape(shape)[within], index, axis=dim)
        return _sum_by_index(source.reshape(-1), dy.reshape(-1), size).reshape(shape)

    return xp.take_along_axis(x[within], index, axis=dim), backward


@op(takes="any")
def embedding(index: Any, weight: Array):
    """The rows of weight (V, D) at the integers of index (...): out (..., D). Repeated rows add up their gradients."""
    index = asarray(index)
    rows, width = weight.shape
    return weight[index], lambda dy: _sum_by_index(index.reshape(-1), dy.reshape(-1, width), rows)


def _on_device(i: Any) -> Any:
    if isinstance(i, Tensor):
        return i.data
    return asarray(i) if isinstance(i, np.ndarray | list) else i


def _sum_by_index(index: Array, values: Array, size: int) -> Array:
    """out[j] = Σ values[i] over the i with index[i] = j: a sort and sums of runs, so the same in every run.

    index (N,) int in [-size, size); values (N,) or (N, D); out (size,) or (size, D). An atomic scatter would add in an
    order that changes from run to run.
    """
    xp = array_module(values)
    index = index.astype(np.int64, copy=False) % size
    order = xp.argsort(index, kind="stable")
    starts = xp.searchsorted(index[order], xp.arange(size))     # where each row's run begins, known without waiting
    sentinel = xp.zeros((1, *values.shape[1:]), dtype=values.dtype)     # so that an empty last run begins somewhere
    # float64, since CuPy's reduceat subtracts running sums.
    sums = xp.add.reduceat(xp.concatenate([values[order], sentinel]), starts, axis=0, dtype=np.float64)
    present = xp.zeros((size, *[1] * (values.ndim - 1)), dtype=bool)
    present[index] = True                   # reduceat gives an empty run the entry that it begins at
    return xp.where(present, sums, 0).astype(values.dtype, copy=False)
