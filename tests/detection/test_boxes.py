"""Formats, IoU and GIoU of boxes: by hand, against counted pixels, and as in torchvision and transformers."""

import numpy as np
import pytest

import scratchvit as sv
from scratchvit.backend import asarray, asnumpy
from scratchvit.detection import boxes as B
from scratchvit.tensor import Tensor
from tests.support.margins import agree, assert_close, rounding, ulps
from tests.support.peers import import_torchvision, import_transformers
from tests.support.seeds import seeded
from tests.support.strict_array import STRICT, no_transfers

CONVERSIONS = (B.box_cxcywh_to_xyxy, B.box_xyxy_to_cxcywh, B.box_xywh_to_xyxy)
PAIRWISE = (B.generalized_box_iou, lambda a, b: B.box_iou(a, b)[0], lambda a, b: B.box_iou(a, b)[1])


def random_boxes(n, seed, dtype=np.float32):
    """(n, 4) as xyxy, some of them within 0 … 1, sides from 0.05 to 0.6."""
    rng = seeded(seed)
    left_top = rng.uniform(0, 0.8, (n, 2))
    return np.concatenate([left_top, left_top + rng.uniform(0.05, 0.6, (n, 2))], axis=1).astype(dtype)


def on_device(function, *arrays):
    """What the function gives on the device in use, on the host; nothing is waited for on the way."""
    arrays = [asarray(array) for array in arrays]
    with no_transfers():
        result = function(*arrays)
    return asnumpy(result)


@pytest.mark.parametrize(("function", "box", "expected"), [
    (B.box_cxcywh_to_xyxy, [0.5, 0.25, 0.5, 0.25], [0.25, 0.125, 0.75, 0.375]),
    (B.box_xyxy_to_cxcywh, [0.25, 0.125, 0.75, 0.375], [0.5, 0.25, 0.5, 0.25]),
    (B.box_xywh_to_xyxy, [0.25, 0.125, 0.5, 0.25], [0.25, 0.125, 0.75, 0.375]),
    (B.box_area, [0.25, 0.125, 0.75, 0.375], 0.125),
])
def test_formats_and_area_by_hand(device, function, box, expected):
    for dtype in (np.float32, np.float64):
        for shape in ((4,), (1, 4), (2, 3, 4)):
            result = on_device(function, np.broadcast_to(np.array(box, dtype), shape))
            assert result.dtype == dtype
            np.testing.assert_array_equal(result, np.broadcast_to(expected, (*shape[:-1], *np.shape(expected))))


def test_formats_there_and_back(device):
    boxes = random_boxes(50, 0)
    back = on_device(lambda x: B.box_cxcywh_to_xyxy(B.box_xyxy_to_cxcywh(x)), boxes)
    assert_close(back, boxes, ulps(boxes, 4))        # a sum, a difference, and both of their halves again


A = [2.0, 2, 6, 6]      # area 16


@pytest.mark.parametrize(("b", "iou", "giou", "union"), [
    (A, 1, 1, 16),
    ([4, 2, 8, 6], 8 / 24, 8 / 24, 24),                         # a half in common, nothing else in the box around
    ([4, 4, 8, 8], 4 / 28, 4 / 28 - 8 / 36, 28),                # a corner in common
    ([3, 3, 5, 5], 4 / 16, 4 / 16, 16),                         # within
    ([0, 0, 8, 8], 16 / 64, 16 / 64, 64),                       # around
    ([6, 2, 10, 6], 0, 0, 32),                                  # touching along a side
    ([6, 6, 10, 10], 0, -32 / 64, 32),                          # touching at a corner
    ([10, 2, 14, 6], 0, -16 / 48, 32),                          # apart
    ([2, 2, 2, 6], 0, 0, 16),                                   # no width, on the border
    ([3, 3, 3, 3], 0, 0, 16),                                   # a point within
    ([8, 4, 8, 4], 0, -8 / 24, 16),                             # a point outside
    ([5, 5, 3, 3], 0, 0, 16),                                   # reversed, within
])
def test_overlap_by_hand(device, b, iou, giou, union):
    for x, y in ((A, b), (b, A)):
        x, y = np.array([x], np.float32), np.array([y], np.float32)
        results = [on_device(function, x, y) for function in PAIRWISE]
        assert all(result.dtype == np.float32 and result.shape == (1, 1) for result in results)
        assert_close(np.ravel(results), [giou, iou, union], ulps(1, 2))     # two ratios, each at most 1
        assert_close(on_device(B.paired_generalized_box_iou, x, y), [giou], ulps(1, 2))


