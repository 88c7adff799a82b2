"""Files and folders on Windows, imitated: what is open stays, another kind of lock, and pipes that end otherwise."""

import errno
import importlib.util
import os
import subprocess
import sys
import types

import numpy as np
import pytest

import scratchvit as sv
from scratchvit.cli import main
from scratchvit.data import workers
from scratchvit.errors import ScratchvitError
from scratchvit.files import write_atomically
from scratchvit.training import Interrupted, load_checkpoint, lock, read_config, train
from scratchvit.training.checkpoint import is_checkpoint, model_from_checkpoint
from scratchvit.training.events import EventFile
from scratchvit.weights.files import read_weights
from scratchvit.weights.load import open_model
from tests.support.runs import CONFIG, stop_at
from tests.support.weight_samples import npz_bytes, safetensors_of, torch_legacy_of, torch_zip_of
from tests.support.windows_files import is_imitated, is_mapped, open_files_stay

# --- files that are open ---


@pytest.fixture
def as_on_windows(monkeypatch):
    open_files_stay(monkeypatch)


@is_imitated
def test_the_imitation_refuses_what_windows_refuses(tmp_path, as_on_windows):
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    with path.open("rb"):
        with pytest.raises(PermissionError):
            path.unlink()
        with pytest.raises(PermissionError):
            path.replace(tmp_path / "other")
    mapped = np.memmap(path, np.uint8, mode="r")
    with pytest.raises(OSError, match="Invalid argument"):
        path.write_bytes(b"")
    with pytest.raises(PermissionError):
        path.unlink()
    del mapped
    path.write_bytes(b"")
    path.unlink()


@is_imitated
def test_a_run_keeps_no_file_open(tmp_path, monkeypatch, as_on_windows):
    """It is stopped, resumed, taken for another run's first weights and as teacher, used and looked at."""
    run, config = tmp_path / "run", CONFIG.replace(epochs=2, save_every=2)
    with monkeypatch.context() as patched:
        stop_at(patched, 3)
        with pytest.raises(Interrupted):
            train(config, run)
    train(read_config(run), run, resume=True)
    train(CONFIG.replace(epochs=1, init=str(run), teacher=str(run)), tmp_path / "next")
    assert main(["predict", str(write_sample(tmp_path)), "--checkpoint", str(run)]) == 0
    assert main(["eval", "--checkpoint", str(run)]) == 0
    assert main(["report", str(run)]) == 0
    assert main(["export", str(run), "--out", str(tmp_path / "timm")]) == 0
    for path in tmp_path.rglob("*"):
        if path.is_file():
            path.unlink()       # and so nothing of it is open


def write_sample(folder):
    from PIL import Image

    Image.new("L", (8, 8), 100).save(folder / "sample.png")
    return folder / "sample.png"


FORMATS = {
    "safetensors": safetensors_of, "npz": npz_bytes, "torch zip": torch_zip_of, "torch legacy": torch_legacy_of
}


@is_imitated
@pytest.mark.parametrize("kind", FORMATS)
def test_weights_can_be_replaced_once_they_are_loaded(kind, tmp_path, as_on_windows):
    """While the model lives: a run may be replacing the file that its weights came from."""
    model = sv.create_model("vit_tiny_patch16_224", img_size=32, num_classes=3, embed_dim=24, depth=1, num_heads=3)
    path = tmp_path / "weights"
    path.write_bytes(FORMATS[kind](model.state_dict()))
    raw = read_weights(path)
    assert is_mapped(path)                  # so that what follows could fail
    del raw
    report = sv.load_weights(model, path)
    loaded = open_model(path, "vit_tiny_patch16_224", embed_dim=24, depth=1, num_heads=3)
    write_atomically(path, b"new")
    assert report and loaded and path.read_bytes() == b"new"


