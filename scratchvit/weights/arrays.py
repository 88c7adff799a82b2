"""What the readers of all formats share: the types of numbers, and the views of a mapped file.

A reader maps the file into memory and hands out views of the map: nothing is read before it is used, and a checkpoint
of 1 GB costs no 1 GB. The file must not be cut while its arrays live. A view may start at an odd address, as the bytes
in the file do; NumPy reads such arrays correctly.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from scratchvit.errors import ScratchvitError

# NumPy has no bfloat16. Google's .npz files store it as two raw bytes, and so it is called here.
BFLOAT16 = np.dtype("V2")

DTYPES: dict[str, np.dtype] = {
    "float64": np.dtype("<f8"), "float32": np.dtype("<f4"), "float16": np.dtype("<f2"), "bfloat16": BFLOAT16,
    "int64": np.dtype("<i8"), "int32": np.dtype("<i4"), "int16": np.dtype("<i2"), "int8": np.dtype("i1"),
    "uint64": np.dtype("<u8"), "uint32": np.dtype("<u4"), "uint16": np.dtype("<u2"), "uint8": np.dtype("u1"),
    "bool": np.dtype("?"),
}

MOST_AXES = 64  # NumPy's own limit


def map_file(path: Path) -> np.ndarray:
    """The bytes of a file, uint8 (size,), as a read-only memory map."""
    if path.stat().st_size == 0:  # which cannot be mapped
        raise ScratchvitError("the file is empty: fetch it anew")
    return np.memmap(path, np.uint8, mode="r").view(np.ndarray)


def number_of_entries(shape: tuple[int, ...]) -> int:
    """∏ shape. Raises ScratchvitError for a shape that no array can have."""
    # NumPy refuses more than 2⁶³ bytes even where another axis is empty.
    if len(shape) > MOST_AXES or any(n < 0 for n in shape) or math.prod(n for n in shape if n) >= 1 << 59:
        raise ScratchvitError(f"it announces an array of the impossible shape {short(shape)}: {DAMAGED}")
    return math.prod(shape)


def view(raw: np.ndarray, dtype: np.dtype, shape: tuple[int, ...], order: str = "C") -> np.ndarray:
    """Bytes (size,), which must be exactly those of such an array → the array, a view."""
    expected = number_of_entries(shape) * dtype.itemsize
    if expected != raw.size:
        raise ScratchvitError(
            f"it announces an array {short(shape)} of {expected} bytes and holds {raw.size} bytes of it: {DAMAGED}"
        )
    return raw.view(dtype).reshape(shape, order="F" if order == "F" else "C")


def native(array: np.ndarray) -> np.ndarray:
    """The same numbers in a type NumPy computes with: bfloat16 as float32, exactly; bytes in this machine's order."""
    if array.dtype == BFLOAT16:  # the upper half of a float32
        bits = np.left_shift(array.view("<u2"), 16, dtype=np.uint32)
        return read_only(np.asarray(bits).view(np.float32))
    if not array.dtype.isnative:
        return read_only(array.astype(array.dtype.newbyteorder("=")))
    return array


def read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


def short(value: str | tuple[int, ...]) -> str:
    """A text or a shape out of a file, for a sentence: escaped, and of bounded length."""
    text = repr(value[:MOST_AXES]) if isinstance(value, tuple) else repr(value[:120])
    return text if len(text) <= 120 else f"{text[:117]}…"


def readable(name: str) -> str:
    """A name out of a file, for a list: as it is, or as `short` gives it if it is long or could steer a terminal."""
    return name if name.isprintable() and len(name) <= 200 else short(name)


DAMAGED = "the file is damaged, fetch it anew"
CUT = "the file is cut or damaged, fetch it anew"
