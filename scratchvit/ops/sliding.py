"""The geometry that convolution and pooling share: where a window slides, seen as slices.

A window of k taps that slides over n places can be read two ways. Place by place, it is n small windows; tap by tap, it
is k large slices, each holding what one tap meets at all places:

    x      a b c d e f            tap 0   a c        tap by tap, everything is whole-array arithmetic, and the
    window [. . .] , stride 2     tap 1   b d        transpose of reading a slice is adding to it: no gathering,
                                  tap 2   c e        no scattering, and the same sum in the same order every time
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from scratchvit.backend import Array, array_module


@dataclass(frozen=True)
class Windows:
    """Windows over the trailing axes of x (..., *size); every field has one entry per such axis."""

    size: tuple[int, ...]                   # of the input, without padding
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    before: tuple[int, ...]                 # padding
    after: tuple[int, ...]
    output: tuple[int, ...]                 # how many places the window takes

    @property
    def reach(self) -> tuple[int, ...]:
        """From the first tap of a window to its last."""
        return tuple(d * (k - 1) for d, k in zip(self.dilation, self.kernel))

    @property
    def padded(self) -> tuple[int, ...]:
        """The size with its padding."""
        return tuple(b + n + a for b, n, a in zip(self.before, self.size, self.after))

    @property
    def inside(self) -> tuple[slice, ...]:
        """Where in the padded array the input lies."""
        return tuple(slice(b, b + n) for b, n in zip(self.before, self.size))

    def pad(self, x: Array, value: float = 0) -> Array:
        """x with its padding around it; x itself where there is none."""
        if self.padded == self.size:
            return x
        padded = array_module(x).full((*x.shape[: -len(self.size)], *self.padded), value, dtype=x.dtype)
        padded[(..., *self.inside)] = x
        return padded

    def taps(self, first: int = 0, last: int | None = None) -> list[tuple]:
        """For each tap, in row-major order, an index of the padded array: what this tap meets at every place.

        first, last: only the places of these rows (of the first axis).
        """
        rows = range(*slice(first, last).indices(self.output[0]))
        starts = (rows.start * self.stride[0], *(0 for _ in self.size[1:]))
        places = (len(rows), *self.output[1:])
        return [
            (..., *(
                slice(start + tap * d, start + tap * d + (n - 1) * s + 1, s)
                for start, tap, d, n, s in zip(starts, position, self.dilation, places, self.stride)
            ))
            for position in itertools.product(*(range(k) for k in self.kernel))
        ]

    def meets(self, axis: int, tap: int, first: int = 0, last: int | None = None) -> tuple[slice, slice]:
        """Of the places first…last of an axis those where this tap meets the input and not padding; what it meets."""
        stride, offset = self.stride[axis], tap * self.dilation[axis] - self.before[axis]
        first = max(first, -(offset // stride))
        last = min(self.output[axis] if last is None else last, (self.size[axis] - 1 - offset) // stride + 1)
        if first >= last:
            return slice(0, 0), slice(0, 0)
        return slice(first, last), slice(first * stride + offset, (last - 1) * stride + offset + 1, stride)

    @functools.cached_property
    def taps_of_a_row(self) -> list[tuple[tuple, tuple, list[tuple]]]:
        """For each tap of one row of the kernel (which lies along all axes but the first), three kinds of indices.

        The places where it meets the input; what it meets there; and the places beside them, where it meets padding.
        """
        taps = []
        for position in itertools.product(*(range(k) for k in self.kernel[1:])):
            places, met = zip(*(self.meets(axis, tap) for axis, tap in enumerate(position, start=1)))
            beside = []
            for axis, inside in enumerate(places):
                rest = (slice(None),) * (len(places) - axis - 1)
                beside += [(..., slice(inside.start), *rest)] if inside.start else []
                beside += [(..., slice(inside.stop, None), *rest)] if inside.stop < self.output[axis + 1] else []
            taps.append(((..., *places), (..., *met), beside))
        return taps

    def backwards(self) -> Windows:
        """With stride 1: the windows over the output that the gradient of the input is a convolution of.

        Padding of more than the kernel's reach becomes negative here: places that are left out.
        """
        before, after = (
            tuple(reach - n for reach, n in zip(self.reach, padding)) for padding in (self.before, self.after)
        )
        return replace(self, size=self.output, output=self.size, before=before, after=after)

    def cropped(self) -> tuple[Windows, tuple[slice, ...]]:
        """Without the taps at the kernel's ends that meet nothing but padding; and which taps are kept, by axis."""
        kept, before, after = [], [], []
        for axis, (k, d, b, a) in enumerate(zip(self.kernel, self.dilation, self.before, self.after)):
            useful = [tap for tap in range(k) if self.meets(axis, tap)[0].stop] or [0]
            first, last = min(useful[0], b // d), max(useful[-1], k - 1 - a // d)
            kept.append(slice(first, last + 1))
            before.append(b - first * d)
            after.append(a - (k - 1 - last) * d)
        kernel = tuple(taps.stop - taps.start for taps in kept)
        return replace(self, kernel=kernel, before=tuple(before), after=tuple(after)), tuple(kept)


def same_padding(
    size: tuple[int, ...], kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """padding="same", (before, after): what ⌈size / stride⌉ places need, half of it on each side.

    As in TensorFlow, so with a stride it depends on the size; of an odd number, the greater half comes after. With
    stride 1 the output is as large as the input, as in PyTorch, which knows no more than that.
    """
    before, after = [], []
    for n, k, s, d in zip(size, kernel, stride, dilation):
        total = max(0, (math.ceil(n / s) - 1) * s + d * (k - 1) + 1 - n)
        before.append(total // 2)
        after.append(total - total // 2)
    return tuple(before), tuple(after)


def convolution_windows(name, axes, x, weight, bias, stride, padding, dilation, groups) -> Windows:
    """The geometry of a convolution over so many axes, whose arguments are those of `ops.conv2d`.

    Raises ValueError, with the op's name, for shapes and options that do not fit together, TypeError for different
    dtypes.
    """
    if x.dtype != weight.dtype:
        raise TypeError(f"{name}: x is {x.dtype} but weight is {weight.dtype}: convert x with astype()")
    if bias is not None and bias.dtype != weight.dtype:
        raise TypeError(f"{name}: weight is {weight.dtype} but bias is {bias.dtype}: they must have one dtype")
    expected = f"(B, C, {'T, ' * (axes - 2)}H, W)"
    if x.ndim != axes + 2 or weight.ndim != axes + 2:
        raise ValueError(
            f"{name}: x must be {expected} and weight have as many axes; x has shape {x.shape}, weight {weight.shape}"
        )
    if 0 in weight.shape:
        raise ValueError(f"{name}: weight of shape {weight.shape} has no entries")
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


def per_axis(value: int | Sequence[int], axes: int, name: str, least: int) -> tuple[int, ...]:
    """An option given as one integer for all axes, or as one for each, as a tuple.

    Raises ValueError, with the option's name, for anything else and for a number below `least`.
    """
    values = (value,) if isinstance(value, int) else tuple(value) if isinstance(value, list | tuple) else ()
    values = values * axes if len(values) == 1 else values
    if len(values) != axes or any(not isinstance(v, int) or v < least for v in values):
        raise ValueError(f"{name} must be an integer of at least {least}, or {axes} of them, not {value!r}")
    return values
