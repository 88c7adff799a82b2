"""Chapter 10: boxes, matched sets and average precision, computed step by step."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from scratchvit import ops
from scratchvit.detection.boxes import (
    box_cxcywh_to_xyxy,
    box_iou,
    box_xyxy_to_cxcywh,
    generalized_box_iou,
    paired_generalized_box_iou,
)
from scratchvit.detection.criterion import SetCriterion
from scratchvit.detection.data.annotations import Annotations
from scratchvit.detection.data.scenes import Digit, Scenes
from scratchvit.detection.matcher import HungarianMatcher, Objects
from scratchvit.tensor import Tensor

Floats = NDArray[np.float32]
Found = Mapping[str, NDArray[Any]]      # the detections of an image, as `postprocess` returns them

RECALLS = np.linspace(0, 1, 101)        # at which COCO reads the precision


class BoxTerms(NamedTuple):
    """How far a predicted box is from the true one.

    pull: the step down the gradient of 5 L1 + 2 (1 - GIoU) for each of cx, cy, w and h.
    """

    l1: float
    iou: float
    giou: float
    loss: float
    pull: Floats


def box_terms(predicted: Sequence[float], true: Sequence[float]) -> BoxTerms:
    """Compare two boxes (cx, cy, w, h), as DETR's loss does."""
    box = Tensor(np.array([predicted], np.float32), requires_grad=True)
    target = np.array([true], np.float32)
    corners, true_corners = box_cxcywh_to_xyxy(box), box_cxcywh_to_xyxy(target)
    l1 = ops.abs(box - target).sum()
    giou = paired_generalized_box_iou(corners, true_corners).sum()
    loss = 5 * l1 + 2 * (1 - giou)
    loss.backward()
    iou, _ = box_iou(corners.data, true_corners)
    return BoxTerms(l1.item(), float(iou[0, 0]), giou.item(), loss.item(), -np.asarray(box.grad)[0])


class MovedScenes(Scenes):
    """The scenes of a data set, of which one has a digit at another place."""

    def __init__(self, scenes: Scenes, index: int, number: int, centre: tuple[float, float]):
        """index: of the scene. number: of the digit in it. centre: (x, y) of its box in 0 … 1; it stays inside."""
        vars(self).update(vars(scenes))
        self._moved = index, number, centre

    def digits(self, index: int) -> list[Digit]:
        digits = super().digits(index)
        at, number, (x, y) = self._moved
        if index == at:
            height, width = digits[number].ink.shape
            top, left = (
                int(np.clip(round(share * self.img_size - side / 2), 0, self.img_size - side))
                for share, side in ((y, height), (x, width))
            )
            digits[number] = dataclasses.replace(digits[number], place=(top, left))
        return digits


def centre_of(scenes: Scenes, index: int, number: int) -> tuple[float, float]:
    """The centre (x, y) of the box of a digit in a scene, in 0 … 1."""
    x0, y0, x1, y1 = scenes.digits(index)[number].box
    return (x0 + x1) / 2 / scenes.img_size, (y0 + y1) / 2 / scenes.img_size


def target_of(annotations: Annotations) -> dict[str, NDArray[Any]]:
    """The annotations of a scene as a target of the matcher, with boxes (cx, cy, w, h) in 0 … 1."""
    height, width = annotations.size
    scale = np.array([width, height, width, height], np.float32)
    boxes = box_xyxy_to_cxcywh(annotations.boxes.astype(np.float32) / scale)
    return {"labels": annotations.labels, "boxes": boxes}


class Matched(NamedTuple):
    """costs (n, N) of every object and query; the matched query of each object; the cheapest one of each."""

    costs: Floats
    queries: NDArray[np.int64]
    cheapest: NDArray[np.int64]

    @property
    def total(self) -> float:
        """The cost of all matched pairs."""
        return float(self.costs[np.arange(len(self.costs)), self.queries].sum())

    @property
    def disputed(self) -> int:
        """How many objects would have to share a query if each took its cheapest."""
        return len(self.cheapest) - len(np.unique(self.cheapest))


def match(matcher: HungarianMatcher, logits: Floats, boxes: Floats, target: Mapping[str, Any]) -> Matched:
    """Match the queries of one image, logits (N, classes) and boxes (N, 4), with its objects."""
    objects = Objects.of([target], logits.shape[-1] - (not matcher.focal))
    costs = matcher.costs(logits[None, None], boxes[None, None], objects)
    [[(queries, taken)]] = matcher.assign(costs, objects)
    by_object = np.empty(len(taken), np.int64)
    by_object[taken] = queries
    return Matched(costs[0], by_object, costs[0].argmin(axis=1))


def jittered(boxes: Floats, amount: float) -> Floats:
    """Boxes (N, 4) whose numbers have been moved at random by about `amount`, always in the same way."""
    moves = np.random.default_rng(0).standard_normal(boxes.shape).astype(np.float32)
    return np.clip(boxes + np.float32(amount) * moves, 0.01, 0.99)


