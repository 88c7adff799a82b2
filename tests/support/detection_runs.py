"""Small runs for the tests of detection: scenes of 48 × 48, three steps in an epoch."""

import contextlib

import pytest

from scratchvit.detection import load_detection, run_data
from scratchvit.detection.config import DetectConfig
from scratchvit.detection.data.scenes import load_scenes

# 70,000 weights, a map of 6 × 6 of a scene of 48 × 48.
SIZES = {
    "layers": (1, 1, 1, 1), "channels": (8, 16, 32, 32), "hidden_dim": 32, "nheads": 4, "enc_layers": 1,
    "dec_layers": 2, "dim_feedforward": 64, "num_queries": 10, "dropout": 0.0,
}
CONFIG = DetectConfig(model_args=SIZES, batch_size=4, epochs=2, lr=1e-3)

# Everything that chance or memory could make differ after a resume.
EVERYTHING = CONFIG.replace(
    model_args={**SIZES, "dropout": 0.1, "denoising": 1, "query_groups": 2}, epochs=3, ema_decay=0.9, save_every=2,
    short_side=48, multi_scale=True, flip=True, color_jitter=0.2, lr_backbone=0.5,
)


@contextlib.contextmanager
def small_scenes():
    """Inside, "scenes" are small and few; folders are read as ever."""

    def load(data, *, seed, **options):
        if data == "scenes":
            pytest.importorskip("sklearn")      # whose digits they are made of
            return load_scenes(48, seed=seed, train=12, val=4, test=4)
        return load_detection(data, seed=seed, **options)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(run_data, "load_detection", load)
        yield


def quiet(line):
    """No log."""
