"""The geometry of sliding windows, shared by convolution and pooling.

A window of k taps that slides over n places can be read in two ways: place by place, as n small windows; or tap by tap,
as k large slices, each with the entries that one tap reads at all places:

    x      a b c d e f            tap 0   a c        Tap by tap, all arithmetic is on whole arrays. The transpose
    window [. . .] , stride 2     tap 1   b d        of reading a slice is adding to it, so neither gather nor scatter
                                  tap 2   c e        is needed, and sums are always in the same order.
"""

from __future__ import annotations

import functools
import itertools
import math
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
    output: tuple[int, ...]                 # number of places

    @property
    def reach(self) -> tuple[int, ...]:
        """The distance from the first tap of a window to its last."""
        return tuple(d * (k - 1) for d, k in zip(self.dilation, self.kernel))

    @property
    def padded(self) -> tuple[int, ...]:
        """The size of the input with its padding."""
        return tuple(b + n + a for b, n, a in zip(self.before, self.size, self.after))

    @property
    def inside(self) -> tuple[slice, ...]:
        """The index of the input in the padded array."""
        return tuple(slice(b, b + n) for b, n in zip(self.before, self.size))

    def pad(self, x: Array, value: float = 0) -> Array:
        """x padded with `value`; x itself if there is no padding."""
        if self.padded == self.size:
            return x
        padded = array_module(x).full((*x.shape[: -len(self.size)], *self.padded), value, dtype=x.dtype)
        padded[(..., *self.inside)] = x
        return padded

    def taps(self, first: int = 0, last: int | None = None) -> list[tuple]:
        """For each tap, in row-major order, the index into the padded array of the entries that it reads.

        first, last: the range of output rows (the first axis); all if not given.
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

    def reads(self, axis: int, tap: int, first: int = 0, last: int | None = None) -> tuple[slice, slice]:
        """The places in first…last of an axis at which a tap reads the input and not padding; and what it reads."""
        stride, offset = self.stride[axis], tap * self.dilation[axis] - self.before[axis]
        first = max(first, -(offset // stride))
        last = min(self.output[axis] if last is None else last, (self.size[axis] - 1 - offset) // stride + 1)
        if first >= last:
            return slice(0, 0), slice(0, 0)
        return slice(first, last), slice(first * stride + offset, (last - 1) * stride + offset + 1, stride)

    @functools.cached_property
    def taps_of_a_row(self) -> list[tuple[tuple, tuple, list[tuple]]]:
        """For each tap of one kernel row (all axes except the first), three kinds of indices.

        The places where it reads the input, the entries that it reads there, and the other places, where it reads
        padding.
        """
        taps = []
        for position in itertools.product(*(range(k) for k in self.kernel[1:])):
            places, read = zip(*(self.reads(axis, tap) for axis, tap in enumerate(position, start=1)))
            beside = []
            for axis, inside in enumerate(places):
                rest = (slice(None),) * (len(places) - axis - 1)
                beside += [(..., slice(inside.start), *rest)] if inside.start else []
                beside += [(..., slice(inside.stop, None), *rest)] if inside.stop < self.output[axis + 1] else []
            taps.append(((..., *places), (..., *read), beside))
        return taps

    @functools.cached_property
    def shifts_of_a_row(self) -> list[int]:
        """For each tap of one kernel row, how far what it reads lies behind the place, counted in entries of x.

        Empty if that is not the same for all places, or if no tap reads the place itself.
        """
        if max(self.stride[1:], default=1) > 1 or self.output[1:] != self.size[1:]:
            return []
        shifts = [
            sum(
                (tap * d - before) * math.prod(self.size[axis + 1 :])
                for axis, (tap, d, before) in enumerate(zip(position, self.dilation[1:], self.before[1:]), start=1)
            )
            for position in itertools.product(*(range(k) for k in self.kernel[1:]))
        ]
        return shifts if 0 in shifts else []

    def phase(self, row: int) -> int:
        """Which of the `stride` sets of lines (the first axis) a kernel row reads."""
        return (row * self.dilation[0] - self.before[0]) % self.stride[0]

    def backwards(self) -> Windows:
        """With stride 1: the windows of the convolution of dy that gives dx.

        Padding larger than the kernel's reach becomes negative padding here, which crops dy.
        """
        before, after = (
            tuple(reach - n for reach, n in zip(self.reach, padding)) for padding in (self.before, self.after)
        )
        return replace(self, size=self.output, output=self.size, before=before, after=after)

    def cropped(self) -> tuple[Windows, tuple[slice, ...]]:
        """The windows without the taps at the kernel's ends that only read padding; and the taps kept on each axis."""
        kept, before, after = [], [], []
        for axis, (k, d, b, a) in enumerate(zip(self.kernel, self.dilation, self.before, self.after)):
            useful = [tap for tap in range(k) if self.reads(axis, tap)[0].stop] or [0]
            first, last = min(useful[0], b // d), max(useful[-1], k - 1 - a // d)
            kept.append(slice(first, last + 1))
            before.append(b - first * d)
            after.append(a - (k - 1 - last) * d)
        kernel = tuple(taps.stop - taps.start for taps in kept)
        return replace(self, kernel=kernel, before=tuple(before), after=tuple(after)), tuple(kept)
