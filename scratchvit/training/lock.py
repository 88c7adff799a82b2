"""A lock on a run folder for one process at a time, which the system releases when the process ends, even if killed."""

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

# On Windows, locked bytes cannot be read by others: lock a byte far beyond the text that says who holds the lock.
_LOCKED_BYTE = 1 << 30


class FolderLock:
    """An exclusive lock on a folder: a locked file `.lock` in it, which says who holds the lock.

    The lock (flock(2), or that of the C runtime on Windows) belongs to the open file, so it ends with the process, and
    the next process can reuse the file. On file systems without locks, the folder is used without a lock.
    """

    def __init__(self, folder: Path):
        self.folder, self.path = folder, folder / ".lock"
        self._close: weakref.finalize | None = None     # closes the file, which releases the lock; None: not held

    def acquire(self) -> bool:
        """Acquire the lock; False if it was already held. Raises ScratchvitError if another process holds it."""
        if self._close is not None:
            return False
        while True:
            try:
                file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            except OSError as error:
                raise ScratchvitError(
                    f"{self.folder} cannot be written to ({error.strerror}): free some space, make it writable, or "
                    "choose another folder"
                ) from error
            if not _lock(file):
                holder = os.read(file, 1000).decode(errors="replace").strip() or "another process"
                os.close(file)
                raise ScratchvitError(
                    f"{self.folder} is in use by a run in progress ({holder}): "
                    "wait until it ends, stop it, or name another folder"
                )
            if self._has_the_name(file):
                break
            os.close(file)      # its holder removed it after we had opened it and before we locked it
        self._close = weakref.finalize(self, os.close, file)
        with contextlib.suppress(OSError):      # only used in error messages: not essential on a full disk
            os.truncate(file, 0)
            os.write(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        return True

    def release(self) -> None:
        """Release the lock and remove its file."""
        if self._close is None:
            return
        if fcntl is not None:
            self._remove()      # while we hold the lock
            self._close()
        else:                   # Windows cannot remove an open file, neither ours nor that of the next holder
            self._close()
            self._remove()
        self._close = None

    def _remove(self) -> None:
        with contextlib.suppress(OSError):
            self.path.unlink()

    def _has_the_name(self, file: int) -> bool:
        """Whether the open file is still the one in the folder. (On Windows it cannot have been removed.)"""
        if fcntl is None:
            return True
        try:
            return os.path.samestat(os.fstat(file), self.path.stat())
        except FileNotFoundError:
            return False


def _lock(file: int) -> bool:
    """Lock an open file; False if another process holds the lock. True for file systems without locks."""
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

