"""A run of several ranks begins, goes on and ends on all of them together. Ranks are threads."""

from __future__ import annotations

import errno
import signal
import threading

import numpy as np
import pytest

from scratchvit import optim
from scratchvit.errors import ScratchvitError
from scratchvit.models import create_model
from scratchvit.parallel.communicator import ALONE
from scratchvit.training import Interrupted, TrainConfig, TrainingLoop, agreement, load_checkpoint
from scratchvit.training import loop as loop_module
from scratchvit.training.classification.task import ClassificationTask
from scratchvit.training.step import parts_of
from tests.support.ranks import run_ranks
from tests.support.runs import CONFIG, assert_same_run, files_of

SMALL = CONFIG.replace(epochs=2, epoch_images=208, batch_size=52, ema_decay=0.9)        # four steps in an epoch


def loop_of(ranks, config, folder, resume=False, log=lambda line: None):
    return TrainingLoop(ClassificationTask(config), config, folder, resume, log, ranks)


def run(ranks, config, folder, resume=False, change=lambda loop: None, log=lambda line: None):
    """A run whose loop is changed before; returns the loop, or the ScratchvitError with which it ended."""
    loop = loop_of(ranks, config, folder, resume, log)
    change(loop)
    with loop.folder:
        try:
            loop.run()
        except ScratchvitError as error:
            return error
    return loop


def run_all(size, config, folder, **options):
    return run_ranks(size, lambda ranks: run(ranks, config, folder, **options))


def on_rank(rank, change):
    """A change of the loop of one rank."""
    return lambda loop: change(loop) if loop.ranks.rank == rank else None


def before_step(number, act):
    """A change of a loop: act(batch) is called before a step, with its batch."""
    def change(loop):
        make_step = loop._step

        def step(batch, look):
            if loop.step == number:
                batch = act(batch) or batch
            make_step(batch, look)

        loop._step = step

    return change


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight") / "run"
    run_all(2, SMALL, folder)
    return folder


def test_only_rank_0_writes_draws_and_logs(tmp_path, monkeypatch):
    ranks_of, acting = {}, set()
    lines = {0: [], 1: []}

    def noted(module, name):
        act = getattr(module, name)

        def note(*arguments, **options):
            acting.add((name, ranks_of[threading.get_ident()]))
            return act(*arguments, **options)

        monkeypatch.setattr(module, name, note)

    noted(loop_module, "save_checkpoint")
    noted(ClassificationTask, "draw")
    for name in ("claim", "begin", "write_metrics"):
        noted(loop_module.RunFolder, name)

    def task(ranks):
        ranks_of[threading.get_ident()] = ranks.rank
        return run(ranks, SMALL, tmp_path / "run", log=lines[ranks.rank].append).history

    first, second = run_ranks(2, task)
    assert acting == {(name, 0) for name in ("save_checkpoint", "draw", "claim", "begin", "write_metrics")}
    assert first == second and len(first) == 2
    assert len(lines[0]) == 2 and not lines[1]


