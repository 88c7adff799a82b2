"""Runs whose optimiser is divided among ranks (shard_optimizer)."""

import contextlib
import re
import signal

import numpy as np
import pytest

from scratchvit import optim
from scratchvit.models import create_model
from scratchvit.parallel.buckets import Buckets
from scratchvit.parallel.communicator import ALONE
from scratchvit.training import ClassificationTask, Interrupted, TrainingLoop, load_checkpoint
from scratchvit.training.build import make_optimizer
from tests.support.ranks import run_ranks
from tests.support.runs import CONFIG, EVERYTHING, assert_same_run, stop_at


def test_the_optimiser_that_the_settings_name():
    def made(ranks):
        model = create_model("vit_tiny_patch16_224", img_size=16, num_classes=2, **CONFIG.model_args)
        groups = optim.param_groups(model, 0.05)
        buckets = Buckets(model.parameters(), ranks, sharded=True)
        found = []
        for name in ("adamw", "adam", "sgd"):
            config = CONFIG.replace(optimizer=name, momentum=0.8, lr=0.3)
            sharded = make_optimizer(config.replace(shard_optimizer=True), groups, buckets)
            assert isinstance(sharded, optim.Sharded)
            assert repr(sharded).startswith(repr(make_optimizer(config, groups, buckets)))
            assert repr(make_optimizer(config.replace(shard_optimizer=True), groups)) in repr(sharded)
            found.append(repr(sharded))
        return found

    first, second = run_ranks(2, made)
    assert [text.partition("  ")[0] for text in first] == [
        "AdamW(lr=0.3, betas=(0.9, 0.999), eps=1e-08, weight_decay=[0.0, 0.05])",
        "Adam(lr=0.3, betas=(0.9, 0.999), eps=1e-08, weight_decay=[0.0, 0.05])",
        "SGD(lr=0.3, momentum=0.8, nesterov=False, weight_decay=[0.0, 0.05])",
    ]
    ends = re.compile(r".*  32 parameters, 5,586 numbers, of which 2,(\d+) are those of rank [01] of 2")
    for texts in zip(first, second):
        assert sum(2000 + int(ends.fullmatch(text)[1]) for text in texts) == 5586


def train(config, folder, lines, resume=False):
    with (loop := TrainingLoop(ClassificationTask(config), config, folder, resume, lines.append)).folder:
        loop.run()


def test_in_one_process_a_run_says_that_there_is_nothing_to_divide(tmp_path, monkeypatch):
    """And computes the same. Whether the optimiser is divided may change when a run is resumed."""
    config, lines = EVERYTHING.replace(epochs=2), []
    train(config, tmp_path / "plain", lines)
    assert not any("shard_optimizer" in line for line in lines)
    stop_at(monkeypatch, 4)
    with pytest.raises(Interrupted):
        train(config.replace(shard_optimizer=True), tmp_path / "divided", lines)
    assert lines.count("       shard_optimizer has no effect in one process: begin with mpiexec or srun") == 1
    train(config, tmp_path / "divided", lines, resume=True)
    assert_same_run(tmp_path / "plain", tmp_path / "divided")


# --- several ranks ----------------------------------------------------------------------------------------------------

SMALL = EVERYTHING.replace(
    epochs=1, epoch_images=208, batch_size=52, warmup_epochs=0, clip_grad=0.0, save_every=0, layer_decay=0.8,
    non_finite="skip",
)


def run(ranks, config, folder, resume=False, stop_after=None):
    """A run of four steps. The second is skipped, because the last rank has a bad image. Returns the loop.

    stop_after: a signal arrives after so many steps.
    """
    loop = TrainingLoop(ClassificationTask(config), config, folder, resume, lambda line: None, ranks)
    make_step = loop._step

    def step(batch, look):
        if loop.step == 1 and ranks.rank == ranks.size - 1:
            batch.images[-1] = np.nan
        make_step(batch, look)
        if loop.step == stop_after:
            loop.watch.received = int(signal.SIGTERM)

    loop._step = step
    with loop.folder, pytest.raises(Interrupted) if stop_after else contextlib.nullcontext():
        loop.run()
    return loop


@pytest.mark.parametrize("size", [2, 4])
def test_a_divided_run_is_the_other_bit_for_bit(size, tmp_path):
    """Weights, averages, the whole state of the optimiser and all figures, as long as nothing is clipped."""
    config = SMALL.replace(loss_scale=2.0**10)
    for name, sharded in (("whole", False), ("divided", True)):
        loops = run_ranks(
            size, lambda ranks, name=name, sharded=sharded:
            run(ranks, config.replace(shard_optimizer=sharded), tmp_path / name)
        )
        assert all(isinstance(loop.optimizer, optim.Sharded) == sharded for loop in loops)
    assert_same_run(tmp_path / "divided", tmp_path / "whole")
    assert load_checkpoint(tmp_path / "whole" / "last.safetensors").progress["history"][0]["skipped"]


def test_a_divided_run_clips_as_the_other_to_rounding(tmp_path):
    config = SMALL.replace(clip_grad=0.3, weight_decay=0.3, epochs=2)
    run(ALONE, config, tmp_path / "one")
    run_ranks(2, lambda ranks: run(ranks, config.replace(shard_optimizer=True), tmp_path / "divided"))
    found, expected = (load_checkpoint(tmp_path / name / "last.safetensors") for name in ("divided", "one"))
    for part in ("model", "ema", "optimizer"):
        ours, theirs = getattr(found, part), getattr(expected, part)
        assert ours.keys() == theirs.keys()
        kinds = {name.split(".")[0] for name in theirs} if part == "optimizer" else [""]
        for kind in kinds:      # a moment of one kind, or weights, all of them together
            a, b = (
                np.concatenate([np.ravel(state[name]) for name in theirs if name.startswith(kind)]).astype(np.float64)
                for state in (ours, theirs)
            )
            assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(b), f"{part} {kind}"


def test_a_run_goes_on_with_other_ranks_divided_or_not(tmp_path):
    """On three and four ranks, in one process, on two ranks: each takes over the state of the one before exactly."""
    last = tmp_path / "run" / "last.safetensors"

    def session(size, sharded, stop_after):
        config = SMALL.replace(shard_optimizer=sharded)
        saved = load_checkpoint(last) if last.exists() else None

        def of_rank(ranks):
            if saved:
                loop = TrainingLoop(ClassificationTask(config), config, tmp_path / "run", True, print, ranks)
                state = loop.optimizer.state_dict()
                loop.folder.release()
                if ranks.rank == 0:
                    assert state.keys() == saved.optimizer.keys()
                    assert all(np.array_equal(state[name], saved.optimizer[name]) for name in state)
            return run(ranks, config, tmp_path / "run", saved is not None, stop_after).step

        steps = run_ranks(size, of_rank) if size > 1 else [of_rank(ALONE)]
        assert steps == [stop_after or 4] * size

    session(3, True, 1)
    session(4, True, 2)
    session(1, True, 3)
    session(2, True, None)
