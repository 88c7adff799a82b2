"""From the outputs of a detector to detections: classes, scores and boxes in pixels. Symbols: see models/detr.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from scratchvit.backend import asnumpy
from scratchvit.detection.boxes import box_cxcywh_to_xyxy
from scratchvit.errors import ScratchvitError
from scratchvit.kernels.logistic import logistic
from scratchvit.ops.attention import log_probabilities
from scratchvit.parallel.communicator import Communicator

_NONE = {       # no detections, in the form in which `postprocess` returns those of an image
    "scores": np.zeros(0, np.float32), "labels": np.zeros(0, np.int64), "boxes": np.zeros((0, 4), np.float32),
    "queries": np.zeros(0, np.int64),
}


def postprocess(
    outputs: Mapping[str, Any], sizes: Sequence[tuple[int, int]], focal: bool = False
) -> list[dict[str, np.ndarray]]:
    """The detections of each image: {"scores" (N,), "labels" (N,), "boxes" (N, 4), "queries" (N,)}.

    outputs: of a DETR, {"pred_logits" (B, N, num_classes + 1), "pred_boxes" (B, N, 4)}, Tensors. sizes: (height, width)
    of each image, without padding, in the pixels that boxes are to have: those of the original for COCO's evaluation.
    Row n is the prediction of query n: its most probable class except "no object". "No object" keeps its share of the
    probability, so that a query without an object has a low score.
    focal: for classes by sigmoids, pred_logits (B, N, num_classes), as the model's configuration says. A query may then
    have several classes, or none: the rows are the N most probable of all N · num_classes pairs, best first, as in the
    code of Deformable DETR and DAB-DETR (which take the best 100 or 300).
    scores: float32, probabilities. labels: int64, 0 … num_classes - 1. boxes: float32, left, top, right, bottom, not
    clipped to the image. queries: int64, the query of each row. All arrays are on the host; two transfers bring them
    there.
    Raises ScratchvitError unless there is one size for each image.
    """
    logits, boxes = asnumpy(outputs["pred_logits"].data), asnumpy(outputs["pred_boxes"].data)
    if len(sizes) != len(logits) or np.shape(sizes) != (len(logits), 2):
        raise ScratchvitError(f"{len(logits)} images need a (height, width) each, sizes have shape {np.shape(sizes)}")
    probabilities = class_probabilities(logits, focal)                                  # (B, N, num_classes)
    B, N, num_classes = probabilities.shape
    if focal:
        pairs = probabilities.reshape(B, -1)                                            # (B, N · num_classes)
        best = np.argsort(pairs, axis=1)[:, : -N - 1 : -1]      # NaN comes first, so that it is noticed
        queries, labels = np.divmod(best, num_classes)                                      # each (B, N)
        scores = np.take_along_axis(pairs, best, axis=1)
        boxes = np.take_along_axis(boxes, queries[..., None], axis=1)                   # (B, N, 4)
    else:
        scores, labels = probabilities.max(axis=-1), probabilities.argmax(axis=-1)
        queries = np.broadcast_to(np.arange(N), (B, N))
    height, width = np.asarray(sizes, boxes.dtype).T.reshape(2, -1, 1)                  # each (B, 1)
    pixels = box_cxcywh_to_xyxy(boxes) * np.stack([width, height, width, height], axis=-1)
    found = zip(scores, labels.astype(np.int64), pixels, queries.astype(np.int64))
    return [dict(zip(("scores", "labels", "boxes", "queries"), of_an_image)) for of_an_image in found]


def joined(found: Mapping[int, Mapping[str, np.ndarray]], ranks: Communicator) -> dict[int, dict[str, np.ndarray]]:
    """The detections of all ranks, each with those of its own images, {image id: as returned by `postprocess`}.

    All ranks get all of them, those in the images of rank 0 first. A rank may have no images.
    """
    if ranks.size == 1:
        return {image_id: dict(of_image) for image_id, of_image in found.items()}
    own = list(found.values())
    ids, lengths = (
        ranks.gather_rows(np.array(numbers, np.int64)).tolist()
        for numbers in (list(found), [len(of_image["scores"]) for of_image in own])
    )
    ends = np.cumsum(lengths)[:-1]
    of_all = {
        name: np.split(ranks.gather_rows(np.concatenate([none, *(of_image[name] for of_image in own)])), ends)
        for name, none in _NONE.items()
    }
    return {image_id: {name: of_all[name][place] for name in of_all} for place, image_id in enumerate(ids)}


def class_probabilities(logits: np.ndarray, focal: bool) -> np.ndarray:
    """pred_logits (…, num_classes + 1), with focal (…, num_classes), on the host → probabilities (…, num_classes)."""
    return logistic(logits) if focal else np.exp(log_probabilities(logits, -1))[..., :-1]
