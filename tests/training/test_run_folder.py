"""The folder of a run: disks that fill up, folders that may not be written, and two runs in one."""

import errno
import json
import os
import shutil
import socket
import subprocess
import sys

import pytest

from scratchvit.errors import ScratchvitError
from scratchvit.files import write_atomically
from scratchvit.training import RunFolder, load_checkpoint, prepare, read_config, train
from scratchvit.training.lock import FolderLock
from tests.support.runs import CONFIG, assert_same_run, files_of, run_in_a_process, start_a_process

SHORT = CONFIG.replace(epochs=2)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("folder") / "run"
    train(SHORT, folder)
    return folder


# --- the disk ---


def refuse(number):
    def refusal(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    return refusal


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    monkeypatch.setattr("os.fsync", refuse(errno.ENOSPC))
    path = tmp_path / "last.safetensors"
    with pytest.raises(ScratchvitError, match=r"could not be written \(No space left on device\): free some space"):
        write_atomically(path, b"new")
    assert not list(tmp_path.iterdir())
    path.write_bytes(b"old")
    with pytest.raises(ScratchvitError, match="the previous file is unchanged"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_may_not_grow(tmp_path):
    """A real refusal by the system in the middle of a checkpoint, at the second save."""
    pytest.importorskip("resource", reason="Windows sets a process no limits")
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
    assert "last.safetensors could not be written (" in message and "the previous file is unchanged" in message
    assert load_checkpoint(run / "last.safetensors").progress["step"] == 2
    assert sorted(p.name for p in run.iterdir()) == ["config.json", "last.safetensors"]
    train(CONFIG.replace(save_every=2), run, resume=True)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ScratchvitError, match=r"the folder .*run cannot be created \("):
        train(SHORT, tmp_path / "file" / "run")


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr("pathlib.Path.replace", refuse(errno.EACCES))
    with pytest.raises(ScratchvitError, match=r"config\.json could not be written \(Permission denied\)"):
        train(SHORT, tmp_path / "run")


# --- folders that may not be written ---

# Root may write anywhere. Without its capabilities (capset(2), version 3: three sets of twice 32 bits) it may not.
UNPRIVILEGED = """
import ctypes, os
if os.geteuid() == 0:
    none = (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(0x20080522, 0), none) == 0
"""


@pytest.fixture
def read_only():
    """A function that takes the right to write from a folder until the test is over."""
    if sys.platform != "linux":
        pytest.skip("how root gives up its rights is Linux's own")
    changed = []

    def take_away(folder):
        changed.append(folder)
        folder.chmod(0o555)

    yield take_away
    for folder in changed:
        folder.chmod(0o755)


def test_a_read_only_folder(tmp_path, read_only):
    (tmp_path / "there").mkdir()
    read_only(tmp_path / "there")
    for run in (tmp_path / "there", tmp_path / "there" / "new"):
        done = run_in_a_process(run, SHORT, prelude=UNPRIVILEGED)
        assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
        assert f"{run} cannot be" in done.stderr and "(Permission denied): " in done.stderr
    assert not files_of(tmp_path)


def test_a_run_whose_folder_became_read_only(finished, tmp_path, read_only):
    run = shutil.copytree(finished, tmp_path / "run")
    before = files_of(run)
    read_only(run)
    done = run_in_a_process(run, SHORT.replace(epochs=3), resume=True, prelude=UNPRIVILEGED)
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert "cannot be written to (Permission denied): free some space, make it writable" in done.stderr
    assert files_of(run) == before


def test_a_folder_that_becomes_read_only_on_the_way(tmp_path, read_only):
    run = tmp_path / "run"
    prelude = UNPRIVILEGED + """
from scratchvit.training import loop
save = loop.save_checkpoint
def save_and_close(path, checkpoint):
    save(path, checkpoint)
    os.chmod(path.parent, 0o555)
loop.save_checkpoint = save_and_close
"""
    done = run_in_a_process(run, SHORT.replace(save_every=2), prelude=prelude)
    read_only(run)      # so that it is put back
    assert done.returncode == 1 and "Traceback" not in done.stderr
    message = done.stderr.splitlines()[-1]
    assert "last.safetensors could not be written (Permission denied); the previous file is unchanged" in message
    assert load_checkpoint(run / "last.safetensors").progress["step"] == 2
    run.chmod(0o755)
    train(SHORT.replace(save_every=2), run, resume=True)


# --- disks that are full ---


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 400 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "none", disk], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this process may not mount a file system")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


