"""The settings of `scratchvit train --data FOLDER`, which depend on the number and the size of the pictures.

Few pictures: a ResNet. A convolution knows from the start that neighbouring pixels belong together and that a thing
looks the same anywhere in a picture. A ViT has to learn both from examples, and becomes better than a ResNet only with
very many of them (ViT, arXiv 2010.11929, Figures 3 and 4). `ENOUGH_FOR_A_VIT` is no sharp limit: it is about the
smallest number with which a ViT from scratch is any good here (recipe vit_cifar10).

The number of epochs is chosen such that a ResNet trains for about five minutes on two fast cores, however many
pictures there are. Few pictures are seen at most `EPOCHS[-1]` times, many at least `EPOCHS[0]` times.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from scratchvit.data.survey import Survey, survey
from scratchvit.files import counted
from scratchvit.recipes.resnet_pictures import RECIPE as RESNET
from scratchvit.recipes.vit_pictures import RECIPE as VIT
from scratchvit.training import TrainConfig

ENOUGH_FOR_A_VIT = 20_000
SIDES = range(32, 97, 8)    # sides that pictures are reduced to: a step costs the square of the side
SMALL = 48                  # up to this side, the ResNet's stem must not reduce the picture to a quarter
SEEN = 22_000               # pictures of the largest side that a ResNet sees in five minutes
EPOCHS = range(5, 81)


class Choice(NamedTuple):
    """Settings, and why the model and the number of epochs are these, as text."""

    config: TrainConfig
    about_model: str
    about_epochs: str


def choose(data: str) -> Choice:
    """The settings for a folder of pictures or a table of labels. Raises ScratchvitError if there are no classes."""
    return settings_for(data, survey(Path(data)))


def settings_for(data: str, found: Survey) -> Choice:
    """The settings for pictures of this number and size."""
    return _vit(data, found) if found.pictures >= ENOUGH_FOR_A_VIT else _resnet(data, found)


def _resnet(data: str, found: Survey) -> Choice:
    side = _side(found)
    small = side <= SMALL
    cost = (side * (4 if small else 1) / SIDES[-1]) ** 2        # of a step, compared with the largest side
    epochs = min(max(round(SEEN / cost / max(found.pictures, 1)), EPOCHS[0]), EPOCHS[-1])
    sizes = {**RESNET.model_args, "img_size": side, **({"small_stem": True} if small else {})}
    return Choice(
        RESNET.replace(data=data, model_args=sizes, epochs=epochs),
        f"a ResNet of half the usual width, because {counted(found.pictures, 'picture')} are few: from scratch, a ViT "
        f"needs about {ENOUGH_FOR_A_VIT:,}",
        f"{counted(epochs, 'epoch')}, in which it sees about {epochs * found.pictures:,} pictures of {side}×{side}",
    )


def _vit(data: str, found: Survey) -> Choice:
    side = _side(found)
    sizes = {**VIT.model_args, "img_size": side, "patch_size": side // 8}
    return Choice(
        VIT.replace(data=data, model_args=sizes, crop_padding=side // 8),
        f"a small ViT with 8×8 patches, because {counted(found.pictures, 'picture')} are enough for one; with fewer "
        f"than {ENOUGH_FOR_A_VIT:,}, it would be a ResNet",
        f"{counted(VIT.epochs, 'epoch')}, because a ViT learns slowly",
    )


def _side(found: Survey) -> int:
    """The largest of `SIDES` for which pictures need not be enlarged."""
    return max((side for side in SIDES if side <= found.side), default=SIDES[0])
