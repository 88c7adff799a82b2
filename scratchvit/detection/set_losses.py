"""The numbers that matching and losses of sets are made of, for all decoder layers at once. Symbols are those of
models/detr.py.

    matching_costs    every object against every query of its image     (L, T, N)     matcher.py, eq. 1
    box_losses        every query against its matched object            (2, L)        criterion.py, eq. 2
    set_errors        how many classes and objects are wrong            (2, L, B)     not part of the loss

Which object is whose is an array too: `which`, integers (L, B, N), the index of a query's object among all T of the
batch, or -1 for none. So shapes do not depend on the number of matched pairs, and a GPU can repeat the same operations
for every batch (see replay.py). There, each of these functions is one kernel, of kernels/cuda/set_losses.py.
"""

from __future__ import annotations

from typing import Any

from scratchvit.backend import Array, array_module
from scratchvit.detection.boxes import box_cxcywh_to_xyxy, paired_generalized_box_iou
from scratchvit.facts import Bytes, Facts
from scratchvit.kernels.masks import masked
from scratchvit.kernels.set_losses import set_loss_kernels
from scratchvit.tensor import op


def matching_costs(
    class_costs: Array, boxes: Array, objects: Array, labels: Array, image: Array, weights: tuple[float, float, float]
) -> Array:
    """w_class · class cost + w_L1 |b - b̂|₁ - w_GIoU GIoU(b, b̂) of objects and the queries of their images (L, T, N).

    class_costs (L, B, N, classes), boxes b̂ (L, B, N, 4), cxcywh; of each object: objects b (T, 4), labels and image,
    int64 (T,). weights: (w_class, w_L1, w_GIoU).
    """
    kernels = set_loss_kernels(boxes)
    if kernels:
        return kernels.matching_costs(class_costs, boxes, objects, labels, image, weights)
    of_class, of_l1, of_giou = weights
    b, b_hat = objects[:, None], boxes[:, image]                                            # (T, 1, 4), (L, T, N, 4)
    class_cost = class_costs.swapaxes(2, 3)[:, image, labels]                               # (L, T, N)
    l1 = array_module(boxes).abs(b - b_hat).sum(axis=-1)
    giou = paired_generalized_box_iou(box_cxcywh_to_xyxy(b), box_cxcywh_to_xyxy(b_hat))
    return of_l1 * l1 + of_class * class_cost - of_giou * giou


@op(takes="sums", autocast="loss", facts=Facts(
    shape=lambda boxes: (2, len(boxes)), macs=0,
    saves=lambda boxes, objects, which: [boxes, objects, which, Bytes(which.size)],
))
def box_losses(boxes: Array, objects: Any, which: Any):
    """(Σ |b - b̂|₁, Σ (1 - GIoU(b, b̂))) over the matched queries of each layer: (2, L).

    boxes b̂: (L, B, N, 4), cxcywh.
    objects b: (T, 4), cxcywh, at least one.  which: integers (L, B, N), the index of a query's object, -1 for none.
    Raises TypeError for integers in boxes, ValueError for other shapes.

    A box is the interval lo … hi on each of two axes, with lo, hi = centre ∓ size / 2. Let I, U, C be the areas of
    intersection, union and the smallest box around both, and A that of b̂. With U = A + |b| - I,

        GIoU = I/U - (C - U)/C
        dGIoU/dU = 1/C - I/U²,   dGIoU/dI = 1/U - dGIoU/dU,   dGIoU/dA = dGIoU/dU,   dGIoU/dC = (C - U)/C² - 1/C

    Each of these areas is a product of two sides, each the upper end of an interval minus the lower: the derivative by
    a side is the other side, and that of the side by an end of b̂ is ±1, or 0 where the end is that of b; ½ where both
    are equal. From the ends, dcentre = dlo + dhi and dsize = (dhi - dlo) / 2.
    """
    if boxes.shape != (*which.shape, 4) or boxes.ndim != 4 or objects.shape[1:] != (4,):
        raise ValueError(
            "box_losses: boxes (L, B, N, 4) need objects (T, 4) and the indices of theirs (L, B, N), not "
            f"{boxes.shape}, {objects.shape} and {which.shape}"
        )
    kernels = set_loss_kernels(boxes)
    if kernels:
        return kernels.box_losses(boxes, objects, which)
    xp = array_module(boxes)
    matched = which >= 0                                                                    # (L, B, N)
    b = objects[xp.maximum(which, 0)]                                                       # (L, B, N, 4)
    l1 = xp.abs(b - boxes).sum(axis=-1)
    giou = paired_generalized_box_iou(box_cxcywh_to_xyxy(boxes), box_cxcywh_to_xyxy(b))     # (L, B, N)
    losses = masked(xp.stack([l1, 1 - giou]), matched).sum(axis=(2, 3))                     # (2, L)

    def backward(dy):
        dl1, dgiou = dy[0][:, None, None, None], -dy[1][:, None, None, None]
        dboxes = dl1 * xp.sign(boxes - b) + dgiou * _giou_gradient(boxes, b)
        return masked(dboxes, matched[..., None])

    return losses, backward


