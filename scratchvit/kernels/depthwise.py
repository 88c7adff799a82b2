"""Depth-wise convolution: every channel has its own filters, so there is no sum over channels for a matrix product.

What remains is a sum over the taps (kernel entries) for every position and channel. With channels-last memory it is
vectorised over the channels, for any stride, and nothing is copied: the windows are an overlapping view of the padded
image.

    y[b, i, j, c] = Σ_{u,v} windows[b, i, j, c, u, v] · weight[u, v, c]

Below, `*S` are the spatial axes and `*S'` the output's. In einsum's equations they are h, w or t, h, w, and the axes of
the kernel d, e or d, e, f.

cuda/depthwise.py has the kernels for a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from scratchvit.backend import CPU, Array, array_module, backend_of
from scratchvit.kernels.sliding import Windows
from scratchvit.kernels.sums import total
from scratchvit.threads import parallel_rows

BLOCK_BYTES = 1 << 20           # size of a block of images: it stays in the cache while its windows are read
BLOCK_BYTES_GPU = 256 << 20     # on a GPU, size of the windows of a block, of which CuPy's einsum makes a copy


def depthwise(x: Array, weight: Array, bias: Array | None, windows: Windows, groups: int) -> Array:
    """y = Σ_tap weight[tap] · window[tap].  x (B, C, *S); weight (C·m, 1, *kernel) → (B, C·m, *S').

    The value is channels-last in memory, so flattening it to tokens (B, S', C·m) needs no copy.
    """
    xp = array_module(x)
    filters, S, K = _filters(weight), *_letters(windows)
    y = xp.empty((len(x), *windows.output, len(weight)), dtype=x.dtype)

    def images(x: Array, y: Array) -> None:
        y[...] = xp.einsum(f"b{S}c{K},{K}c->b{S}c", _views(x, windows, len(weight)), filters)
        if bias is not None:
            y += bias

    _in_blocks(images, windows, x, y)
    return _channels_first(y)


def depthwise_dx(dy: Array, weight: Array, windows: Windows, groups: int) -> Array:
    """For every tap, add weight[tap] · dy to the slice of dx that the tap read.

    With stride 1 this is a convolution of dy with the flipped kernel.
    """
    xp = array_module(dy)
    back, repeats = windows.backwards(), len(weight) // groups
    if max(windows.stride) == 1 == repeats and min(back.before + back.after) >= 0:
        flipped = weight[(..., *(slice(None, None, -1) for _ in windows.kernel))]
        return depthwise(dy, flipped, None, back, groups)

    filters = _filters(weight).reshape(-1, len(weight))                                 # (taps, C·m)
    dx = xp.empty((len(dy), *windows.size, groups), dtype=dy.dtype)

    def images(dy: Array, dx: Array) -> None:
        dy = xp.ascontiguousarray(_channels_last(dy))
        padded = xp.zeros((len(dx), *windows.padded, groups), dtype=dx.dtype)
        for tap, window in enumerate(windows.taps()):
            sent = dy * filters[tap]                                                    # (n, *S', C·m)
            sent = sent if repeats == 1 else sent.reshape(*dy.shape[:-1], groups, repeats).sum(axis=-1)
            padded[(*window, slice(None))] += sent
        dx[...] = padded[(slice(None), *windows.inside)]

    _in_blocks(images, windows, dy, dx)
    return _channels_first(dx)


def depthwise_dw(dy: Array, x: Array, windows: Windows, groups: int) -> Array:
    """dweight[tap] = Σ_{b,S'} dy · window[tap]: first over each line of the output, then over all lines."""
    xp = array_module(x)
    S, K = _letters(windows)
    numbers = math.prod(windows.kernel) * dy.shape[1]

    def images(dy: Array, x: Array) -> Array:
        dy = xp.ascontiguousarray(_channels_last(dy))
        lines = xp.einsum(f"b{S}c{K},b{S}c->b{S[:-1]}{K}c", _views(x, windows, dy.shape[-1]), dy)
        return total(lines.reshape(math.prod(dy.shape[:-2]), numbers), (0,))

    parts = _in_blocks(images, windows, dy, x)
    return total(xp.stack(parts), (0,)).reshape(-1, dy.shape[1]).T                         # (C·m, taps)


def _views(x: Array, windows: Windows, channels: int) -> Array:
    """The window of every output position and channel: x (n, C, *S) → (n, *S', C·m, *kernel), a view."""
    xp = array_module(x)
    padded = xp.zeros((len(x), *windows.padded, x.shape[1], channels // x.shape[1]), dtype=x.dtype)
    padded[(slice(None), *windows.inside)] = _channels_last(x)[..., None]
    padded = padded.reshape(len(x), *windows.padded, channels)
    axes, extent = tuple(range(1, 1 + len(windows.size))), tuple(n + 1 for n in windows.reach)
    view = xp.lib.stride_tricks.sliding_window_view(padded, extent, axis=axes)          # (n, …, C·m, …), stride 1
    places, taps = (tuple(slice(None, None, step) for step in steps) for steps in (windows.stride, windows.dilation))
    return view[(slice(None), *places, slice(None), *taps)]


def _in_blocks(images: Callable[..., Any], windows: Windows, *arrays: Array) -> list[Any]:
    """Call `images` on blocks of images and return its results in order."""
    if backend_of(arrays[0]) is CPU:
        return parallel_rows(images, *arrays, block_bytes=BLOCK_BYTES)
    count, largest = len(arrays[0]), math.prod(windows.kernel) * max(a.nbytes for a in arrays)
    step = max(1, count * BLOCK_BYTES_GPU // max(1, largest))
    return [images(*(a[i : i + step] for a in arrays)) for i in range(0, max(1, count), step)]


def _filters(weight: Array) -> Array:
    """(C·m, 1, *kernel) → (*kernel, C·m)."""
    return array_module(weight).ascontiguousarray(weight[:, 0].transpose(*range(1, weight.ndim - 1), 0))


def _letters(windows: Windows) -> tuple[str, str]:
    """The letters of the spatial axes and of the kernel's axes in einsum's equations."""
    axes = len(windows.size)
    return "thw"[-axes:], "def"[-axes:]


def _channels_last(x: Array) -> Array:
    return x.transpose(0, *range(2, x.ndim), 1)


def _channels_first(y: Array) -> Array:
    return y.transpose(0, y.ndim - 1, *range(1, y.ndim - 1))
