"""A detector's steps in two captured halves, with matching between them, train bit for bit as single operations do."""

import functools
from typing import Any

import numpy as np
import pytest

import scratchvit as sv
from scratchvit import optim
from scratchvit.backend import asarray
from scratchvit.detection.config import DetectConfig
from scratchvit.detection.data.batches import DetectionBatch, pad
from scratchvit.detection.task import DetectionTask
from scratchvit.random import Generator
from scratchvit.replay import WARM_UP
from scratchvit.training.step import InHalves, LearningStep
from tests.support.seeds import seeded
from tests.support.set_prediction import random_targets

pytestmark = pytest.mark.usefixtures("cuda")

CLASSES, STEPS = 3, 20
SQUARE, WIDE = ((32, 32), (32, 32)), ((24, 32), (32, 48))       # the sizes of a batch's images; the second is padded
SIZES: dict[str, Any] = {
    "layers": (1, 1, 1, 1), "bottleneck": False, "channels": (8, 8, 8, 8), "stages": 3, "frozen_bn": False,
    "hidden_dim": 16, "nheads": 2, "enc_layers": 1, "dec_layers": 2, "dim_feedforward": 16, "num_queries": 8,
    "dropout": 0.1, "num_classes": CLASSES,
}


class Run:
    """A small DETR with a ResNet, dropout and averages, trained on random images and objects."""

    def __init__(self, replay: bool, **settings: Any):
        config = DetectConfig(replay=replay, clip_grad=0.1, **settings)
        self.model: Any = sv.create_model("detr_resnet18", seed=0, **SIZES)
        self.model.train()
        self.model.set_generator(Generator(5))
        self.task = DetectionTask(config)
        self.task.prepare_loss(self.model)
        self.ema = optim.EMA(self.model, 0.9)
        optimizer = optim.AdamW(self.task.param_groups(self.model), lr=1e-3)
        self.logged: list[str] = []
        self.step = LearningStep(config, self.model, optimizer, self.ema, self.logged.append, self.note)
        self.meter, self.rng, self.number = self.task.meter(), seeded(0), 0

    def batch(self, sizes: Any, counts: Any) -> DetectionBatch:
        images, mask = pad([self.rng.standard_normal((3, *size), dtype=np.float32) for size in sizes], 32)
        return DetectionBatch(asarray(images), mask, random_targets(counts, self.number, CLASSES))

    def learn(self, sizes: Any = SQUARE, counts: Any = (2, 3), spoil: float = 1.0, look: bool = False) -> None:
        batch = self.batch(sizes, counts)
        images = batch.images * np.float32(spoil)
        batch = batch._replace(images=images)
        task, model = self.task, self.model
        halves = InHalves(
            functools.partial(task.forward_of, model), functools.partial(task.match, batch),
            functools.partial(task.loss_of, model),
        )
        inputs = task.inputs(batch)
        lr = 1e-3 / (self.number + 1)
        self.step(halves, task.arrays(model, batch, self.number), images, lr, look, inputs)
        self.number += 1

    def note(self, noted: Any, made: Any) -> None:
        self.meter.add(*noted, made=made)

    @property
    def state(self) -> dict[str, Any]:
        """Sums of losses, weights, averages, buffers and moments, bit for bit."""
        arrays = self.model.state_dict() | {f"average of {k}": v for k, v in self.ema.state_dict().items()}
        arrays |= {k: np.asarray(v) for k, v in self.step.optimizer.state_dict().items()}
        return {**self.meter.read().sums, **{name: array.tobytes() for name, array in arrays.items()}}


def test_twenty_steps():
    """Of two sizes, one of them padded, with none to twenty objects; the host reads every seventh."""
    counts = [(2, 3), (0, 0), (4, 1), (12, 8), (0, 5)]
    eager, replayed = Run(False), Run(True)
    for number in range(STEPS):
        for run in (eager, replayed):
            run.learn((SQUARE, WIDE)[number % 2], counts[number % len(counts)], look=number % 7 == 6)
    assert replayed.step._second.was_replayed and not replayed.logged
    assert replayed.state == eager.state


def test_a_step_whose_costs_are_not_finite():
    eager, replayed = (Run(replay, non_finite="skip") for replay in (False, True))
    for number in range(6):
        for run in (eager, replayed):
            run.learn(spoil=np.inf if number in (1, 4) else 1.0)
    assert replayed.step._second.was_replayed
    assert replayed.step.skipped == eager.step.skipped == 2
    assert replayed.state == eager.state


def test_a_replayed_step_is_two_launches_and_waits_once():
    from fakegpu import device

    run = Run(True)
    for _ in range(WARM_UP + 1):
        run.learn()
    seen: list[str] = []
    device.trace(lambda what, name, a, b: seen.append(f"{what} {name}" if what.startswith("memcpy") else what))
    run.learn()
    device.trace(None)
    assert seen.count("graph launch") == 2
    assert seen.count("memcpyAsync d2h") == 1
    assert seen.count("launch") == 1            # the images are spoiled


def test_a_second_half_that_cannot_be_captured_is_done_eagerly():
    run = Run(True)
    losses_of = run.task.criterion.decoder_losses

    def reading(*arguments: Any) -> Any:
        losses = losses_of(*arguments)
        float(losses.tables["decoder"].data.sum())
        return losses

    run.task.criterion.decoder_losses = reading
    before = run.step.optimizer.state_dict()
    for _ in range(WARM_UP + 2):
        run.learn()
    assert len(run.logged) == 1 and "steps cannot be replayed" in run.logged[0]
    assert run.step.optimizer.state_dict() != before
