"""Dropout: entries of an array, or whole samples, set to zero at random, and the others scaled.

    plain       y = x kept / p,  dx = dy kept / p,  where kept is drawn: True with probability p
    problem     on a GPU, drawing is 21 operations on arrays of the size of x, and the mask must be kept for backward
    idea        there, a kernel computes the entries of the mask where it uses them, in backward too: they are a
                function of their positions. On the CPU the mask is kept, a byte for each entry, since drawing takes
                longer than reading it

cuda/dropout.py has the kernel.
"""

from __future__ import annotations

from scratchvit.backend import Array
from scratchvit.kernels import cuda
from scratchvit.kernels.cuda import dropout as on_gpu
from scratchvit.random import Draw


def drop_entries(x: Array, draw: Draw):
    """Value and backward of dropout of x by a draw, whose shape broadcasts to that of x: see ops/attention.py."""
    if cuda.takes(x):
        return on_gpu.drop_entries(x, draw), lambda dy: on_gpu.drop_entries(dy, draw)
    kept = draw.array()
    return drop(x, kept, draw.probability), lambda dy: drop(dy, kept, draw.probability)


def drop(values: Array, kept: Array, probability: float) -> Array:
    """A new array: the values divided by the probability of keeping them where they are kept, zero elsewhere."""
    values = values * kept
    values *= 1 / probability
    return values
