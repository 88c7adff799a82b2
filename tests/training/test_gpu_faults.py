"""A run on a GPU that fails: a sentence with the last checkpoint, which stays as it was. (No GPU is needed: the CPU
computes, and at a step raises what CuPy would.)"""

import csv
import sys

import pytest

import scratchvit as sv
from scratchvit import backend
from scratchvit.cli import main
from scratchvit.errors import DeviceFailed, ScratchvitError
from scratchvit.nn import Module
from scratchvit.training import TrainingLoop, load_checkpoint, train
from scratchvit.training.folder import read_config
from tests.support.fake_cupy import cupy_error
from tests.support.runs import CONFIG, assert_same_run, stop_at
from tests.support.strict_array import STRICT

SHORT = CONFIG.replace(epochs=2)
STEPS = 5           # in an epoch
FULL = "OutOfMemoryError", "Out of memory allocating 1,073,741,824 bytes (allocated so far: 7 bytes)."
ILLEGAL = "CUDARuntimeError", "cudaErrorIllegalAddress: an illegal memory access was encountered"


def fail_at(monkeypatch, step, error):
    """From the step of this number on, the GPU raises: in the loss and, if the device is lost, whatever it is asked."""
    compute, read = TrainingLoop._step, Module.state_dict
    lost = []

    def computes(self, batch, look):
        if self.step + 1 == step:
            lost.append(error[0] != "OutOfMemoryError")
            raise cupy_error(*error)
        compute(self, batch, look)

    def reads(self):
        if any(lost):
            raise cupy_error(*error)
        return read(self)

    monkeypatch.setattr(TrainingLoop, "_step", computes)
    monkeypatch.setattr(Module, "state_dict", reads)


def saves_of(monkeypatch):
    """The steps at which the loop saves, or tries to."""
    save, tried = TrainingLoop.save, []
    monkeypatch.setattr(TrainingLoop, "save", lambda self, *best: (tried.append(self.step), save(self, *best)))
    return tried


def test_a_full_memory_names_the_batch_and_the_last_checkpoint(tmp_path, monkeypatch):
    fail_at(monkeypatch, 7, FULL)
    monkeypatch.setitem(sys.modules, "cupy", None)      # or it would be asked how full the GPU is
    tried = saves_of(monkeypatch)
    with pytest.raises(ScratchvitError) as caught:
        train(SHORT, tmp_path / "run")
    last = tmp_path / "run" / "last.safetensors"
    assert str(caught.value) == (
        "step 7 (epoch 2): the memory of the GPU is full with a batch of 256 images, 1.0 GiB more are needed: use a "
        "smaller batch (--batch-size) or compute it in parts (--accumulate), smaller images (--img-size; --short-side "
        f"of a detector), or a smaller model; the last good checkpoint is {last}"
    )
    assert not isinstance(caught.value, DeviceFailed) and tried == [STEPS]
    assert load_checkpoint(last).progress["step"] == STEPS


def test_a_lost_gpu_saves_nothing_and_the_run_can_be_resumed(tmp_path, monkeypatch):
    train(SHORT, tmp_path / "straight")
    with monkeypatch.context() as patch:
        fail_at(patch, 8, ILLEGAL)
        tried = saves_of(patch)
        with pytest.raises(DeviceFailed) as caught:
            train(SHORT, tmp_path / "run")
    last = tmp_path / "run" / "last.safetensors"
    text = str(caught.value)
    assert text.startswith("step 8 (epoch 2): a kernel failed on the GPU (cudaErrorIllegalAddress: ")
    assert "CUDA_LAUNCH_BLOCKING=1" in text
    resume = f"scratchvit train --resume {tmp_path / 'run'}"
    assert text.endswith(f"; the last good checkpoint is {last}; resume with: {resume}")
    assert tried == [STEPS]
    train(SHORT, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", tmp_path / "straight")


def test_before_the_first_checkpoint(tmp_path, monkeypatch):
    fail_at(monkeypatch, 2, ILLEGAL)
    with pytest.raises(DeviceFailed, match=r"; nothing has been saved yet$"):
        train(SHORT, tmp_path / "run")


def test_a_gpu_that_is_lost_shows_when_the_run_is_saved(tmp_path, monkeypatch):
    """Kernels run later than they are started: what reads the weights may be the first to wait for them."""
    write = TrainingLoop._write

    def fails(self, path, with_optimizer):
        if len(self.history) == 2:
            raise cupy_error(*ILLEGAL)
        write(self, path, with_optimizer)

    monkeypatch.setattr(TrainingLoop, "_write", fails)
    with pytest.raises(DeviceFailed, match="CUDA_LAUNCH_BLOCKING=1"):
        train(SHORT, tmp_path / "run")
    assert load_checkpoint(tmp_path / "run" / "last.safetensors").progress["step"] == STEPS


def test_a_gpu_that_is_lost_shows_after_ctrl_c(tmp_path, monkeypatch):
    train(SHORT.replace(epochs=1), tmp_path / "run")
    stop_at(monkeypatch, 7)
    monkeypatch.setattr(Module, "state_dict", lambda self: (_ for _ in ()).throw(cupy_error(*ILLEGAL)))
    with pytest.raises(DeviceFailed, match="a kernel failed on the GPU"):
        train(SHORT, tmp_path / "run", resume=True)
    assert load_checkpoint(tmp_path / "run" / "last.safetensors").progress["step"] == STEPS


def test_on_the_command_line_it_is_a_sentence_with_the_traceback_in_the_run(tmp_path, monkeypatch, capsys):
    fail_at(monkeypatch, 2, ILLEGAL)
    folder = tmp_path / "run"
    words = ["--embed-dim=16", "--depth=1", "--num-heads=2", "--patch-size=4", "--epochs=1", "--batch-size=256"]
    assert main(["train", *words, "--out", str(folder)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("scratchvit: step 2 (epoch 1): a kernel failed") and error.count("\n") == 1
    assert error.endswith(f"(traceback: {folder / 'traceback.txt'})\n")
    assert "cudaErrorIllegalAddress" in (folder / "traceback.txt").read_text("utf-8")


def test_a_run_on_the_second_gpu_goes_on_on_the_first(tmp_path, monkeypatch):
    chosen = []
    monkeypatch.setattr(backend, "_gpu", lambda number: chosen.append(number) or STRICT)
    tiny = SHORT.replace(epochs=1, train_fraction=0.2, batch_size=64, device="gpu:1")
    try:
        train(tiny, tmp_path / "run")
        train(tiny.replace(epochs=2, device="gpu"), tmp_path / "run", resume=True)
    finally:
        sv.use("cpu")
    assert chosen == [1, 0] and read_config(tmp_path / "run").device == "gpu"
    with (tmp_path / "run" / "metrics.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 2
    with pytest.raises(ScratchvitError, match=r"started with other settings: device \('gpu' → 'cpu'\)"):
        train(tiny.replace(epochs=2, device="cpu"), tmp_path / "run", resume=True)
    with pytest.raises(ScratchvitError, match="unknown device 'gpu:x'"):
        train(tiny.replace(device="gpu:x"), tmp_path / "other")
