"""Drawing the effect of augmentation: every operation on a sheet, and batches augmented as in a run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scratchvit.backend import asnumpy
from scratchvit.data import Mix, Normalize
from scratchvit.data.augment import ColorJitter, RandomErasing, RandomResizedCrop
from scratchvit.data.images import to_picture
from scratchvit.data.randaugment import OPERATIONS, apply_operation
from scratchvit.data.transforms import Images, Transform
from scratchvit.inspect.figures import INK, sheet

MAGNITUDES = (0, 5, 10, 15, 20)     # those of the augreg paper, and 5
RANDOM = ("RandomResizedCrop", "ColorJitter", "RandomErasing")
MIDDLE = np.array([[1.0, 0.5, 0.5]])    # "random" numbers for a positive sign and a cutout in the middle


@dataclass(frozen=True)
class Draw:
    """An augmented batch, as in a training step."""

    pictures: Images                                # (B, H, W, C)
    shares: NDArray[np.float32] | None = None       # (B, num_classes), the soft targets of a mixed batch


def draw_batches(
    pictures: Images,
    labels: NDArray[np.int64],
    transform: Transform,
    mix: Mix | None,
    normalisation: tuple[Sequence[float], Sequence[float]],
    count: int,
    seed: int = 0,
) -> list[Draw]:
    """Augment pictures uint8 (B, H, W, C) with labels (B,) `count` times by the random transform of a run.

    With `mix`, half of the batches (rounded up) are also mixed. normalisation: (mean, std) of the last step of the
    transform, which is undone.
    """
    rng = np.random.default_rng(seed)
    draws = []
    for number in range(count):
        images, shares = transform(pictures.copy(), rng), None
        if mix and number >= count // 2:
            images, shares = (asnumpy(array) for array in mix(images, labels, rng))
        draws.append(Draw(denormalize(images, *normalisation), shares))
    return draws


def denormalize(images: NDArray[np.float32], mean: Sequence[float], std: Sequence[float]) -> Images:
    """Undo `Normalize`: float32 (B, C, H, W) → uint8 (B, H, W, C), clipped to 0 … 255."""
    shares = images.transpose(0, 2, 3, 1) * np.asarray(std, np.float32) + np.asarray(mean, np.float32)
    return (shares * 255).round().clip(0, 255).astype(np.uint8)


def draw_augmentations(picture: np.ndarray, names: Sequence[str], path: str | Path, seed: int = 0) -> None:
    """Draw a row for each name: an operation of RandAugment at five magnitudes, or another one with five random draws.

    picture uint8 (H, W, C). The captions are the magnitude and the resulting argument of the operation.
    Raises ScratchvitError if Matplotlib is missing.
    """
    blocks = 2 if len(names) > 4 else 1     # rows side by side
    rows, columns = math.ceil(len(names) / blocks), len(MAGNITUDES)
    with sheet(path, rows, columns, size=(1.15 * columns * blocks, 1.45 * rows), blocks=blocks) as axes:
        for ax in axes.flat:
            ax.set_axis_off()
        for i, name in enumerate(names):
            row = axes[i % rows, i // rows * columns :][:columns]
            changed, captions = _magnitudes(name, picture) if name in OPERATIONS else _draws(name, picture, seed)
            _write(row[0], 0, 1.03, name, fontsize=9)
            for ax, image, caption in zip(row, changed, captions):
                ax.imshow(to_picture(image), cmap="gray", vmin=0, vmax=255)
                _write(ax, 0.5, -0.03, caption, fontsize=7, ha="center", va="top")


def _write(ax: Any, x: float, y: float, words: str, **style: Any) -> None:
    text = ax.text(x, y, words, color=INK, transform=ax.transAxes, **style)
    text.set_in_layout(False)       # otherwise a long text would make its column narrower


def _magnitudes(name: str, picture: Images) -> tuple[list[Images], list[str]]:
    """The results of an operation at every magnitude, with captions."""
    changed = [apply_operation(name, picture[None], magnitude, MIDDLE)[0] for magnitude in MAGNITUDES]
    captions = []
    for magnitude in MAGNITUDES:
        argument: Any = next(iter(OPERATIONS[name].arguments(magnitude / 10, MIDDLE)), None)
        captions.append(f"{magnitude}" if argument is None else f"{magnitude} → {np.ravel(argument)[0]:g}")
    return changed, captions


def _draws(name: str, picture: Images, seed: int) -> tuple[Images, list[str]]:
    """The results of several random draws, as many as there are magnitudes, without captions."""
    rng = np.random.default_rng(seed)
    copies = np.tile(picture, (len(MAGNITUDES), 1, 1, 1))
    if name == "RandomResizedCrop":
        changed = RandomResizedCrop(picture.shape[:2])(copies, rng)
    elif name == "ColorJitter":
        changed = ColorJitter(0.4, 0.4, 0.4, 0.1)(copies, rng)
    else:
        mean, std = (0.5,) * picture.shape[-1], (0.25,) * picture.shape[-1]
        changed = denormalize(RandomErasing(p=1, mode="pixel")(Normalize(mean, std)(copies), rng), mean, std)
    return changed, [""] * len(MAGNITUDES)
