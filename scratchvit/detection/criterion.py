"""The Hungarian loss: each query learns from the object that it was matched with, or that there is none (DETR, Carion
et al., ECCV 2020, arXiv 2005.12872, section 3.1).

    paper       here          what it is
    c_i, ∅      classes       (L, B, Q): each query's class; num_classes stands for ∅, no-object
    b, b̂        boxes         cxcywh in 0 … 1
                num_boxes     objects in the batch, at least 1

    L = Σ_i [ -log p̂_σ̂(i)(c_i) + 1{c_i ≠ ∅} L_box(b_i, b̂_σ̂(i)) ]                                  (eq. 2)
    L_box = λ_L1 |b - b̂|₁ + λ_iou (1 - GIoU(b, b̂))

As in the authors' code: the logarithms of ∅ count eos_coef (0.1: most queries find nothing), and their sum is divided
by that of their weights; both parts of L_box are divided by num_boxes. Every decoder layer is matched and judged by
itself ("auxiliary losses", section 3.2); all are computed at once here, with the layer as the first axis.
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
from scratchvit.detection.matcher import HungarianMatcher, Objects, Pairs
from scratchvit.errors import ScratchvitError
from scratchvit.tensor import Tensor

WEIGHTS = {"ce": 1.0, "bbox": 5.0, "giou": 2.0}     # 1, λ_L1, λ_iou of the paper, appendix A.4


class SetCriterion:
    """Outputs of a model and the targets of a batch → its losses by name.

    num_classes: of real classes; no-object is one more, the last of the logits.
    matcher: finds the query for each object, in each decoder layer anew.
    weights: what each loss counts in `total`: "ce", "bbox" and "giou".
    eos_coef: what the class no-object counts in the cross-entropy.
    Raises ScratchvitError for numbers out of range.
    """

    def __init__(
        self, num_classes: int, matcher: HungarianMatcher, weights: Mapping[str, float] = WEIGHTS,
        eos_coef: float = 0.1,
    ):
        if num_classes < 1:
            raise ScratchvitError(f"num_classes, of real classes without no-object, is 1 or more, not {num_classes}")
        if set(weights) != set(WEIGHTS) or not all(math.isfinite(w) and w >= 0 for w in weights.values()):
            raise ScratchvitError(
                f"weights has a number, 0 or more, for each of {', '.join(map(repr, WEIGHTS))}, not {dict(weights)}"
            )
        if not (math.isfinite(eos_coef) and eos_coef >= 0):
            raise ScratchvitError(f"eos_coef, the weight of no-object, is 0 or more, not {eos_coef}")
        self.num_classes, self.matcher, self.weights, self.eos_coef = num_classes, matcher, dict(weights), eos_coef

    def __call__(
        self, outputs: Mapping[str, Any], targets: Sequence[Mapping[str, Any]], num_boxes: float | None = None
    ) -> dict[str, Any]:
        """The losses of every decoder layer, not yet weighted.

        outputs: "pred_logits" (B, Q, num_classes + 1) and "pred_boxes" (B, Q, 4) cxcywh, Tensors; perhaps
        "aux_outputs", a list of such dicts, for the decoder layers before.
        targets: for each of the B images a dict with "labels" int64 (n,), "boxes" float32 (n, 4) cxcywh and perhaps
        "image_id", as NumPy arrays; n may be 0, or more than Q.
        num_boxes: what the losses of boxes are divided by, if not by the number of objects in `targets`. Where several
        processes average their gradients: the objects of all their batches, divided by the number of processes. Less
        than 1 counts 1.

        Returns, for the last layer and with the suffix _0, _1, … for those before it:

            "loss_ce"            Tensor ()  weighted mean of -log p̂(c), over all queries of the batch
            "loss_bbox"          Tensor ()  Σ |b - b̂|₁ / num_boxes, over the matched pairs
            "loss_giou"          Tensor ()  Σ (1 - GIoU(b, b̂)) / num_boxes, over the matched pairs
            "cardinality_error"  array ()   | objects found - objects there |, mean over the images
            "class_error"        array ()   last layer only: percentage of the matched pairs whose likeliest class is
                                            not the object's; 0 where there are none

        The last two are float32 arrays on the device without gradients, to be read with float() when they are printed.
        Beside the matcher's transfer nothing waits for the device. Raises ScratchvitError for outputs or targets that
        do not fit, and for predictions that are not finite where there are objects to match.
        """
        layers = [*outputs.get("aux_outputs", ()), outputs]
        logits = ops.stack([layer["pred_logits"] for layer in layers])                      # (L, B, Q, num_classes + 1)
        boxes = ops.stack([layer["pred_boxes"] for layer in layers])                        # (L, B, Q, 4)
        if logits.shape[-1] != self.num_classes + 1:
            raise ScratchvitError(
                f"pred_logits have {logits.shape[-1]} scores a query; for {self.num_classes} classes and no-object "
                f"they must be {self.num_classes + 1}: build the model and the criterion with the same num_classes"
            )
        objects = Objects.of(targets, self.num_classes)
        pairs = self.matcher.match_layers(logits.data, boxes.data, objects)
        places, which = _all_pairs(pairs, objects, logits.shape[2])
        num_boxes = max(1.0, len(objects.labels) if num_boxes is None else num_boxes)

        classes = np.full(logits.shape[:3], self.num_classes)
        classes.reshape(-1)[places] = objects.labels[which]
        likeliest = logits.data.argmax(axis=-1)                                             # (L, B, Q)
        by_layer = {                                                                        # (L,) each
            "loss_ce": self.class_loss(logits, classes),
            **self.box_losses(boxes, objects.boxes[which], places, num_boxes),
            "cardinality_error": _cardinality_error(likeliest, self.num_classes, objects),
        }
        suffixes = ["", *(f"_{layer}" for layer in range(len(layers) - 1))]
        losses: dict[str, Any] = {}
        for name, values in by_layer.items():
            *before, last = values
            losses.update({name + suffix: value for suffix, value in zip(suffixes, [last, *before])})
        losses["class_error"] = _class_error(likeliest[-1], classes[-1], self.num_classes)
        return losses

    def total(self, losses: Mapping[str, Any]) -> Tensor:
        """The number that training makes small: the weighted sum over the losses and decoder layers, a Tensor ()."""
        terms = []
        for kind, weight in self.weights.items():
            of_layers = [value for name, value in losses.items() if name.startswith(f"loss_{kind}")]
            terms.append(sum(of_layers[1:], start=of_layers[0]) * weight)
        return sum(terms[1:], start=terms[0])

    def class_loss(self, logits: Tensor, classes: NDArray[np.int64]) -> Tensor:
        """logits (L, B, Q, num_classes + 1), classes (L, B, Q) → the weighted mean of -log p̂(c) of each layer (L,)."""
        weight = np.append(np.ones(self.num_classes), self.eos_coef)
        log_p = ops.cross_entropy(
            logits.reshape(-1, self.num_classes + 1), classes.reshape(-1), weight=weight, reduction="none"
        )
        sum_of_weights = weight[classes[-1]].sum()     # as many pairs, so the same in every layer
        return log_p.reshape(len(classes), -1).sum(1) / float(sum_of_weights or 1)

    def box_losses(
        self, boxes: Tensor, matched: NDArray[np.float32], places: NDArray[np.int64], num_boxes: float
    ) -> dict[str, Tensor]:
        """The losses of the matched boxes of each layer, (L,) each.

        boxes (L, B, Q, 4); of each pair, in a row over the layers, its object's box (L · pairs, 4) and the place of
        its query among all L · B · Q.
        """
        shape = len(boxes), len(places) // len(boxes), 4                                    # (L, pairs, 4)
        b_hat, b = boxes.reshape(-1, 4)[places].reshape(shape), asarray(matched, dtype=boxes.dtype).reshape(shape)
        l1 = ops.l1_loss(b_hat, b, reduction="none")
        giou = paired_generalized_box_iou(box_cxcywh_to_xyxy(b_hat), box_cxcywh_to_xyxy(b))
        return {"loss_bbox": l1.sum((1, 2)) / num_boxes, "loss_giou": (1 - giou).sum(1) / num_boxes}


def _all_pairs(
    pairs: Sequence[Sequence[Pairs]], objects: Objects, queries: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The pairs of all layers and images in a row: the query's place among all L · B · Q, the object's among all T."""
    images = [pair for of_layer in pairs for pair in of_layer]
    first_queries = queries * np.arange(len(images))
    first_objects = np.tile(objects.starts[:-1], len(pairs))
    places = [first + query for first, (query, _) in zip(first_queries, images)]
    which = [first + object_ for first, (_, object_) in zip(first_objects, images)]
    return np.concatenate(places), np.concatenate(which)


def _cardinality_error(likeliest: Array, no_object: int, objects: Objects) -> Array:
    """likeliest classes (L, B, Q) → | objects found - objects there |, mean over the images (L,)."""
    xp = array_module(likeliest)
    found = (likeliest != no_object).sum(axis=-1)                                           # (L, B)
    return xp.abs(found - asarray(np.array(objects.counts))).mean(axis=-1).astype(np.float32)


def _class_error(likeliest: Array, classes: NDArray[np.int64], no_object: int) -> Array:
    """likeliest and true classes (B, Q) → the percentage of matched queries where they differ, ()."""
    matched = classes != no_object
    wrong = (likeliest != asarray(classes)) & asarray(matched)
    return wrong.sum().astype(np.float32) * (100 / max(1, int(matched.sum())))
