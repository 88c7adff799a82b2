"""What the readers of `coco`, `voc` and `yolo` share: collecting boxes, and telling what is wrong with a file.

Bad entries. A file of boxes made by hand has faults, and each has an answer:

    no width or no height, or no box        left out, and a note says so: as objects they are nothing
    up to a pixel outside the picture       rounding: clipped where a target is made, and not mentioned
    further outside, but not all of it      ScratchvitError; with skip_bad clipped, and named in `skipped`
    anything else                           ScratchvitError; with skip_bad the entry is left out, and named in `skipped`

Anything else is: sides reversed, numbers that are none, an unknown category, an id twice, a missing picture, or one
that does not decode or has another size than its annotations say.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from scratchvit.data.images import open_image
from scratchvit.detection.data.annotations import Annotations, without_advice
from scratchvit.errors import ScratchvitError

Box = tuple[float, float, float, float]     # x0, y0, x1, y1

PART_NAMES = {"train": ("train",), "val": ("val", "valid"), "test": ("test",)}      # what folders call them

_ROUNDING = 1.0         # pixels that a box may reach outside without being called wrong
_ORIENTATION = 0x0112   # EXIF: from 5 up, the picture lies on its side


@dataclass
class AnnotationList:
    """A picture's annotations while its file is read, one after the other."""

    entries: list[tuple[Box, int, float, bool]] = field(default_factory=list)

    def add(self, box: Box, label: int, area: float | None = None, crowd: bool = False) -> None:
        own = (box[2] - box[0]) * (box[3] - box[1])
        self.entries.append((box, label, own if area is None else area, crowd))

    def annotations(self, image_id: int, file_name: str, size: tuple[int, int]) -> Annotations:
        boxes, labels, areas, crowd = zip(*self.entries) if self.entries else ([], [], [], [])
        return Annotations(
            image_id, file_name, size, np.array(boxes, np.float64).reshape(-1, 4), np.array(labels, np.int64),
            np.array(areas, np.float64), np.array(crowd, bool),
        )


class Faults:
    """What a reader finds wrong: raised at once, or with skip_bad collected in `skipped`; `notes` are never raised."""

    def __init__(self, skip_bad: bool):
        self.skip_bad = skip_bad
        self.notes: list[str] = []
        self.skipped: list[str] = []

    def bad(self, what: str, then: str = "to leave such entries out") -> None:
        """`what` names file and entry and says what is wrong, without a full stop. Returns only with skip_bad."""
        if not self.skip_bad:
            raise ScratchvitError(f"{what}; mend it, or --skip-bad {then}.")
        self.skipped.append(f"{what}.")

    def undecodable(self, error: ScratchvitError) -> None:
        """For what reading a picture raises, which says itself what to do."""
        if not self.skip_bad:
            raise error
        self.skipped.append(f"{without_advice(error)}.")

    def box(self, numbers: Sequence[float], size: tuple[int, int], where: str) -> Box | None:
        """(x0, y0, x1, y1) as a box of a picture of that size (H, W), or None if that is no box.

        `where` names file and entry, and has the numbers as they are written there.
        """
        x0, y0, x1, y1 = map(float, numbers)
        height, width = size
        if (x1 == x0 or y1 == y0) and x1 >= x0 and y1 >= y0:
            self.notes.append(f"{where} has no width or no height; left out.")
            return None
        if not all(map(math.isfinite, (x0, y0, x1, y1))):
            wrong = "is made of numbers that are not finite"
        elif x1 < x0 or y1 < y0:
            wrong = "has its sides reversed: left before right and top before bottom are expected"
        elif x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
            wrong = f"lies outside its picture of {width} × {height}"
        else:
            wrong = ""
        if wrong:
            self.bad(f"{where} {wrong}")
            return None
        outside = max(-x0, -y0, x1 - width, y1 - height)
        if outside > _ROUNDING:
            self.bad(
                f"{where} reaches {outside:g} pixels outside its picture of {width} × {height}",
                then="to have such boxes clipped",
            )
            return max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height))
        return x0, y0, x1, y1


def read_json(path: Path, what: str, again: str) -> Any:
    """What a file of JSON holds.

    what, again: of the sentence if it is none: "this {what} is empty; fetch or {again} it again." Raises
    ScratchvitError for a file that cannot be read, is empty or is no JSON.
    """
    try:
        text = path.read_bytes()
        if not text.strip():
            raise ScratchvitError(f"{path}: this {what} is empty; fetch or {again} it again.")
        return json.loads(text)
    except OSError as error:
        raise ScratchvitError(f"{path}: this {what} cannot be read ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:      # UnicodeDecodeError is a ValueError too
        raise ScratchvitError(
            f"{path}: this {what} is no JSON, perhaps cut short ({error}); fetch or {again} it again."
        ) from error


def picture_size(path: Path) -> tuple[int, int]:
    """(H, W) of a picture file when upright, from its header alone. Raises ScratchvitError as `open_image` does."""
    try:
        with Image.open(path) as picture:
            width, height = picture.size
            lies = picture.getexif().get(_ORIENTATION, 1) >= 5
    except Exception:       # whatever it is, decoding it says it better
        return open_image(path).size[::-1]
    return (width, height) if lies else (height, width)


def read_lines(path: Path) -> list[str]:
    """The lines of a list that are not empty, without what surrounds them. Raises ScratchvitError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ScratchvitError(f"{path}: this list cannot be read ({error}).") from error
    return [line.strip() for line in lines if line.strip()]
