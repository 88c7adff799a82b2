"""Recipes: one file per experiment, with its source, its command and its result.

    scratchvit train --recipe vit_cifar10                       # the settings of the file
    scratchvit train --recipe vit_cifar10 --data photos         # the same settings on your own images
    scratchvit train --data photos                              # settings that suit the number and size of your images
    config = load_recipe("vit_cifar10").replace(epochs=5)       # from Python: train(config, folder)

A file contains one `RECIPE`, a TrainConfig or, if its name begins with detect_, a DetectConfig. Recipes are starting
points; the settings of a run are in its config.json. Every named data set has a default recipe, so that
`scratchvit train --data cifar10` needs no other options.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from pathlib import Path
from typing import TypeVar

from scratchvit.data.folder import is_folder_or_table
from scratchvit.errors import ScratchvitError
from scratchvit.recipes._own_pictures import Choice, choose
from scratchvit.training import TrainConfig
from scratchvit.training.config import RunConfig

__all__ = ["Choice", "choose", "list_recipes", "load_recipe", "recipe_for"]

ConfigT = TypeVar("ConfigT", bound=RunConfig)

DEFAULTS = {
    "digits": "vit_digits",
    "mnist": "vit_mnist",
    "fashion-mnist": "vit_fashion",
    "cifar10": "vit_cifar10",
    "cifar100": "vit_cifar100",
}
DETECTION_DEFAULTS = {"scenes": "detect_scenes"}
DETECTION_FOLDER = "detect_folder"      # for your own pictures with boxes


def list_recipes(kind: type[RunConfig] = TrainConfig) -> list[str]:
    """The names of the recipes for a kind of run, TrainConfig or DetectConfig."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))
    return [name for name in names if name.startswith("detect_") == _detects(kind)]


def load_recipe(name: str, kind: type[ConfigT] = TrainConfig) -> ConfigT:  # type: ignore[assignment]
    """The settings of a recipe. Raises ScratchvitError if there is no recipe of this name and kind."""
    known = list_recipes(kind)
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ScratchvitError(f"there is no recipe {name!r}{hint}; there are {', '.join(known)}")
    return importlib.import_module(f"{__name__}.{name}").RECIPE


def recipe_for(
    data: str, kind: type[ConfigT] = TrainConfig, model: str | None = None,  # type: ignore[assignment]
) -> ConfigT:
    """The default settings for a data set: its recipe or, for a folder of your own pictures, settings that suit them.

    model: if a model is named, a folder's settings are general ones, which do not depend on its pictures.
    Raises ScratchvitError for a folder in which no classes are found.
    """
    if _detects(kind):
        return load_recipe(DETECTION_DEFAULTS.get(data, DETECTION_FOLDER), kind).replace(data=data)
    if data in DEFAULTS:
        return load_recipe(DEFAULTS[data], kind)
    if model is None and is_folder_or_table(Path(data)):
        return choose(data).config              # type: ignore[return-value]
    return kind(data=data, flip=True)           # type: ignore[call-arg]


def _detects(kind: type[RunConfig]) -> bool:
    return kind.command == "detect-train"
