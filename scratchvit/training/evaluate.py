"""How good is a model on a split?"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from scratchvit import ops
from scratchvit.backend import Array, asarray
from scratchvit.nn import Module
from scratchvit.tensor import Tensor, no_grad


@dataclass
class Meter:
    """Sums over images of loss and correct answers. They stay on the device until they are read."""

    loss_sum: Array | float = 0.0
    correct: Array | int = 0
    images: int = 0

    def add(self, loss: Tensor, logits: Tensor, labels: Array) -> None:
        """Count a batch: its mean loss, its logits (B, C) and its labels (B,)."""
        self.loss_sum = self.loss_sum + loss.data * len(labels)
        self.correct = self.correct + (logits.data.argmax(axis=1) == labels).sum()
        self.images += len(labels)

    def read(self) -> Meter:
        """The same as plain numbers. On the GPU this waits for the device."""
        return Meter(float(self.loss_sum), int(self.correct), self.images)

    loss = property(lambda self: float(self.loss_sum) / max(1, self.images), doc="mean loss of an image")
    accuracy = property(lambda self: int(self.correct) / max(1, self.images), doc="share of correct answers, 0 … 1")


def evaluate(model: Module, batches: Iterable[Any], each_batch: Callable[[], None] = lambda: None) -> Meter:
    """Loss (cross-entropy) and accuracy over batches of (images (B, C, H, W), labels (B,)); read as plain numbers.

    `each_batch` is called after every batch, and may raise to leave early. The model's mode is what it was afterwards.
    """
    meter = Meter()
    was_training = model.training
    model.eval()
    try:
        with no_grad():
            for images, labels in batches:
                labels = asarray(labels)
                logits = model(Tensor(images))
                meter.add(ops.cross_entropy(logits, labels), logits, labels)
                each_batch()
    finally:
        model.train(was_training)
    return meter.read()
