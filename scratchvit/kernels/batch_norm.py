"""Batch norm in blocks of some channels of some images, which stay in the cache.

    plain       x̂ = (x - μ) r over all images and places of a channel, y = x̂ weight + bias
    problem     the statistics of a channel need the whole batch, so three passes over memory cannot be avoided; NumPy
                makes a dozen, and starts an inner loop for every plane, which takes as long as 1,000 numbers
    idea        in each pass, a block goes through all operations while it is in the cache. Statistics are sums of
                sums of planes, which are products with ones (see row_sums.py). Small planes are treated as one long
                row. The graph saves x instead of x̂, which takes one product to recompute

cuda/batch_norm.py has the kernels for a GPU.

*Synchronised* over several processes, each of which has some images of a batch, these sums are over all images: Σ x,
then Σ (x - μ)², for the statistics; Σ dy and Σ dy x̂ together, for dx. Gradients of weight and bias are those of the own
images, since whoever averages gradients of parameters adds them up. This is what torch.nn.SyncBatchNorm computes
(torch/nn/modules/_functions.py), except that it exchanges mean, variance and count of every process at once. There is
no kernel for it in CUDA: a GPU computes it by operations on arrays.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from scratchvit.backend import CPU, Array, array_module, backend_of
from scratchvit.kernels.cuda import batch_norm as on_gpu
from scratchvit.kernels.in_float32 import in_float32
from scratchvit.kernels.row_sums import column_of_ones, dot_rows, sum_rows
from scratchvit.kernels.sums import total
from scratchvit.precision import is_half
from scratchvit.threads import PARALLEL_BYTES, deal

CHANNEL_BYTES = 512 << 10       # size of a block of channels

AddUp = Callable[[Array], None]     # replaces a small array by its sum over all processes


def normalise_channels(
    planes: Array, running: tuple[Any, Any, Any], training: bool, weight: Array | None, bias: Array | None, eps: float,
    add_up: AddUp | None = None,
):
    """Value and backward of batch norm of planes (B, C, S): see ops/norm.py.

    running: running mean and variance (C,), which may be None in training, and momentum.
    training: whether statistics are those of the batch, which then update the running ones.
    weight, bias: (C,) or None.
    add_up: to synchronise the statistics of the batch; None: they are those of planes.
    """
    if add_up is None and on_gpu.takes(planes, *running, weight, bias):
        return on_gpu.normalise_channels(planes, running, training, weight, bias, eps)
    if is_half(planes):
        return in_float32(normalise_channels, planes, running, training, weight, bias, eps, add_up)
    statistics = None if training else (running[0].copy(), running[1])      # a copy: training steps update it in place
    xp = array_module(planes)
    B, C, S = planes.shape
    n: Any = B * S
    y = xp.empty((B, C, S), dtype=planes.dtype)
    ones = column_of_ones(planes, S)
    sums = xp.empty((B, C, 1), dtype=planes.dtype)

    def sum_planes(x, sums):
        sum_rows(x, ones, out=sums)

    def centre(x, y, sums, mean):
        xp.copyto(y, x)
        y -= mean
        dot_rows(y, y, out=sums)

    if statistics is None:
        _by_block(sum_planes, [planes, sums])
        of_x, n = over_ranks(total(sums, (0, 2)), B * S, add_up)
        mean = of_x / n
        _by_block(centre, [planes, y, sums], mean)
        var = over_ranks(total(sums, (0, 2)), B * S, add_up)[0] / n
        update_running(running, mean, var, n)
    else:
        mean, var = statistics
    r = 1 / xp.sqrt(var + eps)
    scale = r if weight is None else r * weight
    shift = xp.zeros_like(mean) if bias is None else bias
    if statistics is None:
        _by_block(_affine, [y, y], scale, shift)
    else:
        _by_block(_affine, [planes, y], scale, shift - mean * scale)

    def backward(dy, need):
        dweight = dbias = dx = None
        sum_dy, sum_dy_x = (xp.empty((B, C, 1), dtype=planes.dtype) for _ in range(2))

        def totals(x, dy, sum_dy, sum_dy_x, mean):
            sum_rows(dy, ones, out=sum_dy)
            dot_rows(x - mean, dy, out=sum_dy_x)

        def through_statistics(x, dy, dx, mean, along_x_hat, average, scale):
            xp.copyto(dx, x)
            dx -= mean
            dx *= along_x_hat
            dx += dy
            dx -= average
            dx *= scale

        if statistics is None or need[1] or need[2]:
            _by_block(totals, [planes, dy, sum_dy, sum_dy_x], mean)
            dbias = total(sum_dy, (0, 2))             # Σ dy
            dweight = total(sum_dy_x, (0, 2)) * r     # Σ dy x̂
        if need[0]:
            if statistics is None:
                of_dy_x_hat, of_dy = over_ranks(xp.stack([dweight, dbias]), B * S, add_up)[0]
                dx = xp.empty((B, C, S), dtype=planes.dtype)
                _by_block(through_statistics, [planes, dy, dx], mean, r * of_dy_x_hat / -n, of_dy / n, scale)
            else:
                dx = xp.empty((B, C, S), dtype=planes.dtype)
                _by_block(_times, [dy, dx], scale)
        return dx, dweight if need[1] else None, dbias if need[2] else None

    return y, backward


def over_ranks(sums: Array, n: int, add_up: AddUp | None) -> tuple[Array, Any]:
    """Sums of n numbers, an array of any shape, and n: over all processes. They are exchanged in float64."""
    if add_up is None:
        return sums, n
    xp = array_module(sums)
    joined = xp.concatenate([sums.astype(np.float64).reshape(-1), xp.full(1, n, np.float64)])
    add_up(joined)
    joined = joined.astype(sums.dtype)
    return joined[:-1].reshape(sums.shape), joined[-1]


def update_running(running: tuple[Any, Any, Any], mean: Array, var: Array, n: Any) -> None:
    """Update running mean and variance, unless they are None, by mean and biased variance of a batch of n numbers."""
    running_mean, running_var, momentum = running
    if running_mean is not None:
        for old, batch in ((running_mean, mean), (running_var, var * (n / (n - 1)))):
            old *= 1 - momentum
            old += momentum * batch


def normalise_frozen(
    planes: Array, running_mean: Array, running_var: Array, weight: Array, bias: Array, eps: float
) -> tuple[Array, Callable[[Array], Array]]:
    """Value of frozen batch norm of planes (B, C, S), and a function dy → dx: see ops/norm.py."""
    if on_gpu.takes(planes, running_mean, running_var, weight, bias):
        return on_gpu.normalise_frozen(planes, running_mean, running_var, weight, bias, eps)
    if is_half(planes):
        y, dx = normalise_frozen(planes.astype(np.float32), running_mean, running_var, weight, bias, eps)
        return y.astype(planes.dtype), lambda dy: dx(dy.astype(np.float32)).astype(planes.dtype)
    scale = weight / array_module(planes).sqrt(running_var + eps)

    def times_scale(dy: Array) -> Array:
        dx = array_module(dy).empty(dy.shape, dtype=dy.dtype)
        _by_block(_times, [dy, dx], scale)
        return dx

    y = array_module(planes).empty(planes.shape, dtype=planes.dtype)
    _by_block(_affine, [planes, y], scale, bias - running_mean * scale)
    return y, times_scale


def _affine(x: Array, y: Array, scale: Array, shift: Array) -> None:
    array_module(x).multiply(x, scale, out=y)
    y += shift


def _times(x: Array, y: Array, scale: Array) -> None:
    array_module(x).multiply(x, scale, out=y)


def _by_block(fn: Callable[..., Any], arrays: list[Array], *columns: Array) -> None:
    """Call `fn(*arrays, *columns)` for blocks of some channels of some images that stay in the cache.

    arrays (B, C, ·), columns (C,). fn gets columns as (c, 1), or for small planes repeated to (c, S). NumPy then needs
    one inner loop for all channels instead of one per plane, and starting a loop takes as long as 1,000 numbers.
    """
    B, C, S = arrays[0].shape
    columns = tuple(column[:, None] for column in columns)
    if backend_of(arrays[0]) is not CPU:
        fn(*arrays, *columns)
        return
    if S <= 1024 and B > 1:
        columns = tuple(column.repeat(S, axis=1) for column in columns)
    plane = max(1, S * arrays[0].itemsize)
    c = max(1, min(C, CHANNEL_BYTES // plane))
    b = max(1, CHANNEL_BYTES // (c * plane))
    blocks = [
        (*(array[i : i + b, j : j + c] for array in arrays), *(column[j : j + c] for column in columns))
        for j in range(0, C, c)
        for i in range(0, B, b)
    ]
    deal(fn, blocks, arrays[0].nbytes >= PARALLEL_BYTES)
