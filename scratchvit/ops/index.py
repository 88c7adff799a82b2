"""Indexing functions. If an entry is selected several times, its gradients are summed."""

from __future__ import annotations

from typing import Any

import numpy as np

from scratchvit.backend import Array, array_module, asarray, is_array
from scratchvit.facts import Workspace, by_running, inputs, moves
from scratchvit.kernels.index_sums import sum_by_index
from scratchvit.ops.checks import axis_of, check_indices
from scratchvit.tensor import Tensor, op


@op(takes="any", half_on_gpu=True, facts=moves(
    by_running, saves=lambda index: _arrays(index), view=lambda index: not _arrays(index), exact=False
))
def getitem(x: Array, index: Any):
    """x[index]: basic and advanced indexing.

    x: any shape and dtype.
    index: integers, slices, None, Ellipsis, integer arrays or lists, bool masks, and tuples of these. Negative integers
        count from the end. An empty list selects nothing.

    The result's axes are in PyTorch's order: integers are applied first and remove their axes, then all arrays
    together. So x[0, :, [0, 1]] of x (2, 3, 4) has shape (3, 2); NumPy treats an integer beside an array as an array
    too, and gives (2, 3). If the arrays are not adjacent, as in x[[0, 1], :, [0, 1]], their axis comes first in both.

    Raises IndexError if an index is out of range or has the wrong dtype, if there are too many indices, or if the shape
    of a mask does not match x. On a GPU, indices in arrays are not checked, since that would wait for the device.
    """
    parts = tuple(_on_device(i) for i in (index if isinstance(index, tuple) else (index,)))
    advanced = any(is_array(i) for i in parts)
    steps = _in_two_steps(parts) if advanced else [parts]
    xp, shape, size = array_module(x), x.shape, x.size

    def select(values: Array) -> Array:
        for step in steps:
            values = values[step]
        return values

    def backward(dy):
        if not advanced:
            dx = xp.zeros(shape, dtype=dy.dtype)
            dx[parts] = dy
            return dx
        # The flat position in x of each entry of dy: the same index, applied to an array of positions.
        source = select(xp.arange(size).reshape(shape))
        return sum_by_index(source.reshape(-1), dy.reshape(-1), size).reshape(shape)

    try:
        return select(x), backward
    except IndexError as error:
        raise IndexError(f"getitem: x of shape {shape}: {error}") from None


def _arrays(index: Any) -> list[Array]:
    """The arrays in an index. If there are any, the value is a copy instead of a view."""
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


def _in_two_steps(parts: tuple) -> list[tuple]:
    """Split an index with arrays in two: integers, slices and None; then the arrays, on the remaining axes."""
    if not any(isinstance(i, int) for i in parts):
        return [parts]
    first: list[Any] = []
    second: list[Any] = []
    for i in parts:
        if is_array(i):
            first += [slice(None)] * (i.ndim if i.dtype.kind == "b" else 1)     # a mask indexes as many axes as it has
            second.append(i)
        else:
            first.append(i)
            if not isinstance(i, int):
                second.append(i if i is ... else slice(None))
    return [tuple(first), tuple(second)]


@op(takes="any", half_on_gpu=True, facts=moves(lambda index: np.shape(index), saves=inputs("index"), exact=False))
def gather(x: Array, dim: int, index: Any):
    """out[i][j] = x[index[i][j]][j] for dim 0, and likewise for the other axes.

    x: any shape and dtype.
    index: integers in 0…x.shape[dim] - 1, with as many axes as x; only axis `dim` may be longer than x's.
    Returns an array of the shape of index. Gradients of repeated indices are summed.
    Raises IndexError if x has no axis `dim` or if an index is negative or too large (indices are not checked on a GPU),
    TypeError if index does not hold integers, ValueError if its shape does not match x.
    """
    xp, shape, size = array_module(x), x.shape, x.size
    dim, index = axis_of("gather", dim, shape or (1,)), asarray(index)
    if index.ndim != x.ndim or any(n > m for a, (n, m) in enumerate(zip(index.shape, shape)) if a != dim):
        raise ValueError(
            f"gather: index of shape {index.shape} must have as many axes as x of shape {shape}, and none longer than "
            f"x's except dim {dim}"
        )
    check_indices("gather", index, shape[dim] if shape else 1, f"dim {dim} of x {shape}")
    within = tuple(slice(None) if a == dim else slice(n) for a, n in enumerate(index.shape))

    def select(values: Array) -> Array:
        # The only index into an array of shape () is 0.
        return xp.take_along_axis(values[within], index, axis=dim) if shape else values[...]

    def backward(dy):
        source = select(xp.arange(size).reshape(shape))
        return sum_by_index(source.reshape(-1), dy.reshape(-1), size).reshape(shape)

    return select(x), backward


@op(takes="any", half_on_gpu=True, facts=moves(
    lambda index, weight: (*np.shape(index), weight.shape[1]), saves=inputs("index"), exact=False,
    workspace=lambda weight, out: Workspace(backward=2 * out.nbytes + 3 * weight.nbytes),    # sorted, in float64
))
def embedding(index: Any, weight: Array):
    """Look up rows of an embedding matrix: weight[index].

    index: integers in 0…V - 1, of any shape (...).
    weight: (V, D).
    Returns an array (..., D) of weight's dtype. Gradients of repeated rows are summed.
    Raises IndexError if an index is negative or too large (indices are not checked on a GPU), TypeError if index does
    not hold integers, ValueError if weight does not have two axes.
    """
    index = asarray(index)
    if weight.ndim != 2:
        raise ValueError(f"embedding: weight must be (V, D), not {weight.shape}")
    rows, width = weight.shape
    check_indices("embedding", index, rows, f"the rows of weight {weight.shape}")
    return weight[index], lambda dy: sum_by_index(index.reshape(-1), dy.reshape(index.size, width), rows)
