"""Group norm in blocks that stay in the cache.

    plain       x̂ = (x - μ) r over each group of channels of each image, y = x̂ weight + bias
    problem     as in layer_norm.py, and weight and bias belong to channels, not to places in a row
    idea        each group of each image is a row. The backward sums dy and dy (x - μ) over each channel of each image.
                Weighted sums of these over the channels of a group give mean(g) and mean(g x̂), and sums over the
                images give dweight and dbias

cuda/group_norm.py has the kernels for a GPU.
"""

from __future__ import annotations

import math

from scratchvit.backend import Array, array_module
from scratchvit.kernels import cuda
from scratchvit.kernels.cuda import group_norm as on_gpu
from scratchvit.kernels.in_float32 import in_float32
from scratchvit.kernels.layer_norm import ROW_BYTES, reciprocal_deviation
from scratchvit.kernels.row_sums import column_of_ones, dot_rows, sum_rows
from scratchvit.kernels.sums import total
from scratchvit.precision import is_half
from scratchvit.threads import parallel_rows


def normalise_groups(x: Array, num_groups: int, weight: Array | None, bias: Array | None, eps: float):
    """Value and backward of group norm of x (B, C, ...), with weight and bias (C,) or None: see ops/norm.py."""
    if cuda.takes(x) and on_gpu.fits(x, num_groups):
        return on_gpu.normalise_groups(x, num_groups, weight, bias, eps)
    if is_half(x):
        return in_float32(normalise_groups, x, num_groups, weight, bias, eps)
    xp = array_module(x)
    B, C = x.shape[:2]
    N, c, S = B * num_groups, C // num_groups, math.prod(x.shape[2:])
    weight = xp.ones(C, dtype=x.dtype) if weight is None else weight
    bias = xp.zeros(C, dtype=x.dtype) if bias is None else bias
    rows = x.reshape(N, c, S)
    weight, bias = (xp.broadcast_to(column, (B, C)).reshape(N, c, 1) for column in (weight, bias))
    ones = column_of_ones(x, S)
    y = xp.empty((N, c, S), dtype=x.dtype)
    mean, r = (xp.empty((N, 1, 1), dtype=x.dtype) for _ in range(2))

    def forward(x, y, mean, r, weight, bias):
        xp.copyto(y, x)
        y.mean(axis=(1, 2), keepdims=True, out=mean)    # for many numbers more accurate than a product with ones
        y -= mean
        reciprocal_deviation(y.reshape(len(y), c * S), eps, out=r[:, 0])
        y *= r * weight
        y += bias

    parallel_rows(forward, rows, y, mean, r, weight, bias, block_bytes=ROW_BYTES)

    def backward(dy, need):
        dx = xp.empty((N, c, S), dtype=x.dtype)
        sum_dy, sum_dy_centred = (xp.empty((N, c, 1), dtype=x.dtype) for _ in range(2))

        def backward_rows(x, dy, dx, mean, r, weight, sum_dy, sum_dy_centred):
            centred = x - mean                          # x̂ / r
            xp.copyto(dx, dy)
            sum_rows(dx, ones, out=sum_dy)
            dot_rows(dx, centred, out=sum_dy_centred)
            mean_g = (weight * sum_dy).sum(axis=1, keepdims=True) / (c * S)
            centred *= (weight * sum_dy_centred).sum(axis=1, keepdims=True) * r * r * r / (c * S)   # r x̂ mean(g x̂)
            dx *= r * weight                            # r g
            dx -= r * mean_g
            dx -= centred

        parallel_rows(
            backward_rows, rows, dy.reshape(N, c, S), dx, mean, r, weight, sum_dy, sum_dy_centred,
            block_bytes=ROW_BYTES,
        )
        dweight = total((sum_dy_centred * r).reshape(B, C), (0,)) if need[1] else None
        dbias = total(sum_dy.reshape(B, C), (0,)) if need[2] else None
        return dx.reshape(x.shape), dweight, dbias

    return y.reshape(x.shape), backward
