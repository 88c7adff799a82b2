"""Random objects and predictions for the matcher and the criterion, and their costs written out."""

import numpy as np

from scratchvit.backend import asarray
from scratchvit.detection.losses import Output
from scratchvit.tensor import Tensor
from tests.support.seeds import seeded

CLASSES = 3


def random_targets(counts, seed, classes=CLASSES):
    rng = seeded(seed)
    return [
        {
            "labels": rng.integers(0, classes, n), "boxes": rng.uniform(0.1, 0.9, (n, 4)).astype(np.float32),
            "image_id": 1000 + i,
        }
        for i, n in enumerate(counts)
    ]


def cost_of(logits, box, label, target, weights):
    """One query's numbers against one object's, written out in Python's float."""
    p = np.exp(logits.astype(float)) / np.exp(logits.astype(float)).sum()
    a, b = ([c[0] - c[2] / 2, c[1] - c[3] / 2, c[0] + c[2] / 2, c[1] + c[3] / 2] for c in (box.astype(float), target))

    def area(x0, y0, x1, y1):
        return max(0, x1 - x0) * max(0, y1 - y0)

    both = area(max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
    either = area(*a) + area(*b) - both
    around = area(min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3]))
    giou = both / either - (around - either) / around
    return -weights[0] * p[label] + weights[1] * np.abs(box.astype(float) - target).sum() - weights[2] * giou


KINDS = ("ce", "bbox", "giou")


def random_layers(layers, images, queries, seed, classes=CLASSES, dtype=np.float32):
    """Arrays logits (L, B, Q, classes + 1) and boxes (L, B, Q, 4)."""
    rng = seeded(seed)
    logits = 2 * rng.standard_normal((layers, images, queries, classes + 1))
    return logits.astype(dtype), rng.uniform(0.1, 0.9, (layers, images, queries, 4)).astype(dtype)


def as_outputs(logits, boxes):
    """The dict that a model gives, of Tensors (or what is given) with the layer as the first axis."""
    layers = [{"pred_logits": l, "pred_boxes": b} for l, b in zip(logits, boxes)]
    return {**layers[-1], "aux_outputs": layers[:-1]}


def decoder(layer):
    return Output("decoder", layer)


def leaves(logits, boxes):
    return [Tensor(asarray(x), requires_grad=True) for x in (logits, boxes)]
