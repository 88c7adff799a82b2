"""From what a detector gives to what was found: classes, scores and boxes in pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from scratchvit.backend import asnumpy
from scratchvit.detection.boxes import box_cxcywh_to_xyxy
from scratchvit.errors import ScratchvitError
from scratchvit.ops.attention import log_probabilities
from scratchvit.ops.elementwise import logistic


def postprocess(
    outputs: Mapping[str, Any], sizes: Sequence[tuple[int, int]], focal: bool = False
) -> list[dict[str, np.ndarray]]:
    """What the last decoder layer found in each image: {"scores" (N,), "labels" (N,), "boxes" (N, 4), "queries" (N,)}.

    outputs: of a DETR, {"pred_logits" (B, N, classes + 1), "pred_boxes" (B, N, 4)}, Tensors. sizes: (height, width) of
    each image as boxes are to count its pixels: the original's for COCO's figures, padding never included.
    Row n is what query n answers: its likeliest class. "No object" takes its share of the probability and is never
    chosen, so that a query that holds nothing scores low.
    focal: classes are told by sigmoids, pred_logits (B, N, classes), as of a model whose configuration says so. A query
    may then hold several classes, and none: the rows are the N likeliest of all N · classes pairs, best first, as for
    the authors of Deformable DETR and DAB-DETR (who take the best 100, or 300).
    scores: float32, the probability. labels: int64, from 0 up to but not classes. boxes: float32, left, top, right,
    bottom, not cut at the image's borders. queries: int64, whose answer a row is. The arrays are on the host:
    predictions leave the device here, in two transfers.
    Raises ScratchvitError unless there is one size for each image.
    """
    logits, boxes = asnumpy(outputs["pred_logits"].data), asnumpy(outputs["pred_boxes"].data)
    if len(sizes) != len(logits) or np.shape(sizes) != (len(logits), 2):
        raise ScratchvitError(f"{len(logits)} images need a (height, width) each, sizes have shape {np.shape(sizes)}")
    probabilities = class_probabilities(logits, focal)                                  # (B, N, classes)
    B, N, classes = probabilities.shape
    if focal:
        pairs = probabilities.reshape(B, -1)                                            # (B, N · classes)
        best = np.argsort(pairs, axis=1)[:, : -N - 1 : -1]      # what is no number comes first, so that it is noticed
        queries, labels = np.divmod(best, classes)                                      # each (B, N)
        scores = np.take_along_axis(pairs, best, axis=1)
        boxes = np.take_along_axis(boxes, queries[..., None], axis=1)                   # (B, N, 4)
    else:
        scores, labels = probabilities.max(axis=-1), probabilities.argmax(axis=-1)
        queries = np.broadcast_to(np.arange(N), (B, N))
    height, width = np.asarray(sizes, boxes.dtype).T.reshape(2, -1, 1)                  # each (B, 1)
    pixels = box_cxcywh_to_xyxy(boxes) * np.stack([width, height, width, height], axis=-1)
    found = zip(scores, labels.astype(np.int64), pixels, queries.astype(np.int64))
    return [dict(zip(("scores", "labels", "boxes", "queries"), of_an_image)) for of_an_image in found]


def class_probabilities(logits: np.ndarray, focal: bool) -> np.ndarray:
    """pred_logits (…, classes + 1), with focal (…, classes), on the host → probabilities (…, classes)."""
    return logistic(logits) if focal else np.exp(log_probabilities(logits, -1))[..., :-1]
