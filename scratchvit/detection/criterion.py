"""The Hungarian loss: the target of every query is its matched object, or "no object" (DETR, Carion et al., ECCV 2020,
arXiv 2005.12872, section 3.1). Symbols are those of models/detr.py.

    paper       here          shape
    c_i, ∅      classes       (L, B, N): target class of each query; num_classes stands for ∅, "no object"
    b, b̂        boxes         (L, B, N, 4): cxcywh in 0 … 1
    p̂           logits        (L, B, N, num_classes + 1), before the softmax

    loss     = Σ_i [ -log p̂_σ̂(i)(c_i) + 1{c_i ≠ ∅} box_loss(b_i, b̂_σ̂(i)) ]                        (eq. 2)
    box_loss = λ_L1 |b - b̂|₁ + λ_iou (1 - GIoU(b, b̂))

As in the authors' code, "no object" has class weight eos_coef = 0.1 in the cross-entropy, because most queries have no
object. The cross-entropy is a weighted mean: it is divided by the sum of the weights. Both box losses are divided by
the number of objects in the batch. Every decoder layer has its own matching and its own losses ("auxiliary losses",
section 3.2). They are computed for all layers at once, with the layer as the first axis.

A batch can be computed in parts: one after another (accumulated gradients), or by several processes. The sums of all
parts have to be divided by what the whole batch counts, or parts with few objects would weigh as much as others. So
`Objects` knows the number of objects of every image of the batch. A part of n of its B images divides its sums by n / B
times the divisors of the batch. Then the losses of all parts, each times its n / B, add up to the loss of the batch.

The example of matcher.py: query 0 is matched to object 0, and query 1 to object 1, but its box is 0.1 too wide and too
high; query 2 has no object.

>>> p = np.array([[0.7, 0.1, 0.2], [0.2, 0.6, 0.2], [0.1, 0.1, 0.8]])       # of class 0, of class 1, of ∅
>>> boxes = np.array([[0.2, 0.2, 0.2, 0.2], [0.7, 0.6, 0.5, 0.5], [0.3, 0.8, 0.2, 0.2]])
>>> outputs = {"pred_logits": Tensor(np.log(p)[None]), "pred_boxes": Tensor(boxes[None])}
>>> targets = [{"labels": [0, 1], "boxes": [[0.2, 0.2, 0.2, 0.2], [0.7, 0.6, 0.4, 0.4]]}]
>>> criterion = SetCriterion(num_classes=2, matcher=HungarianMatcher())
>>> losses = criterion(outputs, targets)
>>> {kind: round(float(loss.item()), 3) for kind, loss in losses[Output("decoder", 0)].items()}
{'ce': 0.424, 'bbox': 0.1, 'giou': 0.18, 'cardinality_error': 0.0, 'class_error': 0.0}

These are (-log 0.7 - log 0.6 - 0.1 log 0.8) / (1 + 1 + 0.1), (0.1 + 0.1) / 2 objects and (1 - 0.4² / 0.5²) / 2.
Weighted by 1, λ_L1 = 5 and λ_iou = 2, they add up as 0.424 + 0.5 + 0.36:

>>> round(float(criterion.total(losses).item()), 3)
1.284

tests/detection/test_criterion.py computes eq. 2 query by query in plain Python (`written_out`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from scratchvit import ops
from scratchvit.backend import Array, array_module, asarray, asnumpy
from scratchvit.detection.losses import KINDS, Losses, Output
from scratchvit.detection.matcher import HungarianMatcher, ObjectArrays, Objects
from scratchvit.detection.set_losses import box_losses, set_errors
from scratchvit.errors import ScratchvitError
from scratchvit.replay import numbers
from scratchvit.tensor import Tensor

WEIGHTS = {"ce": 1.0, "bbox": 5.0, "giou": 2.0}     # 1, λ_L1, λ_iou of the paper, appendix A.4

FOCAL_WEIGHTS = {**WEIGHTS, "ce": 2.0}


class Predictions(NamedTuple):
    """What queries predict in every decoder layer. With K groups of queries, those of group 0 come first."""

    logits: Tensor          # (K · L, B, N, num_logits)
    boxes: Tensor           # (K · L, B, N, 4), cxcywh
    groups: int = 1         # K


class Matched(NamedTuple):
    """The target of every query, as arrays on the device in use. Their shapes do not depend on the matching.

    Divisors are those of the whole batch, times the share of its images that are here: see the head of this file.
    """

    which: Array            # int64 (K · L, B, N): index of the object among all of the batch, -1 for none
    classes: Array          # int64 (K · L, B, N): its class, num_classes for none
    divisors: Array         # (3, 1): of the sums of the losses, by KINDS
    counted: Array          # (2, 1): likewise of the sums of the errors: images, and matched pairs / 100


class SetCriterion:
    """Computes the losses of every output of a model from the targets of a batch.

    num_classes: number of classes without "no object", which is the last of the logits.
    matcher: assigns objects to queries, separately for each decoder layer.
    weights: weight of each kind of loss in `total`: "ce", "bbox" (λ_L1) and "giou" (λ_iou).
    eos_coef: class weight of "no object" in the cross-entropy.
    Raises ScratchvitError for numbers out of range.

    A call is these steps, which a task that replays steps on a GPU calls itself: `predictions` and `costs` on the
    device; `matched`, on the host; `decoder_losses` and `total`, on the device again.
    """

    def __init__(
        self, num_classes: int, matcher: HungarianMatcher, weights: Mapping[str, float] = WEIGHTS,
        eos_coef: float = 0.1,
    ):
        if num_classes < 1:
            raise ScratchvitError(f"num_classes (without no-object) must be at least 1, not {num_classes}")
        if set(weights) != set(WEIGHTS) or not all(math.isfinite(w) and w >= 0 for w in weights.values()):
            raise ScratchvitError(
                f"weights must have a number of at least 0 for each of {', '.join(map(repr, WEIGHTS))}, not "
                f"{dict(weights)}"
            )
        if not (math.isfinite(eos_coef) and eos_coef >= 0):
            raise ScratchvitError(f"eos_coef, the weight of no-object, must be at least 0, not {eos_coef}")
        self.num_classes, self.matcher, self.weights, self.eos_coef = num_classes, matcher, dict(weights), eos_coef
        self.num_logits, self.and_none = num_classes + 1, " and no-object"
        self.no_object: int | None = num_classes        # the index of its logit

    def __call__(
        self, outputs: Mapping[str, Any], targets: Sequence[Mapping[str, Any]], whole: Sequence[int] | None = None
    ) -> Losses:
        """The losses of every output, without weights.

        outputs: "pred_logits" (B, N, num_classes + 1) and "pred_boxes" (B, N, 4) cxcywh, Tensors; optionally
        "aux_outputs", a list of such dicts, one for each earlier decoder layer. In training, some models have further
        outputs: "group_outputs" (Group DETR), whose losses are averaged with those of the first group; "denoising" and
        "proposals" (two stages), which have their own losses.
        targets: for each of the B images a dict with "labels" int64 (n,), "boxes" float32 (n, 4) cxcywh and optionally
        "image_id", as NumPy arrays; n can be 0, or more than N.
        whole: if these images are a part of a batch, the numbers of objects of all images of that batch. The losses are
        then such that their mean over all parts, each weighted by its number of images, is the loss of the batch.

        Returns {Output("decoder", layer): losses} for every decoder layer, the last one first, and likewise for
        "denoising" and "encoder" (see losses.py). The losses of an output are:

            "ce"                 Tensor ()  weighted mean of -log p̂(c), over all queries of the batch
            "bbox"               Tensor ()  Σ |b - b̂|₁ / number of objects, at least 1; over the matched pairs
            "giou"               Tensor ()  Σ (1 - GIoU(b, b̂)) / number of objects, at least 1; over the matched pairs
            "cardinality_error"  array ()   decoder only: mean over the images of | predicted - true number of objects |
            "class_error"        array ()   last decoder layer only: percentage of matched pairs whose most probable
                                            class is wrong; 0 if there are no pairs

        The errors are float32 arrays on the device, without gradients; read them with float(). Only the matcher waits
        for the device, once. If predictions for an image that has objects are not finite, nothing can be matched, and
        the losses are NaN. Raises ScratchvitError for outputs or targets that do not fit.
        """
        return self.of_objects(outputs, Objects.of(targets, self.num_classes, whole))

    def of_objects(self, outputs: Mapping[str, Any], objects: Objects) -> Losses:
        """What a call returns, for targets in another form."""
        predictions = self.predictions([outputs, *outputs.get("group_outputs", ())])
        arrays = objects.arrays(predictions.boxes.dtype)
        matched = self.matched(asnumpy(self.costs(predictions, arrays)), objects)
        losses = self.decoder_losses(predictions, arrays, matched)
        if "denoising" in outputs:
            losses.add("denoising", self.denoising_losses(outputs["denoising"], objects, arrays))
        if "proposals" in outputs:
            proposals = self.predictions([outputs["proposals"]])
            matched = self.matched(asnumpy(self.costs(proposals, arrays)), objects)
            losses.add("encoder", self.losses(proposals, arrays, matched))
        return losses

    def class_divisor(self, matched: float, others: float, num_boxes: float) -> float:
        """What the class loss is divided by, for so many matched and other queries: the sum of their weights."""
        return matched + self.eos_coef * others or 1

    def total(self, losses: Losses) -> Tensor:
        """The training objective, a Tensor (): the weighted sum over all outputs."""
        terms = []
        for table in losses.tables.values():                                                # (3, L)
            weights = numbers(lambda: np.array([[self.weights[kind]] for kind in KINDS]), (3, 1), table.dtype)
            terms.append((table * weights).sum())
        return sum(terms[1:], start=terms[0])

    def predictions(self, groups: Sequence[Mapping[str, Any]]) -> Predictions:
        """Of all layers of K groups of queries. Raises ScratchvitError for another number of logits."""
        layers = [layer for group in groups for layer in [*group.get("aux_outputs", ()), group]]
        logits = ops.stack([layer["pred_logits"] for layer in layers])
        boxes = ops.stack([layer["pred_boxes"] for layer in layers])
        if logits.shape[-1] != self.num_logits:
            raise ScratchvitError(
                f"pred_logits have {logits.shape[-1]} scores per query; for {self.num_classes} classes{self.and_none} "
                f"there must be {self.num_logits}: build the model and the criterion with the same num_classes"
            )
        return Predictions(logits, boxes, len(groups))

    def costs(self, predictions: Predictions, objects: ObjectArrays) -> Array:
        """The costs of matching (K · L, T', N), for `matched`."""
        return self.matcher.padded_costs(predictions.logits.data, predictions.boxes.data, objects)

    def matched(self, costs: NDArray[Any], objects: Objects) -> Matched:
        """Match each layer separately. costs: those of `costs`, on the host.

        If they are not finite, nothing is matched, and the divisors are NaN. This is no error, because other processes
        wait for the gradients of this one, and a loss that is NaN makes all of them skip the step.
        """
        N, starts = costs.shape[2], objects.starts
        which = np.full((len(costs), len(objects.counts), N), -1)
        is_finite = np.isfinite(costs[:, : starts[-1]]).all()
        for of_layer, pairs in zip(which, self.matcher.assign(costs, objects) if is_finite else ()):
            for of_image, start, (queries, own) in zip(of_layer, starts, pairs):
                of_image[queries] = start + own
        count = sum(min(of_image, N) for of_image in objects.whole)         # of pairs, as many in every layer
        matched = self._targets(which, objects, costs.dtype, count, len(objects.whole) * N - count)
        return matched if is_finite else matched._replace(divisors=matched.divisors * math.nan)

    def _targets(
        self, which: NDArray[np.int64], objects: Objects, dtype: Any, pairs: float, others: float, copies: float = 1.0
    ) -> Matched:
        """which: as in Matched, on the host. pairs, others: how many queries of the whole batch have an object, and how
        many have none. copies: queries of an object."""
        classes = np.append(objects.labels, self.num_classes)[which]        # ∅, except of matched queries
        num_boxes = copies * max(1, sum(objects.whole))
        divisors = [self.class_divisor(pairs, others, num_boxes), num_boxes, num_boxes]
        counted = [len(objects.whole), max(1, pairs) / 100]
        share = len(objects.counts) / len(objects.whole)
        columns = (asarray(np.array(x)[:, None] * share, dtype) for x in (divisors, counted))
        return Matched(asarray(which), asarray(classes), *columns)

    def decoder_losses(self, predictions: Predictions, objects: ObjectArrays, matched: Matched) -> Losses:
        """The losses of K groups of queries, averaged, and the errors of the first group, that of inference."""
        table, K = self.losses(predictions, objects, matched), predictions.groups
        L = table.shape[1] // K
        losses = Losses()
        losses.add("decoder", table if K == 1 else table.reshape(3, K, L).mean(1))          # (3, K · L) → (3, L)
        logits = predictions.logits.data[:L]
        errors = set_errors(logits, matched.classes[:L], objects.counts, self.no_object).sum(axis=-1)   # (2, L)
        errors = errors / matched.counted
        for layer in range(L):
            losses[Output("decoder", layer)]["cardinality_error"] = errors[0, layer]
        losses[Output("decoder", L - 1)]["class_error"] = errors[1, L - 1]
        return losses

    def losses(self, predictions: Predictions, objects: ObjectArrays, matched: Matched) -> Tensor:
        """The losses of each layer, with a row for each of KINDS: (3, K · L)."""
        of_classes = self.class_losses(predictions.logits, matched.classes)                 # (K · L,)
        of_boxes = box_losses(predictions.boxes, objects.boxes, matched.which)              # (2, K · L)
        return ops.concatenate([of_classes.reshape(1, -1), of_boxes]) / matched.divisors

    def denoising_losses(self, outputs: Mapping[str, Any], objects: Objects, arrays: ObjectArrays) -> Tensor:
        """The losses of noised objects, which need no matching: the target is the original object (DN-DETR, §4.3).

        outputs: "pred_logits" (B, M, num_logits), "pred_boxes" (B, M, 4), "aux_outputs", and "objects", int64 (B, M) on
        the host: the index of the original object in its image, or -1 for padding queries, which have no loss. Returns
        the losses (3, L), divided by the number of copies of an object, so that they do not depend on it.
        """
        layers = [*outputs["aux_outputs"], outputs]
        image, query = np.nonzero(outputs["objects"] >= 0)                                  # (copies,)
        which = objects.starts[image] + outputs["objects"][image, query]                    # index among all objects
        logits, boxes = (
            ops.stack([layer[name] for layer in layers])[:, asarray(image), asarray(query)][:, None]
            for name in ("pred_logits", "pred_boxes")
        )                                                                   # (L, 1, copies, num_logits or 4)
        times = len(which) / max(1, len(objects.labels)) or 1.0             # of each object, on all ranks
        which = np.tile(which, (len(layers), 1, 1))                                         # (L, 1, copies)
        matched = self._targets(which, objects, boxes.dtype, times * sum(objects.whole), 0, times)
        return self.losses(Predictions(logits, boxes), arrays, matched)

    def class_losses(self, logits: Tensor, classes: Array) -> Tensor:
        """The sum of -w log p̂(c) over all queries of each layer (L,), with w = eos_coef for "no object", else 1.

        logits (L, B, N, num_classes + 1), classes (L, B, N).
        """
        weight = numbers(lambda: self._class_weights, (self.num_logits,), logits.dtype)
        weighted = ops.cross_entropy(                                                       # (L·B·N,)
            logits.reshape(-1, self.num_logits), classes.reshape(-1), weight=weight, reduction="none"
        )
        return weighted.reshape(len(classes), -1).sum(1)                                    # (L, B·N) → (L,)

    @property
    def _class_weights(self) -> NDArray[np.float64]:
        return np.append(np.ones(self.num_classes), self.eos_coef)


class FocalCriterion(SetCriterion):
    """SetCriterion for class probabilities by sigmoids, without "no object" (Lin et al., arXiv 1708.02002).

    pred_logits are (B, N, num_classes). "ce" is the focal loss, Σ over all queries and classes, / num_boxes. Its weight
    is 2, as in the code of Deformable DETR (arXiv 2010.04159). The matcher must have focal=True.
    """

    def __init__(self, num_classes: int, matcher: HungarianMatcher, weights: Mapping[str, float] = FOCAL_WEIGHTS):
        super().__init__(num_classes, matcher, weights)
        self.num_logits, self.and_none, self.no_object = num_classes, " by sigmoids", None

    def class_losses(self, logits: Tensor, classes: Array) -> Tensor:
        one_hot = (classes[..., None] == array_module(classes).arange(self.num_classes)).astype(logits.dtype)
        return ops.sigmoid_focal_loss(logits, one_hot).sum((1, 2, 3))

    def class_divisor(self, matched: float, others: float, num_boxes: float) -> float:
        return num_boxes
