"""One process at a time: a lock on a folder that the system takes back however the process ends, by `kill -9` too."""

from __future__ import annotations

import contextlib
import os
import socket
import weakref
from pathlib import Path

from scratchvit.errors import ScratchvitError

try:
    import fcntl
except ImportError:     # Windows
    fcntl = None  # type: ignore[assignment]
try:
    import msvcrt
except ImportError:     # every other system
    msvcrt = None  # type: ignore[assignment]

# What Windows locks nobody else can read: a byte far beyond the text that says who holds the folder.
_LOCKED_BYTE = 1 << 30


class FolderLock:
    """The right to write into a folder: a lock on a file `.lock` in it, which says who holds it.

    The lock (flock(2), or on Windows one of the C runtime's) is on the open file, so the file of a process that was
    killed locks nobody out: the next one takes it over. On file systems without locks, the folder is used unlocked.
    """

    def __init__(self, folder: Path):
        self.folder, self.path = folder, folder / ".lock"
        self._close: weakref.finalize | None = None     # closes the file, and so gives the lock back; None: not held

    def acquire(self) -> bool:
        """Take the lock, and return whether it is new to us. Raises ScratchvitError if another run holds it."""
        if self._close is not None:
            return False
        while True:
            try:
                file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            except OSError as error:
                raise ScratchvitError(
                    f"{self.folder} cannot be written to ({error.strerror}): make room there, make it writable, or "
                    "choose another folder"
                ) from error
            if not _lock(file):
                holder = os.read(file, 1000).decode(errors="replace").strip() or "another process"
                os.close(file)
                raise ScratchvitError(
                    f"{self.folder} is in use by a run that is still going ({holder}): "
                    "wait until it ends, stop it, or name another folder"
                )
            if self._has_the_name(file):
                break
            os.close(file)      # removed by its holder between our opening it and locking it
        self._close = weakref.finalize(self, os.close, file)
        with contextlib.suppress(OSError):      # only for the other's message: on a full disk, go on without
            os.truncate(file, 0)
            os.write(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        return True

    def release(self) -> None:
        """Give the folder back, without a trace."""
        if self._close is None:
            return
        if fcntl is not None:
            self._remove()      # while it is still ours
            self._close()
        else:                   # Windows removes no open file: not ours, and not that of a run that has it by now
            self._close()
            self._remove()
        self._close = None

    def _remove(self) -> None:
        with contextlib.suppress(OSError):
            self.path.unlink()

    def _has_the_name(self, file: int) -> bool:
        """Whether the open file is the one that is in the folder now. On Windows it cannot have been removed."""
        if fcntl is None:
            return True
        try:
            return os.path.samestat(os.fstat(file), self.path.stat())
        except FileNotFoundError:
            return False


def _lock(file: int) -> bool:
    """Lock an open file, or return False if another holds it. True too where the file system knows no locks."""
    if fcntl is not None:
        lock, held = _flock, BlockingIOError
    elif msvcrt is not None:
        lock, held = _lock_a_byte, PermissionError
    else:
        return True
    try:
        lock(file)
    except held:
        return False
    except OSError:
        pass
    return True


def _flock(file: int) -> None:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _lock_a_byte(file: int) -> None:
    os.lseek(file, _LOCKED_BYTE, os.SEEK_SET)
    try:
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    finally:
        os.lseek(file, 0, os.SEEK_SET)

