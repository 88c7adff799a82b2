"""Reading text in the encodings that common tools write, writing files atomically, names and counts in sentences."""

from __future__ import annotations

import codecs
import contextlib
import os
import time
from collections.abc import Iterable
from pathlib import Path

from scratchvit.errors import ScratchvitError

# Windows cannot replace a file that is open in another program, such as a virus scanner (for a moment) or a spreadsheet
# (for long). So it is tried again after these pauses, in seconds.
_OPEN_FILES_STAY = os.name == "nt"
_PAUSES = (0.01, 0.03, 0.1, 0.3, 1.0, 1.0)

# A byte-order mark says which encoding a file has. UTF-32 first: its mark begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_text(path: Path, what: str = "text file") -> str:
    """The text of a file in UTF-8, or in the encoding that its byte-order mark names (UTF-8, UTF-16, UTF-32).

    what: a word for the file in errors, "label list". Line ends are those of the file: use `splitlines`. Raises
    ScratchvitError if the file cannot be read, or is in another encoding: a guess could turn names into others.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ScratchvitError(f"{path}: this {what} cannot be read ({error.strerror})") from error
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise ScratchvitError(
            f"{path}: this {what} is not in {encoding.removesuffix('-sig').upper()} (it has a byte "
            f"{error.object[error.start]:#04x} that does not belong there): save it in UTF-8"
        ) from error


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file under a temporary name and rename it. On failure raises ScratchvitError and keeps the old file."""
    temporary = path.with_name(f".{path.name}.tmp")     # left over after a kill, it is overwritten by the next write
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())     # a full disk may only raise an error here
        _replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            kept = "; the previous file is unchanged" if path.exists() else ""
            is_open = _OPEN_FILES_STAY and isinstance(error, PermissionError) and path.exists()
            way_out = "close the program that has it open" if is_open else "free some space"
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
    """A name from a file, or of a file, for the terminal: unprintable and control characters are escaped."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))


def listed(names: Iterable[object], most: int = 3) -> str:
    """Names for a sentence: "a, b, c and 4 more"."""
    words = [printable(name) for name in names]
    return ", ".join(words[:most]) + (f" and {len(words) - most:,} more" if len(words) > most else "")


def noun(number: int, singular: str, plural: str = "") -> str:
    """A noun after a number: box for 1, boxes for any other. plural: by default with an s."""
    return singular if number == 1 else plural or f"{singular}s"


def counted(number: int, singular: str, plural: str = "") -> str:
    """A number and its noun: 1 box, 2 boxes. plural: by default with an s."""
    return f"{number:,} {noun(number, singular, plural)}"


def user_cache() -> Path:
    """The folder in which programs keep what they have downloaded: $XDG_CACHE_HOME, or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def check_can_be_written(path: Path | None) -> None:
    """Raise ScratchvitError, before any work is done, for an output file whose folder does not exist."""
    if path is not None and (path.is_dir() or not path.parent.is_dir()):
        why = "it is a folder" if path.is_dir() else f"there is no folder {path.parent}"
        raise ScratchvitError(f"{path} cannot be written: {why}; name a file in an existing folder")
