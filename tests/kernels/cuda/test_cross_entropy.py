"""Cross-entropy by its CUDA kernels."""

import itertools

import numpy as np
import pytest

from scratchvit import Tensor, ops
from scratchvit.backend import asarray, asnumpy
from scratchvit.plain import plain_forms
from tests.support import cuda_kernels
from tests.support.seeds import seeded

pytestmark = pytest.mark.usefixtures("cuda")

SHAPES = [(1, 1), (5, 31), (33, 65), (3, 7, 11), (2, 33, 3, 5), (1100, 3)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_labels(shape, dtype):
    rng = seeded(0)
    labels = rng.integers(shape[1], size=(shape[0], *shape[2:]))
    labels.flat[::3] = -100
    labels.flat[0] = 0
    weight = asarray(rng.uniform(0.5, 2, shape[1]).astype(dtype))
    for weights, smoothing, reduction in itertools.product((None, weight), (0.0, 0.1), ("mean", "sum", "none")):
        cuda_kernels.check_shapes(
            lambda x: ops.cross_entropy(x, labels, weights, smoothing, reduction),      # noqa: B023
            [shape], dtype,
        )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_probabilities(shape, dtype):
    rng = seeded(0)
    q, weight = rng.uniform(0.1, 1, shape).astype(dtype), rng.uniform(0.5, 2, shape[1]).astype(dtype)
    x = rng.standard_normal(shape).astype(dtype)
    for smoothing, reduction in itertools.product((0.0, 0.1), ("mean", "sum", "none")):
        options = {"label_smoothing": smoothing, "reduction": reduction}
        cuda_kernels.check(lambda x, q: ops.cross_entropy(x, q, **options), [x, q])                 # noqa: B023
        cuda_kernels.check(lambda x, q, w: ops.cross_entropy(x, q, w, **options), [x, q, weight])   # noqa: B023


def test_logits_and_probabilities_that_are_not_contiguous():
    """As those of a detector: classes are last in memory."""
    labels, rng = seeded(0).integers(5, size=(3, 67)), seeded(1)
    cuda_kernels.check_shapes(lambda x: ops.cross_entropy(x.permute((0, 2, 1)), labels), [(3, 67, 5)], np.float32)
    q = asarray(rng.uniform(0.1, 1, (67, 5)).astype(np.float32)).T
    cuda_kernels.check_shapes(lambda x: ops.cross_entropy(x, q), [(5, 67)], np.float32)


def loss_and_gradient(x, labels, **options):
    x = Tensor(asarray(x), requires_grad=True)
    loss = ops.cross_entropy(x, asarray(labels), **options)
    loss.sum().backward()
    return loss.numpy(), asnumpy(x.grad)


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.uint8, np.int64])
def test_labels_of_other_integers(dtype):
    x, labels = seeded(0).standard_normal((40, 7)).astype(np.float32), seeded(1).integers(7, size=40)
    for found, expected in zip(loss_and_gradient(x, labels.astype(dtype)), loss_and_gradient(x, labels)):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("wrong", [-1, 7, 10**12])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_label_out_of_range_gives_nan(wrong, smoothing):
    x, labels = seeded(0).standard_normal((40, 7)).astype(np.float32), seeded(1).integers(7, size=40)
    right = loss_and_gradient(x, labels, label_smoothing=smoothing, reduction="none")
    labels[3] = wrong
    loss, dx = loss_and_gradient(x, labels, label_smoothing=smoothing, reduction="none")
    assert np.isnan(loss[3]) and np.isnan(dx[3]).all()
    for found, expected in ((loss, right[0]), (dx, right[1])):
        np.testing.assert_array_equal(np.delete(found, 3, 0), np.delete(expected, 3, 0))
    for reduction in ("mean", "sum"):
        assert np.isnan(loss_and_gradient(x, labels, label_smoothing=smoothing, reduction=reduction)[0])


@pytest.mark.parametrize("labels", [np.full(6, -100), np.zeros(0, int)], ids=["all ignored", "no rows"])
def test_a_mean_of_no_rows_is_nan_with_gradient_zero(labels):
    loss, dx = loss_and_gradient(np.ones((len(labels), 7), np.float32), labels)
    assert np.isnan(loss) and not dx.any() and dx.shape == (len(labels), 7)


def test_an_ignored_row_of_nan_does_not_count():
    x, labels = seeded(0).standard_normal((6, 7)).astype(np.float32), np.array([1, -100, 2, 3, 4, 5])
    expected = loss_and_gradient(np.delete(x, 1, 0), np.delete(labels, 1))[0]
    x[1] = np.nan
    np.testing.assert_array_equal(loss_and_gradient(x, labels)[0], expected)


def test_large_logits():
    """e^x overflows, and e^-x is 0."""
    x = np.array([[1e4, -1e4, 0], [-1e4, -1e4, -1e4], [3e38, -3e38, 0]], np.float32)
    for labels in ([0, 1, 0], [1, 2, 1]):
        found = loss_and_gradient(x, np.array(labels), reduction="none")
        with plain_forms():
            expected = loss_and_gradient(x, np.array(labels), reduction="none")
        for ours, theirs in zip(found, expected):
            np.testing.assert_allclose(ours, theirs, rtol=1e-6)
