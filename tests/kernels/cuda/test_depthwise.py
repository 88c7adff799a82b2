"""Depth-wise convolution by its CUDA kernels, beside the rows of tests/cases/conv.py, which test_ops.py runs."""

import numpy as np
import pytest

from scratchvit import ops
from tests.support import cuda_kernels

pytestmark = pytest.mark.usefixtures("cuda")

# shape of x, number of filters, shape of a filter, options
CALLS = {
    "one pixel": ((1, 2, 1, 1), 2, (1, 1), {}),
    "more than one block": ((3, 33, 9, 7), 33, (3, 3), {"padding": 1}),
    "several parts": ((3, 5, 17, 23), 5, (3, 3), {"padding": 1}),
    "stride and dilation by axis": (
        (2, 3, 19, 23), 3, (3, 4), {"stride": (3, 2), "padding": (2, 5), "dilation": (2, 3)},
    ),
    "three filters a channel": ((2, 12, 9, 8), 36, (3, 2), {"stride": 2, "padding": 1}),
    "same": ((2, 3, 9, 7), 3, (4, 3), {"padding": "same", "stride": 2}),
    "a map smaller than the kernel": ((2, 3, 2, 1), 3, (5, 3), {"padding": (2, 1)}),
    "an empty batch": ((0, 3, 5, 5), 3, (3, 3), {"padding": 1}),
    "3-D": ((2, 3, 5, 7, 9), 6, (3, 2, 3), {"stride": (1, 2, 2), "padding": 1, "dilation": (2, 1, 1)}),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("x", "filters", "kernel", "options"), CALLS.values(), ids=CALLS)
def test_shapes(x, filters, kernel, options, dtype):
    conv = ops.conv2d if len(x) == 4 else ops.conv3d
    cuda_kernels.check_shapes(
        lambda x, w, b: conv(x, w, b, groups=x.shape[1], **options), [x, (filters, 1, *kernel), (filters,)], dtype
    )


def test_tokens():
    """x is channels-last in memory and a part of an array, as in MViT."""
    def function(x, w):
        maps = x[:, 1:].reshape(2, 5, 7, 6).permute((0, 3, 1, 2))
        return ops.conv2d(maps, w, padding=1, groups=6).permute((0, 2, 3, 1)).reshape(2, 35, 6)

    cuda_kernels.check_shapes(function, [(2, 36, 6), (6, 1, 3, 3)], np.float32)