@pytest.mark.parametrize(("a", "b", "giou"), [
    ([3, 3, 3, 3], [3, 3, 3, 3], 0),        # 0 / 0 in both parts
    ([3, 3, 3, 3], [5, 3, 5, 3], 0),        # the box around is a line
    ([3, 3, 3, 3], [5, 5, 5, 5], -1),       # all of the box around is empty
    ([2, 2, 2, 6], [5, 2, 5, 6], -1),       # two lines
    ([2, 2, 2, 6], [2, 2, 2, 6], 0),        # the same line
    ([1e-30, 0, 2e-30, 1e-30], [1e-30, 0, 2e-30, 1e-30], 0),        # so small that float32 knows no area of it
])
def test_two_degenerate_boxes_give_a_number_with_a_gradient_that_is_one(device, a, b, giou):
    a, b = Tensor(np.array([a], np.float32), requires_grad=True), Tensor(np.array([b], np.float32), requires_grad=True)
    value = B.paired_generalized_box_iou(a, b)
    value.backward(np.ones(1, np.float32))
    assert value.numpy().tolist() == [giou]
    assert np.isfinite(asnumpy(a.grad)).all() and np.isfinite(asnumpy(b.grad)).all()


def test_against_counted_pixels():
    """Boxes of whole pixels: areas, unions and the box around can be counted."""
    rng = seeded(0)
    corners = np.sort(rng.integers(0, 9, (40, 2, 2)), axis=1)       # some have no width or height
    boxes = corners.reshape(-1, 4)
    masks = np.zeros((40, 9, 9), bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes):
        mask[y0:y1, x0:x1] = True
    exact = boxes.astype(np.float64)
    iou, union = B.box_iou(exact, exact)
    giou = B.generalized_box_iou(exact, exact)
    np.testing.assert_array_equal(B.box_area(exact), masks.sum((1, 2)))
    for i, j in np.ndindex(40, 40):
        both, either = (masks[i] & masks[j]).sum(), (masks[i] | masks[j]).sum()
        low, high = np.minimum(corners[i, 0], corners[j, 0]), np.maximum(corners[i, 1], corners[j, 1])
        around = np.prod(high - low)
        assert union[i, j] == either
        assert iou[i, j] == (both / either if either else 0)
        assert giou[i, j] == iou[i, j] - ((around - either) / around if around else 0)


def test_giou_is_symmetric_at_most_iou_and_does_not_change_with_scale_or_place():
    a, b = random_boxes(30, 0, np.float64), random_boxes(40, 1, np.float64)
    giou, (iou, _) = B.generalized_box_iou(a, b), B.box_iou(a, b)
    assert giou.shape == (30, 40) and (giou > -1).all() and (iou <= 1).all()
    assert (giou <= iou + ulps(1, 2, np.float64)).all()     # of a box within another, |around| - |union| is 0, rounded
    assert (giou < 0).any() and (giou > 0.3).any()
    np.testing.assert_array_equal(giou, B.generalized_box_iou(b, a).T)
    shift = np.array([3, -1, 3, -1])
    agree(lambda: B.generalized_box_iou(7 * a + shift, 7 * b + shift), giou, dtype=np.float64)


def test_pairs_are_the_diagonal(device):
    a, b = random_boxes(20, 0), random_boxes(20, 1)
    np.testing.assert_array_equal(
        on_device(B.paired_generalized_box_iou, a, b), np.diag(on_device(B.generalized_box_iou, a, b))
    )


def test_no_boxes(device):
    none, some = np.zeros((0, 4), np.float32), random_boxes(3, 0)
    for convert in CONVERSIONS:
        assert on_device(convert, none).shape == (0, 4)
    assert on_device(B.box_area, none).shape == (0,)
    for function in PAIRWISE:
        assert on_device(function, none, some).shape == (0, 3)
        assert on_device(function, some, none).shape == (3, 0)
        assert on_device(function, none, none).shape == (0, 0)
    assert on_device(B.paired_generalized_box_iou, none, none).shape == (0,)


def test_boxes_on_the_host_stay_there_while_the_gpu_is_in_use():
    """As a loader's do, and an evaluation's."""
    boxes = random_boxes(4, 0)
    sv.use(STRICT)
    try:
        results = [convert(boxes) for convert in CONVERSIONS] + [function(boxes, boxes) for function in PAIRWISE]
    finally:
        sv.use("cpu")
    assert {type(result) for result in results} == {np.ndarray}


