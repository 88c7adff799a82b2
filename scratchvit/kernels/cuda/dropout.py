"""Dropout of entries or of samples in one launch.

    plain       y_i = x_i kept_i / p; for samples, kept has one entry for all numbers of a sample
    problem     21 operations draw the mask, two more multiply
    idea        a thread draws the entry that it multiplies (draws.py)
    who         thread i has the number i; its entry of the mask is i / (numbers that share an entry)
"""

from __future__ import annotations

import math

from scratchvit.backend import Array, array_module
from scratchvit.kernels.cuda.draws import arguments
from scratchvit.kernels.cuda.modules import divide, launch
from scratchvit.random import Draw

THREADS = 256

TEXT = r"""
// --- dropout.py ---

extern "C" __global__ void drop_entries(const T* x, T* y, size count, size together, const uint32* keys,
                                        size first_key, size second_key, size first, size threshold, double factor) {
    size i = blockIdx.x * (size)blockDim.x + threadIdx.x;
    if (i >= count) return;
    Draw draw = draw_of(keys, first_key, second_key, first, threshold, factor);
    y[i] = (A)x[i] * keep(draw, i / together);
}
"""


def drop_entries(x: Array, draw: Draw) -> Array:
    """x / p where the draw keeps it, and 0 elsewhere. Shape of the draw: that of x, or (B, 1, …) for x (B, …)."""
    x = array_module(x).ascontiguousarray(x).reshape(x.shape)
    y = array_module(x).empty(x.shape, dtype=x.dtype)
    together = x.size // max(1, math.prod(draw.shape))
    launch(
        "maps", "drop_entries", x, (divide(x.size, THREADS),), (THREADS,), x, y, x.size, together, *arguments(draw)
    )
    return y
