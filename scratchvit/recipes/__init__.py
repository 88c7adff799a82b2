"""Recipes: one file per experiment, with its source, its command, and what came of it.

    scratchvit train --recipe vit_cifar10                       # what the file says
    scratchvit train --recipe vit_cifar10 --data photos         # the same regime on your own images
    config = load_recipe("vit_cifar10").replace(epochs=5)       # the same from Python: train(config, folder)

A file holds one `RECIPE`, a TrainConfig or, in those whose names begin with detect_, a DetectConfig; it is imported,
never a run's: what a run did is in its config.json. For the data sets known by name one recipe is the default, so that
`scratchvit train --data cifar10` needs no more.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from typing import TypeVar

from scratchvit.errors import ScratchvitError
from scratchvit.training import TrainConfig
from scratchvit.training.config import RunConfig

ConfigT = TypeVar("ConfigT", bound=RunConfig)

DEFAULTS = {
    "digits": "vit_digits",
    "mnist": "vit_mnist",
    "fashion-mnist": "vit_fashion",
    "cifar10": "vit_cifar10",
    "cifar100": "vit_cifar100",
}
DETECTION_DEFAULTS = {"scenes": "detect_scenes"}
DETECTION_FOLDER = "detect_folder"      # for pictures with boxes of one's own


def list_recipes(kind: type[RunConfig] = TrainConfig) -> list[str]:
    """The names that `load_recipe` knows, of recipes of that kind."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return [name for name in names if name.startswith("detect_") == _detects(kind)]


def load_recipe(name: str, kind: type[ConfigT] = TrainConfig) -> ConfigT:  # type: ignore[assignment]
    """The settings of the recipe of that name and kind. Raises ScratchvitError if there is none."""
    known = list_recipes(kind)
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ScratchvitError(f"there is no recipe {name!r}{hint}; there are {', '.join(known)}")
    return importlib.import_module(f"{__name__}.{name}").RECIPE


def recipe_for(data: str, kind: type[ConfigT] = TrainConfig) -> ConfigT:  # type: ignore[assignment]
    """The starting point for a data set: its default recipe, or plain settings for a folder of images."""
    if _detects(kind):
        return load_recipe(DETECTION_DEFAULTS.get(data, DETECTION_FOLDER), kind).replace(data=data)
    return load_recipe(DEFAULTS[data], kind) if data in DEFAULTS else kind(data=data, flip=True)  # type: ignore[call-arg]


def _detects(kind: type[RunConfig]) -> bool:
    return kind.command == "detect-train"
