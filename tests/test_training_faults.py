"""What goes wrong in a run gets a sentence, and nothing that was saved is lost."""

import errno
import os
import signal

import numpy as np
import pytest
import safetensors.numpy

from scratchvit import Tensor, nn, ops
from scratchvit.data import Loader
from scratchvit.errors import ScratchvitError
from scratchvit.models import create_model
from scratchvit.training import load_checkpoint, model_from_checkpoint, train
from scratchvit.training.checkpoint import _checksum, load_into, write_atomically
from scratchvit.training.diagnose import first_non_finite
from scratchvit.training.loop import Trainer
from tests.runs import CONFIG, run_in_a_process

SHORT = CONFIG.replace(epochs=2)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults") / "run"
    train(SHORT, folder)
    return folder


@pytest.fixture
def checkpoint(finished, tmp_path):
    """A copy that may be damaged."""
    path = tmp_path / "best.safetensors"
    path.write_bytes((finished / "best.safetensors").read_bytes())
    return path


# --- numbers that are not finite ---


def at_step(monkeypatch, step, spoil):
    """Call spoil(trainer, images) just before the forward of that step (from 1), and give it what that returns."""
    forward = Trainer._forward

    def spoiled(self, images, labels):
        return forward(self, spoil(self, images) if self.step + 1 == step else images, labels)

    monkeypatch.setattr(Trainer, "_forward", spoiled)


def test_nan_in_the_data(tmp_path, monkeypatch):
    def spoil(trainer, images):
        images = images.copy()
        images[3, 0, 2, 2] = np.nan
        images[7, 0, 0, 0] = np.inf
        return images

    at_step(monkeypatch, 4, spoil)
    with pytest.raises(ScratchvitError, match=r"step 4 \(epoch 1\): the data is not finite \(images 3, 7 of the batch"):
        train(CONFIG.replace(save_every=2), tmp_path / "run")
    assert load_checkpoint(tmp_path / "run" / "last.safetensors").progress["step"] == 2


def test_nan_in_the_loss_names_the_layer_and_keeps_the_last_good_checkpoint(tmp_path, monkeypatch):
    def spoil(trainer, images):
        # Finite itself, but its products overflow.
        trainer.model.blocks[1].mlp.fc1.weight.data[...] = 3e38
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
    learn = Trainer._learn

    def spoiled(self, loss):
        learn(self, loss)
        if self.step == 4:
            self.model.head.bias.data[0] = np.inf

    monkeypatch.setattr(Trainer, "_learn", spoiled)
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
    assert first_non_finite(model.first, x) == "every layer's output is finite, only the loss is not"
    model.first.bias.data[0] = np.nan
    assert first_non_finite(model, x) == "the parameter first.bias is already not finite"


# --- the disk ---


