"""Inside a DETR (arXiv 2005.12872): where it looks, what its queries ask for, who takes which object, read out of it.

    maps = cross_attention(model, image)                    # (heads, N, H, W): each query over the image, Figure 6
    seen = encoder_attention(model, image, (0.4, 0.6))      # (layers, heads, H, W): of a point, Figure 3
    asked = query_boxes(model, loader)                      # every query's boxes over a data set, Figure 7
    taken = matching(model, matcher, batch)                 # the assignment of eq. 1, with all that it was chosen from

H × W is the size of the map that the backbone gives, HW features in a row. The model computes in evaluation mode and
is in its own mode again afterwards. `detection_pictures` draws what is found here.

To look at attention is to keep it: all maps of one image are in memory at once, 140 MB in a DETR of ResNet-50 at
800×1066, but 2.2 GB with DC5, which has four times the features.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
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
    """An RGB picture as a detector sees it: at its size, uint8 (H, W, 3), and normalised, float32 (3, H, W)."""
    pixels = np.asarray(detector.view((picture.height, picture.width)).of_picture(picture))
    return pixels, detector.normalize(pixels[None])[0]


def cross_attention(
    model: Module, image: NDArray[np.float32], mask: NDArray[np.bool_] | None = None, layer: int = -1
) -> Maps:
    """What each query looks at in a layer of the decoder: (heads, N, H, W), which over H and W sums to 1.

    image float32 (C, H0, W0), normalised; mask bool (H0, W0), True on padding, which nobody looks at. layer counts
    from 0, or from the last with -1. The mean over axis 0 is what the paper draws.
    Raises ScratchvitError for a model that is no detector or has diverged, and for a layer that it lacks.
    """
    config = _config_of(model)
    maps, size = _recorded(model, image, mask)
    layers = maps[config.enc_layers :][1::2]                # in the decoder, queries ask each other first
    if not -len(layers) <= layer < len(layers):
        raise ScratchvitError(f"there is no layer {layer} in the decoder: it has 0 … {len(layers) - 1}")
    return layers[layer].reshape(*layers[layer].shape[:2], *size)


def encoder_attention(
    model: Module, image: NDArray[np.float32], point: tuple[float, float], mask: NDArray[np.bool_] | None = None
) -> Maps:
    """What the feature at a point looks at, in every layer of the encoder: (layers, heads, H, W), each sums to 1.

    point: (x, y) in 0 … 1 of the image without its padding. image, mask as for `cross_attention`.
    Raises ScratchvitError for a point outside, and for a model that has no encoder, is no detector or has diverged.
    """
    depth = _config_of(model).enc_layers
    if not depth:
        raise ScratchvitError("this detector has no encoder layers (enc_layers is 0), so there is nothing to look at")
    maps, size = _recorded(model, image, mask)
    row, column = feature_at(point, size, image.shape[1:], mask)
    return np.stack([of_layer[:, row * size[1] + column] for of_layer in maps[:depth]]).reshape(depth, -1, *size)


def feature_at(
    point: tuple[float, float], size: tuple[int, int], image: tuple[int, ...], mask: NDArray[np.bool_] | None = None
) -> tuple[int, int]:
    """(row, column) of the feature that shows a point, (x, y) in 0 … 1 of the image without its padding.

    size: (H, W) of the map; image: (H0, W0), padding included. Raises ScratchvitError for a point outside.
    """
    x, y = point
    if not (0 <= x <= 1 and 0 <= y <= 1):
        raise ScratchvitError(f"the point ({x:g}, {y:g}) is outside: x and y go from 0, left and top, to 1")
    row, column = (
        int(min(share * pixels, pixels - 1) * features / whole)
        for share, pixels, features, whole in zip((y, x), visible_size(image, mask), size, image)
    )
    return row, column


def visible_size(image: tuple[int, ...], mask: NDArray[np.bool_] | None) -> tuple[int, int]:
    """(height, width) in pixels of what is no padding, which stands at the top left of (H0, W0)."""
    if mask is None:
        return image[0], image[1]
    return int((~mask).any(axis=1).sum()), int((~mask).any(axis=0).sum())


def _recorded(
    model: Module, image: NDArray[np.float32], mask: NDArray[np.bool_] | None
) -> tuple[list[Maps], tuple[int, int]]:
    """All attentions of one image in the order of DETR's docstring, (heads, …, …) each, and (H, W) of its map."""
    with evaluating(model), ops.record_attention() as recorded, np.errstate(all="ignore"):   # told of in a sentence
        model(asarray(image[None]), mask=None if mask is None else mask[None])
    maps = [asnumpy(probabilities)[0] for probabilities in recorded]
    _require_finite(model, maps[-1])
    height, width = image.shape[1:]
    return maps, map_size(_config_of(model), (height, width))


