"""How good is a model on a split?"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scratchvit import ops
from scratchvit.backend import Array, array_module, asarray, asnumpy
from scratchvit.models.interface import generates
from scratchvit.nn import Module, evaluating
from scratchvit.tensor import Tensor


def truth(model: Any, images: Any, labels: Any) -> Array:
    """What the answers of a model to images (B, C, H, W) are compared with: the labels (B,).

    Of a model that learns the images themselves (`generative`: iGPT), their tokens (B, N).
    """
    return model.tokens(images) if generates(model) else asarray(labels)


@dataclass
class Meter:
    """Sums over images of loss and correct answers. They stay on the device until they are read."""

    loss_sum: Array | float = 0.0
    correct: Array | float = 0.0    # of an image with many answers, the share of the correct ones
    images: int = 0

    def add(self, loss: Tensor, logits: Tensor, labels: Array) -> None:
        """Count a batch: its mean loss, its logits (B, C) and its labels (B,); or (B, C, N) and (B, N)."""
        right = (logits.data.argmax(axis=1) == labels).reshape(len(labels), -1)
        self.loss_sum = self.loss_sum + loss.data * len(labels)
        self.correct = self.correct + right.mean(axis=1).sum()
        self.images += len(labels)

    def read(self) -> Meter:
        """The same as plain numbers. On the GPU this waits for the device."""
        return Meter(float(self.loss_sum), float(self.correct), self.images)

    def columns(self, prefix: str) -> dict[str, float]:
        """{prefix + name: mean over the images}."""
        return {f"{prefix}loss": self.loss, f"{prefix}accuracy": self.accuracy}

    def shown(self) -> dict[str, str]:
        """What the progress bar shows."""
        return {"loss": f"{self.loss:.4f}", "acc": f"{self.accuracy:.1%}"}

    loss = property(lambda self: float(self.loss_sum) / max(1, self.images), doc="mean loss of an image")
    accuracy = property(lambda self: float(self.correct) / max(1, self.images), doc="share of correct answers, 0 … 1")


@dataclass(frozen=True)
class Predictions:
    """What a model says of the N images of a split, in their order; plain NumPy arrays."""

    meter: Meter                        # loss and accuracy over them all
    labels: NDArray[np.int64]           # (N,) the truth
    predicted: NDArray[np.int64]        # (N,) the likeliest class
    probability: NDArray[np.float32]    # (N,) that the model gives it

    def confusion(self, num_classes: int) -> NDArray[np.int64]:
        """(C, C): [i, j] counts the images of class i that were taken for class j; C, the model's number of classes."""
        pairs = self.labels * num_classes + self.predicted
        return np.bincount(pairs, minlength=num_classes * num_classes).reshape(num_classes, num_classes)

    def confident_mistakes(self, count: int) -> NDArray[np.intp]:
        """Places of the wrong answers, the surest first, at most `count`."""
        wrong = np.flatnonzero(self.predicted != self.labels)
        return wrong[np.argsort(-self.probability[wrong], kind="stable")[:count]]


def class_scores(confusion: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    """{"precision", "recall", "F1"}: (C,) of each class, from a confusion matrix (C, C); NaN where there is none.

    With n_ij images of class i taken for j, precision is n_ii / Σ_j n_ji, recall n_ii / Σ_j n_ij, F1 their harmonic
    mean.
    """
    right, of_class, taken_for = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)
    with np.errstate(invalid="ignore"):
        return {"precision": right / taken_for, "recall": right / of_class, "F1": 2 * right / (taken_for + of_class)}


def evaluate(
    model: Module,
    batches: Iterable[Any],
    each_answer: Callable[[Array, Array], None] = lambda logits, labels: None,
) -> Meter:
    """Loss (cross-entropy) and accuracy over batches (images (B, C, H, W), labels (B,), …); read as plain numbers.

    `each_answer` is given the logits (B, C) and labels of every batch, on the device. The model's mode is what it was
    afterwards.
    """
    meter = Meter()
    with evaluating(model):
        for images, labels, *_ in batches:
            labels = truth(model, images, labels)
            logits = model(Tensor(images))
            meter.add(ops.cross_entropy(logits, labels), logits, labels)
            each_answer(logits.data, labels)
    return meter.read()


def predict(model: Module, batches: Iterable[Any]) -> Predictions:
    """`evaluate`, and the answer to every image; none of a model that answers to pixels, as iGPT.

    The answers are read from the device once, at the end.
    """
    answers: list[tuple[Array, Array, Array]] = []

    def keep(logits: Array, labels: Array) -> None:
        if logits.ndim > 2:
            return      # one answer to each pixel is too many to keep
        xp = array_module(logits)
        highest = logits.max(axis=1, keepdims=True)
        probability = 1 / xp.exp(logits - highest).sum(axis=1)      # of the likeliest: exp(0) over the sum of all
        answers.append((labels, logits.argmax(axis=1), probability))

    meter = evaluate(model, batches, keep)
    if not answers:
        return Predictions(meter, np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))
    labels, predicted, probability = (asnumpy(array_module(parts[0]).concatenate(parts)) for parts in zip(*answers))
    return Predictions(meter, labels, predicted, probability)
