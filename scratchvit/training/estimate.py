"""How long will a run take on this machine? Measured before it starts, on random images."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from scratchvit import backend
from scratchvit.costs.step import training_loss
from scratchvit.data import Dataset
from scratchvit.models import create_model

VALIDATION = 1 / 3      # time of an image in validation, which needs no backward, relative to one in training


def seconds_of_training(
    model: str, model_args: dict[str, Any], batch_size: int, epochs: int, train: Dataset, val: Dataset
) -> float:
    """Estimate the seconds that the epochs of a classifier take, from two steps of a new model of the same sizes.

    The first step, which has to get memory, is not counted. Reading and augmenting pictures is left out: it goes on
    beside the steps, and takes time of its own only if it is slower than they are.
    """
    fresh: Any = create_model(model, seed=0, **model_args).train()
    height, width, channels = train.image_shape
    images = np.random.default_rng(0).standard_normal((batch_size, channels, height, width), np.float32)
    for _ in range(2):
        begun = time.perf_counter()
        loss = training_loss(fresh, backend.asarray(images))
        fresh.zero_grad()
        loss.backward()
        loss.item()         # on a GPU, waits for the step
        seconds = time.perf_counter() - begun
    return epochs * (len(train) + VALIDATION * len(val)) * seconds / batch_size
