"""Looking inside a DETR (arXiv 2005.12872): attention maps, boxes of the queries, and the matching.

    seen = look_inside(model, image)                        # outputs and all attention maps, in one pass
    maps = cross_attention(model, image)                    # (heads, N, H, W): of each query, Figure 6
    self_maps = encoder_attention(model, image, (0.4, 0.6)) # (layers, heads, H, W): of the feature at a point, Figure 3
    predictions = query_boxes(model, loader)                # the boxes of every query for a data set, Figure 7
    pairs = matching(model, matcher, batch)                 # the assignment of eq. 1, with the costs of all pairs

H × W is the size of the backbone's feature map, whose HW features are the tokens. The model runs in evaluation mode;
afterwards its mode is restored. `detection_pictures` draws the results.

All attention maps of one image are in memory at the same time: 140 MB for a DETR with ResNet-50 at 800×1066, but 2.2 GB
with DC5, which has four times as many features.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from scratchvit import ops
from scratchvit.backend import asarray, asnumpy
from scratchvit.detection.data.batches import DetectionBatch
from scratchvit.detection.detector import Detector, map_size
from scratchvit.detection.matcher import HungarianMatcher, Objects
from scratchvit.detection.postprocess import class_probabilities
from scratchvit.errors import ScratchvitError
from scratchvit.models.interface import config_of, detects
from scratchvit.nn import Module, evaluating

Maps = NDArray[np.float32]


def as_seen(detector: Detector, picture: Image.Image) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Preprocess an RGB picture for a detector: resized, uint8 (H, W, 3), and normalised, float32 (3, H, W)."""
    pixels = np.asarray(detector.resized(picture))
    return pixels, detector.normalize(pixels[None])[0]


@dataclass(frozen=True)
class Inside:
    """What a detector computes for one image: its outputs, and the attention maps of every layer, whose rows sum to 1.

    outputs     of the model, with B = 1
    size        (H, W) of the feature map
    encoder     self-attention of the features in every encoder layer, (heads, HW, HW) each
    queries     self-attention of the queries in every decoder layer, (heads, N, N) each
    cross       cross-attention of the queries in every decoder layer, (heads, N, HW) each
    """

    outputs: dict[str, Any]
    size: tuple[int, int]
    encoder: list[Maps]
    queries: list[Maps]
    cross: list[Maps]


def look_inside(model: Module, image: NDArray[np.float32], mask: NDArray[np.bool_] | None = None) -> Inside:
    """The outputs of a detector and all of its attention maps for one image, by one pass.

    image, mask as for `cross_attention`. Raises ScratchvitError for a model that is not a detector or has diverged.
    """
    config = _config_of(model)
    with evaluating(model), ops.record_attention() as recorded, np.errstate(all="ignore"):   # checked below
        outputs = model(asarray(image[None]), mask=None if mask is None else mask[None])
    maps = [asnumpy(probabilities)[0] for probabilities in recorded]        # in the order of DETR's docstring
    for answers in (maps[-1], *(asnumpy(outputs[name].data) for name in ("pred_logits", "pred_boxes"))):
        _require_finite(model, answers)
    size = map_size(config, (image.shape[1], image.shape[2]))
    encoder, decoder = maps[: config.enc_layers], maps[config.enc_layers :]
    return Inside(outputs, size, encoder, decoder[::2], decoder[1::2])      # self-attention first, then cross-attention


def cross_attention(
    model: Module, image: NDArray[np.float32], mask: NDArray[np.bool_] | None = None, layer: int = -1
) -> Maps:
    """The cross-attention of each query in a decoder layer: (heads, N, H, W), which sums to 1 over H and W.

    image float32 (C, H0, W0), normalised; mask bool (H0, W0), the padding mask, True on padding. layer counts from 0,
    or from the last layer with -1. The paper draws the mean over axis 0.
    Raises ScratchvitError for a model that is not a detector or has diverged, and for a layer that does not exist.
    """
    inside = look_inside(model, image, mask)
    if not -len(inside.cross) <= layer < len(inside.cross):
        raise ScratchvitError(f"there is no layer {layer} in the decoder: it has 0 … {len(inside.cross) - 1}")
    return inside.cross[layer].reshape(*inside.cross[layer].shape[:2], *inside.size)


