"""Shared by the readers of all formats: dtypes, and views of a memory-mapped file.

A reader maps the file into memory and returns views of the map: data are read only when they are used, and a file of
1 GB does not take 1 GB of memory. The file must not be truncated while its arrays are in use. Views can be unaligned,
as the data in the file are; NumPy reads such arrays correctly.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from scratchvit.errors import ScratchvitError

# NumPy has no bfloat16. Google's .npz files store it as two raw bytes, and this dtype is used for it here.
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
    if path.stat().st_size == 0:  # an empty file cannot be mapped
        raise ScratchvitError("the file is empty: download it again")
    return np.memmap(path, np.uint8, mode="r").view(np.ndarray)


def number_of_entries(shape: tuple[int, ...]) -> int:
    """The product of a shape. Raises ScratchvitError for a shape that no array can have."""
    # NumPy rejects more than 2⁶³ bytes even if another axis has length 0.
    if len(shape) > MOST_AXES or any(n < 0 for n in shape) or math.prod(n for n in shape if n) >= 1 << 59:
        raise ScratchvitError(f"it announces an array with the impossible shape {short(shape)}: {DAMAGED}")
    return math.prod(shape)


def view(raw: np.ndarray, dtype: np.dtype, shape: tuple[int, ...], order: str = "C") -> np.ndarray:
    """View bytes (size,) as an array of a dtype and shape. Raises ScratchvitError unless their number is right."""
    expected = number_of_entries(shape) * dtype.itemsize
    if expected != raw.size:
        raise ScratchvitError(
            f"it announces an array {short(shape)} of {expected} bytes and contains {raw.size} bytes: {DAMAGED}"
        )
    return raw.view(dtype).reshape(shape, order="F" if order == "F" else "C")


def native(array: np.ndarray) -> np.ndarray:
    """Convert to a dtype that NumPy can compute with: bfloat16 to float32 (exact), and to native byte order."""
    if array.dtype == BFLOAT16:  # bfloat16 is the upper half of a float32
        bits = np.left_shift(array.view("<u2"), 16, dtype=np.uint32)
        return read_only(np.asarray(bits).view(np.float32))
    if not array.dtype.isnative:
        return read_only(array.astype(array.dtype.newbyteorder("=")))
    return array


def read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


def short(value: str | tuple[int, ...]) -> str:
    """A string or shape from a file, for an error message: escaped, and of limited length."""
    text = repr(value[:MOST_AXES]) if isinstance(value, tuple) else repr(value[:120])
    return text if len(text) <= 120 else f"{text[:117]}…"


def readable(name: str) -> str:
    """A name from a file, for a list: unchanged, or by `short` if it is long or has control characters."""
    return name if name.isprintable() and len(name) <= 200 else short(name)


DAMAGED = "the file is damaged, download it again"
CUT = "the file is truncated or damaged, download it again"
