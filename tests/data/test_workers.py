"""Worker processes: the same batches, errors as they were, a sentence for a dead one, and no process left behind."""

import contextlib
import functools
import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from scratchvit.data import ImageFolder, Loader
from scratchvit.errors import ScratchvitError
from tests.support.data_samples import write_image_folder
from tests.support.platforms import WINDOWS, is_running
from tests.support.processes import SECONDS, alone
from tests.support.worker_samples import (
    HEAVY,
    PLAIN,
    assert_same,
    entries,
    exit_on_the_last_batch,
    fail_oddly,
    fail_on_the_last_batch,
    leave_a_mark,
    make,
    pids,
    say_something,
    take,
    tell_about_the_process,
)

# The same batches


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_nothing(workers):
    loader, reference = make(workers, HEAVY), make(0, HEAVY)
    assert_same(loader, reference)
    assert_same(loader, reference)
    next(batches := iter(loader))
    batches.close()
    loader.load_state_dict({"epoch": 1, "batch": 4, "seed": 3})
    reference.load_state_dict({"epoch": 1, "batch": 4, "seed": 3})
    rest = list(loader)
    assert_same(rest, reference)
    assert len(rest) == 3 and all(x.flags.writeable for x, *_ in rest)
    loader.close()


def test_pictures_of_a_folder(tmp_path):
    folder = ImageFolder.scan(write_image_folder(tmp_path) / "train", 10)
    for dataset, transform in ((folder, PLAIN), (folder.originals(), HEAVY)):
        with contextlib.closing(Loader(dataset, 6, transform, workers=1)) as loader:
            assert_same(loader, Loader(dataset, 6, transform))


def test_pictures_travel_also_where_memory_cannot_be_shared(monkeypatch):
    monkeypatch.delattr(os, "memfd_create", raising=False)
    with contextlib.closing(make(1, HEAVY)) as loader:
        assert_same(loader, make(0, HEAVY))


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="memory cannot be shared here")
def test_workers_share_the_pictures():
    sharing, before, after = alone(open_files_around_a_worker)
    assert sharing == [True] and after == before


def open_files_around_a_worker():
    before = entries("/proc/self/fd")
    loader = make(1)
    next(batches := iter(loader))
    sharing = ["scratchvit-pictures" in Path(f"/proc/{pid}/maps").read_text() for pid in pids(loader)]
    batches.close()
    return sharing, before, entries("/proc/self/fd")


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="only Linux tells a process's threads so")
def test_workers_are_other_processes_of_one_thread_each():
    told = np.array([x for x, *_ in make(2, tell_about_the_process)])
    assert os.getpid() not in told[:, 0] and 1 <= len(set(told[:, 0])) <= 2
    assert (told[:, 1:] == 1).all()


def test_no_more_is_made_ahead_than_asked_for(tmp_path):
    loader = make(2, functools.partial(leave_a_mark, tmp_path), batch_size=1, prefetch=3)
    for handed, _ in enumerate(loader, 1):
        assert entries(tmp_path) <= handed + 3 + 2
    assert handed == 50
    loader.close()


def test_what_a_transform_prints_does_not_get_among_the_batches(capfd):
    with contextlib.closing(make(1, say_something)) as loader:
        assert_same(loader, make(0, take))
        loader.close()
    assert capfd.readouterr().err.count("a transform speaks") == 7


# Their lives


def test_workers_live_over_epochs_and_end_with_the_loader():
    loader = make(1)
    list(loader)
    before = pids(loader)
    list(loader)
    assert pids(loader) == before and all(map(is_running, before))
    loader.close()
    loader.close()
    assert not any(map(is_running, before))
    list(loader)
    again = pids(loader)
    assert all(map(is_running, again))
    del loader
    gc.collect()
    assert not any(map(is_running, again))


def test_leaving_the_loop_ends_them():
    loader = make(1)
    for _ in loader:
        started = pids(loader)
        break
    gc.collect()
    assert not any(map(is_running, started))
    assert_same(loader, make(0))
    with pytest.raises(ZeroDivisionError):
        for _ in loader:
            started = pids(loader)
            1 / 0  # noqa: B018
    gc.collect()
    assert not any(map(is_running, started))


@pytest.mark.skipif(WINDOWS, reason="Windows does not send signals, it ends the process")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_are_the_parents(number):
    with contextlib.closing(make(1)) as loader:
        for _ in loader:
            os.kill(pids(loader)[0], number)
        before = pids(loader)
        reference = make(0)
        list(reference)
        assert_same(loader, reference)
        assert pids(loader) == before


