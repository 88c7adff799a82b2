"""From what a detector gives to what was found: a class, a score and a box in pixels for every object query."""

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
    """What the last decoder layer found in each image: {"scores" (N,), "labels" (N,), "boxes" (N, 4)}.

    outputs: of a DETR, {"pred_logits" (B, N, classes + 1), "pred_boxes" (B, N, 4)}, Tensors. sizes: (height, width) of
    each image as boxes are to count its pixels: the original's for COCO's figures, padding never included.
    Row n is what query n answers. scores: float32, the probability of its likeliest class; "no object" takes its share
    of the probability and is never chosen, so that a query that holds nothing scores low. labels: int64, from 0 up to
    but not classes. boxes: float32, left, top, right, bottom, not cut at the image's borders. The arrays are on the
    host: predictions leave the device here, in two transfers. focal: classes are told by sigmoids, pred_logits
    (B, N, classes), as of a model whose configuration says so.
    Raises ScratchvitError unless there is one size for each image.
    """
    logits, boxes = asnumpy(outputs["pred_logits"].data), asnumpy(outputs["pred_boxes"].data)
    if len(sizes) != len(logits) or np.shape(sizes) != (len(logits), 2):
        raise ScratchvitError(f"{len(logits)} images need a (height, width) each, sizes have shape {np.shape(sizes)}")
    # (B, N, classes)
    probabilities = logistic(logits) if focal else np.exp(log_probabilities(logits, -1))[..., :-1]
    scores, labels = probabilities.max(axis=-1), probabilities.argmax(axis=-1)          # each (B, N)
    height, width = np.asarray(sizes, boxes.dtype).T.reshape(2, -1, 1)                  # each (B, 1)
    pixels = box_cxcywh_to_xyxy(boxes) * np.stack([width, height, width, height], axis=-1)
    found = zip(scores, labels.astype(np.int64), pixels)
    return [dict(zip(("scores", "labels", "boxes"), of_an_image)) for of_an_image in found]