def _require_finite(model: Module, answers: NDArray[np.float32]) -> None:
    """Raise ScratchvitError for what comes out of a model that has diverged."""
    if not np.isfinite(answers).all():
        raise ScratchvitError(
            f"{type(model).__name__} computes numbers that are not finite, of which there is nothing to see: its "
            "training has diverged, take an earlier checkpoint or train with a lower learning rate"
        )


def _config_of(model: Module) -> Any:
    """A detector's configuration."""
    config = config_of(model)
    if not detects(config):
        raise ScratchvitError(f"{type(model).__name__} is no detector: take a DETR, which has object queries")
    return config


@dataclass(frozen=True)
class QueryBoxes:
    """What each of the N queries answered to each of n images.

    boxes     float32 (n, N, 4), (cx, cy, w, h) in 0 … 1 of the image
    scores    float32 (n, N), of the likeliest class
    labels    int64 (n, N), that class
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]

    def used(self, threshold: float) -> NDArray[np.float64]:
        """(N,): the share of the images in which a query's score reaches the threshold."""
        return (self.scores >= threshold).mean(axis=0)


def query_boxes(model: Module, loader: Iterable[DetectionBatch]) -> QueryBoxes:
    """One pass over the batches of a `DetectionLoader`, in its order.

    Raises ScratchvitError when it has no batch, or the model is no detector or has diverged.
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
        raise ScratchvitError("there is not one image to ask the queries about: give a loader that has some")
    least = min(each.shape[1] for each in scores)       # with two_stage a small image has fewer queries
    asked = QueryBoxes(*(np.concatenate([each[:, :least] for each in part]) for part in (boxes, scores, labels)))
    _require_finite(model, asked.scores)
    return asked


@dataclass(frozen=True)
class Matching:
    """One image's objects and queries, the cost between all of them, and which pairs were chosen.

    labels     (n,), and objects (n, 4), (cx, cy, w, h) in 0 … 1: what is there
    boxes      (N, 4), likewise: what the queries answered
    queries    (n,): the query that takes each object; -1 where there are fewer queries than objects
    costs      (n, N): L_match, the matcher's own
    parts      {"class", "bbox", "giou"}, (n, N) each: what it is the sum of, weighted
    """

    labels: NDArray[np.int64]
    objects: NDArray[np.float32]
    boxes: NDArray[np.float32]
    queries: NDArray[np.int64]
    costs: NDArray[np.float32]
    parts: dict[str, NDArray[np.float32]]

    def second_best(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """For each object the cheapest of the queries that did not take it, (n,), and its cost, (n,).

        That may be less than what the object was taken for: then this query was worth more to another object. With one
        query in all there is no other: -1, at an infinite cost.
        """
        others = self.costs.copy()
        taken = np.flatnonzero(self.queries >= 0)
        others[taken, self.queries[taken]] = np.inf
        cost = others.min(axis=1, initial=np.inf)
        return np.where(np.isfinite(cost), others.argmin(axis=1), -1), cost


def matching(model: Module, matcher: HungarianMatcher, batch: DetectionBatch) -> list[Matching]:
    """How the last decoder layer's answers to a batch are matched with its objects: one `Matching` for each image.

    The parts are the matcher's costs with the weights of all others set to 0.
    Raises ScratchvitError as the matcher does, and for a model that is no detector.
    """
    config = _config_of(model)
    images, mask, targets = batch
    with evaluating(model):
        outputs = model(asarray(images), mask=mask if mask.any() else None)
    logits, boxes = outputs["pred_logits"].data[None], outputs["pred_boxes"].data[None]
    objects = Objects.of(targets, config.num_classes)
    (pairs,) = matcher.match_layers(logits, boxes, objects)

    def costs(matcher: HungarianMatcher) -> NDArray[np.float32]:
        return asnumpy(matcher.costs(logits, boxes, objects))[0]            # (T, N), of the objects of all images

    total, parts = costs(matcher), {}
    weights = [name for name in vars(matcher) if name.startswith("cost_")]
    for kept in weights:
        alone: dict[str, Any] = {name: 0.0 for name in weights if name != kept}
        # A matcher refuses to count nothing, which is what is left of a part without weight.
        part = costs(dataclasses.replace(matcher, **alone)) if getattr(matcher, kept) else np.zeros_like(total)
        parts[kept.removeprefix("cost_")] = part

    images_boxes = asnumpy(boxes)[0]
    matchings = []
    for place, (queries, taken) in enumerate(pairs):
        of_image = slice(*objects.starts[place : place + 2])
        by_object = np.full(objects.counts[place], -1, np.int64)
        by_object[taken] = queries
        matchings.append(Matching(
            objects.labels[of_image], objects.boxes[of_image], images_boxes[place], by_object, total[of_image],
            {name: part[of_image] for name, part in parts.items()},
        ))
    return matchings
