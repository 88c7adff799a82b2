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
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scratchvit import ops
from scratchvit.backend import Array, array_module, asarray
from scratchvit.detection.boxes import box_cxcywh_to_xyxy, paired_generalized_box_iou
from scratchvit.detection.losses import Losses, Output
from scratchvit.detection.matcher import HungarianMatcher, Objects, Pairs
from scratchvit.errors import ScratchvitError
from scratchvit.tensor import Tensor

WEIGHTS = {"ce": 1.0, "bbox": 5.0, "giou": 2.0}     # 1, λ_L1, λ_iou of the paper, appendix A.4

FOCAL_WEIGHTS = {**WEIGHTS, "ce": 2.0}


class SetCriterion:
    """Computes the losses of every output of a model from the targets of a batch.

    num_classes: number of classes without "no object", which is the last of the logits.
    matcher: assigns objects to queries, separately for each decoder layer.
    weights: weight of each kind of loss in `total`: "ce", "bbox" (λ_L1) and "giou" (λ_iou).
    eos_coef: class weight of "no object" in the cross-entropy.
    Raises ScratchvitError for numbers out of range.
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

    def __call__(
        self, outputs: Mapping[str, Any], targets: Sequence[Mapping[str, Any]], num_boxes: float | None = None
    ) -> Losses:
        """The losses of every output, without weights.

        outputs: "pred_logits" (B, N, num_classes + 1) and "pred_boxes" (B, N, 4) cxcywh, Tensors; optionally
        "aux_outputs", a list of such dicts, one for each earlier decoder layer. In training, some models have further
        outputs: "group_outputs" (Group DETR), whose losses are averaged with those of the first group; "denoising" and
        "proposals" (two stages), which have their own losses.
        targets: for each of the B images a dict with "labels" int64 (n,), "boxes" float32 (n, 4) cxcywh and optionally
        "image_id", as NumPy arrays; n can be 0, or more than N.
        num_boxes: divisor of the box losses, by default the number of objects in `targets`. If several processes
        average their gradients, pass the number of objects in all their batches divided by the number of processes.
        Values below 1 are replaced by 1.

        Returns {Output("decoder", layer): losses} for every decoder layer, the last one first, and likewise for
        "denoising" and "encoder" (see losses.py). The losses of an output are:

            "ce"                 Tensor ()  weighted mean of -log p̂(c), over all queries of the batch
            "bbox"               Tensor ()  Σ |b - b̂|₁ / num_boxes, over the matched pairs
            "giou"               Tensor ()  Σ (1 - GIoU(b, b̂)) / num_boxes, over the matched pairs
            "cardinality_error"  array ()   decoder only: mean over the images of | predicted - true number of objects |
            "class_error"        array ()   last decoder layer only: percentage of matched pairs whose most probable
                                            class is wrong; 0 if there are no pairs

        The errors are float32 arrays on the device, without gradients; read them with float(). Only the matcher waits
        for the device, once. Raises ScratchvitError for outputs or targets that do not fit, and for predictions that
        are not finite in an image that has objects.
        """
        objects = Objects.of(targets, self.num_classes)
        num_boxes = max(1.0, len(objects.labels) if num_boxes is None else num_boxes)
        losses = self.decoder_losses([outputs, *outputs.get("group_outputs", ())], objects, num_boxes)
        if "denoising" in outputs:
            losses |= _by_layer("denoising", self.denoising_losses(outputs["denoising"], objects, num_boxes))
        if "proposals" in outputs:
            losses |= _by_layer("encoder", self.set_losses([outputs["proposals"]], objects, num_boxes)[0])
        return losses

    def total(self, losses: Losses) -> Tensor:
        """The training objective, a Tensor (): the weighted sum over all outputs."""
        terms = []
        for kind, weight in self.weights.items():
            of_outputs = [of_output[kind] for of_output in losses.values()]
            terms.append(sum(of_outputs[1:], start=of_outputs[0]) * weight)
        return sum(terms[1:], start=terms[0])

    def decoder_losses(
        self, groups: Sequence[Mapping[str, Any]], objects: Objects, num_boxes: float
    ) -> Losses:
        """The losses of K groups of queries, averaged, and the errors of the first group, that of inference."""
        K, L = len(groups), 1 + len(groups[0].get("aux_outputs", ()))
        layers = [layer for group in groups for layer in [*group.get("aux_outputs", ()), group]]
        of_layers, classes = self.set_losses(layers, objects, num_boxes)                    # (K · L,) each
        of_layers = {kind: loss.reshape(K, L).mean(0) for kind, loss in of_layers.items()}  # (L,)
        logits = [layer["pred_logits"].data for layer in layers[:L]]
        errors = _cardinality_error([self.predicts_object(each) for each in logits], objects)   # (L,)
        losses = _by_layer("decoder", {**of_layers, "cardinality_error": errors})
        last = Output("decoder", L - 1)
        losses[last]["class_error"] = _class_error(logits[-1].argmax(axis=-1), classes[L - 1], self.num_classes)
        return losses

    def set_losses(
        self, layers: Sequence[Mapping[str, Tensor]], objects: Objects, num_boxes: float
    ) -> tuple[dict[str, Tensor], NDArray[np.int64]]:
        """Match each of L layers separately: its losses, {kind: (L,)}, and the target classes (L, B, N)."""
        logits = ops.stack([layer["pred_logits"] for layer in layers])                      # (L, B, N, num_logits)
        boxes = ops.stack([layer["pred_boxes"] for layer in layers])                        # (L, B, N, 4)
        if logits.shape[-1] != self.num_logits:
            raise ScratchvitError(
                f"pred_logits have {logits.shape[-1]} scores per query; for {self.num_classes} classes{self.and_none} "
                f"there must be {self.num_logits}: build the model and the criterion with the same num_classes"
            )
        pairs = self.matcher.match_layers(logits.data, boxes.data, objects)
        queries, which = _all_pairs(pairs, objects, logits.shape[2])
        classes = np.full(logits.shape[:3], self.num_classes)                               # (L, B, N), all ∅
        classes.reshape(-1)[queries] = objects.labels[which]                                # except matched queries
        box_losses = self.box_losses(boxes, objects.boxes[which], queries, num_boxes)
        return {"ce": self.class_loss(logits, classes, num_boxes), **box_losses}, classes

    def denoising_losses(
        self, outputs: Mapping[str, Any], objects: Objects, num_boxes: float
    ) -> dict[str, Tensor]:
        """The losses of noised objects, which need no matching: the target is the original object (DN-DETR, §4.3).

        outputs: "pred_logits" (B, M, num_logits), "pred_boxes" (B, M, 4), "aux_outputs", and "objects", int64 (B, M) on
        the host: the index of the original object in its image, or -1 for padding queries, which have no loss. Returns
        {kind: losses (L,)}, divided by the number of copies of an object, so that they do not depend on it.
        """
        layers = [*outputs["aux_outputs"], outputs]
        image, query = np.nonzero(outputs["objects"] >= 0)                                  # (copies,)
        which = objects.starts[image] + outputs["objects"][image, query]                    # index among all objects
        logits, boxes = (
            ops.stack([layer[name] for layer in layers])[:, asarray(image), asarray(query)][:, None]
            for name in ("pred_logits", "pred_boxes")
        )                                                                   # (L, 1, copies, num_logits or 4)
        L, copies = len(layers), len(which)
        num_boxes *= max(1.0, copies / max(1, len(objects.labels)))
        classes = np.broadcast_to(objects.labels[which], (L, 1, copies))
        box_losses = self.box_losses(boxes, np.tile(objects.boxes[which], (L, 1)), np.arange(L * copies), num_boxes)
        return {"ce": self.class_loss(logits, classes, num_boxes), **box_losses}

    def predicts_object(self, logits: Array) -> Array:
        """Whether a query predicts an object, bool (…), from its logits (…, num_classes + 1)."""
        return logits.argmax(axis=-1) != self.num_classes

    def class_loss(self, logits: Tensor, classes: NDArray[np.int64], num_boxes: float) -> Tensor:
        """The weighted mean of -log p̂(c) in each layer (L,). logits (L, B, N, num_classes + 1), classes (L, B, N)."""
        weight = np.append(np.ones(self.num_classes), self.eos_coef)
        weighted = ops.cross_entropy(                                                       # (L·B·N,)
            logits.reshape(-1, self.num_classes + 1), classes.reshape(-1), weight=weight, reduction="none"
        )
        sum_of_weights = weight[classes[-1]].sum()     # the same for every layer, as all have the same number of pairs
        return weighted.reshape(len(classes), -1).sum(1) / float(sum_of_weights or 1)       # (L, B·N) → (L,)

    def box_losses(
        self, boxes: Tensor, matched: NDArray[np.float32], queries: NDArray[np.int64], num_boxes: float
    ) -> dict[str, Tensor]:
        """The box losses of the P matched pairs of each layer, (L,) each.

        boxes (L, B, N, 4). For each pair, layer by layer: matched (L · P, 4), the box of its object, and queries
        (L · P,), the index of its query among all L · B · N.
        """
        shape = len(boxes), len(queries) // len(boxes), 4                                   # (L, P, 4)
        b_hat, b = boxes.reshape(-1, 4)[queries].reshape(shape), asarray(matched, dtype=boxes.dtype).reshape(shape)
        l1 = ops.l1_loss(b_hat, b, reduction="none")                                        # (L, P, 4)
        giou = paired_generalized_box_iou(box_cxcywh_to_xyxy(b_hat), box_cxcywh_to_xyxy(b)) # (L, P)
        return {"bbox": l1.sum((1, 2)) / num_boxes, "giou": (1 - giou).sum(1) / num_boxes}


class FocalCriterion(SetCriterion):
    """SetCriterion for class probabilities by sigmoids, without "no object" (Lin et al., arXiv 1708.02002).

    pred_logits are (B, N, num_classes). "ce" is the focal loss, Σ over all queries and classes, / num_boxes. Its weight
    is 2, as in the code of Deformable DETR (arXiv 2010.04159). The matcher must have focal=True.
    """

    def __init__(self, num_classes: int, matcher: HungarianMatcher, weights: Mapping[str, float] = FOCAL_WEIGHTS):
        super().__init__(num_classes, matcher, weights)
        self.num_logits, self.and_none = num_classes, " by sigmoids"

    def predicts_object(self, logits: Array) -> Array:
        return (logits > 0).any(axis=-1)

    def class_loss(self, logits: Tensor, classes: NDArray[np.int64], num_boxes: float) -> Tensor:
        one_hot = asarray(classes[..., None] == np.arange(self.num_classes), dtype=logits.dtype)
        return ops.sigmoid_focal_loss(logits, one_hot).sum((1, 2, 3)) / num_boxes


def _by_layer(source: str, losses: Mapping[str, Any]) -> Losses:
    """{kind: losses (L,)} → the losses of each layer, the last layer's first."""
    L = len(losses["ce"])
    layers = (L - 1, *range(L - 1))
    return {Output(source, layer): {kind: values[layer] for kind, values in losses.items()} for layer in layers}