@pytest.mark.parametrize("step", [1, 4, 6])
def test_a_signal_for_one_rank_ends_all_in_the_same_step(step, straight, tmp_path):
    """Step 4 is the last of its epoch. The run goes on bit for bit."""
    def interrupt(loop):
        before_step(step - 1, lambda batch: setattr(loop.watch, "received", int(signal.SIGTERM)))(loop)

    ended = run_all(2, SMALL, tmp_path / "run", change=on_rank(1, interrupt))
    for error in ended:
        assert isinstance(error, Interrupted) and error.exit_status == 128 + signal.SIGTERM
        assert f"stopped and saved at step {step} of 8" in str(error)
    run_all(2, SMALL, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", straight)


@pytest.mark.parametrize("size", [1, 4])
def test_a_run_goes_on_with_another_number_of_ranks(size, straight, tmp_path):
    """With the same batches and, to rounding, the same weights."""
    def interrupt(loop):
        before_step(5, lambda batch: setattr(loop.watch, "received", int(signal.SIGINT)))(loop)

    run_all(2, SMALL, tmp_path / "run", change=on_rank(0, interrupt))
    if size == 1:
        run(ALONE, SMALL, tmp_path / "run", resume=True)
    else:
        run_all(size, SMALL, tmp_path / "run", resume=True)
    found, expected = (load_checkpoint(folder / "last.safetensors") for folder in (tmp_path / "run", straight))
    assert found.progress["step"] == expected.progress["step"] == 8
    assert found.progress["loader"] == expected.progress["loader"]
    for row, other in zip(found.progress["history"], expected.progress["history"], strict=True):
        assert row["train_loss"] == pytest.approx(other["train_loss"], rel=1e-5)
        assert row["train_accuracy"] == other["train_accuracy"]
    np.testing.assert_allclose(found.model["head.weight"], expected.model["head.weight"], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_picture_that_one_rank_cannot_read_ends_all(rank, straight, tmp_path):
    def broken(loop):
        make, count = loop.loader._make_images, iter(range(100))

        def images(indices, rng):
            if next(count) == 5:
                raise ScratchvitError("cat.jpg cannot be decoded")
            return make(indices, rng)

        loop.loader._make_images = images

    errors = run_all(2, SMALL, tmp_path / "run", change=on_rank(rank, broken))
    for error in errors:
        assert "The run is saved at step 5 of 8; when its pictures can be read, resume with" in str(error)
        assert str(error).startswith(f"{'rank 1 on threads: ' if rank else ''}cat.jpg cannot be decoded. ")
    run_all(2, SMALL, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", straight)


def test_a_full_disk_ends_all(tmp_path, monkeypatch):
    """While the first checkpoint is written, after two steps."""
    def fail(*arguments):
        raise OSError(errno.ENOSPC, "no space left")

    def task(ranks):
        loop = loop_of(ranks, SMALL.replace(save_every=2), tmp_path / "run")
        if ranks.rank == 0:
            monkeypatch.setattr("os.fsync", fail)
        with loop.folder, pytest.raises(ScratchvitError, match=r"^\S*last\.safetensors could not be written"):
            loop.run()
        return loop.step

    assert run_ranks(2, task) == [2, 2]


@pytest.mark.parametrize("rank", [0, 1])
def test_data_that_are_missing_on_one_machine_end_all(rank, tmp_path, monkeypatch):
    """Before anything is created."""
    class Missing(ClassificationTask):
        def load_data(self, init):
            if self.ranks.rank == rank:
                raise ScratchvitError("there are no pictures")
            return super().load_data(init)

    def task(ranks):
        with pytest.raises(ScratchvitError) as raised:
            TrainingLoop(Missing(SMALL), SMALL, tmp_path / "run", ranks=ranks)
        return str(raised.value)

    assert run_ranks(2, task) == [f"{'rank 1 on threads: ' if rank else ''}there are no pictures"] * 2
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "what"), [({"lr": 1e-4}, "settings"), ({"train_fraction": 0.5}, "settings"), ({}, "pictures")]
)
def test_ranks_with_other_settings_or_pictures_are_told(change, what, tmp_path, monkeypatch):
    def task(ranks):
        config = SMALL.replace(**change) if ranks.rank else SMALL
        own = ClassificationTask(config)
        if ranks.rank and not change:
            load = own.load_data

            def other(init):
                data = load(init)
                data.splits.train.labels[0] += 1
                return data

            own.load_data = other
        with pytest.raises(ScratchvitError, match=f"^rank 1 on threads has other {what} than rank 0 on threads: "):
            TrainingLoop(own, config, tmp_path / "run", ranks=ranks)

    run_ranks(2, task)
    assert not (tmp_path / "run").exists()


def test_ranks_that_no_longer_have_the_same_weights_are_told(tmp_path):
    def change(loop):
        def spoil(batch):
            loop.model.blocks[1].mlp.fc1.weight.data[3, 1] += 1e-3

        before_step(6, spoil)(loop)

    for error in run_all(2, SMALL, tmp_path / "run", change=on_rank(1, change)):
        assert (
            "the ranks no longer have the same model: blocks.1.mlp.fc1.weight of rank 1 on threads is not that of rank "
            "0 on threads; nothing was saved"
        ) in str(error)
    assert load_checkpoint(tmp_path / "run" / "last.safetensors").progress["step"] == 4


# --- steps that are not finite ---


def spoiled(batch):
    images = batch.images.copy()
    images[0, 0, 0, 0] = np.nan
    return batch._replace(images=images)


def assert_equal_ranks(loops):
    states = [[*loop.model.state_dict().values(), *loop.ema.state_dict().values()] for loop in loops]
    for state in states[1:]:
        assert all(np.array_equal(one, two) for one, two in zip(state, states[0], strict=True))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_all_skip_a_step_whose_loss_is_not_finite_on_one_rank(accumulate, tmp_path):
    config = SMALL.replace(non_finite="skip", accumulate=accumulate)
    loops = run_all(2, config, tmp_path / "run", change=on_rank(1, before_step(2, spoiled)))
    assert [row["skipped"] for loop in loops for row in loop.history] == [1, 0, 1, 0]
    assert_equal_ranks(loops)


def test_a_run_that_stops_there_says_on_which_rank_it_began(tmp_path):
    errors = run_all(2, SMALL, tmp_path / "run", change=on_rank(1, before_step(5, spoiled)))
    for error in errors:
        assert str(error).startswith(
            "step 6 (epoch 2): the loss is not finite; on rank 1 (threads), the images of the batch are not finite; "
            "the last good checkpoint is "
        )
    assert load_checkpoint(tmp_path / "run" / "last.safetensors").progress["step"] == 4


def test_all_skip_scaled_gradients_that_overflow(tmp_path):
    config = SMALL.replace(precision="fp16", loss_scale=2.0**23)
    loops = run_all(2, config, tmp_path / "run")
    assert loops[0].history[0]["skipped"] == loops[1].history[0]["skipped"] > 0
    assert loops[0].learn.scaler.state_dict() == loops[1].learn.scaler.state_dict()
    assert_equal_ranks(loops)


# --- parts, shards, batch norms ---


@pytest.mark.parametrize("batch_size", [8, 13, 52])
@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("accumulate", [1, 2, 3, 8])
def test_all_ranks_have_as_many_parts(accumulate, size, batch_size):
    config = TrainConfig(batch_size=batch_size, accumulate=accumulate)
    for whole in range(size, batch_size + 1):
        of_ranks = [parts_of(whole, config, rank, size) for rank in range(size)]
        assert len({len(parts) for parts in of_ranks}) == 1
        lengths = [part.stop - part.start for parts in of_ranks for part in parts]
        largest = -(-batch_size // (size * accumulate))
        assert sum(lengths) == whole and min(lengths) >= 1 and max(lengths) <= max(largest, 2 * (size > 1))
        if size == 1 or (whole == batch_size and batch_size % (size * accumulate) == 0):
            assert max(lengths) <= largest


def test_a_sharded_optimiser_gives_the_same_run(straight, tmp_path):
    """To rounding of the gradients' norm; and its checkpoint is one of one process."""
    config = SMALL.replace(shard_optimizer=True)
    run_all(2, config, tmp_path / "run")
    found, expected = (load_checkpoint(folder / "last.safetensors") for folder in (tmp_path / "run", straight))
    assert found.optimizer.keys() == expected.optimizer.keys()
    for name, moment in expected.optimizer.items():
        np.testing.assert_allclose(found.optimizer[name], moment, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(found.model["head.weight"], expected.model["head.weight"], rtol=1e-4, atol=1e-6)
    assert run(ALONE, config.replace(epochs=3), tmp_path / "run", resume=True).step == 12


def test_running_statistics_are_averaged_and_integers_are_not():
    def task(ranks):
        model = create_model("resnet18", layers=(1, 1, 1, 1), channels=(4, 4, 4, 4), img_size=32, num_classes=2)
        ema = optim.EMA(model, 0.5)
        norm = model.bn1
        norm.running_mean.data[...] = [1.0, 5.0, 6.0][ranks.rank]
        norm.num_batches_tracked.data[...] = 7
        norm.running_var.data[...] = 1 / 3          # equal: no rounding
        agreement.average_statistics(model, ema, ranks)
        assert ranks.calls == ["gather", "sum"]
        return model.state_dict(), ema.averages["bn1.running_mean"]

    for state, average in run_ranks(3, task):
        assert np.all(state["bn1.running_mean"] == 4) and np.all(average == 4)
        assert np.all(state["bn1.running_var"] == np.float32(1 / 3)) and state["bn1.num_batches_tracked"] == 7


def test_ranks_start_from_the_weights_of_rank_0():
    def task(ranks):
        model = create_model("vit_tiny_patch16_224", seed=ranks.rank, img_size=16, num_classes=2, **CONFIG.model_args)
        ema = optim.EMA(model, 0.5)
        with pytest.raises(ScratchvitError, match=r"cls_token of rank 1 on threads is not that of rank 0"):
            agreement.check_equal(model, ema, ranks)
        agreement.start_equal(model, ema, ranks)
        agreement.check_equal(model, ema, ranks)
        return [*model.state_dict().values(), *ema.averages.values()]

    first, second = run_ranks(2, task)
    assert all(np.array_equal(one, two) for one, two in zip(first, second))


def test_a_run_of_one_process_asks_nobody(tmp_path):
    run(ALONE, SMALL.replace(epochs=1), tmp_path / "run")
    assert files_of(tmp_path / "run").keys() >= {"last.safetensors", "best.safetensors", "metrics.csv", "config.json"}
