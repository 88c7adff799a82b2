"""Runs of a detector by several ranks are the runs of one process: the same losses, weights and metrics, to rounding.

Ranks are threads. Pictures differ in size and in the number of their objects, and are flipped and resized at random.

SGD makes steps as long as gradients are, and 30 of them stay within 1e-5. Adam divides by a gradient's size. Where the
gradient is nothing but rounding (the bias of keys; queries of the first decoder layer, where all values are alike), so
is the step, and in float32 it has full length: the weights of ranks and of one process drift apart, and when two
assignments cost nearly the same, other queries are matched. After 30 steps of AdamW on two and four ranks, losses
differed by 8e-5 and 8e-4, weights by 6e-3 and 2e-2, and 3 and 19 of 225 images had been matched otherwise.

That nothing but this separates them is tested in two ways. In float64, rounding is far below Adam's eps of 1e-8, and
does not move weights: losses differ by 2e-15, weights by 1e-11. In float32 with an eps of 1e-5, losses differ by 1e-7,
weights by 4e-6. In both, all images are matched alike.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest

from scratchvit import optim
from scratchvit.detection import run_data
from scratchvit.detection.config import DetectConfig
from scratchvit.detection.data.annotations import DetectionSplits
from scratchvit.detection.task import DetectionTask
from scratchvit.parallel.communicator import ALONE
from scratchvit.training import TrainingLoop, load_checkpoint
from tests.support.detection_runs import SIZES
from tests.support.noise_pictures import Several
from tests.support.ranks import run_ranks
from tests.support.runs import losses_of, train_in_float64, without_times

DETR = DetectConfig(
    model="detr_resnet18",
    model_args={**SIZES, "bottleneck": False, "frozen_bn": True, "dropout": 0.1, "denoising": 2},
    short_side=32, longest=64, multi_scale=True, flip=True, color_jitter=0.2, batch_size=7, epochs=1, lr=0.01,
    clip_grad=0.5, ema_decay=0.9, warmup_epochs=0, optimizer="sgd",
)
ADAMW = DETR.replace(optimizer="adamw", lr=1e-3)
AT_ONCE = {**DETR.model_args, "dropout": 0.0, "denoising": 0}      # what can be accumulated and still draws the same
RTOL = 1e-5
RTOL64 = 1e-9


@pytest.fixture
def pictures(monkeypatch):
    """Makes all data the given number of pictures for training, and five for evaluation."""

    def use(count):
        splits = DetectionSplits(Several.mixed(count), Several.mixed(5, 1), Several.mixed(5, 2))
        monkeypatch.setattr(run_data, "load_detection", lambda *args, **options: splits)

    return use


def run(config, folder, ranks=ALONE):
    """The losses of all steps, the row of every epoch, and the weights and their averages."""
    loop = TrainingLoop(DetectionTask(config), config, folder, log=lambda line: None, ranks=ranks)
    losses = losses_of(loop)
    with loop.folder:
        loop.run()
    history = without_times(load_checkpoint(loop.folder.last).progress)["history"]
    return losses, history, loop.model.state_dict(), loop.ema.state_dict()


def check(config, size, folder, rtol=RTOL):
    """Compare two runs: their losses, metrics and weights. Returns the number of steps."""
    losses, history, *states = run(config, folder / "one")
    first, *others = run_ranks(size, lambda ranks: run(config, folder / "several", ranks))
    for other in others:
        assert other[:2] == first[:2]
        for theirs, ours in zip(other[2:], first[2:]):
            assert all(np.array_equal(theirs[name], array) for name, array in ours.items())
    np.testing.assert_allclose(first[0], losses, rtol=rtol)
    for row, expected in zip(first[1], history, strict=True):
        assert row.keys() == expected.keys()
        np.testing.assert_allclose([*row.values()], [*expected.values()], rtol=rtol)
    for found, expected in zip(first[2:], states):
        for name, array in expected.items():
            error = np.linalg.norm((found[name] - array).astype(np.float64)) / (np.linalg.norm(array) or 1)
            assert error < rtol, f"{name}: {error:.1e}"
    return len(losses)


@pytest.mark.parametrize("size", [2, 4])
def test_some_steps(size, tmp_path, pictures):
    """Batches of seven, of which four ranks have one or two each."""
    pictures(21)
    assert check(DETR, size, tmp_path) == 3


def test_some_steps_of_adam_whose_state_is_divided(tmp_path, pictures, monkeypatch):
    train_in_float64(monkeypatch)
    pictures(21)
    assert check(ADAMW.replace(shard_optimizer=True), 2, tmp_path, RTOL64) == 3


def test_a_last_batch_that_not_every_rank_has(tmp_path, pictures):
    """Two images are left for the next epoch, on four ranks; on one, they are a batch."""
    pictures(9)
    config = DETR.replace(epochs=2)
    counts = {size: run_ranks(size, lambda ranks, size=size: len(run(config, tmp_path / str(size), ranks)[0]))
              for size in (1, 4)}
    assert counts == {1: [4], 4: [2] * 4}


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("config", [
    DETR, DETR.replace(model_args={**DETR.model_args, "focal": True, "query_groups": 2}),
    DETR.replace(model_args=AT_ONCE, accumulate=3),
], ids=["denoising", "focal, groups", "accumulate"])
def test_thirty_steps(config, size, tmp_path, pictures):
    pictures(105)
    assert check(config.replace(epochs=2), size, tmp_path) == 30


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize(
    "config", [ADAMW.replace(shard_optimizer=True), ADAMW.replace(model_args=AT_ONCE, accumulate=3)],
    ids=["denoising, state divided", "accumulate"],
)
def test_thirty_steps_of_adam_in_float64(config, size, tmp_path, pictures, monkeypatch):
    train_in_float64(monkeypatch)
    pictures(105)
    assert check(config.replace(epochs=2), size, tmp_path, RTOL64) == 30
    states = load_checkpoint(tmp_path / "several" / "last.safetensors")
    assert {array.dtype for array in (*states.model.values(), *states.ema.values())} == {np.dtype(np.float64)}


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
def test_thirty_steps_of_adam_whose_eps_is_above_rounding(size, tmp_path, pictures, monkeypatch):
    monkeypatch.setattr(optim, "AdamW", functools.partial(optim.AdamW, eps=1e-5))
    pictures(105)
    assert check(ADAMW.replace(epochs=2), size, tmp_path) == 30
