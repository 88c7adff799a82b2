"""Group norm by its CUDA kernels."""

import numpy as np
import pytest

from scratchvit import Tensor, ops
from scratchvit.backend import asarray
from tests.support import cuda_kernels
from tests.support.margins import agree
from tests.support.seeds import seeded

pytestmark = pytest.mark.usefixtures("cuda")


# The second has too few places. The last has more numbers in a group than a block adds at once, 64 · 256.
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("shape", "groups"), [
    ((1, 8, 16), 1), ((5, 12), 2), ((3, 6, 5, 7), 3), ((2, 80, 17), 2), ((3, 4, 257), 4), ((0, 6, 50), 3),
    ((2, 2, 131, 67), 1),
], ids=str)
def test_shapes(shape, groups, dtype):
    C = shape[1]
    cuda_kernels.check_shapes(lambda x, w, b: ops.group_norm(x, groups, w, b), [shape, (C,), (C,)], dtype)


@pytest.mark.parametrize("function", [
    lambda x, w: ops.group_norm(x, 3), lambda x, w: ops.group_norm(x, 3, w), lambda x, w: ops.group_norm(x, 3, None, w),
], ids=["neither", "weight", "bias"])
def test_without_weight_or_bias(function):
    cuda_kernels.check_shapes(function, [(5, 6, 17), (6,)], np.float32)


def test_an_array_that_is_not_contiguous():
    def function(x, w, b):
        return ops.group_norm(x.permute((2, 0, 1)), 3, w, b).permute((1, 2, 0))

    cuda_kernels.check_shapes(function, [(6, 17, 5), (6,), (6,)], np.float32)


def test_constant_weights_and_a_constant_input():
    """Only what is wanted is computed, with the same bits."""
    rng = seeded(0)
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in ((5, 6, 17), (6,), (6,))]
    dy = asarray(rng.standard_normal((5, 6, 17)).astype(np.float32))

    def gradients(wanted):
        inputs = [Tensor(asarray(a), requires_grad=want) for a, want in zip(arrays, wanted)]
        ops.group_norm(inputs[0], 3, *inputs[1:]).backward(dy)
        return [None if t.grad is None else t.grad.tobytes() for t in inputs]

    every = gradients([True] * 3)
    for wanted in ([True, False, False], [False, True, True], [False, True, False], [False, False, True]):
        assert gradients(wanted) == [g if want else None for g, want in zip(every, wanted)]


def test_groups_far_from_zero():
    """E x² - (E x)² would have no digit left here."""
    x = 1e4 + seeded(0).standard_normal((3, 4, 401))
    groups = x.reshape(3, 2, -1)
    expected = (groups - groups.mean(2, keepdims=True)) / np.sqrt(groups.var(2, keepdims=True) + 1e-5)
    agree(lambda: ops.group_norm(Tensor(asarray(x.astype(np.float32))), 2), expected.reshape(x.shape))


def test_a_group_whose_variance_overflows_is_not_a_group_of_zeros():
    x = np.ones((2, 4, 20), np.float32)
    x[1, :2, ::2] = 1e20
    y = ops.group_norm(Tensor(asarray(x)), 2).numpy()
    assert np.isfinite(y[0]).all() and np.isnan(y[1, :2]).all() and np.isfinite(y[1, 2:]).all()