def set_losses(queries: int, certainty: float) -> list[float]:
    """DETR's loss for one object if 0, 1, …, all queries give its box and class, and the others "no object".

    certainty: the probability that a query gives to its answer.
    """
    true = np.array([0.5, 0.5, 0.3, 0.3], np.float32)
    elsewhere = np.array([0.2, 0.2, 0.2, 0.2], np.float32)
    criterion = SetCriterion(num_classes=1, matcher=HungarianMatcher())
    losses = []
    for claiming in range(queries + 1):
        claims = np.arange(queries) < claiming
        p = np.where(claims[:, None], [certainty, 1 - certainty], [1 - certainty, certainty]).astype(np.float32)
        boxes = np.where(claims[:, None], true, elsewhere)
        outputs = {"pred_logits": Tensor(np.log(p)[None]), "pred_boxes": Tensor(boxes[None])}
        found = criterion(outputs, [{"labels": [0], "boxes": true[None]}])
        losses.append(float(criterion.total(found).item()))
    return losses


def suppressed(found: Found, overlap: float) -> dict[str, NDArray[Any]]:
    """Greedy non-maximum suppression: a detection goes if a better one of its class overlaps it by more (IoU)."""
    order = np.argsort(-found["scores"], kind="stable")
    overlaps, _ = box_iou(found["boxes"], found["boxes"])
    kept: list[int] = []
    for one in order.tolist():
        if all(found["labels"][one] != found["labels"][other] or overlaps[one, other] <= overlap for other in kept):
            kept.append(one)
    return {name: values[kept] for name, values in found.items()}


class Curve(NamedTuple):
    """Precision over recall of one class, detection by detection, and their average precision.

    hits bool, scores: of all detections, best first. envelope (101,): the largest precision at each recall or beyond.
    """

    hits: NDArray[np.bool_]
    scores: Floats
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    envelope: NDArray[np.float64]

    @property
    def AP(self) -> float:
        """The mean of the envelope."""
        return float(self.envelope.mean())


def curve_of(hits: NDArray[np.bool_], scores: Floats, objects: int) -> Curve:
    """The curve of detections, in any order, of a class that has so many objects."""
    order = np.argsort(-scores, kind="stable")
    hits = hits[order]
    right = np.cumsum(hits)
    precision, recall = right / np.arange(1, len(hits) + 1), right / objects
    best = np.maximum.accumulate(precision[::-1])[::-1]             # at this recall or beyond
    places = np.searchsorted(recall, RECALLS, side="left")
    envelope = np.where(places < len(best), best[np.minimum(places, len(best) - 1)], 0.0)
    return Curve(hits, scores[order], precision, recall, envelope)


def curves(
    found: Sequence[Found], truths: Sequence[Annotations], classes: int, threshold: float
) -> dict[int, Curve]:
    """The curve of every class that has objects, for detections of all images, with a threshold of IoU."""
    hits: dict[int, list[bool]] = {label: [] for label in range(classes)}
    scores: dict[int, list[float]] = {label: [] for label in range(classes)}
    objects = np.zeros(classes, int)
    for of_image, truth in zip(found, truths, strict=True):
        np.add.at(objects, truth.labels, 1)
        for label in range(classes):
            mine = np.flatnonzero(of_image["labels"] == label)
            mine = mine[np.argsort(-of_image["scores"][mine], kind="stable")]
            true = truth.boxes[truth.labels == label].astype(np.float32)
            overlaps = box_iou(of_image["boxes"][mine].astype(np.float32), true)[0].copy()      # (detections, objects)
            for row, one in zip(overlaps, mine.tolist()):
                best = int(row.argmax()) if len(row) else -1
                hit = best >= 0 and bool(row[best] >= threshold)
                if hit:
                    overlaps[:, best] = -1          # an object is found once
                hits[label].append(hit)
                scores[label].append(float(of_image["scores"][one]))
    return {
        label: curve_of(np.array(hits[label], bool), np.array(scores[label], np.float32), int(objects[label]))
        for label in range(classes) if objects[label]
    }


def mean_AP(of_classes: Mapping[int, Curve]) -> float:
    """The mean of the average precisions of all classes."""
    return float(np.mean([curve.AP for curve in of_classes.values()]))


def giou_of(a: Sequence[float], b: Sequence[float]) -> float:
    """GIoU of two boxes (left, top, right, bottom)."""
    return float(generalized_box_iou(np.array([a], np.float32), np.array([b], np.float32))[0, 0])


def share_inside(heat: Floats, box: Sequence[float]) -> float:
    """The share of an attention map (h, w) that lies inside of a box (left, top, right, bottom) in 0 … 1."""
    left, top, right, bottom = box
    h, w = heat.shape
    rows, columns = (
        np.clip(np.minimum(end * n, np.arange(n) + 1) - np.maximum(start * n, np.arange(n)), 0, 1)
        for start, end, n in ((top, bottom, h), (left, right, w))
    )                                                       # how much of each row and column is inside
    return float((heat * rows[:, None] * columns).sum() / heat.sum())
