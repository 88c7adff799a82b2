"""Additional queries in training, with which DETR converges in fewer epochs. They add no cost at inference.

In DETR only one query of an image learns from an object, and in the first epochs it is a different one each time. Both
methods here give the decoder more queries for the same image features; its weights stay the same. Symbols are those of
detr.py.

    denoising        DN-DETR (Li et al., CVPR 2022, arXiv 2203.01305). True objects with noise added to their boxes and
                     classes are additional queries. Each has to restore its own object, so it needs no matching, which
                     can change from epoch to epoch.
    query_groups     Group DETR (Chen et al., ICCV 2023, arXiv 2207.13085). K groups of N queries. Each group has to
                     find every object and is matched separately, so K queries learn from an object instead of one.
                     Only the first group is used after training.

    queries of the decoder    [ noised objects, copy after copy | group 0 | group 1 | … ]       Q = M + K·N
                                M = copies · most objects in an image     N         N

A query must not attend to one that reveals its target: the decoder's self-attention is restricted to the queries of the
same copy or group (DN-DETR, §4.4, eq. 7), except that noised objects may also attend to group 0. Images with fewer
objects than the maximum of the batch get padding queries, which are masked and have no loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scratchvit.backend import Array, asarray
from scratchvit.tensor import Tensor

SMALLEST_SIDE = 1e-3        # minimum width and height of a noised box


@dataclass(frozen=True)
class NoisedObjects:
    """The denoising queries of a batch, on the host: `copies` copies of the objects of each image.

    labels      int64 (B, M): classes, some of them wrong
    boxes       float32 (B, M, 4): cxcywh in 0 … 1, shifted and resized
    objects     int64 (B, M): the index of the object to restore among those of the image, -1 for padding queries
    copies      M is copies · the largest number of objects in an image of the batch
    """

    labels: NDArray[np.int64]
    boxes: NDArray[np.float32]
    objects: NDArray[np.int64]
    copies: int


def noised_objects(
    targets: Sequence[Mapping[str, Any]], copies: int, num_classes: int, box_noise: float, label_noise: float,
    rngs: Sequence[np.random.Generator], most: int | None = None,
) -> NoisedObjects:
    """True objects with noise (DN-DETR §4.3).

    targets: for each image "labels" int (n,) and "boxes" (n, 4) cxcywh.
    box_noise: λ, the maximum shift of a centre relative to half the box's width and height (so it stays inside), and
        the maximum relative change of the width and height.
    label_noise: γ, the fraction of the classes that are replaced by classes drawn uniformly at random.
    rngs: a generator for each image, so that its noise does not depend on the other images.
    most: the queries of a copy; by default the largest number of objects in an image.
    """
    counts = [len(target["labels"]) for target in targets]
    shape = (len(targets), copies, max(counts, default=0) if most is None else most)
    labels, boxes, objects = np.zeros(shape, np.int64), np.full((*shape, 4), 0.5, np.float32), np.full(shape, -1)
    for image, (target, count, rng) in enumerate(zip(targets, counts, rngs, strict=True)):
        own = copies, count
        drawn = rng.integers(num_classes, size=own)
        labels[image, :, :count] = np.where(rng.random(own) < label_noise, drawn, np.asarray(target["labels"]))
        true = np.asarray(target["boxes"], np.float32).reshape(count, 4)
        shift, growth = box_noise * rng.uniform(-1, 1, (2, *own, 2)).astype(np.float32)
        centre, sides = true[:, :2] + shift * true[:, 2:] / 2, true[:, 2:] * (1 + growth)
        boxes[image, :, :count] = np.concatenate([centre.clip(0, 1), sides.clip(SMALLEST_SIDE, 1)], axis=-1)
        objects[image, :, :count] = np.arange(count)
    flat = len(targets), copies * shape[2]                                                  # (B, copies, most) → (B, M)
    return NoisedObjects(labels.reshape(flat), boxes.reshape(*flat, 4), objects.reshape(flat), copies)


def self_attention_mask(noised: NoisedObjects | None, queries: int, groups: int) -> Array | None:
    """The mask of the decoder's self-attention: bool (B, 1, Q, Q) or (Q, Q), or None if there are no restrictions.

    True where a query (row) may attend to another (column). queries: N, of each group; groups: K.
    """
    if noised is None and groups == 1:
        return None
    sets = np.repeat(np.arange(groups), queries)
    if noised is None:
        return asarray(sets[:, None] == sets)
    M = noised.objects.shape[1]
    sets = np.concatenate([-1 - np.repeat(np.arange(noised.copies), M // noised.copies), sets])
    allowed = (sets[:, None] == sets) | ((sets[:, None] < 0) & (sets == 0))                 # (Q, Q)
    real = np.pad(noised.objects >= 0, ((0, 0), (0, len(sets) - M)), constant_values=True)  # (B, Q)
    return asarray((allowed & real[:, None, :])[:, None])                                   # (B, 1, Q, Q)


def split_outputs(layers: Sequence[dict[str, Tensor]], noised: NoisedObjects | None, queries: int) -> dict[str, Any]:
    """Split the predictions of each decoder layer for all Q queries into the outputs of a model.

    These are {"pred_logits" (B, N, num_logits), "pred_boxes" (B, N, 4), "aux_outputs"} of group 0, and in training
    only: "group_outputs", a list of the same for the other groups, and "denoising", the same for the noised objects
    (B, M, …), with "objects", int64 (B, M) on the host: the index of the object to restore in its image, or -1.
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
