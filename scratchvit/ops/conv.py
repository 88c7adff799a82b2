"""Convolution is matrix multiplication.

Every output is the product of a row of weights with the C·k·k numbers that its window meets. Written side by side, the
windows are the *columns* of a matrix, and the whole layer is one product:

    y (O, places) = weight (O, C·taps) × columns (C·taps, places)

For patches (kernel = stride) the columns are the image itself, reshaped. Otherwise each tap is a strided slice of the
image (windows.py), copied into the columns in blocks that stay in the cache, so that memory does not grow by the number
of taps. Both gradients are products with the same columns, or their transpose; nothing is scattered.

2-D and 3-D are one code: below, `*S` stands for the spatial axes, H, W or T, H, W, and `*S'` for the output's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from scratchvit.backend import CPU, Array, array_module, backend_of, cpu_threads, parallel_rows
from scratchvit.ops.depthwise import depthwise, depthwise_dw, depthwise_dx
from scratchvit.ops.windows import Windows, per_axis, same_padding
from scratchvit.tensor import op

COLUMN_BYTES = 2 << 20          # columns made at a time by one thread: they stay in its cache
COLUMN_BYTES_GPU = 256 << 20    # on a GPU: large products, few launches, and no more memory than this


@op
def conv2d(
    x: Array, weight: Array, bias: Array | None = None, stride=1, padding=0, dilation=1, groups: int = 1,
):
    """Slide `weight` over images: y[b,o,i,j] = bias[o] + Σ_{c,u,v} weight[o,c,u,v] x[b, c, i·stride + u·dilation, …].

    x (B, C, H, W); weight (O, C / groups, kH, kW); bias (O,) → (B, O, H', W').  stride, padding, dilation: an integer
    or one for each axis; padding also "valid" (none) or "same" (H' = ⌈H / stride⌉; see windows.same_padding).
    groups: the channels fall into so many groups, each seen by its own O / groups filters; C of them is depth-wise.
    """
    return _conv("conv2d", 2, x, weight, bias, stride, padding, dilation, groups)


@op
def conv3d(
    x: Array, weight: Array, bias: Array | None = None, stride=1, padding=0, dilation=1, groups: int = 1,
):
    """As conv2d, over clips: x (B, C, T, H, W); weight (O, C / groups, kT, kH, kW) → (B, O, T', H', W')."""
    return _conv("conv3d", 3, x, weight, bias, stride, padding, dilation, groups)


def _conv(name, axes, x, weight, bias, stride, padding, dilation, groups):
    """Value and backward of a convolution over `axes` axes.

    With the columns of x written X (per group), y = weight X + bias gives
        dweight = Σ_b dy Xᵀ,    dX = weightᵀ dy, added up tap by tap into dx,    dbias = Σ_{b,S'} dy
    """
    windows = _windows(name, axes, x, weight, bias, stride, padding, dilation, groups)
    tiled = windows.kernel == windows.stride and windows.padded == windows.size and max(windows.dilation) == 1
    if groups > 1 and weight.shape[1] == 1:
        forward, input_gradient, weight_gradient = depthwise, depthwise_dx, depthwise_dw
    elif groups == 1 and tiled and max(windows.kernel) > 1:
        forward, input_gradient, weight_gradient = _patches, _patches_dx, _patches_dw
    else:
        forward, input_gradient, weight_gradient = _columns, _columns_dx, _columns_dw

    def backward(dy, need):
        return (
            input_gradient(dy, weight, windows, groups) if need[0] else None,
            weight_gradient(dy, x, windows, groups).reshape(weight.shape) if need[1] else None,
            dy.reshape(*dy.shape[:2], math.prod(windows.output)).sum(axis=2).sum(axis=0) if need[2] else None,
        )

    return forward(x, weight, bias, windows, groups), backward


# --- patches: the windows tile the image, so the columns are the image reshaped -------------------------------------


def _cut(x: Array, windows: Windows) -> Array:
    """(B, C, *S) → (B·S', C·taps): one row for each patch."""
    axes, numbers = len(windows.size), x.shape[1] * math.prod(windows.kernel)
    x = x[(..., *(slice(n * k) for n, k in zip(windows.output, windows.kernel)))]       # what is left over is dropped
    split = [length for pair in zip(windows.output, windows.kernel) for length in pair]
    x = x.reshape(*x.shape[:2], *split)                                                 # (B, C, H', k, W', k)
    places, taps = range(2, 2 + 2 * axes, 2), range(3, 2 + 2 * axes, 2)
    x = x.transpose(0, *places, 1, *taps)                                               # (B, H', W', C, k, k)
    return x.reshape(len(x) * math.prod(windows.output), numbers)


def _patches(x: Array, weight: Array, bias: Array | None, windows: Windows, groups: int) -> Array:
    """The value is channels-last in memory, so that flattening it to tokens (B, H'·W', O) copies nothing."""
    rows = weight.reshape(len(weight), -1).T                                            # (C·taps, O)
    y = array_module(x).empty((len(x), *windows.output, len(weight)), dtype=x.dtype)    # (B, *S', O)

    def images(x: Array, y: Array) -> None:
        block = _cut(x, windows) @ rows                                                 # (n·S', O)
        if bias is not None:
            block += bias
        y[...] = block.reshape(y.shape)

    _by_image(images, x, y)
    return y.transpose(0, y.ndim - 1, *range(1, y.ndim - 1))                            # (B, O, *S')


def _patches_dx(dy: Array, weight: Array, windows: Windows, groups: int) -> Array:
    channels = weight.shape[1]
    dx = array_module(dy).zeros((len(dy), channels, *windows.size), dtype=dy.dtype)
    axes = len(windows.size)
    columns = _channels_last(dy) @ weight.reshape(len(weight), -1)                      # (B·S', C·taps)
    columns = columns.reshape(len(dy), *windows.output, channels, *windows.kernel)      # (B, H', W', C, k, k)
    pairs = [axis for i in range(axes) for axis in (1 + i, 2 + axes + i)]
    columns = columns.transpose(0, 1 + axes, *pairs)                                    # (B, C, H', k, W', k)
    covered = tuple(n * k for n, k in zip(windows.output, windows.kernel))
    dx[(..., *(slice(n) for n in covered))] = columns.reshape(len(dy), channels, *covered)
    return dx


def _patches_dw(dy: Array, x: Array, windows: Windows, groups: int) -> Array:
    return _channels_last(dy).T @ _cut(x, windows)                                      # (O, C·taps)


def _channels_last(y: Array) -> Array:
    return y.transpose(0, *range(2, y.ndim), 1).reshape(-1, y.shape[1])                 # (B·S', O)


# --- columns: the general case --------------------------------------------------------------------------------------


def _columns(x: Array, weight: Array, bias: Array | None, windows: Windows, groups: int) -> Array:
    xp = array_module(x)
    filters = weight.reshape(groups, len(weight) // groups, -1)                         # (G, O/G, C/G·taps)
    y = xp.empty((len(x), len(weight), *windows.output), dtype=x.dtype)

    def images(x: Array, y: Array) -> None:
        for some, rows in _blocks(x, windows):
            padded = windows.pad(x[some])
            for first, last in rows:
                block = filters @ _gather(padded, windows, groups, first, last)         # (G, O/G, n·places)
                if bias is not None:
                    block += bias.reshape(groups, -1, 1)
                target = y[some, :, first:last].swapaxes(0, 1)                          # (O, n, rows, …)
                target[...] = block.reshape(target.shape)

    _by_image(images, x, y)
    return y


def _columns_dx(dy: Array, weight: Array, windows: Windows, groups: int) -> Array:
    """dX = weightᵀ dy, whose rows are what each tap sends back to the slice it had read.

    With stride 1 this is again a convolution: of dy, with the kernel turned about and the channels exchanged.
    """
    xp = array_module(dy)
    shape = (groups, len(weight) // groups, weight.shape[1], -1)                        # (G, O/G, C/G, taps)
    channels = groups * weight.shape[1]
    turned = tuple(reach - before for reach, before in zip(windows.reach, windows.before))
    if max(windows.stride) == 1 and min(turned) >= 0:
        after = tuple(reach - after for reach, after in zip(windows.reach, windows.after))
        back = replace(windows, size=windows.output, output=windows.size, before=turned, after=after)
        kernel = weight.reshape(shape)[..., ::-1].swapaxes(1, 2).reshape(channels, -1, *windows.kernel)
        return _columns(dy, kernel, None, back, groups)

    filters = weight.reshape(groups, len(weight) // groups, -1).swapaxes(1, 2)          # (G, C/G·taps, O/G)
    dx = xp.empty((len(dy), channels, *windows.size), dtype=dy.dtype)

    def images(dy: Array, dx: Array) -> None:
        for some, rows in _blocks(dx, windows):
            padded = xp.zeros((channels, len(dx[some]), *windows.padded), dtype=dx.dtype)
            for first, last in rows:
                block = dy[some, :, first:last].swapaxes(0, 1)                          # (O, n, rows, …)
                sent = filters @ block.reshape(groups, len(weight) // groups, -1)       # (G, C/G·taps, n·places)
                sent = sent.reshape(channels, -1, *block.shape[1:])                     # (C, taps, n, rows, …)
                for tap, window in enumerate(windows.taps(first, last)):
                    padded[window] += sent[:, tap]
            dx[some] = padded[(..., *windows.inside)].swapaxes(0, 1)

    _by_image(images, dy, dx)
    return dx


def _columns_dw(dy: Array, x: Array, windows: Windows, groups: int) -> Array:
    """Σ_b dy Xᵀ, the images in as many equal parts as threads, each with a sum of its own: the same sum every time."""
    xp = array_module(x)
    outputs, taps = dy.shape[1] // groups, math.prod(windows.kernel)
    parts = 1
    if backend_of(x) is CPU and x.nbytes * taps >= COLUMN_BYTES:
        parts = max(n for n in range(1, cpu_threads() + 1) if len(x) % n == 0)
    sums = xp.zeros((parts, groups, outputs, x.shape[1] // groups * taps), dtype=x.dtype)

    def images(dy: Array, x: Array, sums: Array) -> None:
        for some, rows in _blocks(x, windows, larger=4):
            padded = windows.pad(x[some])
            for first, last in rows:
                columns = _gather(padded, windows, groups, first, last)                 # (G, C/G·taps, n·places)
                block = dy[some, :, first:last].swapaxes(0, 1).reshape(groups, outputs, -1)
                sums += block @ columns.swapaxes(1, 2)

    def each_part(*parts: Array) -> None:
        for part in zip(*parts):
            images(*part)

    _by_image(each_part, dy.reshape(parts, -1, *dy.shape[1:]), x.reshape(parts, -1, *x.shape[1:]), sums)
    return sums.sum(axis=0)


def _gather(padded: Array, windows: Windows, groups: int, first: int, last: int) -> Array:
    """The columns (G, C/G·taps, n·places) of some rows of places of some padded images (n, C, *S)."""
    images, channels = padded.shape[:2]
    taps = windows.taps(first, last)
    if images == len(taps) == 1 and padded[taps[0]].flags.c_contiguous:                  # 1×1: the image is its columns
        return padded[taps[0]].reshape(groups, channels // groups, -1)
    columns = array_module(padded).empty(
        (channels, len(taps), images, last - first, *windows.output[1:]), dtype=padded.dtype
    )
    padded = padded.swapaxes(0, 1)
    for tap, window in enumerate(taps):
        columns[:, tap] = padded[window]
    return columns.reshape(groups, channels // groups * len(taps), -1)


def _blocks(x: Array, windows: Windows, larger: int = 1) -> Iterator[tuple[slice, list[tuple[int, int]]]]:
    """Cut the work so that its columns fit the cache: pairs of (some images of x, row ranges of their places)."""
    limit = larger * (COLUMN_BYTES if backend_of(x) is CPU else COLUMN_BYTES_GPU)
    taps, rows = math.prod(windows.kernel), windows.output[0]
    row = x.shape[1] * taps * math.prod(windows.output[1:]) * x.dtype.itemsize
    images = max(1, limit // max(1, row * rows))
    step = max(1, limit // max(1, row * min(images, len(x))))
    step = math.ceil(rows / math.ceil(rows / step))                                     # of equal size
    ranges = [(first, min(first + step, rows)) for first in range(0, rows, step)]
    for start in range(0, len(x), images):
        yield slice(start, start + images), ranges


def _by_image(fn, *arrays: Array) -> None:
    """parallel_rows, except that a few images are taken one after the other, so that each product gets all cores."""
    if 2 * len(arrays[0]) <= cpu_threads():
        fn(*arrays)
    else:
        parallel_rows(fn, *arrays)


# --- what was asked for ---------------------------------------------------------------------------------------------


def _windows(name, axes, x, weight, bias, stride, padding, dilation, groups) -> Windows:
    """The geometry of the call, after everything that can be wrong with it."""
    if x.dtype != weight.dtype:
        raise TypeError(f"{name}: x is {x.dtype} but weight is {weight.dtype}: convert x with astype()")
    expected = f"(B, C, {'T, ' * (axes - 2)}H, W)"
    if x.ndim != axes + 2 or weight.ndim != axes + 2:
        raise ValueError(
            f"{name}: x must be {expected} and weight have as many axes; x has shape {x.shape}, weight {weight.shape}"
        )
    if groups < 1 or x.shape[1] % groups or weight.shape[0] % groups or weight.shape[1] * groups != x.shape[1]:
        raise ValueError(
            f"{name}: x of shape {x.shape} has {x.shape[1]} channels; weight of shape {weight.shape} in {groups} "
            f"groups expects {weight.shape[1] * groups} and makes {weight.shape[0]}; groups must divide both"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(
            f"{name}: bias has shape {bias.shape}, but weight of shape {weight.shape} makes {len(weight)} channels"
        )
    size, kernel = tuple(x.shape[2:]), tuple(weight.shape[2:])
    stride = per_axis(stride, axes, f"{name}: stride", 1)
    dilation = per_axis(dilation, axes, f"{name}: dilation", 1)
    reach = tuple(d * (k - 1) for d, k in zip(dilation, kernel))
    if padding == "same":
        before, after = same_padding(size, kernel, stride, dilation)
    elif isinstance(padding, str) and padding != "valid":
        raise ValueError(f'{name}: padding must be "same", "valid" or numbers, not {padding!r}')
    else:
        before = after = per_axis(0 if padding == "valid" else padding, axes, f"{name}: padding", 0)
    output = tuple((n + b + a - r - 1) // s + 1 for n, b, a, r, s in zip(size, before, after, reach, stride))
    if min(output) < 1:
        raise ValueError(
            f"{name}: the kernel {kernel} with dilation {dilation} is larger than the input {size} with padding "
            f"{before}; weight has shape {weight.shape}, x {x.shape}"
        )
    return Windows(size, kernel, stride, dilation, before, after, output)
