"""The loss of matched boxes: its gradient by differences, and against the formula in ops that have their own."""

import numpy as np
import pytest

import scratchvit as sv
from scratchvit import ops
from scratchvit.backend import asarray, asnumpy
from scratchvit.detection.boxes import box_cxcywh_to_xyxy, paired_generalized_box_iou
from scratchvit.detection.set_losses import box_losses
from scratchvit.tensor import Tensor
from tests.support.seeds import seeded

WHICH = np.array([[[0, -1, 2], [1, 0, -1]], [[-1, -1, -1], [3, 2, 1]]])      # (2, 2, 3)


def random_boxes(*shape, seed=0, dtype=np.float64):
    """Centres and sides; ends of which are multiples of 1/64, and so apart from others with 1/256 added."""
    rng = seeded(seed)
    centres, sides = rng.integers(-32, 32, (*shape, 2)), 2 * rng.integers(1, 32, (*shape, 2))
    return np.concatenate([centres, sides], -1).astype(dtype) / 64


def as_formula(boxes, objects, which):
    """box_losses layer by layer, of the matched pairs alone."""
    losses = []
    for of_layer, own in zip(boxes, which):
        image, query = np.nonzero(own >= 0)
        b_hat, b = of_layer[asarray(image), asarray(query)], asarray(objects[own[image, query]])
        giou = paired_generalized_box_iou(box_cxcywh_to_xyxy(b_hat), box_cxcywh_to_xyxy(b))
        losses.append(ops.stack([ops.l1_loss(b_hat, b, reduction="sum"), (1 - giou).sum()]))
    return ops.stack(losses, 1)


def test_gradients(device):
    objects = random_boxes(4, seed=1) + 1 / 256
    sv.gradcheck(lambda x: box_losses(x, asarray(objects.astype(x.dtype)), asarray(WHICH)), random_boxes(2, 2, 3))


@pytest.mark.parametrize("kind", ["apart", "ends that meet", "equal boxes", "no size"])
def test_values_and_gradients_are_those_of_the_formula(device, kind):
    """Also at the kinks, where gradients are a choice. In float64, as roundings of float32 explain another one."""
    boxes, objects = random_boxes(2, 2, 3), random_boxes(4, seed=1)
    if kind == "apart":
        objects += 1 / 256
    elif kind == "equal boxes":
        boxes[WHICH >= 0] = objects[WHICH[WHICH >= 0]]
    elif kind == "no size":
        boxes[..., 2] = 0
        objects[:2, 2:] = 0
    weights = asarray(np.array([[2, 3], [-1, 5.0]]))

    def compute(function):
        x = Tensor(asarray(boxes), requires_grad=True)
        losses = function(x)
        (losses * weights).sum().backward()
        return losses.numpy(), asnumpy(x.grad)

    ours = compute(lambda x: box_losses(x, asarray(objects), asarray(WHICH)))
    formula = compute(lambda x: as_formula(x, objects, WHICH))
    for own, expected in zip(ours, formula):
        np.testing.assert_allclose(own, expected, rtol=1e-12, atol=1e-12)


def test_predictions_without_an_object_are_not_looked_at(device):
    boxes, objects = random_boxes(2, 2, 3, dtype=np.float32), random_boxes(4, seed=1, dtype=np.float32)
    x = Tensor(asarray(boxes), requires_grad=True)
    expected = box_losses(x, asarray(objects), asarray(WHICH)).numpy()
    boxes[WHICH < 0] = np.nan
    x = Tensor(asarray(boxes), requires_grad=True)
    losses = box_losses(x, asarray(objects), asarray(WHICH))
    losses.sum().backward()
    np.testing.assert_array_equal(losses.numpy(), expected)
    gradient = asnumpy(x.grad)
    assert np.isfinite(gradient).all() and not gradient[WHICH < 0].any() and gradient[WHICH >= 0].any(-1).all()


@pytest.mark.parametrize("shapes", [
    ((2, 3, 4), (1, 4), (2, 3)), ((1, 2, 3, 4), (1, 4), (2, 3)), ((1, 2, 3, 4), (1, 5), (1, 2, 3)),
])
def test_other_shapes_are_refused(shapes):
    boxes, objects, which = shapes
    with pytest.raises(ValueError, match="box_losses: boxes \\(L, B, N, 4\\) need objects"):
        box_losses(np.ones(boxes, np.float32), np.ones(objects, np.float32), np.zeros(which, int))
