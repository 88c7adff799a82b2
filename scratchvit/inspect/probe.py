"""Linear probe: the accuracy of a linear classifier on the features of each layer (iGPT, Chen et al., 2020, §2.4).

The model is not changed. A softmax regression is trained on the features of each layer; its accuracy says how much the
layer knows about the classes, although the model was trained without labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scratchvit.backend import asnumpy
from scratchvit.errors import ScratchvitError
from scratchvit.models.interface import PixelModel
from scratchvit.nn import Module, evaluating

DECAYS = (1e-1, 1e-2, 1e-3, 1e-4)       # weight decays; the best on the validation split is used for each layer
STEPS = 300                             # largest number of L-BFGS steps


@dataclass(frozen=True)
class LayerProbe:
    """The result of a linear probe of one layer. Accuracies are from 0 to 1."""

    layer: int              # l of f^l: 0 before the first block, L after the last
    decay: float            # of DECAYS, the best on the validation split
    val_accuracy: float
    test_accuracy: float


@dataclass(frozen=True)
class Features:
    """The features of N images in every layer, each (N, D), and the labels (N,)."""

    layers: list[NDArray[np.float32]]
    labels: NDArray[np.int64]


def features(
    model: Module, batches: Iterable[Any], each_batch: Callable[[int], Any] = lambda images: None
) -> Features:
    """The features of every layer for batches (images (B, C, H, W), labels (B,), …). The mode of the model is kept.

    `each_batch` is called with the size of each batch. Raises ScratchvitError for a model other than iGPT.
    """
    if not isinstance(model, PixelModel):
        raise ScratchvitError(
            f"a {type(model).__name__} has no features layer by layer: the linear probe is for iGPT (--model igpt_…)"
        )
    parts, labels = [], []
    with evaluating(model):
        for images, truth, *_ in batches:
            parts.append([asnumpy(layer.data) for layer in model.layer_features(images)])
            labels.append(truth)
            each_batch(len(truth))
    return Features([np.concatenate(layer) for layer in zip(*parts)], np.concatenate(labels))


def linear_probe(train: Features, val: Features, test: Features, num_classes: int) -> list[LayerProbe]:
    """A linear probe of every layer: fitted on train, with the weight decay chosen on val, and evaluated on test."""
    found = []
    for number, (x, x_val, x_test) in enumerate(zip(train.layers, val.layers, test.layers, strict=True)):
        mean, std = x.mean(axis=0), x.std(axis=0) + 1e-6
        x, x_val, x_test = ((part - mean) / std for part in (x, x_val, x_test))
        best: tuple[float, float, float] | None = None
        for decay in DECAYS:
            weight, bias = softmax_regression(x, train.labels, num_classes, decay)
            val_accuracy, test_accuracy = (
                float(((part @ weight + bias).argmax(axis=1) == labels).mean())
                for part, labels in ((x_val, val.labels), (x_test, test.labels))
            )
            if best is None or val_accuracy > best[1]:
                best = decay, val_accuracy, test_accuracy
        assert best is not None
        found.append(LayerProbe(number, *best))
    return found


def softmax_regression(
    x: NDArray[Any], labels: NDArray[np.int64], num_classes: int, decay: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The (weight (D, K), bias (K,)) that minimise mean cross-entropy + decay / 2 · |weight|², by L-BFGS.

    With p = softmax(x W + b) and y the labels one-hot:  dW = xᵀ (p - y) / N + decay W,  db = Σ (p - y) / N.
    """
    from scipy import optimize, special  # slow to import

    x = x.astype(np.float64)
    count, dim = x.shape
    one_hot = np.eye(num_classes)[labels]

    def loss(theta: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weight, bias = theta[:-num_classes].reshape(dim, num_classes), theta[-num_classes:]
        log_p = special.log_softmax(x @ weight + bias, axis=1)
        rest = (np.exp(log_p) - one_hot) / count
        gradient = np.concatenate([(x.T @ rest + decay * weight).ravel(), rest.sum(axis=0)])
        return float(-(one_hot * log_p).sum() / count + decay / 2 * (weight**2).sum()), gradient

    begin = np.zeros((dim + 1) * num_classes)
    theta = optimize.minimize(loss, begin, jac=True, method="L-BFGS-B", options={"maxiter": STEPS}).x
    return theta[:-num_classes].reshape(dim, num_classes), theta[-num_classes:]
