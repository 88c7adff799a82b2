"""The estimate of how long a run will take."""

import numpy as np
import pytest

from scratchvit.data import ArrayDataset
from scratchvit.training import estimate


def pictures(count):
    return ArrayDataset(np.zeros((count, 16, 16, 3), np.uint8), np.zeros(count, int), ["a", "b"])


def test_a_step_that_takes_two_seconds(device, monkeypatch):
    clock = iter([0, 100, 200, 202])        # the first step, which is not counted, and the second
    monkeypatch.setattr(estimate.time, "perf_counter", lambda: next(clock))
    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 2}
    seconds = estimate.seconds_of_training("vit_tiny_patch16_224", sizes, 4, 3, pictures(20), pictures(6))
    assert seconds == pytest.approx(3 * (20 + 6 / 3) / 4 * 2)