def encoder_attention(
    model: Module, image: NDArray[np.float32], point: tuple[float, float], mask: NDArray[np.bool_] | None = None
) -> Maps:
    """The self-attention of the feature at a point, in every encoder layer: (layers, heads, H, W), each sums to 1.

    point: (x, y) in 0 … 1 of the image without its padding. image, mask as for `cross_attention`.
    Raises ScratchvitError for a point outside, and for a model that has no encoder, is not a detector or has diverged.
    """
    if not _config_of(model).enc_layers:
        raise ScratchvitError("this detector has no encoder layers (enc_layers is 0), so there is nothing to draw")
    inside = look_inside(model, image, mask)
    row, column = feature_at(point, inside.size, image.shape[1:], mask)
    of_point = np.stack([maps[:, row * inside.size[1] + column] for maps in inside.encoder])
    return of_point.reshape(*of_point.shape[:2], *inside.size)


def feature_at(
    point: tuple[float, float], size: tuple[int, int], image: tuple[int, ...], mask: NDArray[np.bool_] | None = None
) -> tuple[int, int]:
    """(row, column) of the feature at a point (x, y), in 0 … 1 of the image without its padding.

    size: (H, W) of the map; image: (H0, W0), including padding. Raises ScratchvitError for a point outside.
    """
    x, y = point
    if not (0 <= x <= 1 and 0 <= y <= 1):
        raise ScratchvitError(f"the point ({x:g}, {y:g}) is outside the picture: x and y go from 0 (left, top) to 1")
    row, column = (
        int(min(share * pixels, pixels - 1) * features / whole)
        for share, pixels, features, whole in zip((y, x), visible_size(image, mask), size, image)
    )
    return row, column


def visible_size(image: tuple[int, ...], mask: NDArray[np.bool_] | None) -> tuple[int, int]:
    """The size (height, width) in pixels of the part without padding, at the upper left of (H0, W0)."""
    if mask is None:
        return image[0], image[1]
    return int((~mask).any(axis=1).sum()), int((~mask).any(axis=0).sum())


def _require_finite(model: Module, answers: NDArray[np.float32]) -> None:
    """Raise ScratchvitError if outputs are not finite, because the model has diverged."""
    if not np.isfinite(answers).all():
        raise ScratchvitError(
            f"the outputs of {type(model).__name__} are not finite because training has diverged: use an earlier "
            "checkpoint, or train with a lower learning rate"
        )


def _config_of(model: Module) -> Any:
    """The configuration of a detector. Raises ScratchvitError for another model."""
    config = config_of(model)
    if not detects(config):
        raise ScratchvitError(f"{type(model).__name__} is not a detector: use a DETR, which has object queries")
    return config


