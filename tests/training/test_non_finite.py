"""Losses and gradients that are infinite or NaN: the run stops with a sentence, or leaves the step out."""

import csv
import dataclasses

import numpy as np
import pytest

from scratchvit import Tensor, nn, ops
from scratchvit.errors import ScratchvitError
from scratchvit.training import Interrupted, TrainingLoop, load_checkpoint, save_checkpoint, train
from scratchvit.training.diagnose import first_non_finite
from tests.support.runs import CONFIG, EVERYTHING, assert_same_run, stop_at

RESNET = CONFIG.replace(
    model="resnet18", model_args={"layers": (1, 1, 1, 1), "channels": (8, 8, 16, 16)}, epoch_images=90
)

def at_step(monkeypatch, step, spoil):
    """Call spoil(loop, images) just before that step (from 1), and give it what that returns."""
    make_step = TrainingLoop._step

    def spoiled(self, batch, look):
        if self.step + 1 == step:
            batch = batch._replace(images=spoil(self, batch.images))
        make_step(self, batch, look)

    monkeypatch.setattr(TrainingLoop, "_step", spoiled)


def test_nan_in_the_data(tmp_path, monkeypatch):
    def spoil(loop, images):
        images = images.copy()
        images[3, 0, 2, 2] = np.nan
        images[7, 0, 0, 0] = np.inf
        return images

    at_step(monkeypatch, 4, spoil)
    with pytest.raises(ScratchvitError, match=r"step 4 \(epoch 1\): the data is not finite \(images 3, 7 of the batch"):
        train(CONFIG.replace(save_every=2), tmp_path / "run")
    assert load_checkpoint(tmp_path / "run" / "last.safetensors").progress["step"] == 2


def test_nan_in_the_loss_names_the_layer_and_keeps_the_last_good_checkpoint(tmp_path, monkeypatch):
    def spoil(loop, images):
        # Finite itself, but its products overflow.
        loop.model.blocks[1].mlp.fc1.weight.data[...] = 3e38
        return images

    at_step(monkeypatch, 7, spoil)
    with pytest.raises(
        ScratchvitError,
        match=r"step 7 \(epoch 2\): the loss is not finite; the first layer whose output is not finite is "
        r"blocks\.1\.mlp\.fc1 \(Linear\); the last good checkpoint is .*last\.safetensors",
    ):
        train(CONFIG, tmp_path / "run")
    saved = load_checkpoint(tmp_path / "run" / "last.safetensors")
    assert saved.progress["step"] == 5
    assert all(np.isfinite(array).all() for array in saved.model.values())


def test_weights_that_are_not_finite_are_never_saved(tmp_path, monkeypatch):
    make_step = TrainingLoop._step

    def spoiled(self, batch, look):
        make_step(self, batch, look)
        if self.step == 4:
            self.model.head.bias.data[0] = np.inf

    monkeypatch.setattr(TrainingLoop, "_step", spoiled)
    with pytest.raises(ScratchvitError, match=r"the weight head\.bias is not finite; the last good checkpoint is"):
        train(CONFIG.replace(save_every=2), tmp_path / "run")
    assert load_checkpoint(tmp_path / "run" / "last.safetensors").progress["step"] == 2


def test_where_it_begins(device):
    class Halves(nn.Module):
        def __init__(self):
            self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x):
            return self.second(ops.log(self.first(x) * 0.0 - 1.0))

    model = Halves()
    x = np.ones((1, 2), np.float32)
    with np.errstate(all="ignore"):
        assert first_non_finite(model, x) == "the first layer whose input is not finite is second (Linear)"
    assert "forward" not in vars(model.first)
    assert first_non_finite(model.first, x).startswith("the outputs of all layers are finite, only the loss is not, as")
    model.first.bias.data[0] = np.nan
    assert first_non_finite(model, x) == "the parameter first.bias is already not finite"


def test_watching_changes_nothing():
    model = nn.Linear(2, 2)
    before = model(Tensor([[1.0, 2.0]])).numpy()
    first_non_finite(model, np.ones((1, 2), np.float32))
    assert np.array_equal(model(Tensor([[1.0, 2.0]])).numpy(), before)


def spoil_pixels(loop, images):
    """What a decoder gone wrong, or a normalisation by zero, would give."""
    images = images.copy()
    images[3, 0, 2, 2] = np.nan
    return images


