"""Convolution is matrix multiplication.

Each output is the dot product of a filter with the C·k·k input values under its window. With the windows as the
*columns* of a matrix (im2col), the whole layer is one matrix product:

    y (O, places) = weight (O, C·taps) × columns (C·taps, places)

A *tap* is one position in the kernel, a *place* one position in the output. Tap by tap, the columns are strided slices
of the image (kernels/sliding.py), and adding to the same slices is the way back.

The same code serves 2-D and 3-D: `*S` stands for the spatial axes, (H, W) or (T, H, W), and `*S'` for the output's.
"""

from __future__ import annotations

import math
from typing import Any

from scratchvit.backend import Array, array_module
from scratchvit.facts import Bytes, Facts, Shape, Workspace
from scratchvit.kernels.columns import bytes_of_columns
from scratchvit.kernels.conv import algorithm, is_channels_last
from scratchvit.kernels.patches import channels_last
from scratchvit.kernels.sliding import Windows
from scratchvit.kernels.sums import total
from scratchvit.ops.sliding import convolution_windows
from scratchvit.plain import is_plain
from scratchvit.precision import gradient_dtype
from scratchvit.tensor import op

_CONVOLUTION = Facts(
    shape=lambda **arguments: _output_shape(**arguments),
    saves=lambda **arguments: _saved(**arguments),
    macs=lambda weight, out: out.size * math.prod(weight.shape[1:]),    # places · out · in / groups · taps
    workspace=lambda **arguments: _at_a_time(**arguments),
    order=lambda **arguments: _order(**arguments),
)


@op(half_on_gpu=True, facts=_CONVOLUTION)
def conv2d(
    x: Array, weight: Array, bias: Array | None = None, stride=1, padding=0, dilation=1, groups: int = 1,
):
    """Convolve images: y[b,o,i,j] = bias[o] + Σ_{c,u,v} weight[o,c,u,v] x[b, c, i·stride + u·dilation, …].

    x (B, C, H, W); weight (O, C / groups, kH, kW); bias (O,) → (B, O, H', W'), all of the same floating-point dtype.
    stride, padding, dilation: an integer, or one for each axis. padding can also be "valid" (none) or "same"
        (H' = ⌈H / stride⌉; see sliding.same_padding).
    groups: the number of groups of channels, each convolved with its own O / groups filters; C groups are a depth-wise
        convolution.
    Raises ValueError if shapes or options do not fit together, or if the kernel is larger than the padded image,
    TypeError for integers or different dtypes.
    """
    return _conv("conv2d", 2, x, weight, bias, stride, padding, dilation, groups)


@op(half_on_gpu=True, facts=_CONVOLUTION)
def conv3d(
    x: Array, weight: Array, bias: Array | None = None, stride=1, padding=0, dilation=1, groups: int = 1,
):
    """Convolve clips; `conv2d` with a time axis.

    x (B, C, T, H, W); weight (O, C / groups, kT, kH, kW); bias (O,) → (B, O, T', H', W').
    The other arguments are those of conv2d.  Raises what conv2d raises.
    """
    return _conv("conv3d", 3, x, weight, bias, stride, padding, dilation, groups)


def _conv(name, axes, x, weight, bias, stride, padding, dilation, groups):
    """Value and backward of a convolution over `axes` spatial axes.

    With X the columns of x (per group), y = weight X + bias has the gradients
        dweight = Σ_b dy Xᵀ,    dX = weightᵀ dy, added up tap by tap into dx,    dbias = Σ_{b,S'} dy
    """
    xp = array_module(x)
    all_windows = convolution_windows(name, axes, x, weight, bias, stride, padding, dilation, groups)
    if is_plain():
        return _plain_conv(x, weight, bias, all_windows, groups)
    windows, kept = all_windows.cropped()
    useful = xp.ascontiguousarray(weight[(..., *kept)])     # all of it, except for very small feature maps
    forward, input_gradient, weight_gradient = algorithm(weight, windows, groups)
    precise = gradient_dtype(weight)

    def dweight(dy: Array) -> Array:
        dw = weight_gradient(dy, x, windows, groups).reshape(useful.shape).astype(precise, copy=False)
        if useful.shape == weight.shape:
            return dw
        all_taps = xp.zeros(weight.shape, dtype=precise)
        all_taps[(..., *kept)] = dw
        return all_taps

    def backward(dy, need):
        return (
            input_gradient(dy, useful, windows, groups) if need[0] else None,
            dweight(dy) if need[1] else None,
            _sum_of_channels(dy, precise) if need[2] else None,
        )

    return forward(x, useful, bias, windows, groups), backward


