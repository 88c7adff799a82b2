"""Hungarian matching: assigns queries to objects at the lowest total cost (DETR, Carion et al., ECCV 2020, arXiv
2005.12872, section 3.1). Symbols are those of models/detr.py.

    paper       here                        shape
    c_i, b_i    labels, boxes               (T,), (T, 4): the objects of all images of the batch, concatenated
    p̂, b̂        softmax(logits), boxes      (L, B, N, num_classes + 1), (L, B, N, 4): predictions of every decoder layer
    σ̂           pairs (query, object)       for each layer and image

    σ̂ = argmin_σ Σ_i cost(y_i, ŷ_σ(i))                                                             (eq. 1)
    cost = -p̂_σ(i)(c_i) + box_loss(b_i, b̂_σ(i)),   box_loss = λ_L1 |b_i - b̂|₁ + λ_iou (1 - GIoU)   (where c_i ≠ ∅)

The 1 of 1 - GIoU is the same for all pairs and is left out. The class term is -p̂ here, but -log p̂ in the loss
(criterion.py). -p̂ lies between -1 and 0, on the scale of the box terms; -log p̂ has no upper bound, so a wrong class
would outweigh any box. The paper reports better results with -p̂ (§3.1). Matching is not differentiated, so the steeper
gradient of the logarithm matters only in the loss.

An example with two objects and three queries. Query 0 predicts the box of object 0. Query 1 predicts that of object 1,
but 0.1 too wide and too high. Query 2 predicts another box, and "no object":

>>> p = np.array([[0.7, 0.1, 0.2], [0.2, 0.6, 0.2], [0.1, 0.1, 0.8]])       # of class 0, of class 1, of ∅
>>> boxes = np.array([[0.2, 0.2, 0.2, 0.2], [0.7, 0.6, 0.5, 0.5], [0.3, 0.8, 0.2, 0.2]])
>>> outputs = {"pred_logits": np.log(p)[None], "pred_boxes": boxes[None]}
>>> targets = [{"labels": [0, 1], "boxes": [[0.2, 0.2, 0.2, 0.2], [0.7, 0.6, 0.4, 0.4]]}]
>>> logits, objects = np.log(p)[None, None], Objects.of(targets, num_classes=2)
>>> HungarianMatcher().costs(logits, boxes[None, None], objects).round(2)      # a row for each object
array([[[-2.7 ,  8.39,  4.73],
        [ 7.69, -0.88,  5.76]]])
>>> HungarianMatcher()(outputs, targets)                                        # queries, objects
[(array([0, 1]), array([0, 1]))]

Object 1 and query 1, for instance, cost 5 · (0.1 + 0.1) - 0.6 - 2 · 0.4² / 0.5² = -0.88: where one box contains the
other, GIoU is the ratio of their areas. (boxes.py has GIoU in general.) criterion.py has the loss of this example.

Costs are computed on the device, for all layers and images at once, and only between an object and the queries of its
own image: (L, T, N). They are copied to the host in one transfer, the only one of a training step. There, SciPy's
`linear_sum_assignment` solves eq. 1 exactly for each layer and image. On the device, the objects are padded to one of
few numbers, so that batches with other objects have arrays of the same shapes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from scratchvit import ops
from scratchvit.backend import Array, array_module, asarray, asnumpy
from scratchvit.detection.set_losses import matching_costs
from scratchvit.errors import ScratchvitError
from scratchvit.tensor import Tensor

Pairs: TypeAlias = tuple[NDArray[np.int64], NDArray[np.int64]]
"""(queries (k,), objects (k,)) of an image, sorted by query; k = min(number of queries, number of objects)."""


FEWEST = 16     # objects of a batch are padded to this number, or to a larger power of two


class NonFiniteCosts(ScratchvitError):
    """Predictions that are infinite or NaN, so that no assignment can be computed."""


class ObjectArrays(NamedTuple):
    """The objects of a batch on the device in use, padded with objects that nobody asks for."""

    boxes: Array            # floating-point (T', 4), cxcywh, with T' at least T: see FEWEST
    labels: Array           # int64 (T',)
    image: Array            # int64 (T',): the index in the batch of each object's image
    counts: Array           # int64 (B,): the objects of each image


@dataclass(frozen=True)
class Objects:
    """The true objects of all images of a batch, concatenated, on the host."""

    labels: NDArray[np.int64]       # (T,) in 0 … num_classes - 1
    boxes: NDArray[np.float32]      # (T, 4) cxcywh
    counts: list[int]               # objects of each image, B numbers
    names: list[str]                # of the images, for error messages
    whole: Sequence[int]            # counts of all images of the batch, if these are a part of it; else `counts`

    @property
    def image(self) -> NDArray[np.int64]:
        """(T,): the index in the batch of each object's image."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    @property
    def starts(self) -> NDArray[np.int64]:
        """(B + 1,): the index of each image's first object, and T at the end."""
        return np.concatenate([[0], np.cumsum(self.counts, dtype=np.int64)])

    def arrays(self, dtype: Any) -> ObjectArrays:
        """The same on the device in use, with boxes of this dtype."""
        T = len(self.labels)
        rows = max(FEWEST, 1 << max(0, T - 1).bit_length())

        def padded(x: NDArray[Any]) -> Array:
            return asarray(np.concatenate([x, np.zeros((rows - T, *x.shape[1:]), x.dtype)]))

        boxes = padded(self.boxes.astype(dtype, copy=False))
        return ObjectArrays(boxes, padded(self.labels), padded(self.image), asarray(np.array(self.counts, np.int64)))

    @classmethod
    def of(
        cls, targets: Sequence[Mapping[str, Any]], num_classes: int, whole: Sequence[int] | None = None
    ) -> Objects:
        """From the targets of a batch, a dict for each image (its other keys are ignored):

            "labels"    integers (n,) in 0 … num_classes - 1
            "boxes"     (n, 4) cxcywh, relative to the image; n may be 0
            "image_id"  optional: names the image in error messages

        whole: if they are a part of a batch, the numbers of objects of all images of that batch.
        Values are NumPy arrays or lists, because they are read on the host. Raises ScratchvitError, naming the image,
        for labels out of range, boxes that are not finite or have negative sides, and anything of another shape.
        """
        names, labels, boxes = [], [], []
        for index, target in enumerate(targets):
            names.append(f"image {index} of the batch" + (
                f" (image_id {target['image_id']})" if "image_id" in target else ""
            ))
            labels.append(_host_array(names[-1], target, "labels", (), "iu"))
            boxes.append(_host_array(names[-1], target, "boxes", (4,), "fiu"))
            _check(names[-1], labels[-1], boxes[-1], num_classes)
        counts = [len(each) for each in labels]
        return cls(
            np.concatenate([np.zeros(0, np.int64), *labels]), np.concatenate([np.zeros((0, 4), np.float32), *boxes]),
            counts, names, counts if whole is None else whole,
        )


