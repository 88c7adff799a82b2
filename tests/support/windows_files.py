"""Files as Windows has them, imitated on Linux: what this process has open, or in memory, stays where it is.

Windows refuses to replace, to rename and to remove a file that is open, and to cut one that is mapped. Linux tells in
/proc which those are.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from pathlib import Path
from typing import Any

import pytest

is_imitated = pytest.mark.skipif(sys.platform != "linux", reason="open and mapped files are found as on Linux")

_open = io.open


def is_held(path: Any) -> bool:
    """Whether this process has the file open or mapped."""
    return _is_open(path) or is_mapped(path)


def is_mapped(path: Any) -> bool:
    name = os.path.realpath(path)
    with _open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        return any(line.rstrip("\n").endswith(f" {name}") for line in maps)


def _is_open(path: Any) -> bool:
    name = os.path.realpath(path)
    for entry in os.listdir("/proc/self/fd"):  # noqa: PTH208  (Path's methods are what is imitated)
        try:
            if os.readlink(f"/proc/self/fd/{entry}") == name:  # noqa: PTH115
                return True
        except FileNotFoundError:       # the listing's own
            continue
    return False


def open_files_stay(patch: pytest.MonkeyPatch) -> None:
    """From now on, refuse as Windows does; scratchvit takes it for Windows too where that decides."""
    replace, unlink = os.replace, os.unlink

    def refusing_replace(source: Any, target: Any) -> None:
        for path in (source, target):
            _refuse_if(is_held(path), path)
        replace(source, target)

    def refusing_unlink(path: Any, *, dir_fd: int | None = None) -> None:
        _refuse_if(dir_fd is None and is_held(path), path)
        unlink(path, dir_fd=dir_fd)

    def refusing_open(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if "w" in mode and isinstance(file, str | Path) and is_mapped(file):
            raise OSError(errno.EINVAL, "Invalid argument", str(file))
        return _open(file, mode, *args, **kwargs)

    for name, function in (("replace", refusing_replace), ("unlink", refusing_unlink), ("remove", refusing_unlink)):
        patch.setattr(os, name, function)
    patch.setattr(io, "open", refusing_open)
    patch.setattr("scratchvit.files._OPEN_FILES_STAY", True)
    patch.setattr("scratchvit.files._PAUSES", (0.0,) * 3)


def _refuse_if(held: bool, path: Any) -> None:
    if held:
        raise PermissionError(errno.EACCES, "Access is denied", str(path))