def _plain_conv(x: Array, weight: Array, bias: Array | None, windows: Windows, groups: int):
    """Value and backward by the columns X of all windows."""
    xp = array_module(x)
    B, G, O, places = len(x), groups, len(weight), math.prod(windows.output)
    padded, taps = windows.pad(x), windows.taps()
    columns = xp.stack([padded[tap] for tap in taps], axis=2)               # (B, C, taps, *S')
    split = columns.shape
    columns = columns.reshape(B, G, math.prod(weight.shape[1:]), places)    # (B, G, C/G·taps, places)
    filters = weight.reshape(G, O // G, math.prod(weight.shape[1:]))        # (G, O/G, C/G·taps)
    y = xp.matmul(filters, columns).reshape(B, O, *windows.output)
    if bias is not None:
        y += bias.reshape(O, *(1 for _ in windows.output))

    def backward(dy, need):
        dy_rows = dy.reshape(B, G, O // G, places)
        dx = dweight = None
        if need[0]:
            dcolumns = xp.matmul(filters.swapaxes(1, 2), dy_rows).reshape(split)
            dpadded = xp.zeros_like(padded)
            for i, tap in enumerate(taps):
                dpadded[tap] += dcolumns[:, :, i]
            dx = dpadded[(..., *windows.inside)]
        if need[1]:
            dweight = total(xp.matmul(dy_rows, columns.swapaxes(2, 3)), (0,)).reshape(weight.shape)
        return dx, dweight, _sum_of_channels(dy) if need[2] else None

    return y, backward


def _order(function: Any, x: Array, weight: Array, **options: Any) -> list[int] | None:
    """Channels last, except for the algorithm with columns."""
    windows, _ = convolution_windows(function.__name__, x.ndim - 2, x, weight, **options).cropped()
    return [0, *range(2, x.ndim), 1] if is_channels_last(weight, windows, options["groups"]) else None


def _output_shape(function: Any, x: Array, weight: Array, **options: Any) -> Shape:
    """The shape of the value. Running the op on an empty batch would copy the kernels."""
    windows = convolution_windows(function.__name__, x.ndim - 2, x, weight, **options)
    return (len(x), len(weight), *windows.output)


def _saved(function: Any, x: Array, weight: Array, out: Array, **options: Any) -> list[Any]:
    """x and the weight, and a copy of the weight if it is cropped (see Windows.cropped) or not contiguous."""
    windows, _ = convolution_windows(function.__name__, x.ndim - 2, x, weight, **options).cropped()
    useful = math.prod((*weight.shape[:2], *windows.kernel))
    copied = useful < weight.size or not weight.flags.c_contiguous
    return [x, weight, Bytes(useful * weight.itemsize if copied else 0)]


def _at_a_time(function: Any, x: Array, weight: Array, out: Array, **options: Any) -> Workspace:
    """Filters in the layout of the columns, in backward also flipped, and every thread's columns with their product.

    1×1 filters need no copy, and the image is their columns.
    """
    windows, _ = convolution_windows(function.__name__, x.ndim - 2, x, weight, **options).cropped()
    if max(weight.shape[2:]) == 1:
        return Workspace()
    columns = 0
    if not is_channels_last(weight, windows, options["groups"]):
        columns = bytes_of_columns(x, out, windows)
    return Workspace(weight.nbytes + columns, 2 * weight.nbytes + columns)


def _sum_of_channels(dy: Array, dtype: Any = None) -> Array:
    """Σ_{b,S'} of dy (B, O, *S'): (O,). Sums along the axis that is contiguous in memory, places or channels."""
    if dy.strides[1] == dy.itemsize:
        return total(channels_last(dy), (0,), dtype=dtype)
    return total(dy, (0, *range(2, dy.ndim)), dtype=dtype)
