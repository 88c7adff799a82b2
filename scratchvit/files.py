"""Writing files so that nothing is lost, and names as they can be printed."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from scratchvit.errors import ScratchvitError

# Windows does not replace a file that any program has open, as a virus scanner or `scratchvit report` has for a moment,
# and a spreadsheet for long. So it is tried again, after pauses of so many seconds.
_OPEN_FILES_STAY = os.name == "nt"
_PAUSES = (0.01, 0.03, 0.1, 0.3, 1.0, 1.0)


def write_atomically(path: Path, content: bytes) -> None:
    """Replace `path` in one instant by a file with this content. Raises ScratchvitError, and leaves the old one."""
    temporary = path.with_name(f".{path.name}.tmp")     # what a kill leaves behind, the next write takes over
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())     # a full disk may only be noticed here
        _replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            kept = "; the one saved before is untouched" if path.exists() else ""
            is_open = _OPEN_FILES_STAY and isinstance(error, PermissionError) and path.exists()
            way_out = "close the program that has it open" if is_open else "make room"
            raise ScratchvitError(
                f"{path} could not be written ({error.strerror}){kept}: {way_out} or choose another folder"
            ) from error
        raise


def _replace(temporary: Path, path: Path) -> None:
    for pause in _PAUSES if _OPEN_FILES_STAY else ():
        try:
            temporary.replace(path)
            return
        except PermissionError:
            time.sleep(pause)
    temporary.replace(path)


def printable(text: object) -> str:
    """A name out of a file, or of one, for the terminal: what it cannot print or would obey is escaped."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))


def check_can_be_written(path: Path | None) -> None:
    """Raise ScratchvitError, before anything is computed for it, for a file whose folder is not there."""
    if path is not None and (path.is_dir() or not path.parent.is_dir()):
        why = "it is a folder" if path.is_dir() else f"there is no folder {path.parent}"
        raise ScratchvitError(f"{path} cannot be written: {why}; name a file in a folder that is there")