@pytest.mark.parametrize("shape", [(0,), (3,), (2, 5)])
def test_an_array_that_holds_no_boxes_is_refused(shape):
    with pytest.raises(ValueError, match=r"box_iou: boxes must have shape \(…, 4\), not .* an empty set is \(0, 4\)"):
        B.box_iou(random_boxes(2, 0), np.zeros(shape))


def test_gradients(device):
    a, b = (np.round(256 * random_boxes(12, seed, np.float64)) / 256 - 0.5 for seed in (0, 1))
    b += 1 / 512        # no border of one is near one of the other: there is a kink
    assert (B.paired_generalized_box_iou(a, b) < 0).any()       # with and without a common part
    for convert in CONVERSIONS:
        sv.gradcheck(convert, a, jacobian=True)
    sv.gradcheck(B.box_area, a)
    sv.gradcheck(B.paired_generalized_box_iou, a, b[:1])
    sv.gradcheck(B.generalized_box_iou, a, b)
    sv.gradcheck(B.box_iou, a, b)


def test_giou_has_a_slope_between_boxes_that_are_apart_where_iou_has_none():
    target = np.array([[0.6, 0.6, 0.8, 0.9]], np.float32)
    box = Tensor(np.array([[0.1, 0.1, 0.2, 0.2]], np.float32), requires_grad=True)
    B.box_iou(box, target)[0].sum().backward()
    assert not box.grad.any()
    giou = B.generalized_box_iou(box, target)
    giou.sum().backward()
    nearer = box.data + np.float32(0.01) * box.grad
    assert B.generalized_box_iou(nearer, target) > giou.data + 1e-4


@pytest.mark.parity
@pytest.mark.parametrize("seed", range(5))
def test_as_in_torchvision_and_transformers(seed):
    torch = pytest.importorskip("torch")
    torchvision, _ = import_torchvision(), import_transformers()
    from transformers.loss import loss_for_object_detection as theirs
    a, b = random_boxes(30, seed), random_boxes(20, seed + 100)
    s, t = torch.tensor(a, requires_grad=True), torch.tensor(b, requires_grad=True)
    iou, union = B.box_iou(a, b)
    np.testing.assert_array_equal(iou, theirs.box_iou(s, t)[0].detach())
    np.testing.assert_array_equal(union, theirs.box_iou(s, t)[1].detach())
    agree(lambda: B.generalized_box_iou(a, b), theirs.generalized_box_iou(s, t), "GIoU of transformers")
    agree(lambda: B.box_iou(a, b)[0], torchvision.ops.box_iou(s, t), "IoU of torchvision")
    agree(lambda: B.generalized_box_iou(a, b), torchvision.ops.generalized_box_iou(s, t), "GIoU of torchvision")
    for ours, name in ((B.box_cxcywh_to_xyxy, "cxcywh"), (B.box_xywh_to_xyxy, "xywh")):
        expected = torchvision.ops.box_convert(s, name, "xyxy")
        assert_close(ours(a), expected, ulps(expected, 1), name)        # a half, which is exact, and a sum

    # Its diagonal, as a loss takes it, with boxes that touch and boxes within one another: there the slope is chosen.
    a[:4, :2], a[:4, 2:] = b[:4, 2:], b[:4, 2:] + np.float32(0.25)
    a[4:8], a[8:12] = b[4:8], b[8:12] + np.array([0, 0, 0, 0.125], np.float32)
    s, t = torch.tensor(a[:20], requires_grad=True), torch.tensor(b, requires_grad=True)
    cotangent = seeded(seed).standard_normal(20).astype(np.float32)

    def gradients(a):
        x, y = Tensor(a, requires_grad=True), Tensor(b, requires_grad=True)
        B.paired_generalized_box_iou(x, y).backward(cotangent)
        return x.grad, y.grad

    torch.diag(theirs.generalized_box_iou(s, t)).backward(torch.tensor(cotangent))
    # The bounds are those of boxes nearby: whoever perturbs a border that touches chooses another slope.
    bounds = rounding(lambda: gradients(a[:20] + np.float32(0.01)))
    for ours, peers, bound in zip(gradients(a[:20]), (s.grad, t.grad), bounds.values()):
        assert_close(ours, peers, bound, "gradients")
