"""Functions that change the shape of an array or rearrange its entries. Indexing is in index.py, padding in padding.py.

The backward rearranges dy in the opposite direction, and sums it if an entry was used several times (broadcasting).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from scratchvit.backend import Array, array_module
from scratchvit.facts import Shape, by_running, fits_without_copy, inputs, like, moves, order_of, unless_broadcast
from scratchvit.kernels.parts import joined, whole_of
from scratchvit.kernels.sums import unbroadcast
from scratchvit.kernels.updates import copy
from scratchvit.ops.checks import axes_of, axis_of, need_arrays, shapes_of
from scratchvit.tensor import op


@op(takes="any", facts=moves(by_running, view=fits_without_copy, passes_on=True))
def reshape(x: Array, shape: int | Sequence[int]):
    """x with the same entries, in row-major order, in another shape.

    x: any shape and dtype.
    shape: the new shape, or an integer for one axis. One of the lengths may be -1, and is then inferred.
    Raises ValueError if the shape does not have as many entries as x.
    """
    before = x.shape
    try:
        y = x.reshape(shape)
    except (TypeError, ValueError):
        raise ValueError(f"reshape: x of shape {before} has {x.size} entries, which do not fit {shape}") from None
    return y, lambda dy: dy.reshape(before)


@op(takes="any", autocast="loss", facts=moves(like("x"), view=True, passes_on=True))
def to_float32(x: Array):
    """x in float32, inside `autocast`, where it may be 16-bit; what follows stays in float32. Elsewhere x itself.

    x: any shape and dtype.
    For coordinates, for what is squared or raised to a power, and for the answers of a model.
    """
    return x, lambda dy: dy


@op(takes="any", facts=moves(by_running, view=True, passes_on=True))
def permute(x: Array, dims: Sequence[int]):
    """A view of x with its axes in another order: axis i of the result is axis dims[i] of x.

    x: any shape and dtype.
    dims: every axis of x once; negative numbers count from the end.
    Raises IndexError if x has no such axis, ValueError if dims does not contain every axis once.
    """
    axes = axes_of("permute", dims, x.shape)
    if len(axes) != x.ndim:
        raise ValueError(f"permute: dims {dims} must contain every axis of x, of shape {x.shape}, once")
    back = [0] * x.ndim
    for position, axis in enumerate(axes):
        back[axis] = position
    return x.transpose(axes), lambda dy: dy.transpose(back)


@op(takes="any", facts=moves(by_running, view=True, passes_on=True))
def transpose(x: Array, dim0: int, dim1: int):
    """A view of x with two axes exchanged.

    x: any shape and dtype. Shape () is treated as having one axis, as in PyTorch.
    Raises IndexError if dim0 or dim1 is not an axis of x.
    """
    shape = x.shape or (1,)
    dim0, dim1 = axis_of("transpose", dim0, shape), axis_of("transpose", dim1, shape)
    if x.ndim == 0:
        return x[...], lambda dy: dy
    return x.swapaxes(dim0, dim1), lambda dy: dy.swapaxes(dim0, dim1)


@op(takes="any", half_on_gpu=True, facts=moves(by_running, view=True, passes_on=unless_broadcast, exact=False))
def expand(x: Array, shape: Sequence[int]):
    """Broadcast x to a shape: axes of length 1 are repeated, and new axes are added in front. The result is a view.

    x: any shape and dtype.
    shape: the new shape, with at least as many axes as x; -1 keeps the length of an axis of x.
    The gradient is summed over the repeated axes.
    Raises ValueError if an axis of x has neither length 1 nor the new length, or if -1 is given for a new axis.
    """
    before, new = x.shape, len(shape) - x.ndim
    wanted = tuple(before[i - new] if n == -1 and i >= new >= 0 else n for i, n in enumerate(shape))
    if new < 0 or any(n < 0 for n in wanted) or any(m not in (1, n) for m, n in zip(before, wanted[new:])):
        raise ValueError(
            f"expand: x of shape {before} cannot be expanded to {tuple(shape)}: only axes of length 1 can be repeated, "
            "new axes come first, and -1 keeps the length of an axis of x"
        )
    return array_module(x).broadcast_to(x, wanted), lambda dy: unbroadcast(dy, before)


@op(takes="any", facts=moves(lambda tensors, dim: _concatenated(tensors, dim), passes_on=True))
def concatenate(tensors: Sequence[Array], dim: int = 0):
    """Join arrays along an existing axis.

    tensors: a list of one or more arrays whose shapes differ only along `dim`. Arrays of shape (0,) are allowed among
        arrays with more axes and are ignored, as in PyTorch.
    Raises ValueError if the list is empty or the shapes differ along other axes, TypeError if it is not a list of
    arrays, IndexError if there is no such axis.
    """
    need_arrays("concatenate", tensors)
    xp = array_module(tensors[0])
    dtypes = [t.dtype for t in tensors]
    adds_nothing = [t.shape == (0,) for t in tensors]
    some = [t for t, nothing in zip(tensors, adds_nothing) if not nothing] or tensors[:1]
    dim = axis_of("concatenate", dim, some[0].shape)
    rests = {(*t.shape[:dim], "dim", *t.shape[dim + 1 :]) for t in some}
    if len(rests) > 1:
        raise ValueError(f"concatenate: shapes may differ only along dim {dim}, not {shapes_of(some)}")
    ends = list(accumulate(t.shape[dim] for t in some))[:-1]

    def backward(dy):
        parts = iter(xp.split(dy, ends, axis=dim))
        gradients = [xp.zeros((0,), dtype=dy.dtype) if nothing else next(parts) for nothing in adds_nothing]
        return [gradient.astype(dtype, copy=False) for gradient, dtype in zip(gradients, dtypes)]

    return joined(some, dim), backward


def _concatenated(tensors: Sequence[Array], dim: int) -> Shape:
    shapes = [list(t.shape) for t in tensors if t.shape != (0,)] or [[0]]
    shapes[0][dim] = sum(shape[dim] for shape in shapes)
    return tuple(shapes[0])


@op(takes="any", facts=moves(lambda tensors, dim: _stacked(tensors, dim), passes_on=True))
def stack(tensors: Sequence[Array], dim: int = 0):
    """Join arrays along a new axis.

    tensors: a list of one or more arrays, all of one shape.
    dim: the position of the new axis in the result.
    Raises ValueError if the list is empty or the shapes differ, TypeError if it is not a list of arrays, IndexError if
    the result has no such axis.
    """
    need_arrays("stack", tensors)
    if len({t.shape for t in tensors}) > 1:
        raise ValueError(f"stack: all arrays must have the same shape, not {shapes_of(tensors)}")
    xp = array_module(tensors[0])
    dim = axis_of("stack", dim, (len(tensors), *tensors[0].shape))
    value = joined([xp.expand_dims(t, dim) for t in tensors], dim)
    return value, lambda dy: list(xp.moveaxis(dy, dim, 0))


def _stacked(tensors: Sequence[Array], dim: int) -> Shape:
    shape = list(tensors[0].shape)
    shape.insert(dim % (len(shape) + 1), len(tensors))
    return tuple(shape)


@op(takes="any", facts=moves(by_running, saves=inputs("x"), view=True))
def split(x: Array, split_size: int | Sequence[int], dim: int = 0):
    """Split x into parts along an axis.

    x: any shape and dtype.
    split_size: the length of every part, of which the last may be shorter; or a list of the lengths of all parts.
    Returns a tuple of views.
    Raises IndexError if x has no such axis, ValueError if a length is negative or the lengths do not add up to that of
    the axis.
    """
    dim = axis_of("split", dim, x.shape)
    total = x.shape[dim]
    if isinstance(split_size, int):
        if split_size < min(1, total):
            raise ValueError(f"split: split_size must be at least 1, not {split_size}; x has shape {x.shape}")
        sizes = [split_size] * max(1, -(-total // max(1, split_size)))
    else:
        sizes = list(split_size)
        if sum(sizes) != total or min(sizes, default=0) < 0:
            raise ValueError(
                f"split: sizes {sizes} must be 0 or more and add up to {total}, the length of dim {dim} of x {x.shape}"
            )
    prefix = (slice(None),) * dim
    indices = [(*prefix, slice(end - size, end)) for size, end in zip(sizes, accumulate(sizes))]
    return tuple(x[index] for index in indices), lambda dys: _join(x, dys, indices)


@op(takes="any", facts=moves(by_running, saves=inputs("x"), view=True))
def unbind(x: Array, dim: int = 0):
    """Split x into slices along an axis, which is removed.

    x: any shape and dtype.
    Returns a tuple of views.
    Raises IndexError if x has no such axis.
    """
    dim = axis_of("unbind", dim, x.shape)
    prefix = (slice(None),) * dim
    # With an Ellipsis, since NumPy would otherwise copy a single number instead of returning a view.
    indices = [(*prefix, i, ...) for i in range(x.shape[dim])]

    def backward(dys):
        return array_module(x).expand_dims(dys[0], dim) if len(dys) == 1 else _join(x, dys, indices)

    return tuple(x[index] for index in indices), backward


def _join(x: Array, dys: Sequence[Array | None], indices: Sequence[tuple]) -> Array:
    dx = whole_of(dys, x, indices)
    if dx is not None:
        return dx
    # In x's memory order, so that the gradients of attention's transposed q, k, v reach the projection without a copy.
    dx = array_module(x).empty_like(x)
    for index, dy in zip(indices, dys):
        if dy is None:
            dx[index] = 0
    copy([(dx[index], dy) for index, dy in zip(indices, dys) if dy is not None])
    return dx


@op(takes="any", facts=moves(like("x"), order=lambda x, dims: None if dims is None else order_of(x)))
def roll(x: Array, shifts: int | Sequence[int], dims: int | Sequence[int] | None = None):
    """Roll x along axes: entries shifted beyond the end are re-introduced at the start.

    x: any shape and dtype.
    shifts, dims: the number of positions to shift, and the axis; or sequences of the same length. An axis that is given
        twice is shifted by the sum. Without dims, x is rolled as if it were flattened; its shape does not change.
    Raises IndexError if x has no such axis, ValueError if there are not as many shifts as dims.
    """
    xp = array_module(x)
    shifts = (shifts,) if isinstance(shifts, int) else tuple(shifts)
    dims = () if dims is None else (dims,) if isinstance(dims, int) else tuple(dims)
    if len(shifts) != max(1, len(dims)):
        raise ValueError(f"roll: as many shifts as dims are needed, not {shifts} along {dims or 'the flattened x'}")
    if not dims:
        return xp.roll(x, shifts[0]), lambda dy: xp.roll(dy, -shifts[0])
    axes = tuple(axis_of("roll", dim, x.shape) for dim in dims)
    back = tuple(-shift for shift in shifts)
    return xp.roll(x, shifts, axes), lambda dy: xp.roll(dy, back, axes)


@op(takes="any", facts=moves(by_running, view=True, passes_on=True))
def flip(x: Array, dims: int | Sequence[int]):
    """A view of x with its entries reversed along one or more axes.

    x: any shape and dtype.
    Raises IndexError if x has no such axis, ValueError if an axis is repeated.
    """
    xp = array_module(x)
    axes = axes_of("flip", dims, x.shape)
    return xp.flip(x, axes), lambda dy: xp.flip(dy, axes)
