"""Convolution by its CUDA kernels, beside the rows of tests/cases/conv.py, which test_ops.py runs."""

import numpy as np
import pytest

from scratchvit import Tensor, ops
from scratchvit.backend import asarray
from scratchvit.kernels.cuda import columns
from tests.support import cuda_kernels
from tests.support.seeds import seeded

pytestmark = pytest.mark.usefixtures("cuda")

# x, weight, options of the convolution
CALLS = {
    "one pixel": ((1, 1, 1, 1), (1, 1, 1, 1), {}),
    "more than one block": ((3, 5, 17, 19), (7, 5, 3, 3), {"padding": 1}),
    "stride and dilation by axis": (
        (2, 3, 19, 23), (5, 3, 3, 4), {"stride": (3, 2), "padding": (2, 5), "dilation": (2, 3)},
    ),
    "1x1": ((3, 33, 9, 9), (17, 33, 1, 1), {}),
    "1x1, stride 2": ((3, 33, 9, 8), (17, 33, 1, 1), {"stride": 2}),
    "1x1 of groups": ((3, 12, 5, 5), (9, 4, 1, 1), {"groups": 3}),
    "groups": ((3, 12, 9, 7), (9, 4, 3, 3), {"groups": 3, "stride": 2, "padding": 1}),
    "same": ((2, 3, 9, 7), (5, 3, 4, 3), {"padding": "same", "stride": 2}),
    "a map smaller than the kernel": ((2, 3, 2, 1), (3, 3, 5, 3), {"padding": (2, 1)}),
    "an empty batch": ((0, 3, 5, 5), (4, 3, 3, 3), {"padding": 1}),
    "an empty batch, 1x1": ((0, 3, 5, 5), (4, 3, 1, 1), {}),
}
CALLS_3D = {
    "3-D": ((2, 3, 5, 7, 9), (5, 3, 3, 2, 3), {"stride": (1, 2, 2), "padding": 1, "dilation": (2, 1, 1)}),
    "3-D, groups": ((2, 4, 3, 5, 4), (6, 2, 2, 3, 3), {"groups": 2, "padding": (1, 0, 2)}),
}


def conv(x_shape, options):
    function = ops.conv2d if len(x_shape) == 4 else ops.conv3d
    return lambda x, w, b: function(x, w, b, **options)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("x", "weight", "options"), [*CALLS.values(), *CALLS_3D.values()], ids=[*CALLS, *CALLS_3D])
def test_shapes(x, weight, options, dtype):
    cuda_kernels.check_shapes(conv(x, options), [x, weight, weight[:1]], dtype)


@pytest.mark.parametrize(("x", "limit"), [
    ((2, 4, 3, 5), 1), ((5, 4, 5, 7), 9 * 4 * 4 * 11), ((5, 4, 5, 7), 2 * 9 * 4 * 4 * 35),
], ids=["a place", "a third", "two images"])
@pytest.mark.parametrize("options", [{"padding": 1}, {"padding": 1, "groups": 2}])
def test_columns_in_chunks(options, x, limit, monkeypatch):
    """A chunk is a part of the places of an image, or several images, here with a rest."""
    monkeypatch.setattr(columns, "COLUMN_BYTES_GPU", limit)
    weight = (6, 4 // options.get("groups", 1), 3, 3)
    cuda_kernels.check_shapes(conv(x, options), [x, weight, weight[:1]], np.float32)


def test_a_1x1_kernel_in_chunks(monkeypatch):
    monkeypatch.setattr(columns, "COLUMN_BYTES_GPU", 2 * 6 * 4 * 4)
    cuda_kernels.check_shapes(conv((5, 4, 3, 3), {}), [(5, 4, 3, 3), (6, 4, 1, 1), (6,)], np.float32)


def test_more_channels_than_blocks(monkeypatch):
    monkeypatch.setattr(columns, "MOST_BLOCKS", 2)
    cuda_kernels.check_shapes(conv((2, 5, 4, 4), {"padding": 1}), [(2, 5, 4, 4), (3, 5, 3, 3), (3,)], np.float32)


def test_arrays_that_are_not_contiguous():
    """x channels-last in memory, a weight that is a view, and dy of another order."""
    def function(x, w):
        return ops.conv2d(x.permute((0, 3, 1, 2)), w.permute((3, 0, 1, 2)), padding=1).permute((0, 2, 3, 1))

    cuda_kernels.check_shapes(function, [(2, 5, 7, 3), (3, 3, 3, 4)], np.float32)


def test_infinities_stay_in_their_windows():
    """Padding is 0 and not a product with 0."""
    x = np.ones((1, 1, 5, 5), np.float32)
    x[0, 0, 0, 0] = np.inf
    y = ops.conv2d(Tensor(asarray(x)), asarray(np.ones((1, 1, 3, 3), np.float32)), padding=1).numpy()[0, 0]
    assert np.isinf(y[:2, :2]).all() and np.isfinite(y[2:]).all() and np.isfinite(y[:, 2:]).all()


@pytest.mark.parametrize("kernel", [1, 3])
def test_constant_weights_and_a_constant_input(kernel):
    """Only what is wanted is computed, with the same bits."""
    rng = seeded(0)
    shapes = (2, 3, 7, 7), (4, 3, kernel, kernel), (4,)
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    dy = asarray(rng.standard_normal((2, 4, 8 - kernel, 8 - kernel)).astype(np.float32))

    def gradients(wanted):
        inputs = [Tensor(asarray(a), requires_grad=want) for a, want in zip(arrays, wanted)]
        ops.conv2d(*inputs).backward(dy)
        return [None if t.grad is None else t.grad.tobytes() for t in inputs]

    every = gradients([True] * 3)
    for wanted in ([True, False, False], [False, True, False], [False, False, True]):
        assert gradients(wanted) == [g if want else None for g, want in zip(every, wanted)]
