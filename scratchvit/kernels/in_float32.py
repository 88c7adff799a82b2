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
    compute: Callable[..., tuple[Array, Callable[..., Any]]], *arguments: Any, halves: int = 1
) -> tuple[Array, Callable[..., Any]]:
    """Value and backward of compute(*arguments), of which the first `halves` are arrays of 16 bits: the value and their
    gradients are rounded, the other gradients are not."""
    rounded = arguments[:halves]
    y, backward = compute(*(x.astype(np.float32) for x in rounded), *arguments[halves:])

    def rounded_backward(dy: Array, need: Any) -> tuple[Array | None, ...]:
        gradients = backward(dy.astype(np.float32), need)
        first = (None if g is None else g.astype(x.dtype) for g, x in zip(gradients, rounded))
        return *first, *gradients[halves:]

    return y.astype(rounded[0].dtype), rounded_backward
