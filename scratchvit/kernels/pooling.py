"""Pooling in one launch, on a GPU. On the CPU, ops/pool.py itself works in blocks.

The kernels are in cuda/pooling.py.
"""

from __future__ import annotations

import math
from types import ModuleType

from scratchvit.backend import Array
from scratchvit.kernels import cuda
from scratchvit.kernels.cuda import pooling as on_gpu
from scratchvit.kernels.sliding import Windows


def pooling_kernels(x: Array, windows: Windows) -> ModuleType | None:
    """The module with `max_pool` and `avg_pool` for x (B, C, *S); None if the plain forms are as good."""
    return on_gpu if cuda.takes(x) and math.prod(windows.kernel) <= on_gpu.MOST_TAPS else None