def spoil_gradient(loop, images):
    """From here on, the loss gets a term that is 0 and whose gradient is 0 · ∞."""
    loss_of = loop.task.objective.loss

    def with_a_root_of_zero(*args):
        loss, logits = loss_of(*args)
        return loss + ops.sqrt(loop.model.head.bias * 0.0).sum(), logits

    loop.task.objective.loss = with_a_root_of_zero
    return images


def test_a_gradient_that_is_not_finite_ends_the_run_before_it_does_harm(tmp_path, monkeypatch):
    """Even if no weight is saved before the next loss would show it."""
    at_step(monkeypatch, 15, spoil_gradient)
    with pytest.raises(
        ScratchvitError,
        match=r"step 15 \(epoch 3\): the loss is finite but its gradient is not; the first gradient in the "
        r"backward pass that is not finite is that of head\.bias; the last good .*or skip such steps with "
        r"non_finite \"skip\"$",
    ):
        train(CONFIG, tmp_path / "run")
    assert load_checkpoint(tmp_path / "run" / "last.safetensors").progress["step"] == 10


def test_a_gradient_longer_than_float32_can_tell(tmp_path, monkeypatch):
    def spoil(loop, images):
        loop.model.head.weight.data *= np.float32(1e25)      # clipping alone would make the step a step of 0
        return images

    at_step(monkeypatch, 2, spoil)
    with pytest.raises(ScratchvitError, match="but its gradient is not; all entries are finite, but their norm is"):
        train(CONFIG, tmp_path / "run")


def test_on_a_gpu_looks_are_rare_and_say_so(tmp_path, monkeypatch):
    monkeypatch.setattr("scratchvit.training.loop.READ_EVERY", {"cpu": 4})
    at_step(monkeypatch, 2, spoil_gradient)
    with pytest.raises(
        ScratchvitError,
        match=r"step 4 \(epoch 1\): the loss is finite but its gradient is not; the first gradient in the backward "
        r"pass that is not finite is that of head\.bias \(in one of the last 4 steps\); nothing has been saved yet",
    ):
        train(CONFIG, tmp_path / "run")
    assert not (tmp_path / "run" / "last.safetensors").exists()


@pytest.mark.parametrize("spoiled", ["the loss", "the gradient"])
def test_a_step_that_is_past_at_the_look_still_ends_the_run(tmp_path, monkeypatch, spoiled):
    """Nor is anything saved after it: a look comes before every checkpoint."""
    monkeypatch.setattr("scratchvit.training.loop.READ_EVERY", {"cpu": 20})
    make_step = TrainingLoop._step

    def spoil(self, batch, look):
        loss_of = self.task.objective.loss
        if self.step + 1 == 7 and spoiled == "the gradient":
            spoil_gradient(self, batch.images)
        elif self.step + 1 == 7:
            self.task.objective.loss = lambda *args: [value * np.float32(np.nan) for value in loss_of(*args)]
        make_step(self, batch, look)
        self.task.objective.loss = loss_of

    monkeypatch.setattr(TrainingLoop, "_step", spoil)
    what = "the loss was not" if spoiled == "the loss" else "the loss was finite but its gradient was not"
    with pytest.raises(ScratchvitError, match=rf"step 8 .*: {what}.*; that step is past, .* one of the last 20 steps"):
        train(CONFIG.replace(save_every=4), tmp_path / "run")
    assert load_checkpoint(tmp_path / "run" / "last.safetensors").progress["step"] == 5


def test_nothing_is_saved_after_a_signal_if_a_step_was_not_finite(tmp_path, monkeypatch):
    monkeypatch.setattr("scratchvit.training.loop.READ_EVERY", {"cpu": 20})
    at_step(monkeypatch, 2, spoil_gradient)
    stop_at(monkeypatch, 3)
    with pytest.raises(ScratchvitError, match=r"step 4 .* its gradient is not; .*head\.bias .*nothing has been saved"):
        train(CONFIG, tmp_path / "run")


def test_ten_in_a_row_between_two_looks_are_not_missed(tmp_path, monkeypatch):
    monkeypatch.setattr("scratchvit.training.loop.READ_EVERY", {"cpu": 20})
    always_spoil(monkeypatch, 4, 13)
    with pytest.raises(
        ScratchvitError,
        match=r"step 20 .*: 10 steps in a row were skipped; in the last of them the loss was not finite; that step is",
    ):
        train(CONFIG.replace(non_finite="skip", batch_size=32), tmp_path / "run")


