"""Models by name: `create_model("vit_tiny_patch16_224", num_classes=10)`, `list_models("vit*")`."""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import typing
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from scratchvit.errors import ScratchvitError
from scratchvit.nn import Module

_models: dict[str, _Entry] = {}


class _Entry(NamedTuple):
    build: Callable[..., Module]
    config: Any
    paper: str


def register(build: Callable[..., Module], presets: Mapping[str, Any], paper: str) -> None:
    """Register a family of models.

    build: a function (config, seed) → model. presets: {name: configuration}, frozen dataclasses with the fields
    img_size, in_chans and num_classes. paper: its name and source, such as "ViT, arXiv 2010.11929".
    """
    _models.update({name: _Entry(build, config, paper) for name, config in presets.items()})


def list_models(pattern: str = "*") -> list[str]:
    """The names of models that match a shell pattern, family by family."""
    return [name for name in _models if fnmatch.fnmatch(name, pattern)]


def model_paper(name: str) -> str:
    """The paper of a model, such as "ViT, arXiv 2010.11929"."""
    return _models[name].paper


def model_config(name: str, **overrides: Any) -> Any:
    """The configuration of a preset, with fields replaced by overrides. Lists, as in JSON, are converted to tuples.

    Raises ScratchvitError for a model or a field that does not exist, with the most similar name, and for a single
    value where several are needed.
    """
    if name not in _models:
        raise ScratchvitError(f"there is no model {name!r}{_nearest(name, _models)}; `scratchvit models` lists them")
    config = _models[name].config
    fields = {field.name for field in dataclasses.fields(config)}
    overrides = {key: tuple(value) if isinstance(value, list) else value for key, value in overrides.items()}
    for key, value in overrides.items():
        if key not in fields:
            raise ScratchvitError(
                f"{name} has no option {key!r}{_nearest(key, fields)}; its options: {', '.join(sorted(fields))}"
            )
        if isinstance(default := getattr(config, key), tuple) and not isinstance(value, tuple):
            hint = typing.get_type_hints(type(config))[key]
            if typing.get_origin(hint) is tuple or type(value) not in typing.get_args(hint):    # not int | tuple
                raise ScratchvitError(f"{key} of {name} must be several numbers, such as {default}, not {value!r}")
    return dataclasses.replace(config, **overrides)


def create_model(name: str, *, seed: int = 0, **overrides: Any) -> Module:
    """Create a model by name, with weights drawn from the seed. Overrides replace fields of its configuration.

    Raises ScratchvitError for a name or an option that does not exist, and for sizes that do not fit together.
    """
    config = model_config(name, **overrides)
    return _models[name].build(config, seed=seed)


def _nearest(name: str, names: Any) -> str:
    """A hint at the most similar of the names that begin with this one, or else of all."""
    longer = [each for each in names if name and each.startswith(name)]
    close = difflib.get_close_matches(name, longer or list(names), n=1, cutoff=0.0 if longer else 0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""
