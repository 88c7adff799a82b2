"""The numbers that tensor cores multiply: of 16 bits, and in TF32. Types are named by `dtype.char` of their arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.support import half_precision

CHARS = ("f", *half_precision.CHARS)
UNITS = {**half_precision.UNITS, "f": 2.0**-11}             # the largest relative error of rounding to nearest
SMALLEST = {**half_precision.SMALLEST, "f": 2.0**-136}


def dtype_of(char: str) -> np.dtype:
    """The dtype of arrays."""
    return np.dtype(np.float32) if char == "f" else half_precision.dtype_of(char)


def rounded(x: np.ndarray, char: str) -> np.ndarray:
    """x as numbers that a tensor core multiplies without rounding them."""
    if char != "f":
        return half_precision.rounded(x, char)
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + np.uint32(0x1000)) & ~np.uint32(0x1FFF)).view(np.float32)


def rounding(x: Any, char: str) -> np.ndarray:
    """How far the number next to each entry of x may be from it."""
    return np.maximum(np.abs(x) * UNITS[char], SMALLEST[char] / 2)
