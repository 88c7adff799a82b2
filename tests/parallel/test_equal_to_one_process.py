"""Runs of several ranks are the runs of one process: the same losses and weights, to rounding.

Ranks are threads, each with its share of every batch. Models are small; the digits are augmented and mixed, gradients
clipped and accumulated, weights averaged. Without accumulation, dropout draws what it draws in one process.

In float32, the bias of keys is left out where it has a bias of its own: softmax does not depend on it, its gradient is
rounding, about 1e-8 and so no less than Adam's eps, and Adam makes steps of full length of that. After 30 steps it
differs by 2e-4, all else by 5e-6. In float64 the rounding is far below eps: nothing is left out, and the bias of keys
differs by 1e-13.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from scratchvit.parallel.communicator import ALONE
from scratchvit.training import TrainingLoop, load_checkpoint
from scratchvit.training.classification.task import ClassificationTask
from tests.support.ranks import run_ranks
from tests.support.runs import CONFIG, losses_of, train_in_float64, without_times

DROPOUT = {"drop_path_rate": 0.1, "proj_drop_rate": 0.1, "attn_drop_rate": 0.1}
VIT = CONFIG.replace(
    model_args={**CONFIG.model_args, **DROPOUT}, augment="light1", ema_decay=0.9, clip_grad=0.5, batch_size=52,
)
SWIN = VIT.replace(
    model="swin_tiny_patch4_window7_224",
    model_args={"patch_size": 1, "window_size": 2, "embed_dim": 8, "depths": (2, 2), "num_heads": (2, 2), **DROPOUT},
)
RESNET = VIT.replace(
    model="resnet18", optimizer="sgd", lr=0.005, sync_bn=True,
    model_args={"layers": (1, 1, 1, 1), "channels": (8, 8, 8, 8), "small_stem": True, "drop_path_rate": 0.1},
)
KEY_BIAS = "attn.qkv.bias"


@dataclasses.dataclass(frozen=True)
class Run:
    """losses: of every step, those of the whole batch. progress, model, ema: of the last checkpoint. calls: collectives
    of every step."""

    losses: list[float]
    progress: dict
    model: dict
    ema: dict


def run(config, folder, ranks=ALONE):
    loop = TrainingLoop(ClassificationTask(config), config, folder, log=lambda line: None, ranks=ranks)
    losses = losses_of(loop)
    with loop.folder:
        loop.run()
    saved = load_checkpoint(loop.folder.last)
    return Run(losses, without_times(saved.progress), loop.model.state_dict(), loop.ema.state_dict())


def assert_equal(found: Run, expected: Run, rtol: float) -> None:
    assert len(found.losses) == len(expected.losses)
    np.testing.assert_allclose(found.losses, expected.losses, rtol=rtol)
    for row, other in zip(found.progress["history"], expected.progress["history"], strict=True):
        assert row.keys() == other.keys()
        np.testing.assert_allclose([*row.values()], [*other.values()], rtol=rtol)
    for part in ("model", "ema"):
        ours, theirs = getattr(found, part), getattr(expected, part)
        for name, wanted in theirs.items():
            got = ours[name]
            if name.endswith(KEY_BIAS) and wanted.dtype == np.float32:
                got, wanted = (np.delete(bias.reshape(3, -1), 1, axis=0) for bias in (got, wanted))
            error = np.linalg.norm((got - wanted).astype(np.float64)) / (np.linalg.norm(wanted) or 1)
            assert error < rtol, f"{part} {name}: {error:.1e}"


def check(config, size, tmp_path, rtol=1e-5):
    one = run(config, tmp_path / "one")
    runs = run_ranks(size, lambda ranks: run(config, tmp_path / "several", ranks))
    for of_rank in runs:
        assert of_rank.losses == runs[0].losses and of_rank.progress == runs[0].progress
        for part in ("model", "ema"):
            mine, first = getattr(of_rank, part), getattr(runs[0], part)
            assert all(np.array_equal(mine[name], first[name]) for name in first)
    assert_equal(runs[0], one, rtol)
    return one, runs


@pytest.mark.parametrize("size", [2, 4])
def test_a_vit_of_some_steps(size, tmp_path):
    """Batches of 52, the last of 35: shares of different sizes."""
    one, _ = check(VIT.replace(epochs=1, epoch_images=347), size, tmp_path)
    assert len(one.losses) == 7


def test_a_swin_of_some_steps(tmp_path):
    one, _ = check(SWIN.replace(epochs=1, epoch_images=104, batch_size=26), 2, tmp_path)
    assert len(one.losses) == 4


def test_a_resnet_with_synchronised_batch_norms_of_some_steps(tmp_path):
    """Running statistics are those of one process too."""
    one, _ = check(RESNET.replace(epochs=1, epoch_images=139), 2, tmp_path)
    assert len(one.losses) == 3 and "bn1.running_var" in one.model


def test_a_resnet_whose_ranks_have_statistics_of_their_own(tmp_path):
    """Its first loss is not that of one process, and running statistics are the means of those of the ranks."""
    config = RESNET.replace(sync_bn=False, epochs=1, epoch_images=52)
    one = run(config, tmp_path / "one")
    runs = run_ranks(2, lambda ranks: run(config, tmp_path / "several", ranks))
    for name in one.model:
        assert np.array_equal(runs[0].model[name], runs[1].model[name]), name
    assert runs[0].losses == runs[1].losses and abs(runs[0].losses[0] / one.losses[0] - 1) > 1e-5
    # The mean over the batch is the mean of the means of its halves.
    np.testing.assert_allclose(runs[0].model["bn1.running_mean"], one.model["bn1.running_mean"], rtol=1e-5, atol=1e-6)
    assert np.all(runs[0].ema["bn1.running_mean"] == runs[0].model["bn1.running_mean"])


def test_accumulated_gradients_of_some_steps(tmp_path):
    """Without dropout, for which a part of a batch draws other numbers."""
    config = VIT.replace(model_args=CONFIG.model_args, accumulate=3, epochs=1, epoch_images=347)
    check(config, 2, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize(
    "config", [VIT, SWIN, RESNET, VIT.replace(model_args=CONFIG.model_args, accumulate=3)],
    ids=["vit", "swin", "resnet", "accumulate"],
)
def test_thirty_steps(config, size, tmp_path):
    one, _ = check(config.replace(epochs=2, epoch_images=752), size, tmp_path)
    assert len(one.losses) == 30


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("config", [
    VIT.replace(model_args=CONFIG.model_args, accumulate=3, shard_optimizer=True), SWIN.replace(shard_optimizer=True),
], ids=["vit, accumulate", "swin"])
def test_thirty_steps_in_float64_with_the_state_divided(config, size, tmp_path, monkeypatch):
    train_in_float64(monkeypatch)
    one, _ = check(config.replace(epochs=2, epoch_images=752), size, tmp_path, rtol=1e-9)
    assert len(one.losses) == 30
    assert {array.dtype for array in one.ema.values()} == {np.dtype(np.float64)}