def _all_pairs(
    pairs: Sequence[Sequence[Pairs]], objects: Objects, queries: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The pairs of all layers and images: the index of the query among all L · B · N, of the object among all T."""
    images = [pair for of_layer in pairs for pair in of_layer]
    first_queries = queries * np.arange(len(images))
    first_objects = np.tile(objects.starts[:-1], len(pairs))
    all_queries = [first + query for first, (query, _) in zip(first_queries, images)]
    all_objects = [first + object_ for first, (_, object_) in zip(first_objects, images)]
    return np.concatenate(all_queries), np.concatenate(all_objects)


def _cardinality_error(predicts_object: Sequence[Array], objects: Objects) -> Array:
    """|predicted - true number of objects|, mean over the images, (L,). predicts_object: bool (B, N) for each layer."""
    xp = array_module(predicts_object[0])
    found = xp.stack([each.sum(axis=-1) for each in predicts_object])                           # (L, B)
    return xp.abs(found - asarray(np.array(objects.counts))).mean(axis=-1).astype(np.float32)


def _class_error(predicted: Array, classes: NDArray[np.int64], no_object: int) -> Array:
    """The percentage, (), of matched queries whose predicted class differs from the target class; both (B, N)."""
    matched = classes != no_object
    wrong = (predicted != asarray(classes)) & asarray(matched)
    return wrong.sum().astype(np.float32) * (100 / max(1, int(matched.sum())))
