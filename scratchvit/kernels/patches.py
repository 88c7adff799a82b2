"""Convolution with patches: kernel = stride, so the windows tile the image and the columns are a reshaped image.

    plain       columns of all windows, y = weight × columns (ops/conv.py)
    problem     copying the windows tap by tap writes as many short runs as there are taps and patches
    idea        one transposition cuts the image into rows, one for each patch; the value is channels-last in memory, as
                the tokens of a Transformer are
"""

from __future__ import annotations

import math
from collections.abc import Callable

from scratchvit.backend import CPU, Array, array_module, backend_of
from scratchvit.kernels.products import PARALLEL, product, product_and_sums
from scratchvit.kernels.sliding import Windows
from scratchvit.plain import is_plain
from scratchvit.threads import BLOCK_BYTES, BLOCKS, deal

PLACES = 256        # minimum number of places in a product: below it, packing the weight dominates


def patches(x: Array, weight: Array, bias: Array | None, windows: Windows, groups: int) -> Array:
    """The value: weight X + bias. It is channels-last in memory, so flattening it to tokens needs no copy."""
    rows = weight.reshape(len(weight), -1).T                                            # (C·taps, O)
    y = array_module(x).empty((len(x), *windows.output, len(weight)), dtype=x.dtype)    # (B, *S', O)

    def images(x: Array, y: Array) -> None:
        block = product(_cut(x, windows), rows, bias)                                   # (n·S', O)
        y[...] = block.reshape(y.shape)

    by_image(images, math.prod(windows.output), weight, x, y)
    return y.transpose(0, y.ndim - 1, *range(1, y.ndim - 1))                            # (B, O, *S')


def patches_dx(dy: Array, weight: Array, windows: Windows, groups: int) -> Array:
    """weightᵀ dy, put where the patches were; 0 where there was none."""
    channels = weight.shape[1]
    dx = array_module(dy).zeros((len(dy), channels, *windows.size), dtype=dy.dtype)
    axes = len(windows.size)
    columns = product(channels_last(dy), weight.reshape(len(weight), -1))               # (B·S', C·taps)
    columns = columns.reshape(len(dy), *windows.output, channels, *windows.kernel)      # (B, H', W', C, k, k)
    pairs = [axis for i in range(axes) for axis in (1 + i, 2 + axes + i)]
    columns = columns.transpose(0, 1 + axes, *pairs)                                    # (B, C, H', k, W', k)
    covered = tuple(n * k for n, k in zip(windows.output, windows.kernel))
    dx[(..., *(slice(n) for n in covered))] = columns.reshape(len(dy), channels, *covered)
    return dx


def patches_dw(dy: Array, x: Array, windows: Windows, groups: int) -> Array:
    """dy Xᵀ, over all patches of all images."""
    return product_and_sums(channels_last(dy), _cut(x, windows), (True, False))[0]      # (O, C·taps)


def _cut(x: Array, windows: Windows) -> Array:
    """(B, C, *S) → (B·S', C·taps): one row per patch."""
    axes, numbers = len(windows.size), x.shape[1] * math.prod(windows.kernel)
    x = x[(..., *(slice(n * k) for n, k in zip(windows.output, windows.kernel)))]       # drop incomplete patches
    split = [length for pair in zip(windows.output, windows.kernel) for length in pair]
    x = x.reshape(*x.shape[:2], *split)                                                 # (B, C, H', k, W', k)
    places, taps = range(2, 2 + 2 * axes, 2), range(3, 2 + 2 * axes, 2)
    x = x.transpose(0, *places, 1, *taps)                                               # (B, H', W', C, k, k)
    return x.reshape(len(x) * math.prod(windows.output), numbers)


def channels_last(y: Array) -> Array:
    """y (B, O, *S') as rows (B·S', O)."""
    return y.transpose(0, *range(2, y.ndim), 1).reshape(y.size // max(1, y.shape[1]), y.shape[1])


def images_of_a_block(images: int, places: int, largest: int) -> int:
    """How many of the images `by_image` puts into a block; largest: the bytes of the largest array."""
    step = min(images * BLOCK_BYTES // max(1, largest), math.ceil(images / BLOCKS))
    step = max(1, step, math.ceil(PLACES / max(1, places)))
    if images < BLOCKS * step:              # as many blocks for each thread
        step = math.ceil(images / (1 << max(1, images // step).bit_length() - 1))
    return step


def by_image(fn: Callable[..., None], places: int, weight: Array, *arrays: Array) -> None:
    """Call `fn(*blocks)` for blocks of images: axis 0 of the arrays, the output of which has so many places an image.

    A block has at least PLACES places. If that is all of them, the products within fn are distributed to threads
    instead.
    """
    images = len(arrays[0])
    if backend_of(arrays[0]) is not CPU or is_plain():
        fn(*arrays)
        return
    step = images_of_a_block(images, places, max(a.nbytes for a in arrays))
    if step >= images:
        fn(*arrays)
    else:
        blocks = [tuple(a[i : i + step] for a in arrays) for i in range(0, images, step)]
        deal(fn, blocks, images * places * weight.size > PARALLEL)
