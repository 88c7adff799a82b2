"""Normalisation of rows, in blocks that stay in the cache.

    plain       x̂ = (x - μ) r, with μ and σ² the mean and variance of each row, r = 1/√(σ² + ε)
    problem     a dozen passes over memory, and as many new arrays
    idea        a block of rows goes through all passes while it is in the cache. Results are computed in place in a
                copy of the input, since NumPy takes twice as long to write a result to memory outside of the cache as
                to copy an array there. Sums are matrix products with ones, at the speed of BLAS (see row_sums.py). The
                graph saves x instead of x̂, and two numbers per row

cuda/layer_norm.py has the kernels for a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from scratchvit.backend import Array, array_module
from scratchvit.kernels import cuda
from scratchvit.kernels.cuda import layer_norm as on_gpu
from scratchvit.kernels.dropout import drop_entries
from scratchvit.kernels.in_float32 import in_float32
from scratchvit.kernels.row_sums import column_of_ones, dot_rows, sum_columns, sum_rows
from scratchvit.kernels.sums import in_pairs
from scratchvit.precision import is_half
from scratchvit.random import Draw
from scratchvit.threads import parallel_rows

ROW_BYTES = 384 << 10           # size of a block of rows: with its temporaries it stays in the cache


def normalise_rows(x: Array, weight: Array | None, bias: Array | None, eps: float):
    """Value and backward of layer norm of x (N, D), with weight and bias (D,) or None: see ops/norm.py."""
    if cuda.takes(x) and on_gpu.fits(x):
        return on_gpu.normalise_rows(x, weight, bias, eps)
    if is_half(x):
        return in_float32(normalise_rows, x, weight, bias, eps)
    xp = array_module(x)
    N, D = x.shape
    ones = column_of_ones(x, D)
    y = xp.empty((N, D), dtype=x.dtype)
    mean, r = (xp.empty((N, 1), dtype=x.dtype) for _ in range(2))

    def forward(x, y, mean, r):
        xp.copyto(y, x)
        sum_rows(y, ones, out=mean)
        mean /= D
        y -= mean
        reciprocal_deviation(y, eps, out=r)
        y *= r                                          # x̂
        if weight is not None:
            y *= weight
        if bias is not None:
            y += bias

    parallel_rows(forward, x, y, mean, r, block_bytes=ROW_BYTES)

    def backward(dy, need):
        dx = xp.empty((N, D), dtype=x.dtype)
        g_ones = ones if weight is None else weight[:, None]        # Σ dy g_ones = Σ g

        def backward_rows(x, dy, mean, r, dx):
            centred = x - mean                          # x̂ / r
            xp.copyto(dx, dy)
            dy_centred = dx * centred
            dweight = sum_columns(dy_centred, r) if need[1] else None
            dbias = sum_columns(dx) if need[2] else None
            mean_g = sum_rows(dx, g_ones) / D
            centred *= sum_rows(dy_centred, g_ones) * r * r / D     # x̂ mean(g x̂)
            if weight is not None:
                dx *= weight                            # g
            dx -= mean_g
            dx -= centred
            dx *= r
            return dweight, dbias

        parts = parallel_rows(backward_rows, x, dy, mean, r, dx, block_bytes=ROW_BYTES)
        dweight, dbias = (in_pairs(part) if wanted else None for part, wanted in zip(zip(*parts), need[1:]))
        return dx, dweight, dbias

    return y, backward


def normalise_sum(
    x: Array, added: Array, draw: Draw | None, weight: Array | None, bias: Array | None, eps: float
):
    """Value and backward of layer norm of x + added, both (N, D), with dropout of `added` by a draw: see ops/norm.py.

    On a GPU one launch; on the CPU an operation after the other. If one of x and added is of 16 bits, both are rounded
    to them.
    """
    if x.dtype != added.dtype:
        halves = [array.dtype for array in (x, added) if is_half(array)]
        dtype = halves[0] if halves else np.promote_types(x.dtype, added.dtype)
        x, added = x.astype(dtype, copy=False), added.astype(dtype, copy=False)
    if cuda.takes(x) and on_gpu.fits(x):
        return on_gpu.normalise_sum(x, added, draw, weight, bias, eps)
    dropped, dropped_backward = (added, lambda dz: dz) if draw is None else drop_entries(added, draw)
    y, backward_of_sum = normalise_rows(x + dropped, weight, bias, eps)

    def backward(dy: Array, need: Sequence[bool]) -> tuple[Array | None, ...]:
        dz, dweight, dbias = backward_of_sum(dy, (need[0] or need[1], *need[2:]))
        return dz if need[0] else None, dropped_backward(dz) if need[1] else None, dweight, dbias

    return y, backward


def reciprocal_deviation(centred: Array, eps: float, out: Array) -> None:
    """Write r of each row of x - μ (N, D) into out (N, 1)."""
    xp = array_module(centred)
    dot_rows(centred, centred, out=out)
    out /= centred.shape[1]                             # σ²
    xp.copyto(out, math.nan, where=out == math.inf)     # of numbers around 1e20: 1/√∞ would make a row of zeros
    out += eps
    xp.sqrt(out, out=out)
    xp.reciprocal(out, out=out)
