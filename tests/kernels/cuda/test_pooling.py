"""Pooling by its CUDA kernels."""

import numpy as np
import pytest

from scratchvit import Tensor, no_grad, ops
from scratchvit.backend import asarray, asnumpy
from scratchvit.plain import plain_forms
from tests.support import cuda_kernels
from tests.support.seeds import seeded

pytestmark = pytest.mark.usefixtures("cuda")

# shape of x, kernel, options
CALLS = {
    "one entry": ((1, 1, 1, 1), 1, {}),
    "windows that overlap": ((2, 3, 13, 17), 3, {"stride": 2, "padding": 1}),
    "more than one block": ((3, 5, 19, 23), 2, {}),
    "by axis": ((2, 3, 13, 9), (3, 4), {"stride": (1, 3), "padding": (1, 2)}),
    "windows beyond the end": ((2, 2, 6, 7), 3, {"stride": 2, "ceil_mode": True, "padding": 1}),
    "a stride beyond the window": ((2, 2, 9, 9), 2, {"stride": 3}),
    "an empty batch": ((0, 2, 6, 6), 2, {}),
    "3-D": ((2, 3, 5, 6, 7), (2, 3, 3), {"stride": (1, 2, 2), "padding": (0, 1, 1)}),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("shape", "kernel", "options"), CALLS.values(), ids=CALLS)
def test_shapes(shape, kernel, options, dtype):
    maximum, mean = (ops.max_pool2d, ops.avg_pool2d) if len(shape) == 4 else (ops.max_pool3d, ops.avg_pool3d)
    cuda_kernels.check_shapes(lambda x: maximum(x, kernel, **options), [shape], dtype)
    cuda_kernels.check_shapes(lambda x: mean(x, kernel, **options), [shape], dtype)
    cuda_kernels.check_shapes(lambda x: mean(x, kernel, count_include_pad=False, **options), [shape], dtype)


@pytest.mark.parametrize("options", [{"dilation": (2, 3), "padding": 1}, {"padding": "same", "stride": 2}])
def test_options_of_max_pooling(options):
    cuda_kernels.check_shapes(lambda x: ops.max_pool2d(x, 3, **options), [(2, 3, 12, 11)], np.float32)


@pytest.mark.parametrize("pool", [ops.max_pool2d, ops.avg_pool2d])
def test_an_array_that_is_not_contiguous(pool):
    def function(x):
        return pool(x.permute((0, 3, 1, 2)), 2).permute((0, 2, 3, 1))

    cuda_kernels.check_shapes(function, [(2, 7, 9, 3)], np.float32)


@pytest.mark.parametrize("values", [
    [0.0, 0.0, 1.0], [-0.0, 0.0], [np.nan, 1.0, 2.0], [np.inf, np.inf, 1.0], [-np.inf, -np.inf, -np.inf, 0.0],
], ids=str)
def test_ties_nan_and_infinities(values):
    """The same bits as the plain form, and gradients at the same taps."""
    x = seeded(0).choice(np.array(values, np.float32), (2, 3, 11, 13))

    def results():
        given = Tensor(asarray(x), requires_grad=True)
        y = ops.max_pool2d(given, 3, 2, 1)
        y.backward(asarray(np.arange(y.size, dtype=np.float32).reshape(y.shape)))
        return y.numpy(), asnumpy(given.grad)

    found = results()
    with plain_forms():
        expected = results()
    for ours, theirs in zip(found, expected):
        np.testing.assert_array_equal(ours, theirs)


def test_without_a_backward():
    x = asarray(seeded(0).standard_normal((2, 3, 9, 9)).astype(np.float32))
    with no_grad():
        alone = ops.max_pool2d(Tensor(x), 3, 2, 1).numpy()
    assert alone.tobytes() == ops.max_pool2d(Tensor(x, requires_grad=True), 3, 2, 1).numpy().tobytes()


def test_more_taps_than_a_byte_has():
    cuda_kernels.check_shapes(lambda x: ops.max_pool2d(x, 17), [(2, 3, 18, 35)], np.float32)