def refuse(number):
    def refusal(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    return refusal


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    monkeypatch.setattr("os.fsync", refuse(errno.ENOSPC))
    path = tmp_path / "last.safetensors"
    with pytest.raises(ScratchvitError, match=r"could not be written \(No space left on device\): make room"):
        write_atomically(path, b"new")
    assert not list(tmp_path.iterdir())
    path.write_bytes(b"old")
    with pytest.raises(ScratchvitError, match="the one saved before is untouched"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_may_not_grow(tmp_path):
    """A real refusal by the system in the middle of a checkpoint, at the second save."""
    run = tmp_path / "run"
    limit = """
from scratchvit.training import loop
save = loop.save_checkpoint
def save_and_limit(path, checkpoint):
    save(path, checkpoint)
    if path.name == "last.safetensors":
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
loop.save_checkpoint = save_and_limit
"""
    done = run_in_a_process(run, CONFIG.replace(save_every=2), prelude=limit)
    assert done.returncode == 1
    message = done.stderr.splitlines()[-1]
    assert "last.safetensors could not be written (" in message and "the one saved before is untouched" in message
    assert load_checkpoint(run / "last.safetensors").progress["step"] == 2
    assert sorted(p.name for p in run.iterdir()) == ["config.json", "last.safetensors"]
    train(CONFIG.replace(save_every=2), run, resume=True)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ScratchvitError, match=r"the folder .*run cannot be made \(Not a directory\)"):
        train(SHORT, tmp_path / "file" / "run")


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr("pathlib.Path.replace", refuse(errno.EACCES))
    with pytest.raises(ScratchvitError, match=r"config\.json could not be written \(Permission denied\)"):
        train(SHORT, tmp_path / "run")


# --- damaged and foreign checkpoints ---


@pytest.mark.parametrize("length", [0, 5, 100, 5000, -1])
def test_a_checkpoint_that_was_cut_short(checkpoint, length):
    checkpoint.write_bytes(checkpoint.read_bytes()[:length])
    with pytest.raises(ScratchvitError, match=r"best\.safetensors is cut short, damaged or no safetensors file"):
        load_checkpoint(checkpoint)


@pytest.mark.parametrize("place", [0, 3, 9, 60, 900, -900, -1])
def test_a_checkpoint_with_a_flipped_bit(checkpoint, place):
    content = bytearray(checkpoint.read_bytes())
    content[place] ^= 4
    checkpoint.write_bytes(content)
    with pytest.raises(ScratchvitError, match=r"damaged|no run of scratchvit"):
        load_checkpoint(checkpoint)


def test_weights_without_a_run(tmp_path):
    safetensors.numpy.save_file({"w": np.zeros(2)}, tmp_path / "w.safetensors")
    with pytest.raises(ScratchvitError, match="holds weights but no run of scratchvit"):
        load_checkpoint(tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    "text",
    ["[", "[]", "{}", '{"format": 1, "extra": 2}', '{"format": 1, "model": 3}', "[" * 100_000,
     '{"format": 1, "config": {}, "model_name": [], "model_args": {}, "data": {}, "progress": {}, "model": {}}',
     '{"format": 1, "config": {}, "model_name": "vit_tiny_patch16_224", "model_args": "x", "data": {}, "progress": {}, '
     '"model": {}}',
     '{"format": 1, "config": {}, "model_name": "vit_tiny_patch16_224", "model_args": {"depth": "x"}, "data": {}, '
     '"progress": {}, "model": {}}'],
    ids=lambda text: text[:60],
)  # fmt: skip
def test_a_checkpoint_that_somebody_made_up(text, tmp_path):
    tensors = {"model.w": np.zeros(2, np.float32)}
    path = tmp_path / "made_up.safetensors"
    metadata = {"scratchvit": text, "crc32": _checksum(tensors, text)}
    safetensors.numpy.save_file(tensors, path, metadata)
    with pytest.raises(ScratchvitError, match=r"made_up\.safetensors (is no checkpoint|names a model)"):
        model_from_checkpoint(path)


def test_a_pickle_is_not_opened(tmp_path):
    (tmp_path / "model.pth").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(ScratchvitError, match="no safetensors file"):
        model_from_checkpoint(tmp_path / "model.pth")


def test_no_checkpoint(tmp_path):
    with pytest.raises(ScratchvitError, match=r"there is no checkpoint .*best\.safetensors"):
        load_checkpoint(tmp_path)


def test_a_checkpoint_of_another_model(checkpoint):
    other = create_model("vit_tiny_patch16_224", img_size=8, patch_size=4, depth=1, embed_dim=24, num_heads=2)
    before = other.state_dict()
    with pytest.raises(ScratchvitError, match=r"best\.safetensors is a checkpoint of another model: .* mis-shaped"):
        load_into(other, load_checkpoint(checkpoint).model, checkpoint)
    assert all(np.array_equal(before[name], value) for name, value in other.state_dict().items())


# --- folders in use, and resuming what cannot be ---


def test_a_folder_that_holds_a_run(finished):
    before = {path: path.read_bytes() for path in finished.iterdir()}
    with pytest.raises(ScratchvitError, match=r"already holds a run: go on with it, scratchvit train --resume"):
        train(SHORT, finished)
    assert before == {path: path.read_bytes() for path in finished.iterdir()}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"lr": 0.5, "seed": 4}, r"lr \(0\.003 → 0\.5\), seed \(0 → 4\)"),
        ({"epochs": 1}, r"epochs \(2 → 1: may only grow\)"),
    ],
)
def test_resuming_with_other_settings(finished, change, text):
    with pytest.raises(ScratchvitError, match=rf"was begun with other settings: {text}"):
        train(SHORT.replace(**change), finished, resume=True)


def test_resuming_nothing(tmp_path):
    with pytest.raises(ScratchvitError, match="holds no run to resume"):
        train(SHORT, tmp_path, resume=True)


def test_resuming_from_a_damaged_checkpoint(finished, tmp_path):
    for path in finished.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes()[: 700 if path.name == "last.safetensors" else None])
    with pytest.raises(ScratchvitError, match=r"last\.safetensors is cut short"):
        train(SHORT, tmp_path, resume=True)


# --- Ctrl-C ---


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path):
    prelude = """
import os, signal
from scratchvit.training import loop
clip = loop.optim.clip_grad_norm
calls = []
def interrupted(*args):
    calls.append(1)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGINT)
    return clip(*args)
loop.optim.clip_grad_norm = interrupted
"""
    done = run_in_a_process(tmp_path / "run", SHORT, prelude=prelude)
    assert done.returncode == 128 + signal.SIGINT
    expected = f"stopped and saved at step 3 of 10; go on with: scratchvit train --resume {tmp_path / 'run'}"
    assert done.stderr.splitlines()[-1].endswith(expected)
    assert load_checkpoint(tmp_path / "run" / "last.safetensors").progress["step"] == 3


def test_a_second_ctrl_c_does_not_wait(tmp_path, monkeypatch):
    def twice(self):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Trainer, "_train_epoch", twice)
    with pytest.raises(KeyboardInterrupt):
        train(SHORT, tmp_path / "run")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_a_loader_raises_comes_through(tmp_path, monkeypatch):
    def broken(self):
        raise ScratchvitError("cat.jpg does not decode")

    monkeypatch.setattr(Loader, "__iter__", broken)
    with pytest.raises(ScratchvitError, match=r"cat\.jpg does not decode"):
        train(SHORT, tmp_path / "run")


def test_watching_changes_nothing():
    model = nn.Linear(2, 2)
    before = model(Tensor([[1.0, 2.0]])).numpy()
    first_non_finite(model, np.ones((1, 2), np.float32))
    assert np.array_equal(model(Tensor([[1.0, 2.0]])).numpy(), before)
