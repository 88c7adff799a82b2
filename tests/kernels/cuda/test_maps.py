"""Functions of single entries by their CUDA kernels."""

import math

import numpy as np
import pytest

from scratchvit import Tensor, no_grad, ops
from scratchvit.backend import asarray
from tests.support import cuda_kernels
from tests.support.margins import assert_close, ulps
from tests.support.seeds import seeded

pytestmark = pytest.mark.usefixtures("cuda")

FUNCTIONS = {
    "gelu": ops.gelu, "gelu, tanh": lambda x: ops.gelu(x, "tanh"), "sigmoid": ops.sigmoid, "silu": ops.silu,
    "relu": ops.relu,
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(1,), (255,), (257,), (3, 5, 67), (0, 4), ()])
@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_shapes(function, shape, dtype):
    cuda_kernels.check_shapes(function, [shape], dtype)


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_arrays_that_are_not_contiguous(function):
    cuda_kernels.check_shapes(lambda x: function(x.permute((1, 0))), [(31, 67)], np.float32)


def test_gelu_without_a_derivative():
    x = asarray(seeded(0).standard_normal(300).astype(np.float32))
    with no_grad():
        alone = ops.gelu(Tensor(x)).numpy()
    assert alone.tobytes() == ops.gelu(Tensor(x, requires_grad=True)).numpy().tobytes()


def test_gelu_of_a_very_negative_number_keeps_its_digits():
    """½ (1 + erf) would be 0 there, or have no digit left."""
    x = np.linspace(-9, -4, 101, dtype=np.float32)
    y = ops.gelu(Tensor(asarray(x))).numpy()
    expected = np.array([v * 0.5 * math.erfc(-v * math.sqrt(0.5)) for v in x.astype(np.float64)])
    assert_close(y / expected, np.ones(101), ulps(np.ones(1), 200))       # e^(-x²/2) magnifies roundings x² times


def test_infinities_and_nan():
    special = np.array([np.inf, -np.inf, np.nan, 0.0, -0.0, 1e20, -1e20], np.float32)
    for function in (ops.sigmoid, ops.relu):
        x = Tensor(asarray(special), requires_grad=True)
        y = function(x)
        y.backward(asarray(np.full(7, np.inf, np.float32)))
        expected = {
            ops.sigmoid: ([1, 0, np.nan, 0.5, 0.5, 1, 0], None),
            ops.relu: ([np.inf, 0, np.nan, 0, 0, 1e20, 0], [np.inf, 0, 0, 0, 0, np.inf, 0]),
        }[function]
        np.testing.assert_array_equal(y.numpy(), np.array(expected[0], np.float32))
        if expected[1] is not None:
            np.testing.assert_array_equal(x.grad.get(), np.array(expected[1], np.float32))
