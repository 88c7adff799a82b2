"""Rounding float32 arrays to 16-bit numbers, as a GPU does that stores them: to the nearest, ties to even.

On a GPU, they become arrays of 16-bit numbers. On the CPU they stay float32, and are rounded:

    float32     s eeeeeeee mmmmmmmmmmmmmmmmmmmmmmm
    bfloat16    s eeeeeeee mmmmmmm                          the upper half of the bits, after adding 0x7fff, a little
                                                            less than half of the last bit kept, or 0x8000 if that is 1
    float16     s eeeee mmmmmmmmmm                          the same with the 13 lowest bits. Below 2⁻¹⁴, where float16
                                                            has multiples of 2⁻²⁴, as float32 has from ½ to 1: so ½ is
                                                            added and subtracted. From 65,520 on, infinity. (NumPy's
                                                            conversion takes five times as long)
"""

from __future__ import annotations

from typing import Any

import numpy as np

from scratchvit.backend import CPU, Array, backend_of
from scratchvit.precision import Half
from scratchvit.threads import parallel_rows


def stored(x: Array, half: Half, in_place: bool = False) -> Array:
    """x as an op stores it inside `autocast`: as an array of 16-bit numbers, or on the CPU in float32, rounded to them.

    x: floating-point, any shape. in_place: whether x, if it is float32 on the CPU, may be overwritten.
    Numbers beyond the largest of float16 become infinite.
    """
    if backend_of(x) is not CPU:
        return x.astype(half.dtype, copy=False)
    x = np.asarray(x)
    y = x if in_place and x.dtype == np.float32 and x.flags.writeable else np.empty_like(x, dtype=np.float32)
    store_into(y, x, half)
    return y


def store_into(y: Array, x: Array, half: Half) -> None:
    """Write x into y, an array like those that `stored` returns."""
    if backend_of(x) is not CPU:
        y[...] = x
        return
    x = x.astype(np.float32, copy=False)
    round_into = _round_to_bfloat16 if half.name == "bfloat16" else _round_to_float16
    if x.flags.c_contiguous and y.flags.c_contiguous:
        parallel_rows(round_into, x.reshape(-1), y.reshape(-1))
    else:
        round_into(x, y)


def _round_to_bfloat16(x: Array, y: Array) -> None:
    bits: Any = x.view(np.uint32)
    upper = bits >> 16
    upper &= 1
    upper += 0x7FFF
    upper += bits
    upper &= 0xFFFF0000
    nan = np.isnan(x)
    if nan.any():                       # the sum may have carried one to infinity, or into the sign
        upper[nan] = (bits[nan] & 0x80000000) | 0x7FC00000
    y.view(np.uint32)[...] = upper


def _round_to_float16(x: Array, y: Array) -> None:
    bits: Any = x.view(np.uint32)
    sign = bits & 0x80000000
    upper = bits >> 13
    upper &= 1
    upper += 0xFFF
    upper += bits
    upper &= 0x7FFFE000
    size = bits & 0x7FFFFFFF
    np.copyto(upper, 0x7F800000, where=upper > 0x477FE000)              # 65,504
    nan = size > 0x7F800000
    if nan.any():
        kept = size[nan] & 0x7FFFE000
        upper[nan] = kept + 0x2000 * (kept == 0x7F800000)               # some bit must be set, as NumPy sees to
    with np.errstate(invalid="ignore"):
        multiples = np.abs(x)
        multiples += np.float32(0.5)
        multiples -= np.float32(0.5)
    np.copyto(upper, multiples.view(np.uint32), where=size < 0x38800000)        # 2⁻¹⁴
    upper |= sign
    y.view(np.uint32)[...] = upper
