"""What commands share that read picture files and write files of results."""

from __future__ import annotations

from pathlib import Path

from scratchvit.data.folder import SUFFIXES, by_name
from scratchvit.errors import ScratchvitError


def picture_files(path: Path) -> list[Path]:
    """The picture itself, or all those that lie in a folder. Raises ScratchvitError for a folder without any."""
    if not path.is_dir():
        return [path]
    try:
        found = by_name(entry for entry in path.iterdir() if entry.suffix.lower() in SUFFIXES and entry.name[0] != ".")
    except OSError as error:
        raise ScratchvitError(f"{path}: the folder cannot be read ({error.strerror})") from error
    if not found:
        raise ScratchvitError(f"{path}: no pictures in this folder ({', '.join(sorted(SUFFIXES))})")
    return found


def printable(text: object) -> str:
    """A name out of a file, or of one, for the terminal: what it cannot print or would obey is escaped."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))


def check_can_be_written(path: Path | None) -> None:
    """Raise ScratchvitError, before anything is computed for it, for a file whose folder is not there."""
    if path is not None and (path.is_dir() or not path.parent.is_dir()):
        why = "it is a folder" if path.is_dir() else f"there is no folder {path.parent}"
        raise ScratchvitError(f"{path} cannot be written: {why}; name a file in a folder that is there")
