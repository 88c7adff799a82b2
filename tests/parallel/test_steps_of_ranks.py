"""LearningStep on several ranks that are threads: what it reads, and how often it sends."""

from __future__ import annotations

import numpy as np
import pytest

from scratchvit import backend, nn, ops, optim
from scratchvit.backend import asarray, asnumpy
from scratchvit.parallel.buckets import Buckets
from scratchvit.parallel.communicator import ALONE
from scratchvit.parallel.share import share_of
from scratchvit.tensor import Tensor
from scratchvit.training import TrainConfig
from scratchvit.training.step import LearningStep
from tests.support.ranks import run_ranks
from tests.support.seeds import seeded
from tests.support.strict_array import STRICT, no_transfers

B = 13


def made(ranks, sharded=False, read=asnumpy, **settings):
    """The weights after some steps of one batch, and the collectives of the last step."""
    config = TrainConfig(batch_size=B, clip_grad=0.3, **settings)
    model = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3))
    for i, parameter in enumerate(model.parameters()):
        parameter.assign(seeded(i).standard_normal(parameter.shape, np.float32))
    buckets = Buckets(model.parameters(), ranks, sharded) if ranks.size > 1 else None
    groups = [{"params": list(model.parameters())}]
    optimizer = (
        optim.Sharded(lambda groups: optim.AdamW(groups, 0.1), groups, buckets) if sharded
        else optim.AdamW(groups, 0.1)
    )
    step = LearningStep(config, model, optimizer, optim.EMA(model, 0.5), buckets=buckets)
    rows = share_of(B, ranks.rank, ranks.size)
    x = asarray(seeded(8).standard_normal((B, 5), np.float32)[rows])
    labels = asarray(seeded(9).integers(0, 3, B)[rows])

    def compute(x, labels):
        return ops.cross_entropy(model(Tensor(x)), labels), None

    for _ in range(3):
        calls = len(getattr(ranks, "calls", ()))
        step(compute, (x, labels), x, 0.1, False, whole=B)
    found = [read(array).copy() for array in (*(p.data for p in model.parameters()), *step.ema.averages.values())]
    return found, getattr(ranks, "calls", [])[calls:], step


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("size", [2, 3, 4])
def test_steps_are_those_of_one_process(size, sharded, accumulate, device):
    expected, _, _ = made(ALONE)
    for found, _, _ in run_ranks(size, lambda ranks: made(ranks, sharded, accumulate=accumulate)):
        for one, two in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)


def test_parts_are_sent_once(device):
    for _, calls, _ in run_ranks(2, lambda ranks: made(ranks, accumulate=3)):
        assert calls == ["sum"] * 2     # a bucket, and the loss
    for _, calls, _ in run_ranks(2, lambda ranks: made(ranks, True, accumulate=3)):
        assert calls == ["sum", "sum", "sum", "join"]       # and the norm of the gradients


@pytest.mark.parametrize("settings", [{}, {"accumulate": 3}, {"loss_scale": 4.0}])
@pytest.mark.parametrize("sharded", [False, True])
def test_gradients_loss_and_norm_stay_on_the_device(sharded, settings, monkeypatch):
    """What decides about the step is a kernel on a GPU, and reads the norm on this stand-in for one: it is left out."""
    monkeypatch.setattr(LearningStep, "update", lambda self, loss, noted, norm: None)
    backend.use(STRICT)
    try:
        with no_transfers():
            run_ranks(2, lambda ranks: made(ranks, sharded, read=lambda array: array, **settings))
    finally:
        backend.use("cpu")
