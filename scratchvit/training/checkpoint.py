"""Checkpoints: everything that is needed to resume a run bit for bit, in one safetensors file.

Arrays are tensors named `model.…`, `ema.…` and `optimizer.…`; everything else is JSON in the metadata of the file. The
file is written under another name, flushed to disk, and then renamed, so it is never half old and half new. It contains
no code, so untrusted files can be opened. A checksum detects damaged files.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

import scratchvit
from scratchvit.errors import ScratchvitError
from scratchvit.files import write_atomically
from scratchvit.models import create_model
from scratchvit.nn import Module

FORMAT = 1
ARRAYS = ("model", "ema", "optimizer")

# Exceptions that malformed text in a file can cause, besides ScratchvitError.
_NONSENSE = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError, MemoryError)


@dataclass(frozen=True)
class Checkpoint:
    """A saved run.

    config       the fields of its TrainConfig
    model_name   name of the model; with model_args, the arguments of `create_model`
    data         {"name", "classes", "image_shape" (H, W, C), "mean", "std"} of the training data
    progress     epoch, step and the states of loader, generator and meters: plain numbers, lists and dictionaries
    model        {name: NumPy array}, from `Module.state_dict`
    ema          the averaged weights in the same form; empty without averaging
    optimizer    its state; empty if it is not needed, as in best.safetensors
    versions     versions of the program and libraries that wrote it
    """

    config: dict[str, Any]
    model_name: str
    model_args: dict[str, Any]
    data: dict[str, Any]
    progress: dict[str, Any]
    model: Mapping[str, np.ndarray]
    ema: Mapping[str, np.ndarray] = field(default_factory=dict)
    optimizer: Mapping[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)


def current_versions() -> dict[str, str]:
    """The versions of scratchvit, NumPy and Python: {"scratchvit", "numpy", "python"}."""
    return {"scratchvit": scratchvit.__version__, "numpy": np.__version__, "python": platform.python_version()}


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint atomically: if anything fails, an earlier file of the same name is kept.

    Raises ScratchvitError if the disk is full or the folder cannot be written.
    """
    tensors: dict[str, np.ndarray] = {}
    text: dict[str, Any] = {"format": FORMAT}
    for part in dataclasses.fields(checkpoint):
        content = getattr(checkpoint, part.name)
        if part.name in ARRAYS:
            arrays = {name: value for name, value in content.items() if isinstance(value, np.ndarray)}
            tensors |= {f"{part.name}.{name}": np.asarray(array, order="C") for name, array in arrays.items()}
            content = {name: value for name, value in content.items() if name not in arrays}
        text[part.name] = content
    metadata = {"scratchvit": json.dumps(text)}
    metadata["crc32"] = _checksum(tensors, metadata["scratchvit"])
    write_atomically(path, safetensors.numpy.save(tensors, metadata))


def is_checkpoint(path: str | Path) -> bool:
    """Whether a path is a checkpoint or run folder of `scratchvit train`. False for files that cannot be read."""
    path = Path(path)
    if path.is_dir():
        return (path / "best.safetensors").is_file()
    try:
        with safetensors.safe_open(path, framework="np") as file:
            return "scratchvit" in (file.metadata() or {})
    except (safetensors.SafetensorError, OSError):
        return False


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint; for a run folder, the best one.

    Raises ScratchvitError for a file that is missing, damaged, truncated, or not a checkpoint of this program.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "best.safetensors"
    if not path.is_file():
        raise ScratchvitError(f"there is no checkpoint {path}: name a .safetensors file or the folder of a run")
    try:
        with safetensors.safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no dictionary)
    except (safetensors.SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
        raise ScratchvitError(
            f"{path} is truncated, damaged or not a safetensors file ({error}): use another checkpoint"
        ) from error
    if "scratchvit" not in metadata:
        raise ScratchvitError(
            f"{path} contains weights but is not a checkpoint of scratchvit: use a file that `scratchvit train` wrote"
        )
    if metadata.get("crc32") != _checksum(tensors, metadata["scratchvit"]):
        raise ScratchvitError(f"{path} is damaged, its checksum does not match: use another checkpoint")
    try:
        text = json.loads(metadata["scratchvit"])
        if (written := text.pop("format")) != FORMAT:
            raise ScratchvitError(
                f"{path} has checkpoint format {written}, this version reads {FORMAT}: update scratchvit"
            )
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            text[part][rest] = tensor
        return Checkpoint(**text)
    except _NONSENSE as error:
        raise ScratchvitError(f"{path} is not a checkpoint of this program ({error}): use another file") from error


def model_from_checkpoint(
    path: str | Path, ema: bool = True, *, entry: str | None = None
) -> tuple[Module, Checkpoint]:
    """Load a model: (model in evaluation mode, checkpoint). ema: use the averaged weights if there are any.

    entry: "model" or "ema", the weights to use, instead of `ema`. Raises ScratchvitError as `load_checkpoint` does, if
    there is no such entry, and if the weights do not fit the model named in the file.
    """
    checkpoint = load_checkpoint(path)
    if entry is not None:
        has = ["model", *(["ema"] if checkpoint.ema else [])]
        if entry not in has:
            raise ScratchvitError(f"{path} has no entry {entry!r}; it has {' and '.join(has)}: choose one of these")
        ema = entry == "ema"
    try:
        model = create_model(checkpoint.model_name, **checkpoint.model_args)
    except _NONSENSE as error:
        raise ScratchvitError(f"{path} names a model that cannot be created ({error}): use another file") from error
    load_into(model, checkpoint.ema if ema and checkpoint.ema else checkpoint.model, path)
    return model.eval(), checkpoint


def load_into(model: Module, weights: Mapping[str, np.ndarray], path: str | Path) -> None:
    """Load the weights of the checkpoint at `path` into a model. Raises ScratchvitError if they do not fit."""
    try:
        model.load_state_dict(weights)
    except ScratchvitError as error:
        raise ScratchvitError(f"{path} is a checkpoint of another model: {error}") from error


def _checksum(tensors: Mapping[str, np.ndarray], text: str) -> str:
    crc = zlib.crc32(text.encode())
    for name in sorted(tensors):
        array = tensors[name]
        crc = zlib.crc32(f"{name} {array.dtype.str} {array.shape}".encode(), crc)
        crc = zlib.crc32(array.reshape(-1).view(np.uint8).data, crc)
    return f"{crc:08x}"
