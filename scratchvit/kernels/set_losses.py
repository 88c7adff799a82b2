"""Costs and losses of sets of boxes in a launch each, on a GPU. On the CPU nothing is faster than the plain forms, in
detection/set_losses.py.

The kernels are in cuda/set_losses.py.
"""

from __future__ import annotations

from types import ModuleType

from scratchvit.backend import Array
from scratchvit.kernels import cuda
from scratchvit.kernels.cuda import set_losses as on_gpu


def set_loss_kernels(x: Array) -> ModuleType | None:
    """The functions that compute on boxes or logits x; None if the plain forms are as good."""
    return on_gpu if cuda.takes(x) else None
