"""`scratchvit show-augment`: one picture under everything that augmentation may do to it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scratchvit.cli.options import Parser
from scratchvit.data import Normalize, load_image, resize_image
from scratchvit.data.augment import ColorJitter, RandomErasing, RandomResizedCrop
from scratchvit.data.images import to_picture
from scratchvit.data.randaugment import OPERATIONS, apply_operation
from scratchvit.data.transforms import Images
from scratchvit.errors import ScratchvitError
from scratchvit.inspect.figures import INK, sheet

MAGNITUDES = (0, 5, 10, 15, 20)     # the augreg paper's, and 5
RANDOM = ("RandomResizedCrop", "ColorJitter", "RandomErasing")
MIDDLE = np.array([[1.0, 0.5, 0.5]])    # the chance that turns to the positive side, and cuts out the middle


def show_augment(argv: Sequence[str]) -> int:
    """Draw a picture under every operation and magnitude into a file."""
    parser = Parser(
        prog="scratchvit show-augment",
        description="What does augmentation do to a picture? A sheet with a row for each of RandAugment's operations\n"
        f"at the magnitudes {', '.join(map(str, MAGNITUDES))}, and for the random crops, colours and erased boxes.\n\n"
        "  scratchvit show-augment\n"
        "  scratchvit show-augment cat.jpg --operations Rotate,Posterize,RandomResizedCrop --out cat-augmented.png",
    )
    parser.add_argument("image", nargs="?", type=Path, metavar="IMAGE", help="a picture (default: a dahlia)")
    parser.add_argument(
        "--operations", metavar="NAMES", default=",".join((*OPERATIONS, *RANDOM)),
        help="which, separated by commas (default: all of %(default)s)",
    )  # fmt: skip
    parser.add_argument("--img-size", type=int, default=224, metavar="SIZE", help="pixels a side (default: 224)")
    parser.add_argument("--seed", type=int, default=0, help="of what is random (default: 0)")
    parser.add_argument(
        "--out", type=Path, default=Path("augment.png"), metavar="FILE", help="a PNG file (default: augment.png)"
    )
    given = parser.parse_strictly(argv)
    names = [name.strip() for name in given.operations.split(",")]
    if unknown := [name for name in names if name not in (*OPERATIONS, *RANDOM)]:
        parser.error(f"there is no operation {unknown[0]!r}; there are {', '.join((*OPERATIONS, *RANDOM))}")
    if given.img_size < 1 or given.seed < 0:
        parser.error("--img-size is at least 1, --seed at least 0")

    picture = _sample(given.img_size) if given.image is None else load_image(given.image, given.img_size)
    draw_augmentations(picture, names, given.out, given.seed)
    print(given.out)
    return 0


def draw_augmentations(picture: np.ndarray, names: Sequence[str], path: str | Path, seed: int = 0) -> None:
    """A sheet with a row for each name: an operation of RandAugment at five magnitudes, or five random draws.

    picture uint8 (H, W, C). Under it stand the magnitude and the argument that the operation makes of it.
    Raises ScratchvitError when Matplotlib is missing.
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
    text.set_in_layout(False)       # a long word would make its column narrower


def _magnitudes(name: str, picture: Images) -> tuple[list[Images], list[str]]:
    """The picture under an operation at every magnitude, with captions."""
    changed = [apply_operation(name, picture[None], magnitude, MIDDLE)[0] for magnitude in MAGNITUDES]
    captions = []
    for magnitude in MAGNITUDES:
        argument: Any = next(iter(OPERATIONS[name].arguments(magnitude / 10, MIDDLE)), None)
        captions.append(f"{magnitude}" if argument is None else f"{magnitude} → {np.ravel(argument)[0]:g}")
    return changed, captions


def _draws(name: str, picture: Images, seed: int) -> tuple[Images, list[str]]:
    """As many draws as there are magnitudes, without captions."""
    rng = np.random.default_rng(seed)
    copies = np.tile(picture, (len(MAGNITUDES), 1, 1, 1))
    if name == "RandomResizedCrop":
        changed = RandomResizedCrop(picture.shape[:2])(copies, rng)
    elif name == "ColorJitter":
        changed = ColorJitter(0.4, 0.4, 0.4, 0.1)(copies, rng)
    else:
        mean, std = (0.5,) * picture.shape[-1], (0.25,) * picture.shape[-1]
        erased = RandomErasing(p=1, mode="pixel")(Normalize(mean, std)(copies), rng)
        changed = ((erased * 0.25 + 0.5) * 255).round().clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
    return changed, [""] * len(MAGNITUDES)


def _sample(img_size: int) -> Images:
    """scikit-learn's photo of a dahlia, uint8 (img_size, img_size, 3)."""
    try:
        from sklearn.datasets import load_sample_image
    except ImportError as error:
        raise ScratchvitError(
            'name a picture, or take the sample that comes with scikit-learn: pip install "scratchvit[demo]"'
        ) from error
    return np.asarray(resize_image(to_picture(load_sample_image("flower.jpg")), img_size))
