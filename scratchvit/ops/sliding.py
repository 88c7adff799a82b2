"""The windows that the arguments of a convolution or a pooling describe, and errors for those that do not fit."""

from __future__ import annotations

import math
from collections.abc import Sequence

from scratchvit.kernels.sliding import Windows


def same_padding(
    size: tuple[int, ...], kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(before, after) for padding="same": the padding that gives ⌈size / stride⌉ places, half of it on each side.

    As in TensorFlow: with a stride it depends on the size, and if the total is odd, the larger half comes after. With
    stride 1 the output has the size of the input, which is the only case that PyTorch supports.
    """
    before, after = [], []
    for n, k, s, d in zip(size, kernel, stride, dilation):
        total = max(0, (math.ceil(n / s) - 1) * s + d * (k - 1) + 1 - n)
        before.append(total // 2)
        after.append(total - total // 2)
    return tuple(before), tuple(after)


def convolution_windows(name, axes, x, weight, bias, stride, padding, dilation, groups) -> Windows:
    """The geometry of a convolution over `axes` spatial axes; the other arguments are those of `ops.conv2d`.

    Raises ValueError, with the op's name, for shapes and options that do not fit together, TypeError for different
    dtypes.
    """
    if x.dtype != weight.dtype:
        raise TypeError(f"{name}: x is {x.dtype} but weight is {weight.dtype}: convert x with astype()")
    if bias is not None and bias.dtype != weight.dtype:
        raise TypeError(f"{name}: weight is {weight.dtype} but bias is {bias.dtype}: they must have the same dtype")
    expected = f"(B, C, {'T, ' * (axes - 2)}H, W)"
    if x.ndim != axes + 2 or weight.ndim != axes + 2:
        raise ValueError(
            f"{name}: x must be {expected} and weight must have as many axes; x has shape {x.shape}, weight "
            f"{weight.shape}"
        )
    if 0 in weight.shape:
        raise ValueError(f"{name}: weight of shape {weight.shape} has no entries")
    if groups < 1 or x.shape[1] % groups or weight.shape[0] % groups or weight.shape[1] * groups != x.shape[1]:
        raise ValueError(
            f"{name}: x of shape {x.shape} has {x.shape[1]} channels; weight of shape {weight.shape} in {groups} "
            f"groups takes {weight.shape[1] * groups} and gives {weight.shape[0]}; groups must divide both"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(
            f"{name}: bias has shape {bias.shape}, but weight of shape {weight.shape} gives {len(weight)} channels"
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


def per_axis(value: int | Sequence[int], axes: int, name: str, least: int) -> tuple[int, ...]:
    """An option as a tuple with one integer per axis; it is given as one integer, or as one per axis.

    Raises ValueError, with the option's name, for anything else and for a number below `least`.
    """
    values = (value,) if isinstance(value, int) else tuple(value) if isinstance(value, list | tuple) else ()
    values = values * axes if len(values) == 1 else values
    if len(values) != axes or any(not isinstance(v, int) or v < least for v in values):
        raise ValueError(f"{name} must be an integer of at least {least}, or {axes} of them, not {value!r}")
    return values
