"""Runs whose optimiser is divided among ranks (shard_optimizer)."""

import re

import pytest

from scratchvit import optim
from scratchvit.models import create_model
from scratchvit.parallel.buckets import Buckets
from scratchvit.training import ClassificationTask, Interrupted, TrainingLoop
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
