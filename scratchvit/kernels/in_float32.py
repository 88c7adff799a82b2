"""Arrays of float16 and bfloat16 where no kernel takes them: computed in float32, and rounded at the end."""

from __future__ import annotations

from collections.abc import Callable
from itertools import takewhile
from typing import Any

import numpy as np

from scratchvit.backend import Array
from scratchvit.precision import is_half


def in_float32(
    compute: Callable[..., tuple[Array, Callable[..., Any]]], *arguments: Any
) -> tuple[Array, Callable[..., Any]]:
    """Value and backward of compute(*arguments), of which at least the first is an array of 16 bits: the value and the
    gradients of such arrays, up to the first argument that is none, are rounded; the other gradients are not."""
    halves = [*takewhile(is_half, arguments)]
    y, backward = compute(*(x.astype(np.float32) for x in halves), *arguments[len(halves):])

    def rounded_backward(dy: Array, need: Any) -> tuple[Array | None, ...]:
        gradients = backward(dy.astype(np.float32), need)
        first = (None if g is None else g.astype(x.dtype) for g, x in zip(gradients, halves))
        return *first, *gradients[len(halves):]

    return y.astype(halves[0].dtype), rounded_backward
