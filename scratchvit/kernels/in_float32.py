"""Arrays of float16 and bfloat16 where no kernel takes them: computed in float32, and rounded at the end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from scratchvit.backend import Array


def is_half(x: Array) -> bool:
    """Whether x is an array of 16-bit floating-point numbers."""
    return x.dtype.char in "eE"         # E is ml_dtypes' bfloat16


def in_float32(
    compute: Callable[..., tuple[Array, Callable[..., Any]]], x: Array, *others: Any
) -> tuple[Array, Callable[..., Any]]:
    """Value and backward of compute(x, …) for x of 16 bits: value and dx are rounded, the other gradients are not."""
    y, backward = compute(x.astype(np.float32), *others)

    def rounded_backward(dy: Array, need: Any) -> tuple[Array | None, ...]:
        dx, *rest = backward(dy.astype(np.float32), need)
        return None if dx is None else dx.astype(x.dtype), *rest

    return y.astype(x.dtype), rounded_backward
