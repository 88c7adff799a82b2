"""Indexing functions. If an entry is selected several times, its gradients are added up."""

from __future__ import annotations

from typing import Any

import numpy as np

from scratchvit.backend import Array, array_module, asarray, is_array
from scratchvit.facts import Workspace, by_running, inputs, moves
from scratchvit.ops.checks import axis_of, check_indices
from scratchvit.tensor import Tensor, op


@op(takes="any", facts=moves(
    by_running, saves=lambda index: _arrays(index), view=lambda index: not _arrays(index), exact=False
))
def getitem(x: Array, index: Any):
    """x[index], as `x[index]` calls it.

    x: any shape and dtype.
    index: integers, slices, None, Ellipsis, arrays or lists of integers, masks, and tuples of these. Negative integers
        count from the end. An empty list picks nothing.

    The axes of the result stand where PyTorch puts them: integers are applied first and their axes disappear, then all
    arrays together. So x[0, :, [0, 1]] of x (2, 3, 4) has shape (3, 2), where NumPy, to which an integer beside an
    array is an array too, has (2, 3). Arrays that are apart, as in x[[0, 1], :, [0, 1]], put their axis first in both.

    Raises IndexError if an index is out of range or of a wrong dtype, if there are too many, or if a mask has another
    shape than what it picks from. On a GPU, an array with an index out of range is not noticed, since to look at it
    would mean to wait.
    """
    parts = tuple(_on_device(i) for i in (index if isinstance(index, tuple) else (index,)))
    picks = any(is_array(i) for i in parts)
    steps = _one_after_the_other(parts) if picks else [parts]
    xp, shape, size = array_module(x), x.shape, x.size

    def picked(values: Array) -> Array:
        for step in steps:
            values = values[step]
        return values

    def backward(dy):
        if not picks:
            dx = xp.zeros(shape, dtype=dy.dtype)
            dx[parts] = dy
            return dx
        # Which entry of x each entry of dy came from: the same index, applied to the entries' own numbers.
        source = picked(xp.arange(size).reshape(shape))
        return _sum_by_index(source.reshape(-1), dy.reshape(-1), size).reshape(shape)

    try:
        return picked(x), backward
    except IndexError as error:
        raise IndexError(f"getitem: x of shape {shape}: {error}") from None


def _arrays(index: Any) -> list[Array]:
    """Those in an index, which make the value a copy instead of a view."""
    parts = [_on_device(i) for i in (index if isinstance(index, tuple) else (index,))]
    return [i for i in parts if is_array(i)]


def _on_device(i: Any) -> Any:
    if isinstance(i, Tensor):
        i = i.data
    if isinstance(i, list):
        i = np.asarray(i)
        i = i if i.size else i.astype(np.int64)
    if isinstance(i, np.ndarray) and i.ndim == 0 and i.dtype.kind in "iu":
        return int(i)
    return asarray(i) if isinstance(i, np.ndarray) else i


def _one_after_the_other(parts: tuple) -> list[tuple]:
    """An index with arrays as one or two: integers, slices and None; then the arrays, on the axes that are left."""
    if not any(isinstance(i, int) for i in parts):
        return [parts]
    first: list[Any] = []
    second: list[Any] = []
    for i in parts:
        if is_array(i):
            first += [slice(None)] * (i.ndim if i.dtype.kind == "b" else 1)     # a mask covers as many axes as it has
            second.append(i)
        else:
            first.append(i)
            if not isinstance(i, int):
                second.append(i if i is ... else slice(None))
    return [tuple(first), tuple(second)]


@op(takes="any", facts=moves(lambda index: np.shape(index), saves=inputs("index"), exact=False))
def gather(x: Array, dim: int, index: Any):
    """out[i][j] = x[index[i][j]][j] for dim 0, and likewise for the other axes.

    x: any shape and dtype.
    index: integers in 0…x.shape[dim] - 1, with as many axes as x, none of which but `dim` is longer than x's.
    Returns an array of index's shape. Repeated indices add up their gradients.
    Raises IndexError if x has no axis `dim` or if an index is negative or too large (on a GPU a wrong index is not
    noticed), TypeError if index does not hold integers, ValueError if its shape does not fit.
    """
    xp, shape, size = array_module(x), x.shape, x.size
    dim, index = axis_of("gather", dim, shape or (1,)), asarray(index)
    if index.ndim != x.ndim or any(n > m for a, (n, m) in enumerate(zip(index.shape, shape)) if a != dim):
        raise ValueError(
            f"gather: index of shape {index.shape} must have as many axes as x of shape {shape}, none longer than "
            f"x's but dim {dim}"
        )
    check_indices("gather", index, shape[dim] if shape else 1, f"dim {dim} of x {shape}")
    within = tuple(slice(None) if a == dim else slice(n) for a, n in enumerate(index.shape))

    def picked(values: Array) -> Array:
        # A single number, of shape (), can only be picked by the index 0.
        return xp.take_along_axis(values[within], index, axis=dim) if shape else values[...]

    def backward(dy):
        source = picked(xp.arange(size).reshape(shape))
        return _sum_by_index(source.reshape(-1), dy.reshape(-1), size).reshape(shape)

    return picked(x), backward


@op(takes="any", facts=moves(
    lambda index, weight: (*np.shape(index), weight.shape[1]), saves=inputs("index"), exact=False,
    workspace=lambda weight, out: Workspace(backward=2 * out.nbytes + 3 * weight.nbytes),    # sorted, in float64
))
def embedding(index: Any, weight: Array):
    """The rows of a table at the integers of `index`.

    index: integers in 0…V - 1, of any shape (...).
    weight: (V, D).
    Returns an array (..., D) of weight's dtype. Repeated rows add up their gradients.
    Raises IndexError if an index is negative or too large (on a GPU a wrong index is not noticed), TypeError if index
    does not hold integers, ValueError if weight is no table.
    """
    index = asarray(index)
    if weight.ndim != 2:
        raise ValueError(f"embedding: weight must be (V, D), not {weight.shape}")
    rows, width = weight.shape
    check_indices("embedding", index, rows, f"the rows of weight {weight.shape}")
    return weight[index], lambda dy: _sum_by_index(index.reshape(-1), dy.reshape(index.size, width), rows)


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
