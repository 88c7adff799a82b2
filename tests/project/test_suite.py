"""The suite itself: seeds move together, our own warnings are errors, the last line says what was left out."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

import scratchvit as sv
from tests.support import seeds

ROOT = Path(__file__).resolve().parents[2]


def test_warnings_of_our_own_modules_are_errors_and_those_of_others_are_not():
    for module in ("scratchvit.ops.norm", "tests.support.peers"):
        with pytest.raises(DeprecationWarning):
            warnings.warn_explicit("old", DeprecationWarning, "norm.py", 1, module)
    warnings.warn_explicit("old", DeprecationWarning, "pyparsing.py", 1, "matplotlib._mathtext")


def test_seeds_move_together(monkeypatch):
    def drawn():
        seeds.begin("a test")
        layer, model = sv.nn.Linear(3, 2), sv.create_model("vit_tiny_patch16_224", img_size=16, depth=1)
        dropped = sv.ops.dropout(sv.Tensor(np.ones(64, np.float32)), 0.5, training=True)
        arrays = layer.weight.numpy(), model.cls_token.numpy(), dropped.numpy(), seeds.seeded(3).random(4)
        return [array.copy() for array in arrays]

    monkeypatch.setenv(seeds.VARIABLE, "0")
    first, again = drawn(), drawn()
    monkeypatch.setenv(seeds.VARIABLE, "1")
    other = drawn()
    assert all(map(np.array_equal, first, again)) and not any(map(np.array_equal, first, other))
    assert np.array_equal(first[3], np.random.default_rng(3).random(4)) and seeds.moved(3) != 3


def test_the_last_line_says_what_was_left_out(tmp_path):
    files = "tests/training/test_kill.py", "tests/test_random.py"
    options = "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'its'}", "--margins"
    command = [sys.executable, "-m", "pytest", *options, *files]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout
    assert found.stdout.splitlines()[-1].startswith("left out: ") and "pytest -m slow" in found.stdout.splitlines()[-1]
    assert "measured / allowed" in found.stdout
