"""The safetensors format: a length, a JSON header with name, type, shape and offsets of each tensor, then their bytes.

The safetensors library checks the header (offsets without gaps or overlaps, sizes that match the shapes, no missing
bytes); the arrays are views of a memory map, where the library would copy. https://github.com/huggingface/safetensors
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import safetensors

from scratchvit.errors import ScratchvitError
from scratchvit.weights.arrays import CUT, DAMAGED, DTYPES, native, short, view

LENGTH = struct.Struct("<Q")

_NAMES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
}


def looks_like_safetensors(raw: np.ndarray) -> bool:
    return bytes(raw[LENGTH.size : LENGTH.size + 1]) == b"{"


def read_safetensors(path: Path, raw: np.ndarray) -> dict[str, np.ndarray]:
    """Read the file at path, whose bytes are raw, as {name: array}: read-only views; bfloat16 becomes float32.

    Raises ScratchvitError (without the path) for a truncated or damaged file, and for 8-bit floats and other types
    that NumPy does not have.
    """
    try:
        with safetensors.safe_open(path, framework="np"):
            pass
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise ScratchvitError(f"it is not a complete safetensors file ({short(str(error))}): {CUT}") from error
    start = LENGTH.size + LENGTH.unpack_from(raw.data)[0]
    header = json.loads(bytes(raw[LENGTH.size : start]))
    header.pop("__metadata__", None)

    weights = {}
    for name, entry in header.items():
        if entry["dtype"] not in _NAMES:
            raise ScratchvitError(
                f"{short(name)} is of type {short(entry['dtype'])}, which NumPy does not have: "
                "convert the file to float32, float16 or bfloat16"
            )
        begin, end = entry["data_offsets"]
        if not 0 <= begin <= end <= raw.size - start:
            raise ScratchvitError(f"{short(name)} lies outside the file: {DAMAGED}")
        content = raw[start + begin : start + end]
        weights[name] = native(view(content, DTYPES[_NAMES[entry["dtype"]]], tuple(entry["shape"])))
    return weights
