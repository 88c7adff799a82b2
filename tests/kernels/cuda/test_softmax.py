"""Softmax and its logarithm by their CUDA kernels."""

import numpy as np
import pytest

from scratchvit import Tensor, ops
from scratchvit.backend import asarray
from tests.support import cuda_kernels
from tests.support.margins import agree
from tests.support.seeds import seeded

pytestmark = pytest.mark.usefixtures("cuda")

# A warp for a row, with rows that do not fill a block; two warps and more; all threads; more than a block has.
SHAPES = [(1, 1), (5, 31), (2, 3, 33), (9, 256), (3, 257), (2, 700), (2, 4096), (1, 4097), (0, 7)]


@pytest.mark.parametrize("function", [ops.softmax, ops.log_softmax])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(shape, dtype, function):
    cuda_kernels.check_shapes(function, [shape], dtype)


@pytest.mark.parametrize("function", [ops.softmax, ops.log_softmax])
def test_other_axes_and_arrays_that_are_not_contiguous(function):
    cuda_kernels.check_shapes(lambda x: function(x, 1), [(3, 5, 4)], np.float32)
    cuda_kernels.check_shapes(lambda x: function(x.permute((1, 0))), [(40, 7)], np.float32)


@pytest.mark.parametrize("M", [5, 300])
def test_large_numbers_do_not_overflow(M):
    x = seeded(0).standard_normal((3, M)).astype(np.float32) + np.array([[1000], [-1000], [3e38]], np.float32)
    shifted = np.exp(x.astype(np.float64) - x.max(1, keepdims=True))
    agree(lambda: ops.softmax(Tensor(asarray(x))), shifted / shifted.sum(1, keepdims=True))


@pytest.mark.parametrize("M", [5, 300])
def test_infinities_and_nan_are_those_of_the_definition(M):
    x = np.zeros((4, M), np.float32)
    x[0], x[1, 3], x[2, 4], x[3, 2] = -np.inf, np.inf, np.nan, -np.inf
    y = ops.softmax(Tensor(asarray(x))).numpy()
    assert np.isnan(y[:3]).all()
    np.testing.assert_allclose(y[3], np.where(np.arange(M) == 2, 0, 1 / (M - 1)), rtol=1e-6)
