"""Softmax along an axis: which arrays have a kernel.

On the CPU, softmax is a few passes over memory, and the plain form in ops/attention.py is as good. On a GPU,
cuda/softmax.py does it in one launch, along the last axis.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from scratchvit.backend import Array
from scratchvit.kernels.cuda import softmax as on_gpu


def softmax_kernel(x: Array, dim: int) -> Callable[..., Any] | None:
    """A function (x, logarithm) that returns value and backward of softmax of x along dim, or of its logarithm; None if
    the plain form is as good."""
    return on_gpu.softmax if on_gpu.takes(x, dim) else None