# --- leaving steps out ---


@pytest.mark.parametrize("config", [CONFIG, RESNET], ids=["vit", "resnet"])
def test_a_step_that_is_left_out_changes_nothing_but_counts(config, tmp_path, monkeypatch):
    """Not the running statistics of batch norms either, which a forward over NaN has already poisoned."""
    make_step = TrainingLoop._step
    steps = []

    def watched(self, batch, look):
        spoiled = self.step + 1 in (2, 3)
        before = self.model.state_dict(), self.ema.state_dict(), self.optimizer.state_dict()
        make_step(self, batch._replace(images=spoil_pixels(self, batch.images)) if spoiled else batch, look)
        after = self.model.state_dict(), self.ema.state_dict(), self.optimizer.state_dict()
        unchanged = [one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in two)
                     for one, two in zip(before, after)]
        assert unchanged == [spoiled] * 3
        steps.append(spoiled)

    monkeypatch.setattr(TrainingLoop, "_step", watched)
    config = config.replace(non_finite="skip", ema_decay=0.5, epoch_images=90, batch_size=30, epochs=2)
    lines = []
    result = train(config, tmp_path / "run", log=lines.append)
    assert steps == [False, True, True, False, False, False]
    saved = load_checkpoint(tmp_path / "run")
    assert all(np.isfinite(array).all() for array in (*saved.model.values(), *saved.ema.values()))
    assert np.isfinite(result.test_loss) and result.skipped == 2
    rows = load_checkpoint(tmp_path / "run" / "last.safetensors").progress["history"]
    assert [row["skipped"] for row in rows] == [2, 0] and [row["step"] for row in rows] == [3, 6]
    assert all(np.isfinite(row["train_loss"]) and row["train_accuracy"] <= 1 for row in rows)
    assert "2 steps skipped" in lines[1] and not any("skipped" in line for line in lines[2:])
    with (tmp_path / "run" / "metrics.csv").open() as file:
        assert [row["skipped"] for row in csv.DictReader(file)] == ["2", "0"]


def test_a_gradient_that_is_not_finite_is_left_out_too(tmp_path, monkeypatch):
    make_step = TrainingLoop._step

    def spoiled(self, batch, look):
        loss_of = self.task.objective.loss
        if self.step + 1 == 3:
            spoil_gradient(self, batch.images)
        make_step(self, batch, look)
        self.task.objective.loss = loss_of

    monkeypatch.setattr(TrainingLoop, "_step", spoiled)
    assert train(CONFIG.replace(non_finite="skip", epochs=1), tmp_path / "run").skipped == 1


def test_nothing_is_left_out_of_a_healthy_run(tmp_path):
    stops, skips = (train(RESNET.replace(non_finite=how, epochs=1), tmp_path / how) for how in ("stop", "skip"))
    assert (stops.skipped, stops.test_loss) == (skips.skipped, skips.test_loss) == (0, stops.test_loss)


def always_spoil(monkeypatch, first, last):
    make_step = TrainingLoop._step

    def spoiled(self, batch, look):
        if first <= self.step + 1 <= last:
            batch = batch._replace(images=spoil_pixels(self, batch.images))
        make_step(self, batch, look)

    monkeypatch.setattr(TrainingLoop, "_step", spoiled)


def test_a_run_that_would_not_recover_stops(tmp_path, monkeypatch):
    always_spoil(monkeypatch, 4, 20)
    config = CONFIG.replace(non_finite="skip", epochs=2, batch_size=128, save_every=1)
    with pytest.raises(
        ScratchvitError,
        match=r"step 13 \(epoch 2\): 10 steps in a row were skipped; in the last of them the loss is not finite; the "
        r"images of the batch are not finite; .*last\.safetensors\. If the data is not the cause, [^\"]*$",
    ):
        train(config, tmp_path / "run")
    saved = load_checkpoint(tmp_path / "run" / "last.safetensors")
    assert saved.progress["step"] == 12 and saved.progress["learn"]["skipped_in_a_row"] == 9
    with pytest.raises(ScratchvitError, match=r"step 13 .*10 steps in a row"):       # those before the resume count
        train(config, tmp_path / "run", resume=True)


