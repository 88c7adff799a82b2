"""Chapter 10: AP is COCO's, a matching is the cheapest, and duplicates cost."""

import itertools

import numpy as np
import pytest

from scratchvit.course import sets
from scratchvit.detection.boxes import box_iou
from scratchvit.detection.data.scenes import load_scenes
from scratchvit.detection.evaluation import evaluate_boxes, results_of
from scratchvit.detection.matcher import HungarianMatcher


@pytest.fixture(scope="module")
def scenes():
    return load_scenes(train=1, val=1, test=12).test


@pytest.fixture(scope="module")
def found(scenes):
    """Detections that are right, displaced, of another class, doubled, and of nothing."""
    rng, detections = np.random.default_rng(0), []
    for index in range(len(scenes)):
        truth = scenes.annotations(index)
        n = len(truth.labels)
        boxes = np.concatenate([truth.boxes + rng.normal(0, 3, (n, 4)) for _ in range(3)]).astype(np.float32)
        labels = np.concatenate([truth.labels, truth.labels, rng.integers(0, 10, n)])
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        scores = rng.random(3 * n).astype(np.float32).round(2)          # with ties
        detections.append({"boxes": boxes, "labels": labels, "scores": scores, "queries": np.arange(3 * n)})
    return detections


def test_average_precision_is_that_of_pycocotools(scenes, found):
    pytest.importorskip("pycocotools", reason="pycocotools is not installed")
    truths = [scenes.annotations(index) for index in range(len(scenes))]
    results = results_of(found, [truth.image_id for truth in truths], scenes.category_ids)
    figures = evaluate_boxes(scenes.ground_truth(), results)
    by_threshold = [sets.mean_AP(sets.curves(found, truths, 10, t)) for t in np.arange(0.5, 0.96, 0.05)]
    assert by_threshold[0] == pytest.approx(figures.AP50, abs=1e-9)
    assert by_threshold[5] == pytest.approx(figures.AP75, abs=1e-9)
    assert np.mean(by_threshold) == pytest.approx(figures.AP, abs=1e-9)
    assert 0.1 < figures.AP < 0.9


def test_suppression_leaves_no_overlaps(found):
    for of_image in found:
        kept = sets.suppressed(of_image, 0.5)
        overlaps, _ = box_iou(kept["boxes"], kept["boxes"])
        same = kept["labels"][:, None] == kept["labels"]
        np.fill_diagonal(same, False)
        assert not (same & (overlaps > 0.5)).any()
        assert kept["scores"][0] == of_image["scores"].max()
    assert sum(len(sets.suppressed(one, 0.5)["scores"]) for one in found) < sum(len(one["scores"]) for one in found)


def test_no_assignment_is_cheaper(scenes):
    rng = np.random.default_rng(1)
    target = sets.target_of(scenes.annotations(1))
    n = len(target["labels"])
    assert n >= 3
    boxes = sets.jittered(np.concatenate([target["boxes"], target["boxes"][:2]]), 0.2)
    logits = rng.standard_normal((len(boxes), 10)).astype(np.float32)
    matched = sets.match(HungarianMatcher(focal=True), logits, boxes, target)
    cheapest = min(
        sum(matched.costs[i, query] for i, query in enumerate(queries))
        for queries in itertools.permutations(range(len(boxes)), n)
    )
    assert matched.total == pytest.approx(cheapest, rel=1e-5)
    assert (matched.cheapest == matched.costs.argmin(axis=1)).all()


def test_the_second_claim_costs():
    losses = sets.set_losses(5, 0.9)
    assert losses.index(min(losses)) == 1 and losses[1:] == sorted(losses[1:])
    assert losses[1] == pytest.approx(-np.log(0.9), rel=1e-4)           # the weighted mean of five right answers


def test_the_pull_is_the_gradient():
    true, box, h = (0.6, 0.55, 0.3, 0.4), (0.42, 0.4, 0.25, 0.2), 1e-3
    found = sets.box_terms(box, true)
    for axis in range(4):
        there, back = (sets.box_terms(np.array(box) + sign * h * np.eye(4)[axis], true).loss for sign in (1, -1))
        assert -(there - back) / (2 * h) == pytest.approx(float(found.pull[axis]), abs=0.02)
    assert found.loss == pytest.approx(5 * found.l1 + 2 * (1 - found.giou), rel=1e-5)
    assert sets.giou_of((0, 0, 4, 4), (2, 2, 6, 6)) == pytest.approx(4 / 28 - 8 / 36, rel=1e-5)


def test_one_digit_moves(scenes):
    before, moved = scenes.digits(1), sets.MovedScenes(scenes, 1, 0, (0.9, 0.1))
    after = moved.digits(1)
    x0, y0, x1, y1 = after[0].box
    assert 0 <= x0 < x1 <= scenes.img_size and y0 == 0 and after[0].ink is not None
    assert [digit.box for digit in after[1:]] == [digit.box for digit in before[1:]]
    assert moved.annotations(1).boxes[0].tolist() == [x0, y0, x1, y1] and moved.picture(1) != scenes.picture(1)
    centre = sets.centre_of(scenes, 1, 0)
    assert sets.MovedScenes(scenes, 1, 0, centre).digits(1)[0].box == before[0].box
    assert moved.picture(0) == scenes.picture(0)


def test_the_share_of_attention_inside_a_box():
    heat = np.ones((4, 6), np.float32)
    assert sets.share_inside(heat, (0.1, 0.2, 0.6, 0.9)) == pytest.approx(0.5 * 0.7)    # as its area
    heat = np.zeros((4, 4), np.float32)
    heat[1, 2] = 3
    assert sets.share_inside(heat, (0.5, 0.25, 0.75, 0.5)) == 1
    assert sets.share_inside(heat, (0.5, 0.25, 0.625, 1)) == pytest.approx(0.5)
    assert sets.share_inside(heat, (0.8, 0, 1, 1)) == 0
