"""The exception for bad input, whose message says what is wrong and what to do; and the words for errors inside ops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class ScratchvitError(Exception):
    """Bad input from outside: a file, a picture, an option, a device. The command line prints its text and exits 1."""


def explained(error: Exception, name: str, inputs: Sequence[Any]) -> Exception:
    """An error of NumPy's or CuPy's with the op's name and the shapes of its inputs."""
    if isinstance(error, AttributeError):
        strangers = ", ".join(type(x).__name__ for x in inputs if x is not None and not hasattr(x, "dtype"))
        return TypeError(f"{name}: arrays or Tensors are needed, not {strangers}")
    kind = next((kind for kind in (IndexError, TypeError) if isinstance(error, kind)), ValueError)
    shapes = ", ".join(str(x.shape) for x in inputs if hasattr(x, "shape"))
    return kind(f"{name}: {error} (given arrays of shape {shapes})")
