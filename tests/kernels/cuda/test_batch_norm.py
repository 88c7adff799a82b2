"""Batch norm by its CUDA kernels."""

import numpy as np
import pytest

from scratchvit import Tensor, ops
from scratchvit.backend import asarray, asnumpy
from scratchvit.kernels.cuda import batch_norm as kernels
from tests.support import cuda_kernels
from tests.support.margins import agree, assert_close, ulps
from tests.support.seeds import seeded

pytestmark = pytest.mark.usefixtures("cuda")

SHAPES = [(6, 1, 1), (5, 3), (3, 7, 5, 7), (2, 33, 131), (70, 2, 257), (9, 3, 67, 61)]     # the last two: several parts


def statistics(C, dtype):
    rng = seeded(3)
    return (asarray(array.astype(dtype)) for array in (rng.standard_normal(C), rng.uniform(0.5, 2, C)))


def train(x, w, b):
    return ops.batch_norm(x, None, None, w, b, training=True)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_training(shape, dtype):
    cuda_kernels.check_shapes(train, [shape, shape[1:2], shape[1:2]], dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [*SHAPES, (0, 3, 5)], ids=str)
def test_evaluation_and_frozen(shape, dtype):
    mean, var = statistics(shape[1], dtype)
    vector = shape[1:2]
    cuda_kernels.check_shapes(lambda x, w, b: ops.batch_norm(x, mean, var, w, b), [shape, vector, vector], dtype)
    weight, bias = statistics(shape[1], dtype)
    cuda_kernels.check_shapes(lambda x: ops.frozen_batch_norm(x, mean, var, weight, bias), [shape], dtype)


@pytest.mark.parametrize("function", [
    lambda x, w: train(x, None, None), lambda x, w: train(x, w, None), lambda x, w: train(x, None, w),
], ids=["neither", "weight", "bias"])
def test_without_weight_or_bias(function):
    cuda_kernels.check_shapes(function, [(5, 3, 17), (3,)], np.float32)


def test_an_array_that_is_not_contiguous():
    def function(x, w, b):
        return train(x.permute((2, 0, 1)), w, b).permute((1, 2, 0))

    cuda_kernels.check_shapes(function, [(3, 17, 5), (3,), (3,)], np.float32)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("on_device", [False, True])
def test_running_statistics(on_device, dtype):
    """Against NumPy's, over two batches; the momentum is a number, or an array on the device."""
    rng = seeded(0)
    mean, var = np.zeros(3, dtype), np.ones(3, dtype)
    ours = [asarray(array) for array in (mean, var)]
    momentum = asarray(np.array(0.3, dtype)) if on_device else 0.3
    for _ in range(2):
        x = (5 + 2 * rng.standard_normal((70, 3, 257))).astype(dtype)
        ops.batch_norm(asarray(x), *ours, training=True, momentum=momentum)
        mean = 0.7 * mean + 0.3 * x.mean((0, 2), dtype=float)
        var = 0.7 * var + 0.3 * x.var((0, 2), ddof=1, dtype=float)
    for found, expected in zip(ours, (mean, var)):
        assert_close(asnumpy(found), expected, ulps(expected, 8, dtype))


def test_evaluation_keeps_its_statistics():
    """A step between forward and backward may update the running ones."""
    x, dy = (asarray(seeded(n).standard_normal((4, 3, 5)).astype(np.float32)) for n in range(2))

    def gradient(change):
        mean, var = statistics(3, np.float32)
        weight = Tensor(asarray(np.ones(3, np.float32)), requires_grad=True)
        y = ops.batch_norm(x, mean, var, weight)
        if change:
            mean += 1
            var += 1
        y.backward(dy)
        return asnumpy(weight.grad)

    np.testing.assert_array_equal(gradient(True), gradient(False))


@pytest.mark.parametrize("training", [True, False])
def test_constant_weights_and_a_constant_input(training):
    """Only what is wanted is computed, with the same bits."""
    rng = seeded(0)
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in ((70, 3, 257), (3,), (3,))]
    dy = asarray(rng.standard_normal((70, 3, 257)).astype(np.float32))

    def gradients(wanted):
        inputs = [Tensor(asarray(a), requires_grad=want) for a, want in zip(arrays, wanted)]
        ops.batch_norm(inputs[0], *statistics(3, np.float32), *inputs[1:], training=training).backward(dy)
        return [None if t.grad is None else t.grad.tobytes() for t in inputs]

    every = gradients([True] * 3)
    for wanted in ([True, False, False], [False, True, True], [False, True, False], [False, False, True]):
        assert gradients(wanted) == [g if want else None for g, want in zip(every, wanted)]


def test_channels_far_from_zero():
    """E x² - (E x)² would have no digit left here, and so would deviations from the mean of one part."""
    x = 1e4 + seeded(0).standard_normal((80, 2, 301))
    x[40:] += 100
    expected = (x - x.mean((0, 2), keepdims=True)) / np.sqrt(x.var((0, 2), keepdims=True) + 1e-5)
    agree(lambda: ops.batch_norm(Tensor(asarray(x.astype(np.float32))), None, None, training=True), expected)


def test_a_channel_whose_variance_overflows_is_not_a_channel_of_zeros():
    x = np.ones((40, 2, 5), np.float32)
    x[::2, 1] = 1e20
    y = ops.batch_norm(Tensor(asarray(x)), None, None, training=True).numpy()
    assert np.isfinite(y[:, 0]).all() and np.isnan(y[:, 1]).all()


def test_statistics_of_another_dtype_are_left_to_the_array_code():
    x, other = asarray(np.ones((4, 3, 5), np.float32)), asarray(np.ones(3))
    assert not kernels.takes(x, other) and not kernels.takes(x, asarray(np.ones((3, 2), np.float32))[:, 0])
    assert kernels.takes(x, x[0, :, 0].copy(), None, 0.1)
