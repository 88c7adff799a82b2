"""What the command line prints for an error that nobody foresaw: one sentence, and where the traceback is."""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import shlex
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

import scratchvit
from scratchvit.errors import DeviceFailed, ScratchvitError, WrongCall
from scratchvit.gpu import explain, is_out_of_memory

DEBUG = "SCRATCHVIT_DEBUG"      # set: tracebacks are printed as Python does it


class Bug(ScratchvitError):
    """An unforeseen error, with the sentence that reports it. Exit status 70 is EX_SOFTWARE of sysexits.h."""

    exit_status = 70


@contextlib.contextmanager
def bugs_reported(folder: Path | None = None, argv: Sequence[str] = ()) -> Iterator[None]:
    """Turn errors that are not about bad input into a sentence; the traceback goes into a file.

    folder: of the run, where the file traceback.txt is written; by default into the system's temporary folder.

    An OSError that names a file, a lack of memory, and errors of the GPU have a sentence of their own: the user can do
    something about them. With the environment variable SCRATCHVIT_DEBUG nothing is changed.
    """
    try:
        yield
    except WrongCall as error:      # of the data or an option, or of a fault in the package: so the traceback is kept
        if os.environ.get(DEBUG):
            raise
        raise ScratchvitError(f"{error}{_kept(error, folder, argv)}") from error
    except DeviceFailed as error:
        raise ScratchvitError(_with_traceback(str(error), error, folder, argv)) from error
    except (ScratchvitError, KeyboardInterrupt, SystemExit, BrokenPipeError):
        raise
    except Exception as error:
        closed_pipe = isinstance(error, OSError) and error.filename is None and error.errno == errno.EINVAL  # Windows
        if closed_pipe or os.environ.get(DEBUG):
            raise
        raise _sentence(error, folder, argv) from error


def _sentence(error: Exception, folder: Path | None, argv: Sequence[str]) -> ScratchvitError:
    if of_the_gpu := explain(error):
        return ScratchvitError(
            of_the_gpu if is_out_of_memory(error) else _with_traceback(of_the_gpu, error, folder, argv)
        )
    if isinstance(error, MemoryError):
        return ScratchvitError(
            f"there is not enough memory ({error}): use a smaller batch (--batch-size), smaller images (--img-size), "
            "or a smaller model"
        )
    if isinstance(error, OSError) and error.filename is not None:
        return ScratchvitError(f"{error.filename}: {error.strerror}")
    what = " ".join(f"{type(error).__name__}: {error}".split())
    try:
        kept = f"please send {_write(error, folder, argv)}, which has the traceback,"
    except OSError:     # nothing can be written anywhere
        kept = f"please run it again with {DEBUG}=1 and send the traceback"
    return Bug(f"this is a bug in scratchvit ({what}): {kept} to those who gave you scratchvit")


def _with_traceback(sentence: str, error: Exception, folder: Path | None, argv: Sequence[str]) -> str:
    with contextlib.suppress(OSError):
        return f"{sentence} (traceback: {_write(error, folder, argv)})"
    return sentence


def _kept(error: Exception, folder: Path | None, argv: Sequence[str]) -> str:
    with contextlib.suppress(OSError):
        return f" (if you cannot explain this, please send {_write(error, folder, argv)})"
    return ""


def _write(error: Exception, folder: Path | None, argv: Sequence[str]) -> Path:
    """Write the traceback, with what is needed to repeat it, and return the file."""
    if folder is not None and folder.is_dir():
        path = folder / "traceback.txt"
    else:
        path = Path(tempfile.mkdtemp(prefix="scratchvit-")) / "traceback.txt"
    text = (
        f"scratchvit {scratchvit.__version__}, Python {platform.python_version()}, NumPy {np.__version__}, "
        f"{platform.platform()}\n"
        f"{shlex.join(['scratchvit', *argv])}\n\n"
        f"{''.join(traceback.format_exception(error))}"
    )
    path.write_text(text, encoding="utf-8", errors="backslashreplace")
    return path


def version() -> str:
    """One line: the versions that a report of a bug should give."""
    python = ".".join(map(str, sys.version_info[:3]))
    return f"scratchvit {scratchvit.__version__} (Python {python}, NumPy {np.__version__})"
