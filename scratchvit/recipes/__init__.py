"""Recipes: one file per experiment, with its source, its command, and what came of it.

    scratchvit train --recipe vit_cifar10                       # what the file says
    scratchvit train --recipe vit_cifar10 --data photos         # the same regime on your own images
    config = load_recipe("vit_cifar10").replace(epochs=5)       # the same from Python: train(config, folder)

A file holds one `RECIPE`, a TrainConfig; it is imported, never a run's: what a run did is in its config.json. For the
data sets known by name one recipe is the default, so that `scratchvit train --data cifar10` needs no more.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil

from scratchvit.errors import ScratchvitError
from scratchvit.training import TrainConfig

DEFAULTS = {
    "digits": "vit_digits",
    "mnist": "vit_mnist",
    "fashion-mnist": "vit_fashion",
    "cifar10": "vit_cifar10",
    "cifar100": "vit_cifar100",
}


def list_recipes() -> list[str]:
    """The names that `load_recipe` knows."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load_recipe(name: str) -> TrainConfig:
    """The settings of the recipe of that name. Raises ScratchvitError if there is none."""
    known = list_recipes()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ScratchvitError(f"there is no recipe {name!r}{hint}; there are {', '.join(known)}")
    return importlib.import_module(f"{__name__}.{name}").RECIPE


def recipe_for(data: str) -> TrainConfig:
    """The starting point for a data set: its default recipe, or plain settings for a folder of images."""
    return load_recipe(DEFAULTS[data]) if data in DEFAULTS else TrainConfig(data=data, flip=True)
