"""Sums of rows by an index: the gradient of what was looked up, where an entry may have been selected many times.

    plain       out = 0; out[index_i] += values_i for all i, one after another
    problem     in parallel, such additions need atomic operations, whose order changes from run to run
    idea        sort the index; then what belongs to an entry of `out` is a segment, and segments are summed in order

cuda/index_sums.py has the kernels for a GPU.
"""

from __future__ import annotations

import numpy as np

from scratchvit.backend import Array, array_module
from scratchvit.kernels import cuda
from scratchvit.kernels.cuda import index_sums as on_gpu


def sum_by_index(index: Array, values: Array, size: int) -> Array:
    """out[j] = Σ values[i] over all i with index[i] = j, the same bits in every run.

    index (N,) int in [-size, size); values (N,) or (N, D); out (size,) or (size, D).
    """
    if cuda.takes(values):
        return on_gpu.sum_by_index(index, values, size)
    xp = array_module(values)
    index = index.astype(np.int64, copy=False) % size
    order = xp.argsort(index, kind="stable")
    starts = xp.searchsorted(index[order], xp.arange(size))     # the start of each segment, without a synchronisation
    sentinel = xp.zeros((1, *values.shape[1:]), dtype=values.dtype)     # a valid start for empty segments at the end
    # float64, since CuPy's reduceat subtracts cumulative sums.
    sums = xp.add.reduceat(xp.concatenate([values[order], sentinel]), starts, axis=0, dtype=np.float64)
    present = xp.zeros((size, *[1] * (values.ndim - 1)), dtype=bool)
    present[index] = True                   # for an empty segment, reduceat gives the entry at its start instead of 0
    return xp.where(present, sums, 0).astype(values.dtype, copy=False)
