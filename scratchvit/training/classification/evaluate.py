"""Evaluation of a classifier: loss, accuracy, predictions and the confusion matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scratchvit import ops
from scratchvit.backend import Array, array_module, asarray, asnumpy
from scratchvit.errors import ScratchvitError
from scratchvit.kernels import updates
from scratchvit.models.interface import generates
from scratchvit.nn import Module, evaluating
from scratchvit.ops.loss import label_out_of_range
from scratchvit.parallel.communicator import ALONE, Communicator
from scratchvit.tensor import Tensor
from scratchvit.training.meter import as_array, cleared, over_ranks


def truth(model: Any, images: Any, labels: Any) -> Array:
    """The targets of a model for images (B, C, H, W): the labels (B,), which are on the host.

    For a generative model of images (iGPT), their tokens (B, N). Raises ScratchvitError for a label that is none of the
    model's classes: on a GPU, the loss itself could only become NaN.
    """
    if generates(model):
        return model.tokens(images)
    classes = model.config.num_classes
    wrong = label_out_of_range(labels, classes)
    if wrong is not None:
        raise ScratchvitError(
            f"label {wrong} of the data is not one of the model's {classes} classes, 0…{classes - 1}: correct the "
            "labels, or give the model num_classes to match"
        )
    return asarray(labels)


def answers_of(model: Any, images: Any) -> Any:
    """What a model answers, a Tensor or a tuple of them, in float32 inside `autocast` too."""
    answers = model(Tensor(images))
    return tuple(map(ops.to_float32, answers)) if isinstance(answers, tuple) else ops.to_float32(answers)


@dataclass
class Meter:
    """Running sums of loss and correct predictions over images. They stay on the device until they are read."""

    loss_sum: Array | float = 0.0
    correct: Array | float = 0.0    # with a prediction per token, each image adds its fraction of correct ones
    images: Array | int = 0

    def add(self, loss: Tensor, logits: Tensor, labels: Array, made: Array | None = None) -> None:
        """Add a batch: its mean loss, logits (B, C) and labels (B,); or, per token, (B, C, N) and (B, N).

        made: nothing is added if this is false, bool () on the device.
        """
        right = (logits.data.argmax(axis=1) == labels).reshape(len(labels), -1).mean(axis=1).sum()
        images = as_array(float(len(labels)))
        self.loss_sum = as_array(self.loss_sum, like=loss.data)
        self.correct, self.images = as_array(self.correct, like=right), as_array(self.images, like=images)
        updates.accumulate([(self.loss_sum, loss.data)], len(labels), made)
        updates.accumulate([(self.correct, right), (self.images, images)], 1, made)

    def read(self) -> Meter:
        """A copy with Python numbers. On the GPU this waits for the device."""
        return Meter(float(self.loss_sum), float(self.correct), int(self.images))

    def clear(self) -> None:
        """Begin a new epoch. The arrays stay the same, as a captured step adds to them."""
        self.loss_sum, self.correct, self.images = map(cleared, (self.loss_sum, self.correct, self.images))

    def columns(self, prefix: str) -> dict[str, float]:
        """{prefix + name: mean over the images}."""
        return {f"{prefix}loss": self.loss, f"{prefix}accuracy": self.accuracy}

    def shown(self) -> dict[str, str]:
        """What the progress bar shows."""
        return {"loss": f"{self.loss:.4f}", "acc": f"{self.accuracy:.1%}"}

    loss = property(lambda self: float(self.loss_sum) / max(1, int(self.images)), doc="mean loss over the images")
    accuracy = property(lambda self: float(self.correct) / max(1, int(self.images)), doc="fraction of correct ones")


@dataclass(frozen=True)
class Predictions:
    """The predictions of a model for the N images of a split, in order, as NumPy arrays."""

    meter: Meter                        # loss and accuracy over all images
    labels: NDArray[np.int64]           # (N,) the true classes
    predicted: NDArray[np.int64]        # (N,) the most probable class
    probability: NDArray[np.float32]    # (N,) its probability

    def confusion(self, num_classes: int) -> NDArray[np.int64]:
        """The confusion matrix (C, C) for C = num_classes: [i, j] counts images of class i that are predicted as j."""
        pairs = self.labels * num_classes + self.predicted
        return np.bincount(pairs, minlength=num_classes * num_classes).reshape(num_classes, num_classes)

    def confident_mistakes(self, count: int) -> NDArray[np.intp]:
        """Indices of the misclassified images, highest probability first, at most `count`."""
        wrong = np.flatnonzero(self.predicted != self.labels)
        return wrong[np.argsort(-self.probability[wrong], kind="stable")[:count]]


def class_scores(confusion: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    """Precision, recall and F1 of each class, {"precision", "recall", "F1"}: (C,), from a confusion matrix (C, C).

    With n_ij images of class i that are predicted as j, precision is n_ii / Σ_j n_ji, recall is n_ii / Σ_j n_ij, and F1
    is their harmonic mean. They are NaN where the denominator is 0.
    """
    correct, actual, predicted = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)
    with np.errstate(invalid="ignore"):
        return {"precision": correct / predicted, "recall": correct / actual, "F1": 2 * correct / (predicted + actual)}


def evaluate(
    model: Module,
    batches: Iterable[Any],
    each_answer: Callable[[Array, Array], None] = lambda logits, labels: None,
    ranks: Communicator = ALONE,
) -> Meter:
    """Loss (cross-entropy) and accuracy, as Python numbers, over batches (images (B, C, H, W), labels (B,), …).

    `each_answer` is called with the logits (B, C) and the labels of every batch, on the device. The model runs in
    evaluation mode; afterwards its mode is restored. ranks: each has batches of its own, or none; the meter is that of
    all their images.
    """
    meter = Meter()
    with evaluating(model):
        for images, labels, *_ in batches:
            labels = truth(model, images, labels)
            logits = answers_of(model, images)
            meter.add(ops.cross_entropy(logits, labels), logits, labels)
            each_answer(logits.data, labels)
    return over_ranks(meter.read(), ranks)


def predict(model: Module, batches: Iterable[Any], ranks: Communicator = ALONE) -> Predictions:
    """`evaluate`, and the predicted class of every image. A generative model (iGPT) has no predicted classes.

    The predictions are copied from the device once, at the end. ranks: the batches of the first come first, and so on;
    all ranks get the predictions of all.
    """
    answers: list[tuple[Array, Array, Array]] = []

    def keep(logits: Array, labels: Array) -> None:
        if logits.ndim > 2:
            return      # a prediction per pixel would be too many to keep
        xp = array_module(logits)
        highest = logits.max(axis=1, keepdims=True)
        probability = 1 / xp.exp(logits - highest).sum(axis=1)      # softmax of the highest logit: exp(0) / sum
        answers.append((labels, logits.argmax(axis=1), probability))

    meter = evaluate(model, batches, keep, ranks)
    own: Iterable[np.ndarray] = np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32)
    if answers:
        own = (asnumpy(array_module(parts[0]).concatenate(parts)) for parts in zip(*answers))
    return Predictions(meter, *map(ranks.gather_rows, own))
