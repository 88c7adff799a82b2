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

FOCAL_WEIGHTS = {**WEIGHTS, "ce": 2.0}


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
        self.num_logits, self.and_none = num_classes + 1, " and no-object"

    def __call__(
        self, outputs: Mapping[str, Any], targets: Sequence[Mapping[str, Any]], num_boxes: float | None = None
    ) -> dict[str, Any]:
        """The losses of every decoder layer, not yet weighted.

        outputs: "pred_logits" (B, Q, num_classes + 1) and "pred_boxes" (B, Q, 4) cxcywh, Tensors; perhaps
        "aux_outputs", a list of such dicts, for the decoder layers before. What models give in training alone is judged
        too: "group_outputs", as one set with the mean of their losses (Group DETR); "denoising", with the prefix dn_;
        "proposals", those of the encoder, with the prefix enc_.
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
        objects = Objects.of(targets, self.num_classes)
        num_boxes = max(1.0, len(objects.labels) if num_boxes is None else num_boxes)
        groups = [outputs, *outputs.get("group_outputs", ())]
        layers = [layer for group in groups for layer in [*group.get("aux_outputs", ()), group]]
        depth = len(layers) // len(groups)
        of_layers, classes = self.set_losses(layers, objects, num_boxes)                    # (groups · L,) each
        of_layers = {name: loss.reshape(len(groups), depth).mean(0) for name, loss in of_layers.items()}     # (L,)
        logits = [layer["pred_logits"].data for layer in layers[:depth]]                    # of the first group
        of_layers["cardinality_error"] = _cardinality_error([self.says_object(each) for each in logits], objects)
        if "denoising" in outputs:
            of_layers |= self.denoising_losses(outputs["denoising"], objects, num_boxes)

        suffixes = ["", *(f"_{layer}" for layer in range(depth - 1))]
        losses: dict[str, Any] = {}
        for name, values in of_layers.items():
            *before, last = values
            losses.update({name + suffix: value for suffix, value in zip(suffixes, [last, *before])})
        if "proposals" in outputs:
            of_encoder, _ = self.set_losses([outputs["proposals"]], objects, num_boxes)
            losses |= {f"enc_{name}": loss[0] for name, loss in of_encoder.items()}
        losses["class_error"] = _class_error(logits[-1].argmax(axis=-1), classes[depth - 1], self.num_classes)
        return losses

    def set_losses(
        self, layers: Sequence[Mapping[str, Tensor]], objects: Objects, num_boxes: float
    ) -> tuple[dict[str, Tensor], NDArray[np.int64]]:
        """Match and judge each of L layers by itself: {name: its losses (L,)}, and the matched classes (L, B, Q)."""
        logits = ops.stack([layer["pred_logits"] for layer in layers])                      # (L, B, Q, num_logits)
        boxes = ops.stack([layer["pred_boxes"] for layer in layers])                        # (L, B, Q, 4)
        if logits.shape[-1] != self.num_logits:
            raise ScratchvitError(
                f"pred_logits have {logits.shape[-1]} scores a query; for {self.num_classes} classes{self.and_none} "
                f"they must be {self.num_logits}: build the model and the criterion with the same num_classes"
            )
        pairs = self.matcher.match_layers(logits.data, boxes.data, objects)
        places, which = _all_pairs(pairs, objects, logits.shape[2])
        classes = np.full(logits.shape[:3], self.num_classes)
        classes.reshape(-1)[places] = objects.labels[which]
        box_losses = self.box_losses(boxes, objects.boxes[which], places, num_boxes)
        return {"loss_ce": self.class_loss(logits, classes, num_boxes), **box_losses}, classes

    def total(self, losses: Mapping[str, Any]) -> Tensor:
        """The number that training makes small: the weighted sum over the losses and decoder layers, a Tensor ()."""
        terms = []
        for kind, weight in self.weights.items():
            of_layers = [value for name, value in losses.items() if f"loss_{kind}" in name]
            terms.append(sum(of_layers[1:], start=of_layers[0]) * weight)
        return sum(terms[1:], start=terms[0])

    def denoising_losses(
        self, outputs: Mapping[str, Any], objects: Objects, num_boxes: float
    ) -> dict[str, Tensor]:
        """The same losses of noised objects, each of which has its own object to restore (DN-DETR, §4.3): (L,) each.

        outputs: "pred_logits" (B, M, num_logits), "pred_boxes" (B, M, 4), "aux_outputs", and "objects", int64 (B, M) on
        the host: which object of its image each is a copy of, -1 for what only fills up and is not looked at. Divided
        by the number of copies, too, so that they count as much as the others however many they are.
        """
        layers = [*outputs["aux_outputs"], outputs]
        image, place = np.nonzero(outputs["objects"] >= 0)                                  # (K,): the copies
        which = objects.starts[image] + outputs["objects"][image, place]                    # of which object
        logits, boxes = (
            ops.stack([layer[name] for layer in layers])[:, asarray(image), asarray(place)][:, None]
            for name in ("pred_logits", "pred_boxes")
        )                                                                                   # (L, 1, K, C or 4)
        L, K = len(layers), len(which)
        num_boxes *= max(1.0, K / max(1, len(objects.labels)))
        classes = np.broadcast_to(objects.labels[which], (L, 1, K))
        places, matched = np.arange(L * K), np.tile(objects.boxes[which], (L, 1))
        losses = {
            "loss_ce": self.class_loss(logits, classes, num_boxes),
            **self.box_losses(boxes, matched, places, num_boxes),
        }
        return {f"dn_{name}": loss for name, loss in losses.items()}

    def says_object(self, logits: Array) -> Array:
        """logits (…, num_classes + 1) → whether a query says that it holds an object, bool (…)."""
        return logits.argmax(axis=-1) != self.num_classes

    def class_loss(self, logits: Tensor, classes: NDArray[np.int64], num_boxes: float) -> Tensor:
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


class FocalCriterion(SetCriterion):
    """The same for sigmoids: each class is there or not, none of them is no-object (Lin et al., arXiv 1708.02002).

    pred_logits are (B, Q, num_classes); "loss_ce" is the focal loss, Σ over all queries and classes, / num_boxes, which
    counts twice as in Deformable DETR's code (arXiv 2010.04159). The matcher is one with focal=True.
    """

    def __init__(self, num_classes: int, matcher: HungarianMatcher, weights: Mapping[str, float] = FOCAL_WEIGHTS):
        super().__init__(num_classes, matcher, weights)
        self.num_logits, self.and_none = num_classes, " told by sigmoids"

    def says_object(self, logits: Array) -> Array:
        return (logits > 0).any(axis=-1)

    def class_loss(self, logits: Tensor, classes: NDArray[np.int64], num_boxes: float) -> Tensor:
        there = asarray(classes[..., None] == np.arange(self.num_classes), dtype=logits.dtype)  # (L, B, Q, num_classes)
        return ops.sigmoid_focal_loss(logits, there).sum((1, 2, 3)) / num_boxes


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


def _cardinality_error(says_object: Sequence[Array], objects: Objects) -> Array:
    """Of each layer, bool (B, Q) → | objects found - objects there |, mean over the images (L,)."""
    xp = array_module(says_object[0])
    found = xp.stack([each.sum(axis=-1) for each in says_object])                           # (L, B)
    return xp.abs(found - asarray(np.array(objects.counts))).mean(axis=-1).astype(np.float32)


def _class_error(likeliest: Array, classes: NDArray[np.int64], no_object: int) -> Array:
    """likeliest and true classes (B, Q) → the percentage of matched queries where they differ, ()."""
    matched = classes != no_object
    wrong = (likeliest != asarray(classes)) & asarray(matched)
    return wrong.sum().astype(np.float32) * (100 / max(1, int(matched.sum())))
