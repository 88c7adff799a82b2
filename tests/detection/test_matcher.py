"""Which query takes which object: optimal by brute force, at every edge, and with one transfer to the host."""

import contextlib
import functools
import itertools

import numpy as np
import pytest

import scratchvit as sv
from scratchvit.backend import asarray, asnumpy
from scratchvit.detection import HungarianMatcher
from scratchvit.detection.matcher import Objects
from scratchvit.errors import ScratchvitError
from scratchvit.tensor import Tensor
from tests.support import strict_array
from tests.support.margins import agree, assert_close, rounding
from tests.support.seeds import seeded
from tests.support.set_prediction import CLASSES, cost_of, random_targets


def random_outputs(images, queries, seed, classes=CLASSES):
    rng = seeded(seed)
    return {
        "pred_logits": Tensor(rng.standard_normal((images, queries, classes + 1), dtype=np.float32)),
        "pred_boxes": Tensor(rng.uniform(0.1, 0.9, (images, queries, 4)).astype(np.float32)),
    }


def cost_matrix(outputs, targets, image, weights):
    """(Q, n) of one image."""
    logits, boxes = outputs["pred_logits"].numpy()[image], outputs["pred_boxes"].numpy()[image]
    target = targets[image]
    return np.array([
        [cost_of(*query, label, box.astype(float), weights) for label, box in zip(target["labels"], target["boxes"])]
        for query in zip(logits, boxes)
    ]).reshape(len(logits), -1)


def least_cost(cost):
    """Of all ways to give each row of the shorter side a partner of its own."""
    cost = cost if cost.shape[0] <= cost.shape[1] else cost.T
    rows = np.arange(len(cost))
    return min(cost[rows, list(columns)].sum() for columns in itertools.permutations(range(cost.shape[1]), len(cost)))


@pytest.mark.parametrize("weights", [(1.0, 5.0, 2.0), (1, 0, 0), (0, 1, 0), (0, 0, 1)], ids=str)
def test_the_matching_is_the_cheapest_of_all(device, weights):
    counts = (4, 0, 1, 5, 7, 6)         # of five queries: fewer objects, none, as many, more
    for seed in range(5):
        outputs, targets = random_outputs(len(counts), 5, seed), random_targets(counts, seed + 100)
        matcher = HungarianMatcher(*weights)
        pairs = matcher(outputs, targets)
        given = *(outputs[key].data[None] for key in ("pred_logits", "pred_boxes")), Objects.of(targets, CLASSES)
        of_costs = rounding(functools.partial(matcher.costs, *given))[""]
        for image, (queries, objects) in enumerate(pairs):
            k = min(5, counts[image])
            assert queries.dtype == objects.dtype == np.int64 and queries.shape == objects.shape == (k,)
            assert queries.tolist() == sorted(set(queries.tolist())) and len(set(objects.tolist())) == k
            cost = cost_matrix(outputs, targets, image, weights)
            if k:
                # Two assignments whose costs differ by no more than the roundings of their terms are as good.
                assert_close(cost[queries, objects].sum(), least_cost(cost), 2 * k * of_costs, "the least cost")


def test_costs_are_those_written_out(device):
    """Between each object and the queries of its own image, for each layer."""
    layers, counts = [random_outputs(3, 4, seed) for seed in range(2)], (2, 0, 3)
    targets = random_targets(counts, 9)
    logits, boxes = (asarray(np.stack([asnumpy(o[key].data) for o in layers])) for key in ("pred_logits", "pred_boxes"))
    costs = HungarianMatcher().costs(logits, boxes, Objects.of(targets, CLASSES))
    assert costs.dtype == np.float32 and costs.shape == (2, 5, 4)
    expected = [
        np.concatenate([cost_matrix(outputs, targets, image, (1, 5, 2)).T for image in range(3)]) for outputs in layers
    ]
    agree(lambda: HungarianMatcher().costs(logits, boxes, Objects.of(targets, CLASSES)), np.stack(expected), "costs")