SCRIPT = """
import os, sys, time
from scratchvit.errors import ScratchvitError
from tests.support.worker_samples import *
"""


def run_script(tmp_path, text):
    """A user's own script, without `if __name__ == "__main__"`."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT + text)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen([sys.executable, script], env=environment, stdout=subprocess.PIPE, text=True)


def wait_for_the_end(processes):
    end = time.monotonic() + SECONDS
    while any(map(is_running, processes)) and time.monotonic() < end:
        time.sleep(0.05)
    return not any(map(is_running, processes))


@pytest.mark.slow
@pytest.mark.parametrize("transform", ["PLAIN", "take_a_while"])      # killed when they wait, and when they work
def test_no_worker_outlives_a_killed_parent(tmp_path, transform):
    script = f"""
loader = make(1, {transform})
batches = iter(loader)
next(batches)
print(*pids(loader), flush=True)
time.sleep(600)
"""
    with run_script(tmp_path, script) as parent:
        started = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(started) == 1 and all(map(is_running, started))
        parent.kill()
    assert wait_for_the_end(started)


@pytest.mark.slow
@pytest.mark.parametrize("end", ["", "sys.exit(3)"])
def test_a_script_ends_in_the_middle_of_an_epoch(tmp_path, end):
    script = f"""
loader = make(1, take_a_while)
batches = iter(loader)
next(batches)
print(*pids(loader), flush=True)
sys.stderr = open(os.devnull, "w")
{end}
"""
    with run_script(tmp_path, script) as parent:
        started = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(started) == 1
        assert parent.wait(SECONDS) == (3 if end else 0)
    assert wait_for_the_end(started)


# What goes wrong


def test_an_exception_arrives_as_it_was():
    loader = make(2, fail_on_the_last_batch)
    handed = 0
    with pytest.raises(LookupError, match="picture 49") as caught:
        for _ in loader:
            started = pids(loader)
            handed += 1
    assert handed == 6 and loader.state_dict()["batch"] == 6
    assert str(caught.value) == "picture 49"
    assert "in fail_on_the_last_batch" in caught.value.__notes__[0]
    assert not any(map(is_running, started))


def test_an_exception_that_cannot_travel():
    with pytest.raises(RuntimeError, match=r"^OddError: this and that"):
        list(make(1, fail_oddly))


def test_a_picture_that_does_not_decode_is_named(tmp_path):
    folder = ImageFolder.scan(write_image_folder(tmp_path) / "train", 10)
    folder.paths[7].write_bytes(b"rotten")
    with pytest.raises(ScratchvitError, match=r"ant[/\\]07\.png: this picture cannot be decoded"):
        list(Loader(folder, 4, PLAIN, workers=1))


def test_a_worker_that_dies_is_a_sentence():
    loader = make(2, exit_on_the_last_batch)
    with pytest.raises(ScratchvitError, match=r"worker process [12] of 2 \(pid \d+\) .* ended with exit status 7; "):
        list(loader)
    assert loader.state_dict()["batch"] == 6


def test_a_worker_that_is_killed_is_a_sentence_and_the_next_epoch_has_a_new_one():
    loader = make(2, HEAVY)
    list(loader)
    first, second = pids(loader)
    how = "ended with exit status 1" if WINDOWS else "was killed by SIGKILL"
    loader._processes._processes[1].kill()
    with pytest.raises(ScratchvitError, match=rf"2 of 2 \(pid {second}\) .* {how}; if memory"):
        list(loader)
    assert not is_running(first)
    loader.load_state_dict({"epoch": 1, "batch": 0, "seed": 3})
    reference = make(0, HEAVY)
    list(reference)
    assert_same(loader, reference)
    loader.close()


def test_what_cannot_be_sent_is_a_sentence(tmp_path):
    with pytest.raises(ScratchvitError, match=r"cannot be sent to a worker .*at the top level of an importable module"):
        list(make(1, lambda images, rng: images))
    script = """
class Mine:
    def __call__(self, images, rng):
        return images
try:
    list(make(1, Mine()))
except ScratchvitError as error:
    print(error)
print(len(list(make(1, take))))
"""
    with run_script(tmp_path, script) as parent:
        sentence, batches = parent.stdout.read().splitlines()
    assert "cannot be sent to a worker process (Can't get attribute 'Mine'" in sentence
    assert batches == "7"


def test_a_worker_that_cannot_start_is_a_sentence(monkeypatch):
    with pytest.raises(ScratchvitError, match="workers=-1"):
        make(-1)
    monkeypatch.setattr(sys, "executable", "/no/python")
    with pytest.raises(ScratchvitError, match=r"could not be started \(.* file.*workers=0"):
        list(make(2))
