"""Which of three ways computes a convolution: depth-wise (depthwise.py), by patches (patches.py), by columns."""

from __future__ import annotations

from collections.abc import Callable

from scratchvit.backend import Array
from scratchvit.kernels.columns import columns, columns_dw, columns_dx
from scratchvit.kernels.depthwise import depthwise, depthwise_dw, depthwise_dx
from scratchvit.kernels.patches import patches, patches_dw, patches_dx
from scratchvit.kernels.sliding import Windows


def algorithm(weight: Array, windows: Windows, groups: int) -> tuple[Callable[..., Array], ...]:
    """The functions that compute the value, dx and dweight."""
    plain = windows.padded == windows.size and max(windows.dilation) == 1
    if groups > 1 and weight.shape[1] == 1:
        return depthwise, depthwise_dx, depthwise_dw
    if groups == 1 and plain and windows.kernel == windows.stride and max(windows.kernel) > 1:
        return patches, patches_dx, patches_dw
    return columns, columns_dx, columns_dw


def is_channels_last(weight: Array, windows: Windows, groups: int) -> bool:
    """Whether the value is channels-last in memory."""
    return algorithm(weight, windows, groups)[0] is not columns
