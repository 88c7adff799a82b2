"""Cross-entropy in a few launches, on a GPU. On the CPU nothing is faster than the plain form, in ops/loss.py.

The kernels are in cuda/cross_entropy.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from scratchvit.backend import Array
from scratchvit.kernels import cuda
from scratchvit.kernels.cuda import cross_entropy as on_gpu


def cross_entropy_kernel(x: Array) -> Callable[..., tuple[Any, ...]] | None:
    """The function that computes the cross-entropy of logits x (B, C, …); None if the plain form is as good."""
    return on_gpu.cross_entropy if cuda.takes(x) else None