@is_imitated
def test_checkpoints_can_be_replaced_once_they_are_loaded(tmp_path, as_on_windows):
    train(CONFIG.replace(epochs=1), tmp_path / "run")
    path = tmp_path / "run" / "best.safetensors"
    whole, (model, _) = load_checkpoint(path), model_from_checkpoint(path)
    assert is_checkpoint(path)
    write_atomically(path, b"new")
    assert whole.model and model and path.read_bytes() == b"new" and not is_checkpoint(path)


@is_imitated
def test_a_file_that_is_open_for_a_moment_is_replaced_after_it(tmp_path, monkeypatch, as_on_windows):
    path = tmp_path / "last.safetensors"
    path.write_bytes(b"old")
    reader, paused = path.open("rb"), []

    def wait(seconds):
        paused.append(seconds)
        if len(paused) == 2:
            reader.close()

    monkeypatch.setattr("scratchvit.files.time.sleep", wait)
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new" and len(paused) == 2
    assert list(tmp_path.iterdir()) == [path]


@is_imitated
def test_a_file_that_stays_open_is_a_sentence(tmp_path, as_on_windows):
    path = tmp_path / "metrics.csv"
    path.write_bytes(b"old")
    said = r"metrics\.csv could not be written \(Access is denied\); the previous file is unchanged: close the prog"
    with path.open("rb"), pytest.raises(ScratchvitError, match=said):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


@is_imitated
@pytest.mark.parity
def test_an_event_file_that_tensorboard_has_open_is_taken_away_by_the_next_session(tmp_path, as_on_windows):
    pytest.importorskip("tensorboard")
    row = {"epoch": 1, "step": 5, "train_loss": 2.0, "seconds": 10.0}
    EventFile(tmp_path).write([row])
    (first,) = tmp_path.iterdir()
    with first.open("rb"):
        EventFile(tmp_path).write([row])
        assert len(list(tmp_path.iterdir())) == 2
    EventFile(tmp_path).write([row])
    assert len(list(tmp_path.iterdir())) == 1 and not first.exists()


# --- the lock ---


class Msvcrt(types.ModuleType):
    """Windows' locks of bytes, by Linux' of whole files: both are refused to whoever opened the file apart."""

    LK_NBLCK = 2

    def locking(self, file, mode, length):
        import fcntl

        self.place = os.lseek(file, 0, os.SEEK_CUR), length
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PermissionError(errno.EACCES, "Permission denied") from None


@pytest.fixture
def windows_lock(monkeypatch):
    """The module as it is where there is msvcrt and no fcntl."""
    pytest.importorskip("fcntl")
    spec = importlib.util.spec_from_file_location("windows_lock", lock.__file__)
    module = importlib.util.module_from_spec(spec)
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "fcntl", None)
        patched.setitem(sys.modules, "msvcrt", Msvcrt("msvcrt"))
        spec.loader.exec_module(module)
    return module


@is_imitated
def test_one_run_in_a_folder_on_windows(windows_lock, tmp_path, as_on_windows):
    first, second = (windows_lock.FolderLock(tmp_path) for _ in range(2))
    assert first.acquire() and not first.acquire()
    place, length = windows_lock.msvcrt.place
    assert place > 1000 and length == 1         # not in the text, which others shall read
    for _ in range(2):
        with pytest.raises(ScratchvitError, match=rf"in use by a run in progress \(process {os.getpid()} on"):
            second.acquire()
    first.release()
    assert not list(tmp_path.iterdir())         # without a trace, though nothing is removed that is open
    assert second.acquire()
    del second                                  # as when its process is killed
    assert first.acquire()
    first.release()


@is_imitated
def test_a_lock_that_another_run_took_at_once_is_left_to_it(windows_lock, tmp_path, monkeypatch, as_on_windows):
    """Between the holder's closing the file and removing it."""
    holder, other = (windows_lock.FolderLock(tmp_path) for _ in range(2))
    holder.acquire()
    remove = windows_lock.FolderLock._remove

    def remove_late(self):
        assert other.acquire()
        remove(self)

    with monkeypatch.context() as patched:
        patched.setattr(windows_lock.FolderLock, "_remove", remove_late)
        holder.release()
    with pytest.raises(ScratchvitError, match="in use"):
        holder.acquire()
    other.release()
    assert not list(tmp_path.iterdir())


