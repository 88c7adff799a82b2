"""Reading the model and its sizes from a config.json in timm's format (which ours is too) or Hugging Face's.

How each field is treated is in `weights/configs/`, and in docs/weights.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scratchvit.errors import ScratchvitError
from scratchvit.models import model_config
from scratchvit.weights.arrays import short
from scratchvit.weights.configs import huggingface, timm
from scratchvit.weights.configs.fields import Described

# Limits of a configuration. The largest ViTs have 48 blocks, 6,144 dimensions and images of 1,024 × 1,024.
MOST_BLOCKS = 1000
LARGEST = 1 << 15


def image_size(weights_path: Path) -> tuple[int, int] | None:
    """The image size (height, width) in the config.json in the folder of the weights, or None if it has none."""
    _, config = _config_beside(weights_path)
    size = config.get("image_size")
    pretrained = config.get("pretrained_cfg", config)
    if isinstance(pretrained, Mapping) and isinstance(input_size := pretrained.get("input_size"), list):
        size = input_size[1:]
    sides = tuple(size) if isinstance(size, list) else (size, size)
    return sides if len(sides) == 2 and all(isinstance(n, int) and 0 < n <= LARGEST for n in sides) else None


def _config_beside(weights_path: Path) -> tuple[Path, dict[str, Any]]:
    """(path, content) of the config.json in the folder of the weights; the content is {} if there is no such file."""
    # Imported here, because `import scratchvit` imports this file and must not need Pillow.
    from scratchvit.weights.preprocess import folder_of, read_config

    path = folder_of(weights_path) / "config.json"
    return path, read_config(path) or {}


def describe(weights_path: Path) -> Described | None:
    """The model that the config.json in the folder of the weights describes; None without one, or if it names none.

    Raises ScratchvitError, which names the file, for an unknown model or an invalid configuration.
    """
    path, config = _config_beside(weights_path)
    try:
        if "architecture" in config:
            return _checked(timm.described(config))
        if "model_type" in config:
            return _checked(huggingface.described(config))
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        raise ScratchvitError(f"{path} cannot be used ({error!r}): correct it or move it away") from error
    except ScratchvitError as error:
        raise ScratchvitError(f"{path}: {error}") from error
    return None


def _checked(found: Described) -> Described:
    """Return `found`. Raises ScratchvitError if an option has another type than in the preset, or is out of range."""
    for key, value in found.options.items():
        preset = getattr(model_config(found.name), key, None)       # None: no such option; create_model will raise
        if preset is not None and not _is_like(preset, key, value):
            raise ScratchvitError(f"its {key} is {short(str(value))}, expected one like the {preset} of {found.name}")
    return found


def _is_like(preset: Any, key: str, value: Any) -> bool:
    def fits(number: Any, smallest: int = 0) -> bool:
        largest = MOST_BLOCKS if key in ("depth", "depths", "layers", "enc_layers", "dec_layers") else LARGEST
        return type(number) in (int, float) and smallest <= number <= largest

    match preset:
        case bool() | str():
            return type(value) is type(preset)
        case float():
            return fits(value)
        case tuple():
            return isinstance(value, tuple) and all(type(n) is int and fits(n) for n in value)
    if key.endswith("_size") and isinstance(value, tuple):      # (height, width)
        return len(value) == 2 and all(type(n) is int and fits(n, 1) for n in value)
    return type(value) is int and fits(value, 0 if key == "num_classes" else 1)
