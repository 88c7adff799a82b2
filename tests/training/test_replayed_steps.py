"""Steps that are captured and replayed on a GPU train, bit for bit, as steps of single operations do."""

from typing import Any

import numpy as np
import pytest

import scratchvit as sv
from scratchvit import ops, optim
from scratchvit.backend import asarray
from scratchvit.random import Generator
from scratchvit.replay import WARM_UP
from scratchvit.tensor import Tensor
from scratchvit.training.config import TrainConfig
from scratchvit.training.step import LearningStep
from tests.support.seeds import seeded

pytestmark = pytest.mark.usefixtures("cuda")

STEPS = 50
DROPS: dict[str, Any] = {"drop_path_rate": 0.2}
# Small models of each family, with what is drawn at random in it.
MODELS: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": {
        "img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2, "proj_drop_rate": 0.1,
        "attn_drop_rate": 0.1, **DROPS,
    },
    "swin_tiny_patch4_window7_224": {
        "img_size": 32, "window_size": 4, "embed_dim": 16, "depths": (2, 2), "num_heads": (1, 2), **DROPS,
    },
    "resnet18": {"img_size": 32, "layers": (1, 1, 1, 1), "channels": (8, 8, 16, 16)},
    "mvitv2_tiny": {"img_size": 32, "embed_dim": 16, "depths": (1, 1, 1, 1), **DROPS},
}


class Run:
    """A model that is trained on random images."""

    def __init__(self, name: str, replay: bool, **settings: Any):
        options = {"num_classes": 10, "seed": 0, **MODELS[name]}
        self.model: Any = sv.create_model(name, **options)
        self.model.train()
        self.model.set_generator(Generator(5))
        config = TrainConfig(replay=replay, clip_grad=1.0, **settings)
        optimizer = optim.AdamW(optim.param_groups(self.model, 0.05), lr=1e-3)
        self.ema = optim.EMA(self.model, 0.9)
        self.step = LearningStep(config, self.model, optimizer, self.ema, log=self.failed)
        self.side, self.rng = options["img_size"], seeded(0)
        self.losses: list[float] = []

    def failed(self, line: str) -> None:
        raise AssertionError(line)

    def learn(self, number: int, images: int = 2, spoil: float = 1.0, look: bool = False) -> None:
        x = asarray(self.rng.standard_normal((images, 3, self.side, self.side), dtype=np.float32) * np.float32(spoil))
        y = asarray(self.rng.integers(10, size=images))
        loss = self.step(self.compute, (x, y), x, 1e-3 / (number + 1), look)
        self.losses.append(float("nan") if loss is None else float(loss.data))

    def compute(self, x: Any, y: Any) -> tuple[Tensor, Tensor]:
        loss = ops.cross_entropy(self.model(Tensor(x)), y)
        return loss, loss

    @property
    def state(self) -> dict[str, bytes]:
        """The losses, weights, averages, buffers and moments, bit for bit."""
        arrays = self.model.state_dict() | {f"average of {k}": v for k, v in self.ema.state_dict().items()}
        arrays |= {k: np.asarray(v) for k, v in self.step.optimizer.state_dict().items()}
        return {"losses": np.array(self.losses).tobytes(), **{name: array.tobytes() for name, array in arrays.items()}}


@pytest.mark.parametrize("name", MODELS)
def test_fifty_steps(name):
    eager, replayed = Run(name, False), Run(name, True)
    for number in range(STEPS):
        for run in (eager, replayed):
            run.learn(number, look=number % 20 == 19)
    assert replayed.step._replays.learn.was_replayed
    assert replayed.state == eager.state


def test_a_step_in_which_the_shapes_change():
    eager, replayed = (Run("vit_tiny_patch16_224", replay) for replay in (False, True))
    for number in range(12):
        for run in (eager, replayed):
            run.learn(number, images=3 if number % 4 == 3 else 2)
    assert replayed.state == eager.state


@pytest.mark.parametrize("settings", [{}, {"loss_scale": 8.0}], ids=str)
def test_steps_that_are_skipped(settings):
    """Weights, moments, averages and running statistics stay as they were; the scale of the loss changes."""
    eager, replayed = (Run("resnet18", replay, non_finite="skip", **settings) for replay in (False, True))
    for number in range(12):
        for run in (eager, replayed):
            run.learn(number, spoil=np.inf if number in (1, 6, 7) else 1.0)
    assert replayed.step._replays._update.was_replayed
    assert replayed.step.skipped == eager.step.skipped == 3
    assert replayed.state == eager.state


def test_a_replayed_step_is_one_launch():
    from fakegpu import device

    run = Run("vit_tiny_patch16_224", True)
    for number in range(WARM_UP + 1):
        run.learn(number)
    seen: list[str] = []
    x, y = asarray(np.zeros((2, 3, 16, 16), np.float32)), asarray(np.zeros(2, np.int64))
    device.trace(lambda what, name, a, b: seen.append(f"{what} {name}" if what.startswith("memcpy") else what))
    run.step(run.compute, (x, y), x, 1e-3, False)
    device.trace(None)
    # Its arguments are copied, and the numbers of the step: learning rates and random keys.
    assert sorted(seen) == ["graph launch", "memcpyAsync d2d", "memcpyAsync d2d", "memcpyAsync h2d"]
