"""The allowlist of names in the pickle of a PyTorch file, and the harmless record or function that replaces each.

    in the file                                 here
    collections.OrderedDict, defaultdict        OrderedDict, a dict; its attributes (`_metadata`) are dropped
    torch.FloatStorage, torch.float32, …        StorageType, TensorType
    a persistent id                             Storage: key, dtype and size of a storage
    torch._utils._rebuild_tensor_v2, …          Tensor: a part of a storage; no array is made yet
    torch.Size                                  a tuple
    numpy's arrays and dtypes                   NumpyArray, NumpyType

Everything else becomes an `unpickler.Inert`, which can do nothing: options, paths, dates, single numbers of NumPy,
whole models, and complex, quantised and sparse tensors. It is an error only where weights are expected.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from scratchvit.errors import ScratchvitError
from scratchvit.weights.arrays import DAMAGED, DTYPES, short, view
from scratchvit.weights.unpickler import WAY_OUT, Function, Inert, Record, set_items


@dataclass(frozen=True)
class TensorType:
    dtype: np.dtype


@dataclass(frozen=True)
class StorageType:
    dtype: np.dtype


@dataclass(frozen=True)
class Storage:
    """A storage of `size` entries, whose bytes are in the file under `key`."""

    key: str
    dtype: np.dtype
    size: int


@dataclass(frozen=True)
class Tensor:
    """A view of a storage: entry (i, j, …) is the one at offset + i·stride[0] + j·stride[1] + …, counted in entries."""

    storage: Storage
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class OrderedDict(dict, Record):
    def set_state(self, state: Any) -> None:
        """Ignore the attribute `_metadata` of state_dict(), the versions of the layers."""


class NumpyType(Record):
    """Stands for numpy.dtype. It is created without a byte order; the state sets it."""

    def __init__(self, dtype: np.dtype):
        self.dtype = dtype

    def set_state(self, state: Any) -> None:
        match state:
            case (3, "<" | ">" | "=" | "|" as order, None, None, None, -1, -1, 0):
                self.dtype = self.dtype.newbyteorder(order)
            case _:
                raise _wrong_arguments("numpy.dtype")


class NumpyArray(Record):
    """Stands for numpy.ndarray. It is created empty; the state sets shape, dtype and data.

    array: None if it is not of real numbers.
    """

    array: np.ndarray | None = None

    def set_state(self, state: Any) -> None:
        match state:
            case (1, tuple() as shape, NumpyType() as kind, bool() as fortran_order, bytes() as content):
                raw = np.frombuffer(content, np.uint8)
                self.array = view(raw, kind.dtype, _integers(shape), order="F" if fortran_order else "C")
            case (1, tuple(), Inert(), bool(), _):
                self.array = None
            case _:
                raise _wrong_arguments("numpy.ndarray")


_NUMPY_CODES = {dtype.str[1:]: dtype for dtype in DTYPES.values() if dtype.kind != "V"}     # "f4", "i8", …
_NDARRAY = object()     # numpy.ndarray, as the first argument of _reconstruct


def _ordered_dict(pairs: Any = ()) -> OrderedDict:
    result = OrderedDict()
    if not isinstance(pairs, (list, tuple)):
        raise _wrong_arguments("collections.OrderedDict")
    if not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        raise _wrong_arguments("collections.OrderedDict")
    set_items(result, pairs)
    return result


def _default_dict(factory: Any = None) -> OrderedDict:
    """An empty dict; what a missing entry would be is of no use here."""
    return OrderedDict()


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, stride: Any) -> Tensor | Inert:
    return _tensor(storage, storage, offset, shape, stride)


def _rebuild_tensor_v2(
    storage: Any, offset: Any, shape: Any, stride: Any, requires_grad: Any, hooks: Any, metadata: Any = None
) -> Tensor | Inert:
    return _tensor(storage, storage, offset, shape, stride, metadata)


def _rebuild_tensor_v3(
    storage: Any, offset: Any, shape: Any, stride: Any, requires_grad: Any, hooks: Any, dtype: Any, metadata: Any = None
) -> Tensor | Inert:
    return _tensor(storage, dtype, offset, shape, stride, metadata)


def _tensor(storage: Any, typed: Any, offset: Any, shape: Any, stride: Any, metadata: Any = None) -> Tensor | Inert:
    for unknown in (storage, typed):        # a kind of number that is not read: complex, quantised, of 8 bits
        if isinstance(unknown, Inert):
            return Inert(unknown.what, is_tensor=True)
    if not (isinstance(storage, Storage) and isinstance(typed, (Storage, TensorType)) and isinstance(offset, int)):
        raise _wrong_arguments("torch._utils._rebuild_tensor")
    if metadata:
        raise ScratchvitError(f"it contains a tensor that is stored negated or conjugated: {WAY_OUT}")
    return Tensor(storage, typed.dtype, offset, _integers(shape), _integers(stride))


def _rebuild_parameter(tensor: Any, requires_grad: Any, hooks: Any, state: Any = None) -> Tensor | Inert:
    if not isinstance(tensor, Tensor | Inert):
        raise _wrong_arguments("torch._utils._rebuild_parameter")
    return tensor


def _numpy_type(code: Any, align: Any = False, copy: Any = True) -> NumpyType | Inert:
    if not isinstance(code, str):
        raise _wrong_arguments("numpy.dtype")
    if code not in _NUMPY_CODES:
        return Inert(f"numpy.dtype({short(code)})")
    return NumpyType(_NUMPY_CODES[code])


def _numpy_array(kind: Any, shape: Any, code: Any) -> NumpyArray | Inert:
    if isinstance(kind, Inert):     # a subclass
        return kind
    if kind is not _NDARRAY:
        raise _wrong_arguments("numpy._reconstruct")
    return NumpyArray()


def _encode(text: Any, encoding: Any) -> bytes:
    """Decode bytes of pickle protocol 2, which stores each byte as the character of the same number."""
    if not (isinstance(text, str) and encoding == "latin1"):
        raise _wrong_arguments("_codecs.encode")
    try:
        return text.encode("latin1")
    except UnicodeEncodeError as error:
        raise _wrong_arguments("_codecs.encode") from error


def _empty_bytes(*arguments: Any) -> bytes:
    if arguments:
        raise _wrong_arguments("builtins.bytes")
    return b""


def _size(sides: Any = ()) -> tuple[int, ...]:
    return _integers(sides)


def _integers(values: Any) -> tuple[int, ...]:
    if not isinstance(values, tuple) or not all(isinstance(value, int) for value in values):
        raise ScratchvitError(f"a shape or stride in it is not a tuple of integers: {DAMAGED}")
    return values


def _wrong_arguments(name: str) -> ScratchvitError:
    return ScratchvitError(f"its pickle uses {name} in an unknown way; no code in it was run: {WAY_OUT}")


_STORAGES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool", "UntypedStorage": "uint8",
}

_FUNCTIONS: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor_v2,
    ("torch._utils", "_rebuild_tensor_v3"): _rebuild_tensor_v3,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _rebuild_parameter,
    ("torch", "Size"): _size,
    ("collections", "OrderedDict"): _ordered_dict,
    ("collections", "defaultdict"): _default_dict,
    ("_codecs", "encode"): _encode,
    ("numpy", "dtype"): _numpy_type,
}

ADMITTED: dict[tuple[str, str], Any] = {
    **{("torch", name): StorageType(DTYPES[dtype]) for name, dtype in _STORAGES.items()},
    ("torch.storage", "UntypedStorage"): StorageType(DTYPES["uint8"]),
    **{("torch", name): TensorType(dtype) for name, dtype in DTYPES.items()},
    **{place: Function(".".join(place), call) for place, call in _FUNCTIONS.items()},
    ("numpy", "ndarray"): _NDARRAY,
}
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):     # NumPy 1 and 2
    ADMITTED[_module, "_reconstruct"] = Function(f"{_module}._reconstruct", _numpy_array)
for _module in ("__builtin__", "builtins"):                             # Python 2's name, kept by protocol 2, and 3's
    ADMITTED[_module, "bytes"] = Function(f"{_module}.bytes", _empty_bytes)