def _host_array(name: str, target: Mapping[str, Any], key: str, item: tuple[int, ...], kinds: str) -> Array:
    """target[key] as int64 or float32 (n, *item)."""
    if key not in target:
        raise ScratchvitError(f"the targets of {name} have no {key!r}, only {sorted(target)}")
    try:
        array = np.asarray(target[key])
    except TypeError:
        raise ScratchvitError(
            f"the {key} of {name} are a {type(target[key]).__name__}: pass targets as NumPy arrays; the matcher copies "
            "them to the device, the whole batch at once"
        ) from None
    if array.size == 0:
        array = array.reshape(0, *item)
    elif array.shape[1:] != item or array.ndim != 1 + len(item) or array.dtype.kind not in kinds:
        wanted = "integers (n,)" if key == "labels" else "numbers (n, 4)"
        raise ScratchvitError(f"the {key} of {name} must be {wanted}, not {array.dtype} {array.shape}")
    return array.astype(np.float32 if item else np.int64, copy=False)


def _check(name: str, labels: Array, boxes: Array, num_classes: int) -> None:
    if len(labels) != len(boxes):
        raise ScratchvitError(f"{name} has {len(labels)} labels for {len(boxes)} boxes: give one for each")
    for i in np.flatnonzero((labels < 0) | (labels >= num_classes))[:1]:
        raise ScratchvitError(
            f"object {i} of {name} has the label {labels[i]}, which is none of the {num_classes} classes "
            f"0…{num_classes - 1}: map the file's category ids to these, or set num_classes to match (without "
            "counting no-object)"
        )
    for i in np.flatnonzero(~(np.isfinite(boxes).all(axis=1) & (boxes[:, 2:] >= 0).all(axis=1)))[:1]:
        raise ScratchvitError(
            f"object {i} of {name} has the box {boxes[i].tolist()}: boxes are (cx, cy, width, height), finite, with "
            "sides of 0 or more; correct it in the file, or leave it out when reading"
        )