@dataclass(frozen=True)
class QueryBoxes:
    """The predictions of N queries for n images.

    boxes     float32 (n, N, 4), (cx, cy, w, h) in 0 … 1 of the image
    scores    float32 (n, N), probability of the most probable class
    labels    int64 (n, N), the most probable class
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]

    def used(self, threshold: float) -> NDArray[np.float64]:
        """The fraction of the images in which the score of each query reaches the threshold, (N,)."""
        return (self.scores >= threshold).mean(axis=0)


def query_boxes(model: Module, loader: Iterable[DetectionBatch]) -> QueryBoxes:
    """The predictions of all queries for the batches of a `DetectionLoader`.

    Raises ScratchvitError if there is no batch, or if the model is not a detector or has diverged.
    """
    focal = _config_of(model).focal
    boxes, scores, labels = [], [], []
    with evaluating(model), np.errstate(all="ignore"):
        for images, mask, _ in loader:
            outputs = model(asarray(images), mask=mask if mask.any() else None)
            boxes.append(asnumpy(outputs["pred_boxes"].data))
            probabilities = class_probabilities(asnumpy(outputs["pred_logits"].data), focal)        # (B, N, classes)
            scores.append(probabilities.max(axis=-1))
            labels.append(probabilities.argmax(axis=-1))
    if not boxes:
        raise ScratchvitError("the loader has no images to predict boxes for: use one that is not empty")
    least = min(each.shape[1] for each in scores)       # with two_stage a small image has fewer queries
    predictions = QueryBoxes(*(np.concatenate([each[:, :least] for each in part]) for part in (boxes, scores, labels)))
    _require_finite(model, predictions.scores)
    return predictions


@dataclass(frozen=True)
class Matching:
    """The objects and predictions of one image, the matching costs of all pairs, and the chosen pairs.

    labels     (n,), and objects (n, 4), (cx, cy, w, h) in 0 … 1: the ground truth
    boxes      (N, 4), in the same format: the predictions of the queries
    queries    (n,): the query matched to each object; -1 if there are fewer queries than objects
    costs      (n, N): L_match of the matcher
    parts      {"class", "bbox", "giou"}, (n, N) each: the weighted terms of L_match
    """

    labels: NDArray[np.int64]
    objects: NDArray[np.float32]
    boxes: NDArray[np.float32]
    queries: NDArray[np.int64]
    costs: NDArray[np.float32]
    parts: dict[str, NDArray[np.float32]]

    def second_best(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """For each object, the cheapest query that was not matched to it, (n,), and its cost, (n,).

        It can be lower than the cost of the chosen query, if another object needs this one more. With a single query
        there is no other: -1, with infinite cost.
        """
        others = self.costs.copy()
        taken = np.flatnonzero(self.queries >= 0)
        others[taken, self.queries[taken]] = np.inf
        cost = others.min(axis=1, initial=np.inf)
        return np.where(np.isfinite(cost), others.argmin(axis=1), -1), cost


def matching(model: Module, matcher: HungarianMatcher, batch: DetectionBatch) -> list[Matching]:
    """Match the predictions of the last decoder layer for a batch with its objects: one `Matching` per image.

    Raises ScratchvitError as the matcher does, and for a model that is not a detector.
    """
    config = _config_of(model)
    images, mask, targets = batch
    with evaluating(model):
        outputs = model(asarray(images), mask=mask if mask.any() else None)
    return matchings_of_layers([outputs], matcher, Objects.of(targets, config.num_classes))[0]


def matchings_of_layers(
    layers: Sequence[Mapping[str, Any]], matcher: HungarianMatcher, objects: Objects
) -> list[list[Matching]]:
    """Match the predictions of L decoder layers with the objects: for each layer, one `Matching` per image.

    layers: {"pred_logits" (B, N, num_logits), "pred_boxes" (B, N, 4)} of each, Tensors. Each part is the cost of the
    matcher with the weights of the other terms set to 0. Raises ScratchvitError as the matcher does.
    """
    logits, boxes = (ops.stack([layer[name] for layer in layers]).data for name in ("pred_logits", "pred_boxes"))

    def costs(matcher: HungarianMatcher) -> NDArray[np.float32]:
        return asnumpy(matcher.costs(logits, boxes, objects))               # (L, T, N), of the objects of all images

    total, parts = costs(matcher), {}
    weights = [name for name in vars(matcher) if name.startswith("cost_")]
    for kept in weights:
        alone: dict[str, Any] = {name: 0.0 for name in weights if name != kept}
        # A matcher needs a weight that is not 0, so the cost of a term without weight is not computed but 0.
        part = costs(dataclasses.replace(matcher, **alone)) if getattr(matcher, kept) else np.zeros_like(total)
        parts[kept.removeprefix("cost_")] = part

    host_boxes, matchings = asnumpy(boxes), []                              # (L, B, N, 4)
    for layer, pairs in enumerate(matcher.assign(total, objects)):
        of_layer: list[Matching] = []
        matchings.append(of_layer)
        for place, (queries, taken) in enumerate(pairs):
            of_image = slice(*objects.starts[place : place + 2])
            by_object = np.full(objects.counts[place], -1, np.int64)
            by_object[taken] = queries
            of_layer.append(Matching(
                objects.labels[of_image], objects.boxes[of_image], host_boxes[layer, place], by_object,
                total[layer, of_image], {name: part[layer, of_image] for name, part in parts.items()},
            ))
    return matchings
