"""Which of three ways computes a convolution: depth-wise (depthwise.py), by patches (patches.py), by columns."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

from scratchvit.backend import Array
from scratchvit.kernels import columns, cuda, depthwise, patches
from scratchvit.kernels.cuda import columns as columns_on_gpu
from scratchvit.kernels.cuda import depthwise as depthwise_on_gpu
from scratchvit.kernels.sliding import Windows


def algorithm(weight: Array, windows: Windows, groups: int) -> tuple[Callable[..., Array], ...]:
    """The functions that compute the value, dx and dweight."""
    way = _way(weight, windows, groups)
    if way is patches:
        return patches.patches, patches.patches_dx, patches.patches_dw
    if way is depthwise:
        module = depthwise_on_gpu if cuda.takes(weight) else depthwise
        return module.depthwise, module.depthwise_dx, module.depthwise_dw
    module = columns_on_gpu if cuda.takes(weight) else columns
    return module.columns, module.columns_dx, module.columns_dw


def is_channels_last(weight: Array, windows: Windows, groups: int) -> bool:
    """Whether the value is channels-last in memory."""
    return _way(weight, windows, groups) is not columns


def _way(weight: Array, windows: Windows, groups: int) -> ModuleType:
    plain = windows.padded == windows.size and max(windows.dilation) == 1
    if groups > 1 and weight.shape[1] == 1:
        return depthwise
    if groups == 1 and plain and windows.kernel == windows.stride and max(windows.kernel) > 1:
        return patches
    return columns
