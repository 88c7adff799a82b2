"""Shared by the readers `coco`, `voc` and `yolo`: collecting boxes, and handling errors in annotation files.

Annotation files made by hand contain errors, which are handled as follows:

    no width or no height, or no box        left out, with a note: there is no object to learn
    up to a pixel outside the picture       a rounding error: clipped when a target is made, without a note
    further outside, but not completely     ScratchvitError; with skip_bad clipped, and named in `skipped`
    any other error                         ScratchvitError; with skip_bad the entry is left out, and named in `skipped`

Other errors are: reversed sides, values that are not numbers, an unknown category, a duplicate id, a picture that is
missing, cannot be decoded, or has another size than its annotations say.
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

PART_NAMES = {"train": ("train",), "val": ("val", "valid"), "test": ("test",)}      # names of folders

_ROUNDING = 1.0         # pixels that a box may extend beyond the picture without being an error
_ORIENTATION = 0x0112   # EXIF: for values of at least 5, the picture is rotated by 90°


@dataclass
class AnnotationList:
    """Collects the annotations of a picture while its file is read."""

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
    """Handles errors in annotation files: raises them or, with skip_bad, collects them in `skipped`.

    `notes` are about entries that were left out but are not errors.
    """

    def __init__(self, skip_bad: bool):
        self.skip_bad = skip_bad
        self.notes: list[str] = []
        self.skipped: list[str] = []

    def bad(self, what: str, then: str = "to leave such entries out") -> None:
        """Report an error; returns only with skip_bad. `what` names file and entry and says what is wrong with it."""
        if not self.skip_bad:
            raise ScratchvitError(f"{what}; correct it, or use --skip-bad {then}")
        self.skipped.append(what)

    def undecodable(self, error: ScratchvitError) -> None:
        """Report an error that was raised when a picture was read; its message is used as it is."""
        if not self.skip_bad:
            raise error
        self.skipped.append(without_advice(error))

    def box(self, numbers: Sequence[float], size: tuple[int, int], where: str) -> Box | None:
        """Check (x0, y0, x1, y1) as a box in a picture of size (H, W); None if the box is left out.

        where: names file and entry, and shows the numbers as they are written there.
        """
        x0, y0, x1, y1 = map(float, numbers)
        height, width = size
        if (x1 == x0 or y1 == y0) and x1 >= x0 and y1 >= y0:
            self.notes.append(f"{where} has no width or no height; left out")
            return None
        if not all(map(math.isfinite, (x0, y0, x1, y1))):
            wrong = "has numbers that are not finite"
        elif x1 < x0 or y1 < y0:
            wrong = "has reversed sides: expected left before right and top before bottom"
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
                f"{where} extends {outside:g} pixels beyond its picture of {width} × {height}",
                then="to clip such boxes",
            )
            return max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height))
        return x0, y0, x1, y1


def read_json(path: Path, what: str, again: str) -> Any:
    """The content of a JSON file.

    what, again: words of the error message "this {what} is empty; download or {again} it again". Raises
    ScratchvitError for a file that cannot be read, is empty or is not JSON.
    """
    try:
        text = path.read_bytes()
        if not text.strip():
            raise ScratchvitError(f"{path}: this {what} is empty; download or {again} it again")
        return json.loads(text)
    except OSError as error:
        raise ScratchvitError(f"{path}: this {what} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:      # UnicodeDecodeError is a ValueError too
        raise ScratchvitError(
            f"{path}: this {what} is not valid JSON, maybe truncated ({error}); download or {again} it again"
        ) from error


def picture_size(path: Path) -> tuple[int, int]:
    """The size (H, W) of a picture file, with its EXIF orientation applied, from the header only.

    Raises ScratchvitError as `open_image` does.
    """
    try:
        with Image.open(path) as picture:
            width, height = picture.size
            lies = picture.getexif().get(_ORIENTATION, 1) >= 5
    except Exception:       # open_image raises a better error
        return open_image(path).size[::-1]
    return (width, height) if lies else (height, width)


def read_lines(path: Path) -> list[str]:
    """The non-empty lines of a text file, stripped. Raises ScratchvitError if it cannot be read."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ScratchvitError(f"{path}: this list cannot be read ({error})") from error
    return [line.strip() for line in lines if line.strip()]
