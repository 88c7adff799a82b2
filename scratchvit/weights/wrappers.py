"""Finding the weights in a training checkpoint, and removing a common prefix of their names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from scratchvit.errors import ScratchvitError
from scratchvit.weights.arrays import short
from scratchvit.weights.unpickler import WAY_OUT

# Averaged weights come first, because authors report results with them; then from specific to general names.
EMA_KEYS = (
    "state_dict_ema", "model_ema",              # timm; DeiT
    "teacher",                                  # DINO, whose teacher is the average of its student
)
PLAIN_KEYS = (
    "state_dict", "model", "model_state_dict",  # timm, Lightning; DeiT, DETR, Swin, MAE; PyTorch's tutorials
    "module", "net", "student",                 # DeepSpeed; many small repositories; DINO
)

# DistributedDataParallel; torch.compile; Lightning and other modules that hold the network in an attribute.
PREFIXES = ("module.", "_orig_mod.", "model.")

Value = TypeVar("Value")


def state_dict(saved: Any, array_types: tuple[type, ...], use_ema: bool = True) -> dict[str, Any]:
    """The state dict {name: array} in the saved object; arrays are values of array_types.

    It is the first of `EMA_KEYS`, then `PLAIN_KEYS`, whose value is a dictionary with arrays; otherwise the saved
    object is the state dict itself. use_ema=False puts the averages last. Values that are not arrays are left out.
    Raises ScratchvitError (without the path) if there are no arrays.
    """
    if not isinstance(saved, dict):
        raise ScratchvitError(f"it contains a {type(saved).__name__}, not a dictionary of weights: {WAY_OUT}")

    def arrays(candidate: Any) -> dict[Any, Any]:
        if not isinstance(candidate, dict):
            return {}
        return {name: value for name, value in candidate.items() if isinstance(value, array_types)}

    keys = EMA_KEYS + PLAIN_KEYS if use_ema else PLAIN_KEYS + EMA_KEYS
    found = next(filter(None, (arrays(saved.get(key)) for key in keys)), None) or arrays(saved)
    if not found:
        names = short(", ".join(name for name in saved if isinstance(name, str)))
        raise ScratchvitError(f"it contains no arrays where weights are expected; its entries are {names}: {WAY_OUT}")
    if not all(isinstance(name, str) for name in found):
        raise ScratchvitError(f"its arrays have numbers instead of names, as in the state of an optimiser: {WAY_OUT}")
    return found


def without_prefix(weights: Mapping[str, Value]) -> dict[str, Value]:
    """The values under names from which `PREFIXES` are removed, as long as all names begin with the same one."""
    # Names are cut only once, at the end: in a hostile file a prefix may be repeated a million times.
    start, shortest = 0, min(map(len, weights), default=0)

    def is_common(prefix: str) -> bool:
        return start + len(prefix) < shortest and all(name.startswith(prefix, start) for name in weights)

    while prefix := next(filter(is_common, PREFIXES), ""):
        start += len(prefix)
    return {name[start:]: value for name, value in weights.items()}