def test_an_image_is_matched_as_if_it_were_alone():
    counts = (3, 0, 8, 2)
    outputs, targets = random_outputs(4, 6, 0), random_targets(counts, 1)
    for image, (queries, objects) in enumerate(HungarianMatcher()(outputs, targets)):
        alone = {key: Tensor(value.data[image : image + 1]) for key, value in outputs.items()}
        [(own_queries, own_objects)] = HungarianMatcher()(alone, targets[image : image + 1])
        np.testing.assert_array_equal(queries, own_queries)
        np.testing.assert_array_equal(objects, own_objects)


def test_layers_are_matched_anew_and_come_to_the_host_at_once(device):
    layers, targets = [random_outputs(2, 6, seed) for seed in range(4)], random_targets((3, 4), 5)
    logits, boxes = (asarray(np.stack([asnumpy(o[key].data) for o in layers])) for key in ("pred_logits", "pred_boxes"))
    before = strict_array.transfers
    together = HungarianMatcher().match_layers(logits, boxes, Objects.of(targets, CLASSES))
    assert strict_array.transfers - before == (1 if device == "strict" else 0)
    by_itself = [HungarianMatcher()(outputs, targets) for outputs in layers]
    assert len({str(pairs) for pairs in together}) == 4
    for pairs, expected in zip(together, by_itself):
        for ours, own in zip(pairs, expected):
            np.testing.assert_array_equal(ours, own)


def test_queries_that_cost_the_same_still_take_an_object_each(device):
    """As in the first step of a model whose queries all begin as zeros."""
    outputs = {
        "pred_logits": Tensor(np.zeros((1, 6, CLASSES + 1), np.float32)),
        "pred_boxes": Tensor(np.full((1, 6, 4), 0.5, np.float32)),
    }
    targets = [{"labels": [1, 1, 1], "boxes": np.full((3, 4), 0.25, np.float32)}]
    [(queries, objects)] = HungarianMatcher()(outputs, targets)
    assert len(set(queries.tolist())) == 3 and sorted(objects.tolist()) == [0, 1, 2]
    [again] = HungarianMatcher()(outputs, targets)
    np.testing.assert_array_equal((queries, objects), again)


def test_a_batch_without_any_object(device):
    outputs = random_outputs(2, 4, 0)
    empty = [{"labels": [], "boxes": []}, {"labels": np.zeros(0, np.int64), "boxes": np.zeros((0, 4), np.float32)}]
    for queries, objects in HungarianMatcher()(outputs, empty):
        assert queries.shape == objects.shape == (0,) and queries.dtype == objects.dtype == np.int64


def test_only_the_class_counts_or_only_the_box():
    """Two queries, two objects: one has the classes right, the other the boxes."""
    boxes = np.array([[0.2, 0.2, 0.2, 0.2], [0.8, 0.8, 0.2, 0.2]], np.float32)
    outputs = {
        "pred_logits": Tensor(np.array([[[0, 5, 0, 0], [5, 0, 0, 0]]], np.float32)), "pred_boxes": Tensor(boxes[None])
    }
    targets = [{"labels": [0, 1], "boxes": boxes}]
    for weights, expected in (((1, 0, 0), [1, 0]), ((0, 1, 0), [0, 1]), ((0, 0, 1), [0, 1]), ((1, 5, 2), [0, 1])):
        assert HungarianMatcher(*weights)(outputs, targets)[0][1].tolist() == expected


# --- what cannot be matched -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("key", "value"), [
    ("pred_logits", np.nan), ("pred_logits", np.inf), ("pred_boxes", np.nan), ("pred_boxes", np.inf),
    ("pred_boxes", -np.inf), ("pred_boxes", 3e38),
])
def test_predictions_that_are_not_finite_are_named_with_their_image(device, key, value):
    outputs = random_outputs(4, 4, 0)
    outputs[key].data[0] = value            # of no object: nobody asks
    outputs[key].data[1, 2] = value
    outputs[key].data[2] = value            # a later image
    with pytest.raises(ScratchvitError) as caught:
        HungarianMatcher()(outputs, random_targets((0, 3, 2, 1), 0))
    says = str(caught.value)
    assert says.startswith("image 1 of the batch (image_id 1001) cannot be matched: in the last decoder layer, ")
    assert "predictions of 1 of its 4 queries are infinite or NaN" in says and "lower learning rate" in says