def test_nine_in_a_row_may_be_left_out(tmp_path, monkeypatch):
    always_spoil(monkeypatch, 2, 10)
    result = train(CONFIG.replace(non_finite="skip", batch_size=32, epochs=1), tmp_path / "run")
    assert result.skipped == 9


def test_an_epoch_without_a_step_stops(tmp_path, monkeypatch):
    always_spoil(monkeypatch, 6, 10)
    with pytest.raises(ScratchvitError, match=r"\(epoch 2\): all steps of the epoch were skipped; the last"):
        train(CONFIG.replace(non_finite="skip"), tmp_path / "run")
    assert load_checkpoint(tmp_path / "run" / "last.safetensors").progress["step"] == 5


# --- loss scaling ---


def steep(loop, images):
    """Gradients in the hundreds, which a factor of 2^127 takes out of float32."""
    loop.model.head.weight.data *= 100
    return images


def test_a_factor_changes_nothing_where_nothing_vanishes(tmp_path):
    """A power of two moves exponents only; every product and sum on the way back rounds as before."""
    config = CONFIG.replace(epochs=1)
    train(config, tmp_path / "plain")
    train(config.replace(loss_scale=1024.0), tmp_path / "scaled")
    plain, scaled = (load_checkpoint(tmp_path / name / "last.safetensors").model for name in ("plain", "scaled"))
    for name, weight in plain.items():
        np.testing.assert_array_equal(scaled[name], weight, err_msg=name)


def test_a_factor_that_is_too_large_adapts_itself(tmp_path, monkeypatch):
    """Also where numbers that are not finite are to stop the run: these are of the factor's own making."""
    at_step(monkeypatch, 1, steep)
    result = train(CONFIG.replace(loss_scale=2.0**127, batch_size=64), tmp_path / "run")
    learn = load_checkpoint(tmp_path / "run" / "last.safetensors").progress["learn"]
    assert 0 < result.skipped < 20 and learn["scaler"]["factor"] == 2.0 ** (127 - result.skipped)
    assert np.isfinite(result.test_loss)


def test_scaling_does_not_hide_what_stops_a_run(tmp_path, monkeypatch):
    """A loss that is not finite ends it at once; a gradient, as soon as the factor cannot be what is wrong."""
    config = CONFIG.replace(loss_scale=4.0)
    with monkeypatch.context() as patched:
        at_step(patched, 3, lambda loop, images: loop.model.head.bias.data.fill(np.inf) or images)
        with pytest.raises(ScratchvitError, match=r"step 3 .*: the loss is not finite; the parameter head\.bias"):
            train(config, tmp_path / "loss")
    at_step(monkeypatch, 3, spoil_gradient)
    with pytest.raises(ScratchvitError, match=r"step 5 .*: the loss is finite but its gradient is not"):
        train(config, tmp_path / "gradient")        # 4, 2, 1: two steps were skipped


@pytest.mark.slow
def test_counts_and_factor_go_on_bit_for_bit(tmp_path, monkeypatch):
    always_spoil(monkeypatch, 8, 9)
    at_step(monkeypatch, 1, steep)
    config = EVERYTHING.replace(non_finite="skip", loss_scale=2.0**127, batch_size=128)
    straight = train(config, tmp_path / "straight")
    for step in (1, 9, 10, 12):
        with monkeypatch.context() as patched:
            stop_at(patched, step)
            with pytest.raises(Interrupted):
                train(config, tmp_path / f"run{step}")
        result = train(config, tmp_path / f"run{step}", resume=True)
        assert_same_run(tmp_path / f"run{step}", tmp_path / "straight")
        assert result.skipped == straight.skipped > 2


def test_runs_of_older_versions_go_on(tmp_path):
    """Their rows do not tell of steps left out, nor do their checkpoints."""
    train(CONFIG.replace(epochs=1), tmp_path / "run")
    path = tmp_path / "run" / "last.safetensors"
    saved = load_checkpoint(path)
    progress = {name: value for name, value in saved.progress.items() if name != "learn"}
    progress["history"] = [{k: v for k, v in row.items() if k != "skipped"} for row in progress["history"]]
    save_checkpoint(path, dataclasses.replace(saved, progress=progress))
    result = train(CONFIG.replace(epochs=2), tmp_path / "run", resume=True)
    assert result.skipped == 0
    with (tmp_path / "run" / "metrics.csv").open() as file:
        assert [row["skipped"] for row in csv.DictReader(file)] == ["0", "0"]
