"""The precision of a run: refused where a device does not have it, saved, resumed, and used in evaluation too."""

import contextlib
import io
import json

import numpy as np
import pytest

import scratchvit as sv
from scratchvit.cli import main
from scratchvit.errors import ScratchvitError
from scratchvit.gpu import capability
from scratchvit.optim import LOSS_SCALE
from scratchvit.precision import OF_A_RUN, check_precision, computing_in
from scratchvit.training import Interrupted, load_checkpoint, prepare, read_config, train
from scratchvit.training.classification.task import ClassificationTask
from tests.support.fake_cupy import FakeCuPy
from tests.support.runs import CONFIG, EVERYTHING, assert_same_run, stop_at

TINY = CONFIG.replace(epochs=1)


def test_a_device_without_a_precision_says_so_and_names_one_that_it_has():
    for precision in OF_A_RUN:
        check_precision(precision, (8, 0))
        check_precision(precision, (12, 0))
        if precision != "tf32":
            check_precision(precision, None)
    for precision in ("float32", "fp16"):
        check_precision(precision, (7, 5))
    with pytest.raises(ScratchvitError, match=r"tf32 is about matrix products on GPUs from compute capability 8\.0 on"):
        check_precision("tf32", None)
    with pytest.raises(ScratchvitError, match=r"bf16 needs .* 8\.0 on, and Tesla T4 has .* 7\.5: choose fp16"):
        check_precision("bf16", (7, 5), "Tesla T4")
    with pytest.raises(ScratchvitError, match=r"tf32 needs .* 8\.0 on, and this GPU has .* 7\.0: choose float32"):
        check_precision("tf32", (7, 0))
    assert capability(FakeCuPy(), 0)[0] == (9, 0)


def test_a_run_with_a_precision_that_the_device_lacks_changes_nothing(tmp_path):
    with pytest.raises(ScratchvitError, match="compute capability 8"):
        prepare(TINY.replace(precision="tf32"), tmp_path / "run")
    with pytest.raises(ScratchvitError, match="precision is one of float32, tf32, bf16, fp16, not 'half'"):
        prepare(TINY.replace(precision="half"), tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_steps_validation_and_test_compute_in_the_precision_of_the_run(tmp_path, monkeypatch, precision):
    seen = []
    for name in ("loss_of", "validate", "test"):
        called = getattr(ClassificationTask, name)

        def noted(self, *args, called=called, name=name):
            seen.append((name, sv.autocast_dtype()))
            return called(self, *args)

        monkeypatch.setattr(ClassificationTask, name, noted)
    result = train(TINY.replace(precision=precision), tmp_path / "run", log=lambda line: None)
    assert set(seen) == {(name, OF_A_RUN[precision]) for name in ("loss_of", "validate", "test")}
    assert sv.autocast_dtype() == "float32" and np.isfinite(result.test_loss)
    weights = load_checkpoint(tmp_path / "run" / "best.safetensors").model
    assert {array.dtype for array in weights.values()} == {np.dtype(np.float32)}
    exact = train(TINY, tmp_path / "exact", log=lambda line: None)
    assert exact.test_loss != result.test_loss
    assert exact.test_loss == pytest.approx(result.test_loss, rel=0.05)


def test_fp16_scales_the_loss_and_bf16_does_not(tmp_path):
    def factor(**settings):
        loop = prepare(TINY.replace(**settings), tmp_path / "-".join(map(str, settings.values())))
        with loop.folder:
            return loop.learn.scaler and loop.learn.scaler.factor

    assert factor(precision="bf16") is None and factor(precision="float32") is None
    assert factor(precision="fp16") == LOSS_SCALE == 65_536
    assert factor(precision="fp16", loss_scale=8.0) == 8


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_run_in_16_bits_is_resumed_bit_for_bit(tmp_path, monkeypatch, precision):
    config = EVERYTHING.replace(precision=precision)
    train(config, tmp_path / "whole", log=lambda line: None)
    with monkeypatch.context() as patched:
        stop_at(patched, 7)
        with pytest.raises(Interrupted):
            train(config, tmp_path / "parts", log=lambda line: None)
    assert read_config(tmp_path / "parts").precision == precision
    train(read_config(tmp_path / "parts"), tmp_path / "parts", resume=True, log=lambda line: None)
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


def test_a_run_from_before_there_were_precisions_is_in_float32(tmp_path):
    train(TINY, tmp_path / "run", log=lambda line: None)
    path = tmp_path / "run" / "config.json"
    text = path.read_text("utf-8")
    assert '"precision": "float32"' in text
    found = json.loads(text)

    def without(settings):
        if not isinstance(settings, dict):
            return settings
        return {key: without(value) for key, value in settings.items() if key != "precision"}

    path.write_text(json.dumps(without(found)), "utf-8")
    assert read_config(tmp_path / "run").precision == "float32"


def test_tf32_is_set_for_the_run_alone_and_float32_leaves_what_is_set():
    with computing_in("tf32"):
        assert sv.matmul_precision() == "tf32" and sv.autocast_dtype() == "float32"
    assert sv.matmul_precision() == "float32"
    sv.set_matmul_precision("tf32")
    try:
        with computing_in("float32"), sv.autocast("bfloat16"), computing_in("float32"):
            assert (sv.matmul_precision(), sv.autocast_dtype()) == ("tf32", "bfloat16")
        with computing_in("bf16"):
            assert (sv.matmul_precision(), sv.autocast_dtype()) == ("tf32", "bfloat16")
        assert sv.matmul_precision() == "tf32"
    finally:
        sv.set_matmul_precision("float32")


def test_the_log_names_the_precision(tmp_path):
    options = ["--data", "digits", "--epochs", "1", "--batch-size", "512", "--embed-dim", "16", "--depth", "1",
               "--num-heads", "2", "--patch-size", "4"]

    def head(*more):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            assert main(["train", *options, *more]) == 0
        return " ".join(out.getvalue().split())

    said = head("--precision", "fp16", "--out", str(tmp_path / "a"))
    assert "precision fp16: activations and products in float16" in said
    assert "loss scaling from 65,536 on; on a CPU, float32 is rounded to it, which is not faster but slower" in said
    assert "precision bf16" not in head("--out", str(tmp_path / "b"))

