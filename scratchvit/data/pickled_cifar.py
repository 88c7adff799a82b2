"""CIFAR's files for Python: pickles of a dictionary, read by the restricted unpickler of `weights`, which runs nothing.

    data_batch_1, …, test_batch (CIFAR-10), train, test (CIFAR-100)
        data      (N, 3072) uint8: 1024 red, 1024 green, 1024 blue bytes of each picture, row by row
        labels    N integers; fine_labels in CIFAR-100, which also has coarse_labels
    batches.meta (CIFAR-10), meta (CIFAR-100)
        label_names, or fine_label_names

They were written by Python 2, whose strings are bytes; Python 3 writes them again with keys that are bytes.
"""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scratchvit.errors import ScratchvitError
from scratchvit.weights.admitted import ADMITTED, NumpyArray
from scratchvit.weights.unpickler import WAY_OUT, Unpickler

PIXEL_BYTES = 3 * 32 * 32
LONGEST_TEXT = 256      # bytes: longer ones are the content of an array


class _Unpickler(Unpickler):
    """Also reads the strings of Python 2 and keys that are bytes."""

    def _step(self, instruction: bytes) -> None:
        if instruction in (pickle.SHORT_BINSTRING, pickle.BINSTRING):
            content = self._take(self._number("<B" if instruction == pickle.SHORT_BINSTRING else "<I"))
            self.stack.append(_text(content) if len(content) <= LONGEST_TEXT else content)
        else:
            super()._step(instruction)

    def _set_items(self, values: list[Any]) -> None:
        super()._set_items([_text(value) if at % 2 == 0 else value for at, value in enumerate(values)])


def _text(value: Any) -> Any:
    """Bytes as text; other values as they are."""
    return value.decode("latin1") if isinstance(value, bytes) else value


def _no_storage(saved_id: Any) -> Any:
    raise ScratchvitError("it names an object outside of the file")


def _dictionary(content: bytes) -> dict[str, Any]:
    try:
        found = _Unpickler(np.frombuffer(content, np.uint8), ADMITTED, _no_storage).load()
    except ScratchvitError as error:    # without the advice for weights
        raise ScratchvitError(f"cannot be read: {str(error).removesuffix(f': {WAY_OUT}')}") from error
    if not isinstance(found, dict):
        raise ScratchvitError(f"holds a {type(found).__name__}, not a dictionary")
    return found


def read_batch(content: bytes, labels_key: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The pixels (N, 3072) and labels (N,) of a file. labels_key: "labels", or "fine_labels".

    Raises ScratchvitError (without the name of the file) if it is no such file, or damaged.
    """
    found = _dictionary(content)
    data, labels = found.get("data"), found.get(labels_key)
    pixels = data.array if isinstance(data, NumpyArray) else None
    if pixels is None or pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != PIXEL_BYTES:
        raise ScratchvitError(f"has no data, an array uint8 (N, {PIXEL_BYTES})")
    if not isinstance(labels, list) or not all(type(label) is int for label in labels) or len(labels) != len(pixels):
        raise ScratchvitError(f"has no {labels_key}, a list of {len(pixels)} integers")
    return pixels, np.array(labels, np.int64)


def read_names(content: bytes, names_key: str) -> list[str]:
    """The names of the classes. names_key: "label_names", or "fine_label_names". Raises as `read_batch` does."""
    names = _dictionary(content).get(names_key)
    if not isinstance(names, list) or not all(isinstance(name, str | bytes) for name in names):
        raise ScratchvitError(f"has no {names_key}, a list of names")
    return [_text(name) for name in names]
