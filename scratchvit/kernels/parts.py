"""Parts of an array: joining them, and gradients of parts that are written where they belong.

Gradients of q, k and v, which one projection makes:

    plain       dq, dk, dv = three new arrays; dqkv = stack((dq, dk, dv))
    problem     the copy reads and writes as many numbers as three linear layers have inputs
    idea        if q, k and v are parts of one array, at equal distances, dq, dk and dv are allocated as such parts too,
                and stacking them finds that nothing is left to do
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from scratchvit.backend import CPU, Array, array_module, backend_of
from scratchvit.kernels.updates import copy


def empty_parts(*parts: Array) -> list[Array]:
    """New arrays like the given ones; neighbours that are slices of one array, at equal distances, are slices of one
    array again."""
    found: list[Array] = []
    for _, run in itertools.groupby(parts, key=lambda x: id(x if x.base is None else x.base)):
        found += _empty_slices(list(run))
    return found


def _empty_slices(parts: list[Array]) -> list[Array]:
    first, xp = parts[0], array_module(parts[0])
    if len(parts) > 1 and _has_address(first) and all(
        (x.shape, x.strides, x.dtype) == (first.shape, first.strides, first.dtype) for x in parts
    ):
        distance, *others = np.diff([_address(x) for x in parts]).tolist()
        if distance > 0 and others == [distance] * len(others):
            shape, strides = (len(parts), *first.shape), (distance, *first.strides)
            return list(xp.empty_like(xp.lib.stride_tricks.as_strided(first, shape, strides)))
    return [xp.empty_like(x) for x in parts]


def joined(parts: Sequence[Array], axis: int) -> Array:
    """The arrays one after the other along an axis, as `numpy.concatenate`; on a GPU in one launch, along axis 0."""
    xp, dtype = array_module(parts[0]), parts[0].dtype
    if not backend_of(parts[0]).has_cuda or any(part.dtype != dtype for part in parts):
        return xp.concatenate(parts, axis=axis)
    ends = np.cumsum([part.shape[axis] for part in parts]).tolist()
    before, after = parts[0].shape[:axis], parts[0].shape[axis + 1 :]
    whole = xp.empty((*before, ends[-1], *after), dtype=dtype)
    prefix = (slice(None),) * axis
    copy([(whole[(*prefix, slice(end - part.shape[axis], end))], part) for part, end in zip(parts, ends)])
    return whole


def whole_of(parts: Sequence[Array | None], like: Array, indices: Sequence[tuple]) -> Array | None:
    """The array of the shape of `like` whose slices at the indices the parts are, all of its memory; or None."""
    first = parts[0]
    if first is None or not _has_address(first) or first.base is None:
        return None
    whole = first.base
    if (whole.shape, whole.dtype) != (like.shape, like.dtype):
        return None
    at_their_places = all(
        part is not None and part.base is whole and (part.shape, part.strides) == (whole[i].shape, whole[i].strides)
        and _address(part) == _address(whole[i])
        for part, i in zip(parts, indices)
    )
    return whole if at_their_places else None


def _has_address(x: Array) -> bool:
    return backend_of(x) is CPU or backend_of(x).has_cuda


def _address(x: Array) -> int:
    """Where the first entry of x is in memory."""
    return int(x.data.ptr if backend_of(x).has_cuda else x.__array_interface__["data"][0])
