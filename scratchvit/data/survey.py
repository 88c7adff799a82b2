"""What a folder of pictures has to train on: how many pictures, of how many classes, and how large.

`scratchvit train --data photos` chooses its settings by these numbers. They come from the names of the files and the
headers of a few pictures, so that even a large folder takes less than a second.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import median_low

from PIL import Image

from scratchvit.data.folder import TEST_FRACTION, read_layout

SAMPLE = 50     # pictures whose size is read


@dataclass(frozen=True)
class Survey:
    """pictures: to train on, without those that are held out; side: median of the shorter sides, in pixels."""

    pictures: int
    classes: int
    side: int


def survey(path: str | Path, val_fraction: float = 0.1) -> Survey:
    """Survey a folder of pictures, or a table of names and labels, that `load` reads.

    val_fraction: see `load`. A folder in which no picture can be opened has side 0. Raises ScratchvitError if there are
    no classes.
    """
    layout = read_layout(Path(path))[0]
    classes = layout.parts["train"]
    pictures = [picture for of_class in classes.values() for picture in of_class]
    count = float(len(pictures))
    if "val" not in layout.parts:
        count *= (1 - val_fraction) * (1 if "test" in layout.parts else 1 - TEST_FRACTION)
    sides = [side for picture in pictures[:: len(pictures) // SAMPLE or 1] if (side := _shorter_side(picture))]
    return Survey(round(count), len(classes), median_low(sides) if sides else 0)


def _shorter_side(path: Path) -> int | None:
    """The shorter side of a picture, from its header; None if it cannot be opened, which is an error later."""
    try:
        with Image.open(path) as picture:
            return min(picture.size)
    except Exception:       # decoders raise many types of exceptions for damaged files
        return None
