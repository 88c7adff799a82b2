"""Reading weight files of any kind into {name: NumPy array}, without PyTorch and without executing anything in them.

    read_weights("vit.safetensors"), ("ViT-B_16.npz"), ("deit.pth"), ("model.safetensors.index.json"), ("a-folder/")

The format is recognised by the content, not by the file name. Parameter names stay as they are in the file; `names`
converts them to ours.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from scratchvit.errors import ScratchvitError
from scratchvit.weights.arrays import CUT, DAMAGED, map_file, short
from scratchvit.weights.npz import SUFFIX, read_npz
from scratchvit.weights.safetensors_files import LENGTH, looks_like_safetensors, read_safetensors
from scratchvit.weights.torch_files import (
    looks_like_legacy_torch,
    looks_like_torch_zip,
    read_torch_legacy,
    read_torch_zip,
)
from scratchvit.weights.unpickler import WAY_OUT
from scratchvit.weights.wrappers import Choice
from scratchvit.weights.zip_files import ZipArchive

# File names of weights in a folder: those of Hugging Face's libraries, with indices of weights in several files, and
# that of `scratchvit train`.
IN_A_FOLDER = (
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
    "best.safetensors",
)
LARGEST_INDEX = 64 << 20  # bytes; a name takes about 100

# Files that are mistaken for weights: their first bytes, and what they are.
_FOREIGN = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself: fetch it with `git lfs pull`"),
    (b"<!DOCTYPE", "a web page, not the file itself: download it again, from the URL of the raw file"),
    (b"<html", "a web page, not the file itself: download it again, from the URL of the raw file"),
    (b"\x89HDF", f"an HDF5 file of Keras: convert it to safetensors or to an {SUFFIX[:-1]}z archive"),
    (b"\x1f\x8b", "compressed with gzip: unpack it with gunzip"),
    (b"\x93NUMPY", "a single array: save several under their names with numpy.savez"),
    (b"\x80", f"a bare pickle: {WAY_OUT}"),
)
_TAR = slice(257, 262)  # position of the magic bytes of a tar archive


def read_weights(path: str | Path, entry: str | None = None, use_ema: bool = True) -> dict[str, np.ndarray]:
    """Read a weight file as {name: array}: .safetensors, .npz, or PyTorch's .pth, .pt and .bin.

    path        the file; the JSON index of weights in several files; or a folder with one of these under a usual name
    entry       for a file with several sets of weights: the name of one, such as "teacher" or "state_dict.model"
    use_ema     for a training checkpoint with both: whether to return the averaged weights or the plain ones

    From a training checkpoint, one state dict is returned: averaged weights ("model_ema", …), the usual keys
    ("state_dict", "model", …), a teacher or student, or the only dictionary of arrays. If a model of a known family
    lies under a prefix of the names ("module.", "model.", "encoder."), the names under it are returned, without it.

    The arrays are read-only. They are views of the memory-mapped file if it stores them uncompressed, as safetensors
    does, and .npz and PyTorch's zip files usually do. bfloat16 is converted to float32, which is exact. The file must
    not be truncated while the arrays are in use.

    Raises ScratchvitError, which names the file, if it is missing, truncated, damaged, of an unknown format, contains
    no arrays, or several sets of weights of which none is the usual one.
    """
    return read_chosen(path, Choice(entry, use_ema))


def read_chosen(path: str | Path, choice: Choice) -> dict[str, np.ndarray]:
    """`read_weights`, with a choice that says afterwards what was taken."""
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in IN_A_FOLDER if (path / name).is_file()]
        if not found:
            raise ScratchvitError(f"{path}: this folder has none of {', '.join(IN_A_FOLDER)}; name the file itself")
        path = found[0]
    weights = _read_index(path, choice) if _is_index(path) else _read_file(path, choice)
    if not weights:
        raise ScratchvitError(f"{path}: it contains no arrays; use another file")
    try:
        return choice.without_prefix(weights)
    except ScratchvitError as error:
        raise ScratchvitError(f"{path}: {error}") from error


def _read_file(path: Path, choice: Choice) -> dict[str, np.ndarray]:
    if not path.exists():
        raise ScratchvitError(f"{path}: there is no such file")
    if not path.is_file():
        raise ScratchvitError(f"{path}: this is not a file; name a weight file")
    try:
        return _read(path, map_file(path), choice)
    except ScratchvitError as error:
        raise ScratchvitError(f"{path}: {error}") from error
    except OSError as error:
        raise ScratchvitError(f"{path}: cannot be read ({error.strerror or error})") from error


def _read(path: Path, raw: np.ndarray, choice: Choice) -> dict[str, np.ndarray]:
    """Recognise the format of a file by its content, and read it."""
    start = bytes(raw[:32])
    if start.startswith(b"PK"):
        archive = ZipArchive(path, raw)
        if looks_like_torch_zip(archive):
            return read_torch_zip(archive, choice)
        if all(name.endswith(SUFFIX) for name in archive.names):
            return read_npz(archive)
        names = short(", ".join(archive.names[:8]))
        raise ScratchvitError(f"it is a zip archive, but not of PyTorch or NumPy; it contains {names}: unpack it first")
    if looks_like_legacy_torch(raw):
        return read_torch_legacy(raw, choice)
    if looks_like_safetensors(raw):
        return read_safetensors(path, raw)
    if bytes(raw[_TAR]) == b"ustar":
        raise ScratchvitError(f"it is a tar archive, or from PyTorch before 0.1.10: unpack it, or {WAY_OUT}")
    for beginning, what in _FOREIGN:
        if start.lower().startswith(beginning.lower()):
            raise ScratchvitError(f"it is {what}")
    raise ScratchvitError(
        f"it is not a weight file of a known format (.safetensors, .npz, .pth); it begins with {start[:8].hex(' ')}: "
        "convert it to safetensors, or download it again"
    )


def _is_index(path: Path) -> bool:
    if not path.is_file():  # _read_file raises an error
        return False
    try:
        with path.open("rb") as file:
            start = file.read(LENGTH.size + 1)
    except OSError:
        return False
    # A safetensors file can also begin with a brace, if its header has 123 bytes, 379, …
    return start[:1] == b"{" and start[LENGTH.size :] != b"{"


def _read_index(path: Path, choice: Choice) -> dict[str, np.ndarray]:
    """The arrays of all files that an index {"weight_map": {name: file}} names; they must be in its folder."""
    wrong = f"{path}: it is not an index of weights in several files"
    try:
        if path.stat().st_size > LARGEST_INDEX:
            raise ValueError(f"{path.stat().st_size} bytes")
        places = json.loads(path.read_bytes())["weight_map"]
    except KeyError as error:
        raise ScratchvitError(f'{wrong}, which has a "weight_map"; name the weights themselves') from error
    except (OSError, ValueError, RecursionError) as error:
        raise ScratchvitError(f'{wrong}, which has a "weight_map" ({short(str(error))}); {CUT}') from error
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise ScratchvitError(f"{wrong}: its weight_map does not map names to files; {DAMAGED}")
    files = sorted(set(places.values()))
    for file in files:
        if not file or file in (".", "..") or "/" in file or "\\" in file or "\0" in file:
            raise ScratchvitError(f"{path}: it names {short(file)}, not a file in its folder; do not trust this index")

    weights: dict[str, np.ndarray] = {}
    for file in files:
        part = _read_file(path.parent / file, Choice(use_ema=choice.use_ema))
        expected = {name for name, place in places.items() if place == file}
        if different := expected.symmetric_difference(part):
            name = min(different)
            raise ScratchvitError(
                f"{path}: {short(name)} is {'missing from' if name in expected else 'also in'} {file}; "
                "the files do not belong together, download them again"
            )
        weights |= part
    return weights
