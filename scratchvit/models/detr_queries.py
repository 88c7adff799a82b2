"""Queries that only training has: with them a DETR converges in fewer epochs, and later they cost nothing.

In DETR one query of an image learns from an object, in the first epochs each time another one. Two remedies give the
same decoder, with the same weights, more to do on the features that it has anyhow:

    denoising        DN-DETR (Li et al., CVPR 2022, arXiv 2203.01305). True objects, with noise added to their boxes and
                     classes, are queries too, and each has its own object to restore: nothing is to be matched, so
                     nothing changes from epoch to epoch.
    query_groups     Group DETR (Chen et al., ICCV 2023, arXiv 2207.13085). K sets of N queries, each of which must find
                     every object, matched for itself: K queries learn from an object instead of one. Only the first
                     set is there in use.

    decoder's queries    [ noised objects, a copy after the other | queries of group 0 | group 1 | … ]       Q in all
                           M = copies · most objects in an image      N                    N

Nobody may look at what would tell: in the decoder's self-attention a set of queries sees itself alone (DN-DETR, §4.4,
eq. 7), but for the noised objects, which see group 0 too. Images with fewer objects than the batch's most are filled
up with queries that nobody sees and nothing is learned from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scratchvit.backend import Array, asarray
from scratchvit.tensor import Tensor

SMALLEST_SIDE = 1e-3        # of a noised box


@dataclass(frozen=True)
class NoisedObjects:
    """What the denoising queries are, on the host: for each of B images, `copies` times its objects.

    labels      int64 (B, M): classes, some of them wrong
    boxes       float32 (B, M, 4): cxcywh in 0 … 1, moved and resized
    objects     int64 (B, M): which object of its image each is a copy of, -1 for what only fills up
    copies      M is copies · the most objects in an image
    """

    labels: NDArray[np.int64]
    boxes: NDArray[np.float32]
    objects: NDArray[np.int64]
    copies: int


def noised_objects(
    targets: Sequence[Mapping[str, Any]], copies: int, num_classes: int, box_noise: float, label_noise: float,
    rng: np.random.Generator,
) -> NoisedObjects:  # fmt: skip
    """True objects with noise (DN-DETR §4.3).

    targets: for each image "labels" int (n,) and "boxes" (n, 4) cxcywh. box_noise: λ, by which a centre moves at most,
    in halves of the box's width and height, so that it stays inside, and by which sides grow or shrink at most.
    label_noise: γ, the share of the classes that are drawn anew.
    """
    most = max((len(target["labels"]) for target in targets), default=0)
    shape = (len(targets), copies, most)
    labels, boxes, objects = np.zeros(shape, np.int64), np.full((*shape, 4), 0.5, np.float32), np.full(shape, -1)
    for image, target in enumerate(targets):
        count = len(target["labels"])
        labels[image, :, :count], boxes[image, :, :count] = target["labels"], target["boxes"]
        objects[image, :, :count] = np.arange(count)
    labels = np.where(rng.random(shape) < label_noise, rng.integers(num_classes, size=shape), labels)
    moved, grown = box_noise * rng.uniform(-1, 1, (2, *shape, 2)).astype(np.float32)
    centre, sides = boxes[..., :2] + moved * boxes[..., 2:] / 2, boxes[..., 2:] * (1 + grown)
    boxes = np.concatenate([centre.clip(0, 1), sides.clip(SMALLEST_SIDE, 1)], axis=-1)
    in_a_row = len(targets), copies * most
    return NoisedObjects(labels.reshape(in_a_row), boxes.reshape(*in_a_row, 4), objects.reshape(in_a_row), copies)


def who_sees_whom(noised: NoisedObjects | None, queries: int, groups: int) -> Array | None:
    """bool (B, 1, Q, Q) or (Q, Q), True where a query (row) may look at a query (column); None: everywhere.

    queries: N, of each group.
    """
    if noised is None and groups == 1:
        return None
    sets = np.repeat(np.arange(groups), queries)
    if noised is None:
        return asarray(sets[:, None] == sets)
    M = noised.objects.shape[1]
    sets = np.concatenate([-1 - np.repeat(np.arange(noised.copies), M // noised.copies), sets])
    sees = (sets[:, None] == sets) | ((sets[:, None] < 0) & (sets == 0))                    # (Q, Q)
    real = np.pad(noised.objects >= 0, ((0, 0), (0, len(sets) - M)), constant_values=True)  # (B, Q)
    return asarray((sees & real[:, None, :])[:, None])                                      # (B, 1, Q, Q)


def split_outputs(layers: Sequence[dict[str, Tensor]], noised: NoisedObjects | None, queries: int) -> dict[str, Any]:
    """What each decoder layer says of all Q queries → what a detector gives.

    {"pred_logits" (B, N, classes), "pred_boxes" (B, N, 4), "aux_outputs"} of group 0; and, in training only,
    "group_outputs", a list of the same for the other groups, and "denoising", the same for the noised objects (B, M, …)
    with their "objects", int64 (B, M) on the host: which object of its image each has to restore, or -1.
    """
    total = layers[-1]["pred_boxes"].shape[1]
    first = 0 if noised is None else noised.objects.shape[1]

    def part(start: int, end: int) -> dict[str, Any]:
        if (start, end) == (0, total):
            *before, last = layers
        else:
            *before, last = ({name: value[:, start:end] for name, value in layer.items()} for layer in layers)
        return {**last, "aux_outputs": before}

    outputs, *others = (part(start, start + queries) for start in range(first, total, queries))
    if others:
        outputs["group_outputs"] = others
    if noised is not None:
        outputs["denoising"] = {**part(0, first), "objects": noised.objects}
    return outputs
