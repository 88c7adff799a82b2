"""The loss of a training step for measurements, which need no labels: any will do, as they take the same time."""

from __future__ import annotations

from typing import Any

import numpy as np

from scratchvit import ops
from scratchvit.backend import Array, asarray
from scratchvit.models.interface import config_of, detects, generates
from scratchvit.tensor import Tensor


def training_loss(model: Any, images: Array) -> Tensor:
    """The loss of a batch for made-up labels. That of a detector is without matching, which depends on values."""
    if detects(config_of(model)):
        return _of_all_boxes(model(Tensor(images)))
    labels: Array = np.zeros(len(images), np.int64)
    if generates(model):     # iGPT: the targets are the images themselves
        labels = model.tokens(images)
    return ops.cross_entropy(model(Tensor(images)), labels)


def _of_all_boxes(outputs: dict[str, Any]) -> Tensor:
    """A loss of all classes and boxes of a detector."""
    losses = []
    for layer in (outputs, *outputs["aux_outputs"]):
        logits, boxes = layer["pred_logits"], layer["pred_boxes"]
        losses.append(ops.cross_entropy(logits.transpose(1, 2), np.zeros(boxes.shape[:2], np.int64)))
        losses.append(ops.l1_loss(boxes, asarray(np.zeros(boxes.shape, boxes.dtype))))
    return sum(losses[1:], losses[0])
