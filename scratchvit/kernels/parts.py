"""Gradients of the parts of an array, written where they belong: those of q, k and v, which one projection makes.

    plain       dq, dk, dv = three new arrays; dqkv = stack((dq, dk, dv))
    problem     the copy reads and writes as many numbers as three linear layers have inputs
    idea        if q, k and v are parts of one array, at equal distances, dq, dk and dv are allocated as such parts too,
                and stacking them finds that nothing is left to do

On a GPU, all arrays are separate.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.lib.stride_tricks import as_strided

from scratchvit.backend import CPU, Array, array_module, backend_of


def empty_parts(*parts: Array) -> list[Array]:
    """New arrays like the given ones; together one array, if the given ones are slices of one at equal distances."""
    first = parts[0]
    if backend_of(first) is CPU and all((x.shape, x.strides, x.dtype) == (first.shape, first.strides, first.dtype)
                                        for x in parts):
        distances = np.diff([_address(x) for x in parts])
        if len(set(distances)) == 1 and distances[0] > 0 and all(x.base is first.base is not None for x in parts):
            together = as_strided(first, (len(parts), *first.shape), (distances[0], *first.strides), writeable=False)
            return list(np.empty_like(together))
    return [array_module(x).empty_like(x) for x in parts]


def whole_of(parts: Sequence[Array | None], like: Array, indices: Sequence[tuple]) -> Array | None:
    """The array of the shape of `like` whose slices at the indices the parts are, all of its memory; or None."""
    first = parts[0]
    if first is None or backend_of(first) is not CPU or first.base is None:
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


def _address(x: np.ndarray) -> int:
    return x.__array_interface__["data"][0]
