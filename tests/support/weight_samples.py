"""Small weight files of every format, written byte by byte, without PyTorch, for the tests of the readers."""

from __future__ import annotations

import io
import itertools
import json
import pickle
import struct
import tracemalloc
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scratchvit.errors import ScratchvitError
from scratchvit.weights.files import read_weights

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
STORAGE_OF = {
    "<f8": "DoubleStorage", "<f4": "FloatStorage", "<f2": "HalfStorage", "|V2": "BFloat16Storage", "<i8": "LongStorage",
    "<i4": "IntStorage", "<i2": "ShortStorage", "|i1": "CharStorage", "|u1": "ByteStorage", "|b1": "BoolStorage",
}


# A value of these classes stands for instructions of a pickle that Python's own pickler would not write for us.
@dataclass(frozen=True)
class Global:
    module: str
    name: str


@dataclass(frozen=True)
class Call:
    function: Any
    arguments: Any
    instruction: bytes = pickle.REDUCE


@dataclass(frozen=True)
class Build:
    target: Any
    state: Any


@dataclass(frozen=True)
class Persistent:
    saved_id: Any


@dataclass(frozen=True)
class Raw:
    """Instructions as they are."""

    code: bytes


@dataclass(frozen=True)
class Storage:
    """The persistent id of a storage, which is longer in legacy files."""

    key: str
    dtype: str
    size: int


def instructions(value: Any, legacy: bool = False) -> bytes:
    """What pushes a value onto the stack of the unpickler."""

    def sequence(*values: Any) -> bytes:
        return b"".join(instructions(value, legacy) for value in values)

    match value:
        case Raw():
            return value.code
        case Global():
            return pickle.GLOBAL + f"{value.module}\n{value.name}\n".encode()
        case Call():
            return sequence(value.function, value.arguments) + value.instruction
        case Build():
            return sequence(value.target, value.state) + pickle.BUILD
        case Persistent():
            return sequence(value.saved_id) + pickle.BINPERSID
        case Storage():
            saved_id = ("storage", Global("torch", STORAGE_OF[value.dtype]), value.key, "cpu", value.size)
            return sequence(Persistent((*saved_id, None) if legacy else saved_id))
        case tuple():
            return pickle.MARK + sequence(*value) + pickle.TUPLE
        case list():
            return pickle.EMPTY_LIST + pickle.MARK + sequence(*value) + pickle.APPENDS
        case dict():
            return pickle.EMPTY_DICT + pickle.MARK + sequence(*sum(value.items(), ())) + pickle.SETITEMS
        case str():
            return pickle.BINUNICODE + struct.pack("<I", len(value.encode())) + value.encode()
        case bytes():
            return pickle.BINBYTES + struct.pack("<I", len(value)) + value
        case _:                                     # numbers, None, True
            return pickle.dumps(value, 2)[2:-1]


def pickled(value: Any, legacy: bool = False) -> bytes:
    return pickle.PROTO + b"\x02" + instructions(value, legacy) + pickle.STOP


def tensor(stored: Any, offset: Any = 0, shape: Any = (2,), stride: Any = (1,), hooks: Any = None) -> Call:
    hooks = Call(Global("collections", "OrderedDict"), ()) if hooks is None else hooks
    return Call(Global("torch._utils", "_rebuild_tensor_v2"), (stored, offset, shape, stride, False, hooks))


def tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, Call]:
    """Each array as a tensor with a storage of its own, of key "0", "1", …"""
    return {
        name: tensor(
            Storage(str(key), array.dtype.str, array.size), 0, array.shape,
            tuple(step // array.itemsize for step in array.strides),
        )
        for key, (name, array) in enumerate(arrays.items())
    }


def zip_bytes(entries: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(zipfile.ZipInfo(name), content, compression)
    return file.getvalue()


def torch_zip(saved: Any, storages: Mapping[str, bytes] | None = None, compression: int = zipfile.ZIP_STORED) -> bytes:
    """What torch.save writes: the pickle of `saved`, a value for `instructions`, and the bytes of storages by key."""
    entries = {"archive/data.pkl": pickled(saved), "archive/byteorder": b"little"}
    entries |= {f"archive/data/{key}": content for key, content in (storages or {}).items()}
    return zip_bytes(entries | {"archive/version": b"3\n", "archive/.data/serialization_id": b"1" * 40}, compression)


def torch_legacy(saved: Any, storages: Mapping[str, np.ndarray] | None = None, little_endian: bool = True) -> bytes:
    """What torch.save wrote before 1.6."""
    facts = {"protocol_version": 1001, "little_endian": little_endian, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    parts = [pickled(part, legacy=True) for part in (LEGACY_MAGIC, 1001, facts, saved, list(storages or {}))]
    for array in (storages or {}).values():
        parts.append(struct.pack("<q", array.size) + array.tobytes())
    return b"".join(parts)


def torch_zip_of(arrays: Mapping[str, np.ndarray], compression: int = zipfile.ZIP_STORED) -> bytes:
    return torch_zip(
        tensors(arrays), {str(key): array.tobytes() for key, array in enumerate(arrays.values())}, compression
    )


def torch_legacy_of(arrays: Mapping[str, np.ndarray]) -> bytes:
    return torch_legacy(tensors(arrays), {str(key): array for key, array in enumerate(arrays.values())})


def npz_bytes(arrays: Mapping[str, np.ndarray], compressed: bool = False) -> bytes:
    file = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(file, **arrays)
    return file.getvalue()


def npy_bytes(header: str, content: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    """A .npy file whose header says whatever it is told to."""
    encoded = header.encode() + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H" if version[0] == 1 else "<I", len(encoded)) + encoded + content


def safetensors_bytes(header: Mapping[str, Any] | bytes, content: bytes = b"") -> bytes:
    """A safetensors file whose header says whatever it is told to."""
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + content


def safetensors_of(arrays: Mapping[str, np.ndarray]) -> bytes:
    names = {"<f8": "F64", "<f4": "F32", "<f2": "F16", "|V2": "BF16", "<i8": "I64", "|u1": "U8", "|b1": "BOOL"}
    header, end = {}, 0
    for name, array in arrays.items():
        begin, end = end, end + array.nbytes
        header[name] = {"dtype": names[array.dtype.str], "shape": array.shape, "data_offsets": [begin, end]}
    return safetensors_bytes(header, b"".join(array.tobytes() for array in arrays.values()))


# One weight, and the storage of it.
WEIGHT = np.arange(6, dtype=np.float32)
CONTENT = {"0": WEIGHT.tobytes()}


_numbers = itertools.count()


def write(tmp_path: Path, content: bytes, name: str | None = None) -> Path:
    """Without a name, a new file each time: Windows cuts none that an array, or an error's traceback, keeps mapped."""
    path = tmp_path / (name or f"weights{next(_numbers)}.bin")
    path.write_bytes(content)
    return path


def refuse(tmp_path: Path, content: bytes, message: str | None = None) -> None:
    """Assert that such a file is refused with a sentence that names it."""
    path = write(tmp_path, content)
    with pytest.raises(ScratchvitError, match=message) as caught:
        read_weights(path)
    assert str(caught.value).startswith(f"{path}: ")


def peak_of_refusal(tmp_path: Path, content: bytes, message: str) -> int:
    """Assert the same; the bytes of memory that it took."""
    tracemalloc.start()
    try:
        refuse(tmp_path, content, message)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