@pytest.mark.slow
@pytest.mark.parametrize(("save_every", "saved"), [(2, 2), (0, 5)], ids=["in an epoch", "at the end of one"])
def test_a_disk_that_fills_up(small_disk, tmp_path, save_every, saved):
    """Once there is room again, the run goes on as if nothing had been."""
    config, run = CONFIG.replace(save_every=save_every), small_disk / "run"
    fill = """
from scratchvit.training import loop
save = loop.save_checkpoint
def save_and_fill(path, checkpoint):
    save(path, checkpoint)
    if path.name == "last.safetensors":
        try:
            with open(path.parent.parent / "filler", "ab", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
        except OSError:
            pass
loop.save_checkpoint = save_and_fill
"""
    done = run_in_a_process(run, config, prelude=fill)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    message = done.stderr.splitlines()[-1]
    assert " could not be written (No space left on device)" in message and "free some space" in message
    assert load_checkpoint(run / "last.safetensors").progress["step"] == saved

    again = run_in_a_process(run, config, resume=True)      # it is still full
    assert again.returncode == 1 and again.stderr.splitlines()[-1].endswith("free some space or choose another folder")
    assert load_checkpoint(run / "last.safetensors").progress["step"] == saved
    assert read_config(run) == config

    (small_disk / "filler").unlink()
    train(config, run, resume=True)
    train(config, tmp_path / "straight")
    assert_same_run(run, tmp_path / "straight")


# --- two runs in one folder ---

FOR_EVER = """
import os, time
from scratchvit.training import TrainingLoop
def train_for_ever(self):
    print(os.getpid(), flush=True)
    time.sleep(600)
TrainingLoop._train_epoch = train_for_ever
"""


def test_two_runs_in_one_folder(tmp_path):
    run = tmp_path / "run"
    with start_a_process(run, SHORT, prelude=FOR_EVER) as first:
        try:
            pid = int(first.stdout.readline())
            before = files_of(run)
            held = rf"run is in use by a run in progress \(process {pid} on {socket.gethostname()}\): "
            for resume in (False, True):
                with pytest.raises(ScratchvitError, match=held):
                    train(SHORT, run, resume=resume)
            assert files_of(run) == before
        finally:
            first.kill()
    assert (run / ".lock").exists()         # nobody was left to remove it
    train(SHORT, run, resume=True)
    assert not (run / ".lock").exists()


def test_two_runs_that_begin_at_once(tmp_path, monkeypatch):
    """Neither finds a folder; the slower one finds, when it comes to begin, a run that is going on or has ended."""
    run = tmp_path / "run"
    begin = RunFolder.begin

    def begin_late(self, config):
        monkeypatch.setattr(RunFolder, "begin", begin)
        quicker = prepare(SHORT, run)
        try:
            with pytest.raises(ScratchvitError, match="run is in use by a run in progress"):
                self.begin(config)
        finally:
            quicker.folder.release()
        self.begin(config)

    monkeypatch.setattr(RunFolder, "begin", begin_late)
    with pytest.raises(ScratchvitError, match="already contains a run"):
        train(SHORT.replace(epochs=1), run)
    assert sorted(files_of(run)) == ["config.json"] and read_config(run) == SHORT


def test_a_lock_that_its_holder_removes_before_we_have_it(tmp_path, monkeypatch):
    """What we lock then is no longer the folder's: a third run could lock the new one."""
    fcntl = pytest.importorskip("fcntl")
    holder, other = FolderLock(tmp_path), FolderLock(tmp_path)
    holder.acquire()
    lock = fcntl.flock

    def lock_late(file, how):
        holder.release()
        lock(file, how)

    with monkeypatch.context() as patched:
        patched.setattr("fcntl.flock", lock_late)
        assert other.acquire() and not other.acquire()
    with pytest.raises(ScratchvitError, match="in use"):
        FolderLock(tmp_path).acquire()
    other.release()
    assert not list(tmp_path.iterdir())


def test_a_lock_goes_with_what_held_it(tmp_path):
    """A run that was prepared and never begun."""
    lock = FolderLock(tmp_path)
    lock.acquire()
    del lock
    assert FolderLock(tmp_path).acquire()


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    pytest.importorskip("fcntl")
    monkeypatch.setattr("fcntl.flock", refuse(errno.EOPNOTSUPP))
    train(SHORT.replace(epochs=1), tmp_path / "run")
    monkeypatch.setattr("scratchvit.training.lock.fcntl", None)     # a system with neither kind
    train(SHORT, tmp_path / "run", resume=True)


def test_a_run_that_fails_gives_its_folder_back(finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    for _ in range(2):
        with pytest.raises(ScratchvitError, match="with other settings"):
            train(SHORT.replace(lr=1.0), run, resume=True)
    assert files_of(run) == files_of(finished)


def test_a_run_from_before_there_were_entries_goes_on(finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "run")
    settings = json.loads((folder / "config.json").read_text())
    assert settings.pop("entry") is None
    (folder / "config.json").write_text(json.dumps(settings))
    assert read_config(folder) == read_config(finished)
    with prepare(SHORT.replace(epochs=3), folder, resume=True).folder:
        assert json.loads((folder / "config.json").read_text())["entry"] is None