def _giou_gradient(boxes: Array, b: Array) -> Array:
    """dGIoU/db̂ of corresponding boxes b̂ and b (…, 4), cxcywh: see `box_losses`."""
    xp = array_module(boxes)
    (lo, hi), (b_lo, b_hi) = ((x[..., :2] - x[..., 2:] / 2, x[..., :2] + x[..., 2:] / 2) for x in (boxes, b))

    def sides(lo, hi):
        return xp.maximum(hi - lo, 0)                                                       # (…, 2)

    def less(x, y):
        """1 where x < y, ½ where x = y, else 0."""
        return ((x < y).astype(x.dtype) + (x <= y)) / 2

    own, theirs = sides(lo, hi), sides(b_lo, b_hi)
    common = sides(xp.maximum(lo, b_lo), xp.minimum(hi, b_hi))
    around = sides(xp.minimum(lo, b_lo), xp.maximum(hi, b_hi))
    A, B, I, C = (each[..., :1] * each[..., 1:] for each in (own, theirs, common, around))  # (…, 1)
    U = A + B - I
    one_by_U, one_by_C = (1 / (area + (area == 0)) for area in (U, C))                      # boxes.py: 0 / 0 is 0
    dU = one_by_C - I * one_by_U**2
    dI = one_by_U - dU
    dC = (C - U) * one_by_C**2 - one_by_C
    by_own = dU * own[..., ::-1] * (hi >= lo)
    by_common = dI * common[..., ::-1] * (xp.minimum(hi, b_hi) >= xp.maximum(lo, b_lo))
    by_around = dC * around[..., ::-1]
    dhi = by_own + by_common * less(hi, b_hi) + by_around * less(b_hi, hi)
    dlo = -by_own - by_common * less(b_lo, lo) - by_around * less(lo, b_lo)
    return xp.concatenate([dlo + dhi, (dhi - dlo) / 2], axis=-1)


def set_errors(logits: Array, classes: Array, counts: Array, none: int | None) -> Array:
    """Of each layer and image (2, L, B): |predicted - true number of objects|, and wrong classes of matched queries.

    logits (L, B, N, num_logits); classes int64 (L, B, N), at least num_classes where there is no object; counts (B,),
    the true numbers. none: the index of "no object"; None: classes are predicted by sigmoids.
    """
    kernels = set_loss_kernels(logits)
    if kernels:
        return kernels.set_errors(logits, classes, counts, none)
    xp = array_module(logits)
    predicted = logits.argmax(axis=-1)                                                      # (L, B, N)
    is_object = (logits > 0).any(axis=-1) if none is None else predicted != none
    matched = classes < (logits.shape[-1] if none is None else none)
    too_many = xp.abs(is_object.sum(axis=-1) - counts)                                      # (L, B)
    wrong = (matched & (predicted != classes)).sum(axis=-1)
    return xp.stack([too_many, wrong]).astype(logits.dtype)
