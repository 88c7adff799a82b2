"""Pooling: the maximum or the mean of every window, computed tap by tap (see sliding.py)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from scratchvit.backend import Array, array_module
from scratchvit.facts import Bytes, Facts, nothing, of_an_empty_batch
from scratchvit.kernels.masks import masked
from scratchvit.kernels.pooling import pooling_kernels
from scratchvit.kernels.sliding import Windows
from scratchvit.ops.sliding import per_axis, same_padding
from scratchvit.recording import is_recording
from scratchvit.tensor import op
from scratchvit.threads import parallel_rows

PLANE_BYTES = 1 << 20           # size of a block of planes: it stays in the cache of a core or is near it


def _pooling(saves: Any) -> Facts:
    return Facts(shape=of_an_empty_batch, saves=saves, macs=0)


@op(autocast="follows", half_on_gpu=True, facts=_pooling(saves=lambda kernel_size, out: _winners(kernel_size, out)))
def max_pool2d(x: Array, kernel_size, stride=None, padding=0, dilation=1, ceil_mode: bool = False):
    """The maximum of each window. The gradient goes to the first position at which the maximum occurs.

    x (B, C, H, W) → (B, C, H', W'), of a floating-point dtype. If a window contains a NaN, its maximum is NaN.
    kernel_size, stride, padding, dilation: an integer or one for each axis.
    stride: kernel_size if not given.
    padding: filled with -∞; can also be "same" (H' = ⌈H / stride⌉; see sliding.same_padding).
    ceil_mode: whether to keep windows that extend beyond the end.
    Raises ValueError if options do not fit together or a window is larger than the padded image, TypeError for
    integers.
    """
    return _max_pool(x, _windows("max_pool2d", 2, x, kernel_size, stride, padding, dilation, ceil_mode))


@op(autocast="follows", half_on_gpu=True, facts=_pooling(saves=lambda kernel_size, out: _winners(kernel_size, out)))
def max_pool3d(x: Array, kernel_size, stride=None, padding=0, dilation=1, ceil_mode: bool = False):
    """The maximum of each window; `max_pool2d` with a time axis: x (B, C, T, H, W) → (B, C, T', H', W').

    Raises what max_pool2d raises.
    """
    return _max_pool(x, _windows("max_pool3d", 3, x, kernel_size, stride, padding, dilation, ceil_mode))


@op(takes="sums", half_on_gpu=True, facts=_pooling(saves=nothing))
def avg_pool2d(
    x: Array, kernel_size, stride=None, padding=0, ceil_mode: bool = False, count_include_pad: bool = True,
):
    """The mean of each window.

    x (B, C, H, W) → (B, C, H', W'), of a floating-point dtype.
    kernel_size, stride, padding: an integer or one for each axis.
    stride: kernel_size if not given.
    ceil_mode: whether to keep windows that extend beyond the end. Positions beyond the padding are never counted.
    count_include_pad: whether padding zeros are included in the mean.
    Raises ValueError if options do not fit together or a window is larger than the padded image, TypeError for
    integers.
    """
    windows = _windows("avg_pool2d", 2, x, kernel_size, stride, padding, 1, ceil_mode)
    return _avg_pool(x, windows, count_include_pad)


@op(takes="sums", half_on_gpu=True, facts=_pooling(saves=nothing))
def avg_pool3d(
    x: Array, kernel_size, stride=None, padding=0, ceil_mode: bool = False, count_include_pad: bool = True,
):
    """The mean of each window; `avg_pool2d` with a time axis: x (B, C, T, H, W) → (B, C, T', H', W').

    Raises what avg_pool2d raises.
    """
    windows = _windows("avg_pool3d", 3, x, kernel_size, stride, padding, 1, ceil_mode)
    return _avg_pool(x, windows, count_include_pad)


def _max_pool(x: Array, windows: Windows):
    """Saves the tap of each maximum, one byte per output. The maximum of a window with a NaN is NaN, as in PyTorch."""
    if kernels := pooling_kernels(x, windows):
        return kernels.max_pool(x, windows, is_recording())
    xp = array_module(x)
    shape = x.shape
    planes = x.reshape(-1, *windows.size)                               # (B·C, *S)
    y = xp.empty((len(planes), *windows.output), dtype=x.dtype)
    recording = is_recording()          # otherwise nobody asks which tap it was
    winner = xp.zeros(y.shape if recording else (len(y), 0), dtype=_winner_dtype(windows.kernel))

    def rows(planes: Array, y: Array, winner: Array) -> None:
        if not recording:
            _maxima(planes, windows, y)
            return
        padded = windows.pad(planes, -math.inf)
        first, *others = windows.taps()
        y[...] = padded[first]
        for tap, window in enumerate(others, start=1):
            candidate = padded[window].copy()                           # read twice, and contiguous is faster
            better = candidate > y
            better = better.view(np.uint8) if winner.dtype == np.uint8 else better.astype(winner.dtype)
            better *= tap
            xp.maximum(winner, better, out=winner)                      # keeps the last tap that was better
            xp.maximum(y, candidate, out=y)

    def backward(dy):
        dy = dy.reshape(y_shape)
        dx = xp.empty((len(dy), *windows.size), dtype=dy.dtype)

        def rows(dy: Array, winner: Array, dx: Array) -> None:
            padded = xp.zeros((len(dy), *windows.padded), dtype=dy.dtype)
            for tap, window in enumerate(windows.taps()):
                padded[window] += masked(dy, winner == tap)
            dx[...] = padded[(..., *windows.inside)]

        parallel_rows(rows, dy, winner, dx, block_bytes=PLANE_BYTES)
        return dx.reshape(shape)

    y_shape = y.shape
    parallel_rows(rows, planes, y, winner, block_bytes=PLANE_BYTES)
    return y.reshape(*shape[:2], *windows.output), backward


def _maxima(x: Array, windows: Windows, out: Array) -> None:
    """Write the maximum of each window of planes x (P, *S) into out (P, *S'), one axis after the other.

    The maximum of a window is that of the maxima of its columns, so k + k taps do for k². The first axis is first: what
    its taps read is contiguous.
    """
    xp = array_module(x)
    for axis, (taps, places) in enumerate(zip(windows.kernel, windows.output)):
        before = (slice(None),) * (axis + 1)
        y = xp.empty((*x.shape[: axis + 1], places, *x.shape[axis + 2 :]), x.dtype) if axis + 2 < x.ndim else out
        y[...] = -math.inf
        for tap in range(taps):
            to, read = windows.reads(axis, tap)         # what is not read is padding
            xp.maximum(y[(*before, to)], x[(*before, read)], out=y[(*before, to)])
        x = y


def _winner_dtype(kernel: tuple[int, ...]) -> Any:
    return np.uint8 if math.prod(kernel) <= 256 else np.int32


def _winners(kernel_size: Any, out: Array) -> Bytes:
    kernel = per_axis(kernel_size, out.ndim - 2, "kernel_size", 1)
    return Bytes(out.size * np.dtype(_winner_dtype(kernel)).itemsize)


def _avg_pool(x: Array, windows: Windows, count_include_pad: bool):
    """y = Σ_taps slice / count. It is linear: the backward adds dy / count to every slice."""
    if kernels := pooling_kernels(x, windows):
        return kernels.avg_pool(x, windows, count_include_pad)
    xp = array_module(x)
    shape = x.shape
    count = _count(windows, count_include_pad)
    if isinstance(count, np.ndarray):
        count = xp.asarray(count, dtype=x.dtype)
    planes = x.reshape(-1, *windows.size)                               # (B·C, *S)
    y = xp.empty((len(planes), *windows.output), dtype=x.dtype)

    def rows(planes: Array, y: Array) -> None:
        padded = windows.pad(planes)
        first, *others = (padded[window] for window in windows.taps())
        y[...] = first
        for other in others:
            y += other
        y /= count

    def backward(dy):
        dy = dy.reshape(-1, *windows.output)
        dx = xp.empty((len(dy), *windows.size), dtype=dy.dtype)

        def rows(dy: Array, dx: Array) -> None:
            padded = xp.zeros((len(dy), *windows.padded), dtype=dy.dtype)
            share = dy / count
            for window in windows.taps():
                padded[window] += share
            dx[...] = padded[(..., *windows.inside)]

        parallel_rows(rows, dy, dx, block_bytes=PLANE_BYTES)
        return dx.reshape(shape)

    parallel_rows(rows, planes, y, block_bytes=PLANE_BYTES)
    return y.reshape(*shape[:2], *windows.output), backward


def _count(windows: Windows, count_include_pad: bool) -> np.ndarray | int:
    """The divisor of each window's mean: an integer if it is the same for all windows, else an array (*output)."""
    each = np.ones((), dtype=int)
    for n, k, s, padding, places in zip(windows.size, windows.kernel, windows.stride, windows.before, windows.output):
        start = np.arange(places) * s - padding
        low, high = (-padding, n + padding) if count_include_pad else (0, n)
        each = each[..., None] * (np.minimum(start + k, high) - np.maximum(start, low))
    return int(each.flat[0]) if (each == each.flat[0]).all() else each


def _windows(name, axes, x, kernel_size, stride, padding, dilation, ceil_mode) -> Windows:
    if x.ndim != axes + 2:
        raise ValueError(f"{name}: x must be (B, C, {'T, ' * (axes - 2)}H, W), not {x.shape}")
    size = tuple(x.shape[2:])
    kernel = per_axis(kernel_size, axes, f"{name}: kernel_size", 1)
    stride = kernel if stride is None else per_axis(stride, axes, f"{name}: stride", 1)
    dilation = per_axis(dilation, axes, f"{name}: dilation", 1)
    if padding == "same" and name.startswith("max"):        # not for means, where padding may or may not be counted
        if max(dilation) > 1:
            raise ValueError(
                f'{name}: padding="same" needs dilation 1, not {dilation}: otherwise a window could lie in the padding'
            )
        places = tuple(math.ceil(n / s) for n, s in zip(size, stride))
        return Windows(size, kernel, stride, dilation, *same_padding(size, kernel, stride, dilation), places)
    padding = per_axis(padding, axes, f"{name}: padding", 0)
    if any(2 * p > k for p, k in zip(padding, kernel)):
        raise ValueError(
            f"{name}: padding {padding} must be at most half of kernel_size {kernel}: otherwise a window could lie in "
            "the padding"
        )
    output, after = [], []
    for n, k, s, p, d in zip(size, kernel, stride, padding, dilation):
        reach = d * (k - 1)
        room = n + 2 * p - reach - 1            # how far the first window can move
        places = (room + (s - 1 if ceil_mode else 0)) // s + 1
        if ceil_mode and (places - 1) * s >= n + p:             # a window may extend beyond the end, not start there
            places -= 1
        if places < 1 or n < 1:
            raise ValueError(
                f"{name}: the window {kernel} with dilation {dilation} is larger than x of shape {x.shape} "
                f"with padding {padding}"
            )
        output.append(places)
        after.append(max(p, (places - 1) * s + reach + 1 - n - p))
    return Windows(size, kernel, stride, dilation, padding, tuple(after), tuple(output))