def test_the_layer_that_is_not_finite_is_named():
    logits, boxes = np.zeros((3, 2, 4, CLASSES + 1), np.float32), np.full((3, 2, 4, 4), 0.5, np.float32)
    boxes[1, 0] = np.nan
    with pytest.raises(ScratchvitError, match=r"image 0 .*in decoder layer 1 of 0…2, the predictions of 4 of its 4"):
        HungarianMatcher().match_layers(logits, boxes, Objects.of(random_targets((2, 2), 0), CLASSES))


def test_a_box_of_no_size_on_either_side_is_matched(device):
    """Sigmoids may give sides of 0, and files hold such boxes."""
    point, line, whole = [0.2, 0.2, 0, 0], [0.7, 0.5, 0, 0.4], [0.6, 0.4, 0.3, 0.3]
    outputs = random_outputs(1, 4, 0)
    outputs["pred_boxes"] = Tensor(np.array([[whole, point, [0.9, 0.9, 0.1, 0.1], line]], np.float32))
    targets = [{"labels": [0, 0, 0], "boxes": np.array([line, whole, point], np.float32)}]
    [(queries, objects)] = HungarianMatcher(cost_class=0)(outputs, targets)
    assert queries.tolist() == [0, 1, 3] and objects.tolist() == [1, 2, 0]


box = [0.5, 0.5, 0.2, 0.2]


@pytest.mark.parametrize(("target", "says"), [
    ({"labels": [3], "boxes": [box]}, "object 0 of image 1 .*label 3, .*none of the 3 classes 0…2"),
    ({"labels": [0, -1], "boxes": [box, box]}, "object 1 of image 1 .*label -1"),
    ({"labels": [0, 1], "boxes": [box]}, r"image 1 .* has 2 labels for 1 boxes"),
    ({"labels": [0], "boxes": [[0.5, np.nan, 0.2, 0.2]]}, r"object 0 of image 1 .*\[0.5, nan, .*correct it in the"),
    ({"labels": [0], "boxes": [[0.5, 0.5, -0.2, 0.2]]}, "object 0 of image 1 .*sides of 0 or more"),
    ({"labels": [0], "boxes": box}, r"boxes of image 1 .* must be numbers \(n, 4\), not float64 \(4,\)"),
    ({"labels": [0.0], "boxes": [box]}, r"labels of image 1 .* must be integers \(n,\), not float64 \(1,\)"),
    ({"labels": [0]}, "targets of image 1 .* have no 'boxes'"),
    ({"labels": [0], "boxes": Tensor([box])}, "boxes of image 1 .* a Tensor: pass targets as NumPy arrays"),
])
def test_targets_that_are_none_are_named_with_their_image(target, says):
    targets = [{"labels": [0], "boxes": [box]}, {**target, "image_id": 7}]
    with pytest.raises(ScratchvitError, match=says) as caught:
        HungarianMatcher()(random_outputs(2, 4, 0), targets)
    assert "image 1 of the batch (image_id 7)" in str(caught.value)


def test_targets_on_the_gpu_are_refused():
    sv.use(strict_array.STRICT)
    with contextlib.ExitStack() as stack:
        stack.callback(sv.use, "cpu")
        targets = [{"labels": asarray(np.array([0])), "boxes": asarray(np.array([box], np.float32))}]
        with pytest.raises(ScratchvitError, match=r"labels of image 0 of the batch .*pass targets as NumPy arrays"):
            HungarianMatcher()(random_outputs(1, 4, 0), targets)


def test_a_target_is_needed_for_each_image():
    with pytest.raises(ScratchvitError, match="outputs are for 3 images, the targets for 2: pass a target for each"):
        HungarianMatcher()(random_outputs(3, 4, 0), random_targets((1, 1), 0))


@pytest.mark.parametrize("costs", [(0, 0, 0), (1, -5, 2), (np.nan, 5, 2), (1, np.inf, 2)], ids=str)
def test_costs_out_of_range_are_refused(costs):
    with pytest.raises(ScratchvitError, match="must be finite, not negative, and not all zero: cost_class="):
        HungarianMatcher(*costs)
