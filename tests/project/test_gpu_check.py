"""scripts/gpu_check.py as far as a machine without a GPU goes."""

import json
import subprocess
import sys

import numpy as np
import pytest

import scratchvit as sv
from scratchvit import backend
from tests.support.margins import assert_all_close, rounding
from tests.support.scripts import SCRIPTS, import_script
from tests.support.strict_array import STRICT


@pytest.fixture
def gpu_check():
    yield import_script("gpu_check.py")
    sv.use("cpu")


def test_without_a_gpu_it_is_one_sentence(gpu_check, monkeypatch, capsys, tmp_path):
    def refuse(number):
        raise sv.ScratchvitError("the GPU needs CuPy")

    monkeypatch.setattr(backend, "_gpu", refuse)
    assert gpu_check.main(["--out", str(tmp_path / "out.json")]) == 1
    assert capsys.readouterr().err == "gpu_check: the GPU needs CuPy\n"
    assert not list(tmp_path.iterdir())


def test_the_same_steps_on_the_stand_in_for_the_gpu(gpu_check):
    row = gpu_check.compare_steps(backend.CPU, STRICT, steps=6)
    assert row["ok"], row["result"]
    expected, found = row["losses"]
    assert_all_close(found, expected, rounding(lambda: gpu_check.train_losses(backend.CPU, 6).tolist(), samples=1))
    assert [len(losses) for losses in row["losses"]] == [6, 6]


def test_losses_that_part_are_a_failure(gpu_check, monkeypatch):
    losses = {"cpu": np.array([2.0, 1.0]), "strict": np.array([2.0, 1.1])}
    monkeypatch.setattr(gpu_check, "train_losses", lambda device, steps: losses[device.name])
    row = gpu_check.compare_steps(backend.CPU, STRICT, steps=2)
    assert not row["ok"] and "1.0e-01" in row["result"]


def test_losses_that_are_not_numbers_are_a_failure(gpu_check, monkeypatch):
    monkeypatch.setattr(gpu_check, "train_losses", lambda device, steps: np.array([2.0, np.nan]))
    assert not gpu_check.compare_steps(backend.CPU, STRICT, steps=2)["ok"]


def test_a_dry_run_on_the_cpu_writes_the_report(gpu_check, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(gpu_check, "torch_step_ms", lambda *args: 10.0)
    monkeypatch.setattr(gpu_check, "median_ms", lambda step, synchronize: step().size * 20.0)
    out = tmp_path / "gpu_check.json"
    words = ["--device=cpu", "--skip-tests", "--steps=4", "--batch-size=1", f"--out={out}"]
    assert gpu_check.main(words) == 0
    report = json.loads(out.read_text())
    assert report["gpu"] is None and report["versions"]["numpy"] == np.__version__
    assert [row["part"] for row in report["parts"]] == ["CPU = GPU", "ViT-Ti/16", "ResNet-18"]
    table = capsys.readouterr().out
    assert "largest relative difference 0.0e+00" in table and "2.00 times its time" in table
    assert list(tmp_path.iterdir()) == [out]


def test_the_median_leaves_the_warm_up_out(gpu_check, monkeypatch):
    seconds = iter([5, 5, 5, 1, 2, 3])
    now = 0

    def step():
        nonlocal now
        now += next(seconds)

    monkeypatch.setattr(gpu_check.time, "perf_counter", lambda: now)
    assert gpu_check.median_ms(step, lambda: None, repeats=3) == 2000


def test_a_part_that_fails_does_not_stop_the_others(gpu_check, monkeypatch, capsys, tmp_path):
    def broken(*args):
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(gpu_check, "compare_steps", broken)
    monkeypatch.setattr(gpu_check, "compare_speed", lambda *args: {"ok": None, "result": "nothing to compare with"})
    assert gpu_check.main(["--device", "cpu", "--skip-tests", "--out", str(tmp_path / "out.json")]) == 1
    table = capsys.readouterr().out
    assert "FAILED   RuntimeError: no kernel image" in table and "not run  nothing to compare with" in table


def test_the_suite_is_run_with_a_limit(gpu_check, monkeypatch):
    def run(command, timeout, **options):
        assert command[-4:] == ["--device", "gpu", "-m", "not slow and not parity"]
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(gpu_check.subprocess, "run", run)
    assert gpu_check.run_tests("gpu") == {"ok": False, "result": f"not finished after {gpu_check.TESTS_SECONDS} s"}


def test_its_bounds_stay_under_nine_minutes(gpu_check):
    speed = gpu_check.SPEED_SECONDS * len(gpu_check.TIMED)
    assert gpu_check.TESTS_SECONDS + gpu_check.STEPS_SECONDS + speed < 9 * 60


def test_it_runs_as_a_script_from_anywhere(tmp_path):
    command = [sys.executable, SCRIPTS / "gpu_check.py", "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "--device" in done.stdout