@dataclass(frozen=True)
class HungarianMatcher:
    """Matches the outputs of a model with the targets of a batch: for each image, the pairs with the lowest total cost.

    cost_class, cost_bbox (λ_L1), cost_giou (λ_iou): weights of the three terms of the cost; not negative, not all zero.
    focal: for class probabilities by sigmoids, logits (…, num_classes), without "no object". The class term is then the
    change of a query's focal loss when it is assigned the object (code of Deformable DETR, arXiv 2010.04159; its
    cost_class is 2).

    In an image with more objects than queries, every query is assigned an object, and some objects have no query. If
    several assignments have the lowest cost, SciPy chooses one, the same in every run. Raises ScratchvitError for
    weights out of range. Nothing here is differentiated.
    """

    cost_class: float = 1.0
    cost_bbox: float = 5.0
    cost_giou: float = 2.0
    focal: bool = False

    def __post_init__(self) -> None:
        costs = {name: value for name, value in vars(self).items() if name.startswith("cost_")}
        if not (all(math.isfinite(cost) and cost >= 0 for cost in costs.values()) and any(costs.values())):
            given = ", ".join(f"{name}={cost:g}" for name, cost in costs.items())
            raise ScratchvitError(f"the costs of matching must be finite, not negative, and not all zero: {given}")

    def __call__(self, outputs: Mapping[str, Any], targets: Sequence[Mapping[str, Any]]) -> list[Pairs]:
        """Match the last decoder layer's outputs.

        outputs: "pred_logits" (B, N, num_classes + 1), "no object" last, and "pred_boxes" (B, N, 4) cxcywh, Tensors or
        arrays on the current device. targets: B dicts, see `Objects.of`.
        Returns, for each image, (queries int64 (k,), objects int64 (k,)), sorted by query. Raises as `Objects.of` and
        `match_layers` do.
        """
        logits, boxes = _plain(outputs["pred_logits"]), _plain(outputs["pred_boxes"])
        return self.match_layers(logits[None], boxes[None], Objects.of(targets, logits.shape[-1] - (not self.focal)))[0]

    def match_layers(self, logits: Array, boxes: Array, objects: Objects) -> list[list[Pairs]]:
        """Match each decoder layer by itself: the pairs of each of the B images, for each of the L layers.

        logits (L, B, N, num_classes + 1), boxes (L, B, N, 4): plain arrays. One transfer to the host.
        Raises NonFiniteCosts, naming the image, if a cost is not finite, and ScratchvitError unless there is one target
        for each image.
        """
        return self.assign(asnumpy(self.padded_costs(logits, boxes, objects.arrays(boxes.dtype))), objects)

    def assign(self, costs: NDArray[Any], objects: Objects) -> list[list[Pairs]]:
        """The pairs with the lowest total cost, for each layer and image. costs (L, T', N), on the host.

        Raises NonFiniteCosts, naming the image, if a cost is not finite.
        """
        from scipy.optimize import linear_sum_assignment  # slow to import

        costs = costs[:, : len(objects.labels)]
        if not np.isfinite(costs).all():
            raise NonFiniteCosts(_where_not_finite(costs, objects))
        starts = objects.starts
        # The transposed view has a row for each query, so the pairs come sorted by query.
        return [
            [linear_sum_assignment(of_layer[start:end].T) for start, end in itertools.pairwise(starts)]
            for of_layer in costs
        ]

    def costs(self, logits: Array, boxes: Array, objects: Objects) -> Array:
        """The cost between every object and every query of its image: (L, T, N), on the device.

        logits (L, B, N, num_classes + 1), boxes (L, B, N, 4).
        """
        return self.padded_costs(logits, boxes, objects.arrays(boxes.dtype))[:, : len(objects.labels)]

    def padded_costs(self, logits: Array, boxes: Array, objects: ObjectArrays) -> Array:
        """The same for objects on the device: (L, T', N). Those of padding mean nothing.

        Raises ScratchvitError unless there is a target for each image.
        """
        if logits.shape[1] != len(objects.counts):
            raise ScratchvitError(
                f"the outputs are for {logits.shape[1]} images, the targets for {len(objects.counts)}: pass a target "
                "for each image, with empty labels and boxes if it has no objects"
            )
        weights = self.cost_class, self.cost_bbox, self.cost_giou
        with np.errstate(all="ignore"):     # `assign` raises an error for costs that are not finite
            class_costs = self.class_costs(logits)
            return matching_costs(class_costs, boxes, objects.boxes, objects.labels, objects.image, weights)

    def class_costs(self, logits: Array) -> Array:
        """The class term of the cost, -p̂(c): logits (…, num_logits) → (…, num_logits)."""
        if not self.focal:
            return -ops.softmax(logits, dim=-1).data
        present, absent = (ops.sigmoid_focal_loss(logits, array_module(logits).full_like(logits, t)) for t in (1, 0))
        return present.data - absent.data


def _plain(x: Any) -> Array:
    return x.data if isinstance(x, Tensor) else x


def _where_not_finite(cost: NDArray[np.float32], objects: Objects) -> str:
    """The message of NonFiniteCosts; cost (L, T, N)."""
    bad = ~np.isfinite(cost)
    layer, first, _ = np.argwhere(bad)[0]
    image = objects.image[first]
    queries = bad[layer, objects.image == image].any(axis=0)
    where = f"in decoder layer {layer} of 0…{len(cost) - 1}" if len(cost) > 1 else "in the last decoder layer"
    return (
        f"{objects.names[image]} cannot be matched: {where}, the predictions of {queries.sum()} of its {len(queries)} "
        "queries are infinite or NaN. If the pixels of the image are finite, training has diverged: go back to an "
        "earlier checkpoint with a lower learning rate, a longer warm-up, or a smaller clip_grad (0.1 in the paper)"
    )