# --- pipes and processes ---

WORKER = """
from scratchvit.data import workers
def send(stream, thing):
    raise OSError({number}, "as it is said")
workers._send = send
workers.work(None)
"""


@pytest.mark.parametrize(("number", "status"), [(errno.EPIPE, 0), (errno.EINVAL, 0), (errno.EIO, 1)])
def test_a_worker_whose_parent_is_gone_ends_silently(number, status):
    """Windows says EINVAL of a pipe that nobody reads; anything else is an error."""
    task = workers._pickled((None, None))
    sizes = workers._sizes(task)
    sent = len(sizes).to_bytes(8, "little") + sizes.tobytes() + b"".join(map(bytes, task))
    code = WORKER.format(number=number)
    done = subprocess.run([sys.executable, "-c", code], input=sent, capture_output=True)
    assert done.returncode == status
    assert (b"as it is said" in done.stderr) == bool(status)


def test_ctrl_c_does_not_reach_workers_on_windows(monkeypatch):
    """They are started in a group of their own; nothing else keeps it from them while they import."""
    asked = {}

    def popen(command, **options):
        asked.update(options)
        raise OSError(errno.EAGAIN, "no more processes")

    monkeypatch.setattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0x200, raising=False)
    monkeypatch.setattr(subprocess, "Popen", popen)
    with pytest.raises(ScratchvitError, match="no more processes"):
        workers._start_process(None)
    assert asked["creationflags"] == 0x200


class Closed:
    """A standard output that Windows' `more` has closed."""

    def write(self, text):
        raise OSError(errno.EINVAL, "Invalid argument")

    flush = write_through = lambda self: self.write("")


def test_a_pipe_that_is_closed_ends_a_command(monkeypatch, capsys):
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", Closed())
        patched.setattr(sys, "stderr", open(os.devnull, "w"))  # noqa: SIM115, PTH123  (it is closed by main)
        assert main(["models", "vit_tiny*"]) == 0
    # The same error of anything else, as of a file's name with a colon, is not taken for it.
    monkeypatch.setattr("scratchvit.cli._command", lambda name: Closed().write)
    with pytest.raises(OSError, match="Invalid argument"):
        main(["models"])


# --- what a system does not have ---

EVERYTHING = """
import os, pkgutil, signal, sys

sys.modules.update(dict.fromkeys({modules!r}))
for module, names in ((os, {os_names!r}), (signal, {signals!r})):
    for name in names:
        if hasattr(module, name):
            delattr(module, name)
import scratchvit
for module in pkgutil.walk_packages(scratchvit.__path__, "scratchvit."):
    __import__(module.name)
print(scratchvit.threads.cpu_threads() >= 1)
"""


def test_every_module_can_be_imported_without_what_only_linux_has():
    code = EVERYTHING.format(
        modules=["fcntl", "resource", "pwd", "grp", "termios"],
        os_names=["memfd_create", "sched_getaffinity", "getuid", "fork", "killpg", "setsid", "mkfifo"],
        signals=["SIGHUP", "SIGALRM", "SIGUSR1", "SIGPIPE", "SIGCHLD"],
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr[-2000:]


@pytest.mark.parametrize(("told", "expected"), [("1", 1), ("3", 3), ("99", 4), ("", 4), ("many", 4)])
def test_a_blas_that_threadpoolctl_does_not_know_is_no_reason_for_one_thread(told, expected, monkeypatch):
    """NumPy's wheels for macOS compute with Accelerate."""
    monkeypatch.setattr(sv.threads, "_blas", types.SimpleNamespace(threads=lambda: 0))
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setenv("OMP_NUM_THREADS", told)
    assert sv.threads.cpu_threads() == expected
