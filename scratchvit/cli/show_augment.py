"""`scratchvit show-augment`: one picture under every kind of augmentation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from scratchvit.cli._options import Parser, positive
from scratchvit.cli._pictures import open_the_picture
from scratchvit.data.images import resize_image, to_picture
from scratchvit.data.randaugment import OPERATIONS
from scratchvit.errors import ScratchvitError
from scratchvit.inspect.augmentations import MAGNITUDES, RANDOM, draw_augmentations


def show_augment(argv: Sequence[str]) -> int:
    """Draw a picture under every operation and magnitude into a PNG file."""
    parser = Parser(
        prog="scratchvit show-augment", usage="scratchvit show-augment [IMAGE] [options]",
        description="Show what augmentation does to a picture: a sheet with a row for each operation of RandAugment\n"
        f"at the magnitudes {', '.join(map(str, MAGNITUDES))}, and for random crops, colour jitter and erasing.\n\n"
        "  scratchvit show-augment\n"
        "  scratchvit show-augment cat.jpg --operations Rotate,Posterize --out sheet.png",
    )
    parser.add_argument(
        "image", nargs="?", type=Path, metavar="IMAGE", help="a picture file (default: a photo of a dahlia)"
    )
    every = (*OPERATIONS, *RANDOM)
    parser.add_argument(
        "--operations", metavar="NAMES", default=",".join(every),
        help=f"the operations to show, separated by commas (default: all of {', '.join(every)})",
    )
    parser.add_argument(
        "--img-size", type=positive, default=224, metavar="SIZE", help="side of the images in pixels (default: 224)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the random operations (default: 0)")
    parser.add_argument(
        "--out", type=Path, default=Path("augment.png"), metavar="FILE",
        help="the PNG file to write (default: augment.png)",
    )
    given = parser.parse_strictly(argv)
    names = [name.strip() for name in given.operations.split(",")]
    if unknown := [name for name in names if name not in every]:
        parser.error(f"there is no operation {unknown[0]!r}; there are {', '.join(every)}")
    if given.seed < 0:
        parser.error(f"--seed must be at least 0, not {given.seed}")

    picture = _sample() if given.image is None else open_the_picture(given.image)
    draw_augmentations(np.asarray(resize_image(picture, given.img_size)), names, given.out, given.seed)
    print(given.out)
    return 0


def _sample() -> Image.Image:
    """scikit-learn's photo of a dahlia."""
    try:
        from sklearn.datasets import load_sample_image
    except ImportError as error:
        raise ScratchvitError(
            "name a picture, or install scikit-learn for its sample picture: pip install scikit-learn"
        ) from error
    return to_picture(load_sample_image("flower.jpg"))
