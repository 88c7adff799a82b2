"""Anybody's weights into a model here: read, rename, bring to size, check, and only then load, all or nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scratchvit.errors import ScratchvitError
from scratchvit.models import create_model
from scratchvit.nn import Module
from scratchvit.weights.config import describe, image_size
from scratchvit.weights.files import read_weights
from scratchvit.weights.fit import LoadReport, fit
from scratchvit.weights.misfit import FIRST_KERNELS, looks_like
from scratchvit.weights.names import Renamed, recognise


def load_weights(model: Module, path: str | Path, *, new_head: bool = False) -> LoadReport:
    """Load a .safetensors, .npz or .pth file of timm, torchvision, Hugging Face, Google or this program into a model.

    Position tables, patch kernels and input channels are brought to the model's sizes (`weights.fit`). new_head: the
    model's heads stay as they are, for another set of classes. Returns what was done; print it.
    Raises ScratchvitError for a file that cannot be read, or with all that does not fit; the model is then unchanged.
    """
    return _load(model, _read(path), Path(path), new_head)


def model_from_weights(path: str | Path, name: str | None = None, **overrides: Any) -> tuple[Module, str]:
    """(model in evaluation mode with the weights of the file, its name in `list_models`).

    Without a name, the config.json beside the file says which model it is: timm's, Hugging Face's, or what
    `scratchvit export` wrote. Classes and channels are the file's; overrides replace options of the model.
    Raises ScratchvitError if nothing says which model it is, and as `load_weights` does.
    """
    path = Path(path)
    renamed = _read(path)
    found = None
    with contextlib.nullcontext() if name is None else contextlib.suppress(ScratchvitError):
        found = describe(path)      # of another model than the one that is named, it says nothing
    if name is None:
        if found is None:
            like = looks_like({key: value.shape for key, value in renamed.weights.items()})
            raise ScratchvitError(
                f"{path}: no config.json beside it says which model these weights are of; "
                f"name the model: --model {like or 'NAME'}{' (whose tensors it has)' if like else ''}"
            )
        name = found.name
    options = dict(found.options) if found and found.name == name else {}
    options |= _sizes_of(renamed.weights) | overrides
    try:
        model = create_model(name, **options)
    except (TypeError, ValueError, ArithmeticError, MemoryError) as error:      # a configuration may hold anything
        raise ScratchvitError(f"{path}: no {name} can be made with {options} ({error})") from error
    _load(model, renamed, path)
    return model.eval(), name


def _read(path: str | Path) -> Renamed:
    weights = read_weights(path)
    return recognise(weights).rename(weights)


def _load(model: Module, renamed: Renamed, path: Path, new_head: bool = False) -> LoadReport:
    try:
        state, report = fit(model, renamed, new_head, image_size(path))
        model.load_state_dict(state)
    except ScratchvitError as error:
        raise ScratchvitError(f"{path}: {error}") from error
    return report


def _sizes_of(weights: Mapping[str, Any]) -> dict[str, int]:
    """The numbers of classes and input channels that the tensors themselves tell."""
    head = next((weights[name] for name in ("head.weight", "head.fc.weight", "fc.weight") if name in weights), None)
    sizes = {"num_classes": 0 if head is None else len(head)}
    first = next((weights[name] for name in FIRST_KERNELS if name in weights), None)
    if first is not None and first.ndim == 4:
        sizes["in_chans"] = first.shape[1]
    return sizes
