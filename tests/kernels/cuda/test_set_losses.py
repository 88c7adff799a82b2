"""Costs, losses and errors of sets of boxes by their CUDA kernels."""

import numpy as np
import pytest

import scratchvit as sv
from scratchvit.backend import asarray, asnumpy
from scratchvit.detection.set_losses import box_losses, matching_costs, set_errors
from scratchvit.plain import plain_forms
from tests.support import cuda_kernels
from tests.support.margins import agree
from tests.support.seeds import seeded

pytestmark = pytest.mark.usefixtures("cuda")

# layers, images, queries, objects
SIZES = [(1, 1, 1, 1), (3, 2, 5, 16), (6, 3, 100, 37), (2, 5, 67, 1)]


def boxes_of(rng, *shape, dtype=np.float32):
    return rng.uniform(0.05, 0.95, (*shape, 4)).astype(dtype)


def random_set(sizes, dtype):
    """Predicted boxes, objects, and which of them each query has."""
    L, B, N, T = sizes
    rng = seeded(0)
    return boxes_of(rng, L, B, N, dtype=dtype), boxes_of(rng, T, dtype=dtype), rng.integers(-1, T, (L, B, N))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_losses_of_boxes(sizes, dtype):
    boxes, objects, which = random_set(sizes, dtype)
    cuda_kernels.check(lambda x: box_losses(x, asarray(objects), asarray(which)), [boxes])


def test_boxes_that_are_not_contiguous_and_other_integers():
    boxes, objects, which = random_set((6, 3, 100, 37), np.float32)
    turned = np.ascontiguousarray(boxes.transpose(3, 2, 1, 0))
    cuda_kernels.check(
        lambda x: box_losses(x.permute(3, 2, 1, 0), asarray(objects[::-1]), asarray(which.astype(np.int32))), [turned]
    )


def test_without_queries_or_matches():
    cuda_kernels.check_shapes(
        lambda x: box_losses(x, asarray(np.ones((1, 4), np.float32)), asarray(np.zeros((2, 3, 0), int))),
        [(2, 3, 0, 4)], np.float32,
    )
    boxes, objects, which = random_set((2, 3, 5, 7), np.float32)
    boxes[:] = np.nan                           # nobody asks
    x = sv.Tensor(asarray(boxes), requires_grad=True)
    losses = box_losses(x, asarray(objects), asarray(np.full_like(which, -1)))
    losses.sum().backward()
    assert not losses.numpy().any() and not asnumpy(x.grad).any()


@pytest.mark.parametrize("size", [0.0, 0.25])
def test_equal_boxes_and_those_that_touch(size):
    """At the kinks: the same choice as the plain form's; and areas of 0. In float64, as roundings explain a choice."""
    boxes = np.array([[0.5, 0.5, size, size], [0.25, 0.5, 0.25, 0.25], [0.0, 0.0, 0.25, 0.5], [0.5, 0.5, 0.25, 0.75]])

    def compute():
        x = sv.Tensor(asarray(boxes[None, None]), requires_grad=True)
        losses = box_losses(x, asarray(boxes[:1]), asarray(np.zeros((1, 1, 4), int)))
        losses.sum().backward()
        return losses.numpy(), asnumpy(x.grad)

    with plain_forms():
        expected = compute()
    for ours, plain in zip(compute(), expected):
        np.testing.assert_allclose(ours, plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("place", range(4))
def test_losses_and_costs_of_boxes_that_are_not_finite_are_not_finite(place, value):
    boxes, objects, which = (asarray(x) for x in random_set((1, 1, 5, 3), np.float32))
    boxes[0, 0, 2, place], which[:] = value, 1
    labels = image = asarray(np.zeros(3, int))
    with np.errstate(all="ignore"):
        assert not np.isfinite(box_losses(boxes, objects, which).numpy()[0, 0])
    costs = asnumpy(matching_costs(boxes, boxes, objects, labels, image, (0.0, 0.0, 1.0)))
    assert not np.isfinite(costs[:, :, 2]).any() and np.isfinite(np.delete(costs, 2, 2)).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_costs_of_matching(sizes, dtype):
    L, B, N, T = sizes
    boxes, objects, _ = random_set(sizes, dtype)
    rng = seeded(1)
    class_costs = rng.standard_normal((L, B, N, 7)).astype(dtype)
    given = [asarray(x) for x in (class_costs, boxes, objects, rng.integers(7, size=T), rng.integers(B, size=T))]

    def compute():
        return matching_costs(*given, (1.5, 5.0, 2.0))

    with plain_forms():
        expected = asnumpy(compute())
    agree(compute, expected, "costs", dtype=dtype)
    np.testing.assert_array_equal(asnumpy(compute()), asnumpy(compute()))


@pytest.mark.parametrize("none", [4, None], ids=["softmax", "sigmoids"])
@pytest.mark.parametrize("sizes", [(1, 1, 1), (3, 2, 5), (2, 3, 77)], ids=str)
@pytest.mark.parametrize("classes", [5, 40])
def test_errors(sizes, classes, none):
    L, B, N = sizes
    rng = seeded(0)
    none = none and classes - 1
    logits = asarray(np.round(2 * rng.standard_normal((L, B, N, classes))).astype(np.float32))     # with ties
    labels = asarray(rng.integers(classes + (none is None), size=(L, B, N)))
    counts = asarray(rng.integers(2 * N, size=B))
    found = asnumpy(set_errors(logits, labels, counts, none))
    with plain_forms():
        expected = asnumpy(set_errors(logits, labels, counts, none))
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.float32 and found.any()
