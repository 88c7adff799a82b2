"""The exceptions of the package: one family, whose messages say what is wrong and what to do."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any


class ScratchvitError(Exception):
    """Bad input: a file, a picture, an option, a device; or, as a `WrongCall`, the arguments of a function.

    The command line prints its text and exits 1.
    """


class NoSuchData(ScratchvitError):
    """There is neither a data set of this name nor anything at this path."""

    def __init__(self, text: str, path: str):
        super().__init__(text)
        self.path = path


class DeviceFailed(ScratchvitError):
    """The GPU or a library of CUDA failed in the midst of a computation; the cause is CuPy's exception.

    The command line keeps the traceback, which tells in which op.
    """


class WrongCall(ScratchvitError):
    """A function was called in a way that it does not allow.

    Its subclasses are also the exception that Python, NumPy and PyTorch raise in such a case.
    """


class WrongType(WrongCall, TypeError):
    """An argument of another type or dtype than is needed."""


class WrongValue(WrongCall, ValueError):
    """An argument of another shape than is needed, or out of range."""


class WrongIndex(WrongCall, IndexError):
    """An axis or an entry that does not exist."""


class WrongState(WrongCall, RuntimeError):
    """A call that is not possible now, such as a second backward() through a graph."""


def missing(sentence: str, *packages: str) -> ScratchvitError:
    """The error for missing optional packages: a sentence, and the pip line that installs those that are missing."""
    absent = [name for name in packages if not is_installed(name)]
    return ScratchvitError(f"{sentence}: pip install {' '.join(absent or packages)}")


def is_installed(package: str) -> bool:
    """Whether a package can be imported, by its name for pip. It is not imported."""
    return importlib.util.find_spec({"scikit-learn": "sklearn"}.get(package, package)) is not None


_KINDS = (WrongIndex, WrongType, WrongState, WrongValue)


def in_the_family(error: Exception, message: str | None = None) -> WrongCall:
    """The `WrongCall` that is also of the class of a TypeError, ValueError, IndexError or RuntimeError."""
    kind = next((kind for kind in _KINDS if isinstance(error, kind.__bases__[1])), WrongValue)
    return kind(str(error) if message is None else message)


def explained(error: Exception, name: str, inputs: Sequence[Any]) -> WrongCall:
    """An error of NumPy's or CuPy's with the op's name and the shapes of its inputs."""
    if isinstance(error, AttributeError):
        strangers = ", ".join(type(x).__name__ for x in inputs if x is not None and not hasattr(x, "dtype"))
        return WrongType(f"{name}: arrays or Tensors are needed, not {strangers}")
    shapes = ", ".join(str(x.shape) for x in inputs if hasattr(x, "shape"))
    return in_the_family(error, f"{name}: {error} (given arrays of shape {shapes})")
