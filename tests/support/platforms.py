"""Where Windows is not as Linux and macOS are: processes and signals, paths in sentences, command lines."""

import contextlib
import ctypes
import os
import shlex
import sys

WINDOWS = sys.platform == "win32"

# Exit statuses. Windows has no signals: it ends a process with the status that the one who ends it names.
KILLED = 1 if WINDOWS else -9               # after Popen.kill()
KILLED_BY_9 = 9 if WINDOWS else -9          # after os.kill(pid, 9)


def is_running(pid: int) -> bool:
    """Whether there is such a process."""
    if WINDOWS:     # where os.kill(pid, 0) would send it Ctrl-C
        system = ctypes.WinDLL("kernel32")  # type: ignore[attr-defined]
        synchronize, still_running = 0x00100000, 0x102
        if not (handle := system.OpenProcess(synchronize, False, pid)):
            return False
        try:
            return system.WaitForSingleObject(handle, 0) == still_running
        finally:
            system.CloseHandle(handle)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


def words_of(command: str) -> list[str]:
    """The words of a command line as this system's shell takes them apart."""
    if WINDOWS:     # where a backslash is part of a path
        return [word.strip('"') for word in shlex.split(command, posix=False)]
    return shlex.split(command)
