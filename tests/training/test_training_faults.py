"""What goes wrong in a run gets a sentence, and nothing that was saved is lost."""

import shutil
import signal

import numpy as np
import pytest
import safetensors.numpy

from scratchvit.data import Loader
from scratchvit.errors import ScratchvitError
from scratchvit.models import create_model
from scratchvit.training import TrainingLoop, load_checkpoint, model_from_checkpoint, train
from scratchvit.training.checkpoint import _checksum, load_into
from tests.support.runs import CONFIG, assert_same_run, files_of, run_in_a_process

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


# --- damaged and foreign checkpoints ---


@pytest.mark.parametrize("length", [0, 5, 100, 5000, -1])
def test_a_checkpoint_that_was_cut_short(checkpoint, length):
    checkpoint.write_bytes(checkpoint.read_bytes()[:length])
    with pytest.raises(ScratchvitError, match=r"best\.safetensors is truncated, damaged or not a safetensors file"):
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
    with pytest.raises(ScratchvitError, match="contains weights but is not a checkpoint of scratchvit"):
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
)
def test_a_checkpoint_that_somebody_made_up(text, tmp_path):
    tensors = {"model.w": np.zeros(2, np.float32)}
    path = tmp_path / "made_up.safetensors"
    metadata = {"scratchvit": text, "crc32": _checksum(tensors, text)}
    safetensors.numpy.save_file(tensors, path, metadata)
    with pytest.raises(ScratchvitError, match=r"made_up\.safetensors (is not a checkpoint|names a model)"):
        model_from_checkpoint(path)


def test_a_pickle_is_not_opened(tmp_path):
    (tmp_path / "model.pth").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(ScratchvitError, match="not a safetensors file"):
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
    before = files_of(finished)
    with pytest.raises(ScratchvitError, match=r"already contains a run: resume it with scratchvit train --resume"):
        train(SHORT, finished)
    assert before == files_of(finished)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"lr": 0.5, "seed": 4}, r"lr \(0\.003 → 0\.5\), seed \(0 → 4\)"),
        ({"epochs": 1}, r"epochs \(2 → 1: can only increase\)"),
    ],
)
def test_resuming_with_other_settings(finished, change, text):
    with pytest.raises(ScratchvitError, match=rf"was started with other settings: {text}"):
        train(SHORT.replace(**change), finished, resume=True)


def test_resuming_nothing(tmp_path):
    with pytest.raises(ScratchvitError, match="contains no run"):
        train(SHORT, tmp_path, resume=True)


def test_resuming_from_a_damaged_checkpoint(finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    (run / "last.safetensors").write_bytes((run / "last.safetensors").read_bytes()[:700])
    with pytest.raises(ScratchvitError, match=r"last\.safetensors is truncated"):
        train(SHORT, run, resume=True)


# --- Ctrl-C ---


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path):
    prelude = """
import signal
from scratchvit.training import loop
clip = loop.optim.clip_factor
calls = []
def interrupted(*args):
    calls.append(1)
    if len(calls) == 3:
        signal.raise_signal(signal.SIGINT)
    return clip(*args)
loop.optim.clip_factor = interrupted
"""
    done = run_in_a_process(tmp_path / "run", SHORT, prelude=prelude)
    assert done.returncode == 128 + signal.SIGINT
    expected = f"stopped and saved at step 3 of 10; resume with: scratchvit train --resume {tmp_path / 'run'}"
    assert done.stderr.splitlines()[-1].endswith(expected)
    assert load_checkpoint(tmp_path / "run" / "last.safetensors").progress["step"] == 3


def test_ctrl_c_while_the_teacher_is_asked(finished, tmp_path):
    """Its answers to all pictures are asked for before the first step, which may take long."""
    config = SHORT.replace(teacher=str(finished))
    prelude = """
import signal
from scratchvit.training.classification.distill import Teacher
answer = Teacher.__call__
def interrupted(self, images):
    if not hasattr(self, "asked"):
        self.asked = True
        signal.raise_signal(signal.SIGINT)
    return answer(self, images)
Teacher.__call__ = interrupted
"""
    run = tmp_path / "run"
    done = run_in_a_process(run, config, prelude=prelude)
    assert done.returncode == 128 + signal.SIGINT
    assert done.stderr.splitlines()[-1].endswith(
        f"stopped and saved at step 0 of 10; resume with: scratchvit train --resume {run}"
    )
    assert sorted(files_of(run)) == ["config.json", "last.safetensors"]
    train(config, run, resume=True)
    train(config, tmp_path / "straight")
    assert_same_run(run, tmp_path / "straight")


def test_a_second_ctrl_c_does_not_wait(tmp_path, monkeypatch):
    def twice(self):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(TrainingLoop, "_train_epoch", twice)
    before = signal.getsignal(signal.SIGINT)        # ignored, if the tests run in the background
    with pytest.raises(KeyboardInterrupt):
        train(SHORT, tmp_path / "run")
    assert signal.getsignal(signal.SIGINT) is before


def test_what_a_loader_raises_comes_through(tmp_path, monkeypatch):
    def broken(self):
        raise ScratchvitError("cat.jpg does not decode")

    monkeypatch.setattr(Loader, "__iter__", broken)
    with pytest.raises(ScratchvitError, match=r"cat\.jpg does not decode"):
        train(SHORT, tmp_path / "run")
