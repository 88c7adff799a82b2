"""What a test leaves behind is seen by the fixture that looks for it (support/leftovers.py)."""

import contextlib
import gc
import os
import random
import signal
import sys
import tempfile
import threading
import tracemalloc
from contextlib import contextmanager

import numpy as np
import pytest

import scratchvit as sv
from scratchvit import nn, ops
from scratchvit.random import recorded
from scratchvit.recording import replace_ops
from tests.support import leftovers
from tests.support.strict_array import STRICT


@contextmanager
def done_and_undone(do, undo):
    do()
    try:
        yield
    finally:
        undo()


@contextmanager
def a_thread(name):
    end = threading.Event()
    thread = threading.Thread(target=end.wait, name=name)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


@contextmanager
def another_handler():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def random_states_put_back():
    ours, numpys = random.getstate(), np.random.get_state()     # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(ours)
        np.random.set_state(numpys)                             # noqa: NPY002


def a_draw(draw):
    @contextmanager
    def drawn():
        with random_states_put_back():
            draw()
            yield

    return drawn


def an_environment_variable():
    return done_and_undone(lambda: os.environ.update(LEFT_BEHIND="1"), lambda: os.environ.pop("LEFT_BEHIND"))


def a_longer_path():
    return done_and_undone(lambda: sys.path.append("elsewhere"), sys.path.pop)


LEFT = {
    "the device in use": lambda: done_and_undone(lambda: sv.use(STRICT), lambda: sv.use("cpu")),
    "whether ops record": sv.no_grad,
    "whether initial weights are drawn": nn.init.without_weights,
    "a stand-in for ops": lambda: replace_ops(lambda function, args, kwargs: function(*args, **kwargs)),
    "records of random draws": recorded,
    "records of attention": ops.record_attention,
    "whether memory is traced": lambda: done_and_undone(tracemalloc.start, tracemalloc.stop),
    "whether garbage is collected": lambda: done_and_undone(gc.disable, gc.enable),
    "environment variables": an_environment_variable,
    "NumPy's error handling": lambda: np.errstate(under="raise"),
    "NumPy's print options": lambda: np.printoptions(precision=3),
    "NumPy's global random state": a_draw(lambda: np.random.rand(1)),       # noqa: NPY002
    "Python's global random state": a_draw(random.random),
    "sys.path": a_longer_path,
    "handlers of signals": another_handler,
    "files in the folder for temporary files": tempfile.NamedTemporaryFile,
    "threads that are not daemons": lambda: a_thread("a test's"),
}


@pytest.mark.parametrize("what", LEFT)
def test_it_is_seen(what):
    before = leftovers.state()
    with LEFT[what]():
        found = leftovers.differences(before, leftovers.state())
    assert [line.partition(": ")[0] for line in found] == [what]
    assert not leftovers.differences(before, leftovers.state())


def test_a_file_in_the_working_directory_is_seen(tmp_path):
    with contextlib.chdir(tmp_path):
        before = leftovers.state()
        (tmp_path / "forgotten").touch()
        (found,) = leftovers.differences(before, leftovers.state())
    assert found == "files in the working directory: [] became ['forgotten']"


def test_another_working_directory_is_seen(tmp_path):
    before = leftovers.state()
    with contextlib.chdir(tmp_path):
        found = leftovers.differences(before, leftovers.state())
    assert found[0].startswith("the working directory: ")


def test_figures_and_their_settings_are_seen():
    pyplot = pytest.importorskip("matplotlib.pyplot")
    before = leftovers.state()
    with pyplot.rc_context({"lines.linewidth": 7}):
        pyplot.figure()
        found = leftovers.differences(before, leftovers.state())
        pyplot.close()
    assert [line.partition(": ")[0] for line in found] == ["open figures", "Matplotlib's settings"]


def test_a_thread_of_a_loader_is_seen_and_the_packages_pool_is_not():
    before = leftovers.state()
    with a_thread("scratchvit_0"):
        assert not leftovers.differences(before, leftovers.state())
    with a_thread("scratchvit-loader_0"):
        assert leftovers.differences(before, leftovers.state())


def test_what_changes_while_a_library_is_imported_is_the_librarys(monkeypatch):
    before = leftovers.state()
    with random_states_put_back():
        random.random()
        monkeypatch.setitem(sys.modules, "scratchvit.something", None)
        assert leftovers.differences(before, leftovers.state())
        monkeypatch.setitem(sys.modules, "some_library.part", None)
        assert not leftovers.differences(before, leftovers.state())
        gc.disable()
        assert leftovers.differences(before, leftovers.state())
        gc.enable()
