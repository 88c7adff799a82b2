"""The suite itself: what a test leaves behind is seen, seeds move, our own warnings are errors, the last line tells."""

import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest

import scratchvit as sv
from scratchvit import tensor
from tests.support import leftovers, seeds
from tests.support.strict_array import STRICT

ROOT = Path(__file__).resolve().parent.parent


def a_file(patch):
    path = Path(tempfile.gettempdir()) / "forgotten.txt"
    path.touch()
    return path.unlink


def a_thread(patch):
    done = threading.Event()
    thread = threading.Thread(target=done.wait, name="forgotten")
    thread.start()
    return lambda: (done.set(), thread.join())


def a_random_state(patch):
    before = random.getstate()
    random.random()
    return lambda: random.setstate(before)


def numpys_random_state(patch):
    before = np.random.get_state()      # noqa: NPY002
    np.random.rand()                    # noqa: NPY002
    return lambda: np.random.set_state(before)      # noqa: NPY002


def a_figure(patch):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    leftovers.state()
    figure = pyplot.figure()
    return lambda: pyplot.close(figure)


LEFT = {
    "the device in use": lambda patch: (sv.use(STRICT), lambda: sv.use("cpu"))[1],
    "whether ops record": lambda patch: patch.setattr(tensor, "_recording", False),
    "a stand-in for ops": lambda patch: patch.setattr(tensor, "_stand_in", print),
    "the working directory": lambda patch: patch.chdir(ROOT.parent),
    "environment variables": lambda patch: patch.setenv("SCRATCHVIT_DEVICE", "gpu"),
    "NumPy's error handling": lambda patch: (before := np.seterr(all="ignore"), lambda: np.seterr(**before))[1],
    "sys.path": lambda patch: patch.syspath_prepend(str(ROOT.parent)),
    "handlers of signals": lambda patch: (
        before := signal.signal(signal.SIGINT, signal.SIG_IGN), lambda: signal.signal(signal.SIGINT, before)
    )[1],
    "files in the folder for temporary files": a_file,
    "threads that are not daemons": a_thread,
    "Python's global random state": a_random_state,
    "NumPy's global random state": numpys_random_state,
    "open figures": a_figure,
}  # fmt: skip


@pytest.mark.parametrize("what", LEFT)
def test_what_a_test_leaves_behind_is_named(what):
    if what == "open figures":
        pytest.importorskip("matplotlib.pyplot")
    with pytest.MonkeyPatch.context() as patch:
        before = leftovers.state()
        undo = LEFT[what](patch)
        try:
            found = leftovers.differences(before, leftovers.state())
        finally:
            if undo:
                undo()
    assert any(line.startswith(f"{what}: ") for line in found), found
    assert leftovers.differences(before, leftovers.state()) == []


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
    files = "tests/test_kill.py", "tests/test_random.py"
    options = "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'its'}", "--margins"
    command = [sys.executable, "-m", "pytest", *options, *files]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout
    assert found.stdout.splitlines()[-1].startswith("left out: ") and "pytest -m slow" in found.stdout.splitlines()[-1]
    assert "measured / allowed" in found.stdout
