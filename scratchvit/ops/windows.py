"""The geometry that convolution and pooling share: where a window slides, seen as slices.

A window of k taps that slides over n places can be read two ways. Place by place, it is n small windows; tap by tap, it
is k large slices, each holding what one tap meets at all places:

    x      a b c d e f            tap 0   a c        tap by tap, everything is whole-array arithmetic, and the
    window [. . .] , stride 2     tap 1   b d        transpose of reading a slice is adding to it: no gathering,
                                  tap 2   c e        no scattering, and the same sum in the same order every time
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

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


def per_axis(value: int | Sequence[int], axes: int, name: str, least: int) -> tuple[int, ...]:
    """An option given as one integer for all axes, or as one for each, as a tuple."""
    values = (value,) * axes if isinstance(value, int) else tuple(value)
    if len(values) != axes or any(not isinstance(v, int) or v < least for v in values):
        raise ValueError(f"{name} must be an integer of at least {least}, or {axes} of them, not {value!r}")
    return values
