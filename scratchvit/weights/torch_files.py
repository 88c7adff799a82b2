"""Reading PyTorch's .pth, .pt and .bin files without PyTorch and without executing anything in them.

    zip, since PyTorch 1.6      <name>/data.pkl, a pickle of the saved object in which each storage is a persistent id
                                ("storage", type, key, device, size), and <name>/data/<key>, its bytes
    legacy, before              one after another: a magic number, the version, facts about the machine, the pickle of
                                the object, the list of the storage keys, and each storage: its size as int64, its bytes
    tar, before 0.1.10          rejected
    TorchScript                 a zip that also contains code: rejected

Pickles are read by `unpickler.py`, with the allowlist in `admitted.py`. The result are records that say where a tensor
is in the file; arrays are made last, only of the tensors that are used, after every number in a record was checked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from scratchvit.errors import ScratchvitError
from scratchvit.weights.admitted import ADMITTED, NumpyArray, Storage, StorageType, Tensor
from scratchvit.weights.arrays import CUT, DAMAGED, native, number_of_entries, read_only, short
from scratchvit.weights.unpickler import WAY_OUT, Inert, Unpickler
from scratchvit.weights.wrappers import Choice
from scratchvit.weights.zip_files import ZipArchive

LEGACY_MAGIC = bytes.fromhex("6cfc9c46f9206aa85019")    # 0x1950a86a20f9469cfc6c in the byte order of LONG1
LEGACY_VERSION = 1001
PICKLE = "data.pkl"


def looks_like_legacy_torch(raw: np.ndarray) -> bool:
    return LEGACY_MAGIC in bytes(raw[:32])


def looks_like_torch_zip(archive: ZipArchive) -> bool:
    return any(name.rpartition("/")[2] == PICKLE for name in archive.names)


def read_torch_zip(archive: ZipArchive, choice: Choice) -> dict[str, np.ndarray]:
    """Read the state dict in a file of torch.save as {name: array}: read-only views if entries are uncompressed.

    The checksums of all entries that are used are verified; those of an optimiser's state, for example, are not.
    choice: of one of the state dicts in it. Raises ScratchvitError (without the path) for a file that cannot be used.
    """
    pickles = [name for name in archive.names if name.rpartition("/")[2] == PICKLE]
    if len(pickles) != 1:
        raise ScratchvitError(f"it contains {len(pickles)} files named {PICKLE}, expected one: {DAMAGED}")
    folder = pickles[0].removesuffix(PICKLE)
    if any(name == f"{folder}constants.pkl" or name.startswith(f"{folder}code/") for name in archive.names):
        raise ScratchvitError(f"it is a TorchScript archive, which contains code and not only weights: {WAY_OUT}")
    if f"{folder}byteorder" in archive.names and bytes(archive.read(f"{folder}byteorder")) != b"little":
        raise ScratchvitError(f"it was written on a big-endian machine: {WAY_OUT}")

    saved = Unpickler(archive.read(pickles[0]), ADMITTED, _storage).load()
    return _arrays(saved, lambda storage: archive.read(f"{folder}data/{storage.key}"), archive.raw.size, choice)


def read_torch_legacy(raw: np.ndarray, choice: Choice) -> dict[str, np.ndarray]:
    """Read the state dict in a file of torch.save before 1.6 as {name: array}, read-only views.

    The format has no checksums, but all sizes are checked. choice: of one of the state dicts in it. Raises
    ScratchvitError (without the path) for a file that cannot be used.
    """
    at = 0

    def load(admitted: dict[tuple[str, str], Any], persistent: Callable[[Any], Any]) -> Any:
        nonlocal at
        unpickler = Unpickler(raw, admitted, persistent, start=at)
        value = unpickler.load()
        at = unpickler.end
        return value

    storages: dict[str, Storage] = {}

    def persistent(saved_id: Any) -> Storage | Inert:
        if isinstance(saved_id, tuple) and len(saved_id) == 6 and saved_id[5] is None:
            saved_id = saved_id[:5]
        elif not _is_class(saved_id):
            raise ScratchvitError(f"it has a storage id of an unknown form: {WAY_OUT}")
        storage = _storage(saved_id)
        if isinstance(storage, Inert):
            if storage.is_tensor:       # the size of its entries is unknown, so the storages after it cannot be found
                raise ScratchvitError(
                    f"it uses {short(storage.what)}, but only real dense tensors are read: {WAY_OUT}"
                )
            return storage
        if storages.setdefault(storage.key, storage) != storage:
            raise ScratchvitError(f"its storage {short(storage.key)} has two types or sizes: {DAMAGED}")
        return storage

    if load({}, _no_storage) != int.from_bytes(LEGACY_MAGIC, "little") or load({}, _no_storage) != LEGACY_VERSION:
        raise ScratchvitError(f"it does not begin like a legacy file of PyTorch: {DAMAGED}")
    facts = load({}, _no_storage)
    if not (isinstance(facts, dict) and facts.get("little_endian") is True):
        raise ScratchvitError(f"it was written on a big-endian machine, or is damaged: {WAY_OUT}")
    saved = load(ADMITTED, persistent)
    keys = load({}, _no_storage)

    if not isinstance(keys, list) or len(keys) != len(storages) or any(type(key) is not str for key in keys):
        raise ScratchvitError(f"its list of storages does not match its tensors: {DAMAGED}")
    contents: dict[str, np.ndarray] = {}
    for key in keys:
        if key not in storages or key in contents:
            raise ScratchvitError(f"its list of storages does not match its tensors: {DAMAGED}")
        size, begin = storages[key].size, at + 8
        at = begin + size * storages[key].dtype.itemsize
        if at > raw.size:
            raise ScratchvitError(f"it ends in the middle of the storages: {CUT}")
        if int.from_bytes(bytes(raw[begin - 8 : begin]), "little") != size:
            raise ScratchvitError(f"its storage {short(key)} does not have the announced size: {DAMAGED}")
        contents[key] = raw[begin:at]
    if at != raw.size:
        raise ScratchvitError(f"{raw.size - at} bytes follow its last storage: {DAMAGED}")
    return _arrays(saved, lambda storage: contents[storage.key], raw.size, choice)


def _storage(saved_id: Any) -> Storage | Inert:
    """What a persistent id stands for: an `Inert` for a storage of another kind, or the class of a saved object."""
    match saved_id:
        case ("storage", StorageType() as kind, str() as key, str(), int() as size) if size >= 0:
            return Storage(key, kind.dtype, size)
        case ("storage", Inert() as kind, str(), str(), int()):
            return Inert(kind.what, is_tensor=True)
        case _ if _is_class(saved_id):
            return saved_id[1]
        case _:
            raise ScratchvitError(f"it has a storage id of an unknown form: {WAY_OUT}")


def _is_class(saved_id: Any) -> bool:
    """Whether a persistent id is that of a class, with its source, as PyTorch wrote it before 1.6."""
    match saved_id:
        case ("module", Inert(), str() | None, str() | None):
            return True
    return False


def _no_storage(saved_id: Any) -> Storage:
    raise ScratchvitError(f"it has a storage id in a place where none is allowed: {DAMAGED}")


def _arrays(
    saved: Any, content: Callable[[Storage], np.ndarray], file_size: int, choice: Choice
) -> dict[str, np.ndarray]:
    """The arrays of the state dict in the saved object. Tensors that share a storage share memory."""
    storages: dict[tuple[str, np.dtype], np.ndarray] = {}

    def storage_as(storage: Storage, dtype: np.dtype) -> np.ndarray:
        """All entries of a storage as a one-dimensional array of the given dtype."""
        if (storage.key, dtype) not in storages:
            raw, expected = content(storage), storage.size * storage.dtype.itemsize
            if raw.size != expected:
                raise ScratchvitError(
                    f"its storage {short(storage.key)} has {raw.size} bytes, expected {expected}: {DAMAGED}"
                )
            whole = raw[: raw.size // dtype.itemsize * dtype.itemsize]
            storages[storage.key, dtype] = native(whole.view(dtype))
        return storages[storage.key, dtype]

    weights = {}
    for name, value in choice.state_dict(saved, _is_array).items():
        if isinstance(value, NumpyArray):
            if value.array is not None:
                weights[name] = native(value.array)
        else:
            _check_extent(name, value, file_size)
            weights[name] = _strided(storage_as(value.storage, value.dtype), value)
    return weights


def _is_array(value: Any) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, NumpyArray) and value.array is not None)


def _check_extent(name: str, tensor: Tensor, file_size: int) -> None:
    """Raises ScratchvitError unless every entry of the tensor lies in its storage."""
    size = tensor.storage.size * tensor.storage.dtype.itemsize // tensor.dtype.itemsize
    entries = number_of_entries(tensor.shape)
    last = tensor.offset + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride))
    if len(tensor.stride) != len(tensor.shape) or tensor.offset < 0 or any(step < 0 for step in tensor.stride):
        raise ScratchvitError(f"{short(name)} has an inconsistent shape, stride and offset: {DAMAGED}")
    if entries and last >= size:
        raise ScratchvitError(f"{short(name)} extends beyond its storage of {size} entries: {DAMAGED}")
    # A tensor can repeat entries by a stride of 0, as made by expand(), but not become larger than the file.
    if entries * tensor.dtype.itemsize > file_size:
        raise ScratchvitError(f"{short(name)} is larger than the file because its entries repeat: {WAY_OUT}")


def _strided(storage: np.ndarray, tensor: Tensor) -> np.ndarray:
    if 0 in tensor.shape:
        return read_only(np.zeros(tensor.shape, storage.dtype))
    # This constructor checks that the view stays within its buffer.
    strides = tuple(step * storage.itemsize for step in tensor.stride)
    return np.ndarray(tensor.shape, storage.dtype, storage, tensor.offset * storage.itemsize, strides)
