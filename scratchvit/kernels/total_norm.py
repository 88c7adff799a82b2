"""The norm of all gradients together, and clipping by it.

    plain       √Σ x² over all entries of all arrays
    idea        x · x is a product, in parallel for all arrays. cuda/total_norm.py has the kernels for a GPU
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scratchvit.backend import CPU, Array, array_module, backend_of
from scratchvit.kernels.cuda import total_norm as on_gpu
from scratchvit.kernels.cuda.array_lists import takes
from scratchvit.threads import deal


def total_norm(arrays: Sequence[Array]) -> Array:
    """√Σ x² over the entries of one or more contiguous arrays: a 0-d array on their device."""
    rows = [(x,) for x in arrays]
    if takes(rows):
        return on_gpu.total_norm(rows)
    xp = array_module(arrays[0])
    flat = [x.reshape(-1) for x in arrays]
    half = [xp.asarray(x, dtype=np.float32) if x.dtype.itemsize < 4 else x for x in flat]   # 256² overflows float16
    return xp.sqrt(sum(deal(xp.dot, [(x, x) for x in half], backend_of(half[0]) is CPU)))


def clip_factor(norm: Array, max_norm: float) -> Array:
    """min(1, max_norm / (norm + 1e-6)), which is NaN if the norm is: a 0-d array."""
    if takes([(norm,)]):
        return on_gpu.clip_factor(norm, max_norm)
    return array_module(norm).minimum(max_norm / (norm + 1e-6), 1)
