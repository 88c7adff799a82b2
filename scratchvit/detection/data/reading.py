"""Shared by the readers `coco`, `voc`, `yolo` and `tables`: collecting boxes, and handling errors in annotation files.

Annotation files made by hand contain errors, which are handled as follows:

    an outline, and no box of any size      the box around the outline, counted in a note
    no width or no height, or no box        left out, with a note: there is no object to learn
    up to a pixel outside the picture       a rounding error: clipped when a target is made, without a note
    further outside, but not completely     ScratchvitError; with skip_bad clipped, and named in `skipped`
    any other error                         ScratchvitError; with skip_bad the entry is left out, and named in `skipped`

Other errors are: reversed sides, values that are not numbers, an unknown category, a duplicate id, a picture that is
missing, cannot be decoded, or has another size than its annotations say. A file whose boxes are all within 0 … 1, where
the format has pixels, is always an error: see `Faults.check_pixels`.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from scratchvit.data.images import open_image, without_advice
from scratchvit.detection.data.annotations import Annotations
from scratchvit.errors import ScratchvitError
from scratchvit.files import read_text

Box = tuple[float, float, float, float]     # x0, y0, x1, y1

_SHARES = 0.01          # by which shares of a picture may be larger than 1: rounding
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

    `notes` are about entries that were left out but are not errors. `pictures` are those that were left out.
    """

    def __init__(self, skip_bad: bool):
        self.skip_bad = skip_bad
        self.notes: list[str] = []
        self.skipped: list[str] = []
        self.pictures: list[Path] = []
        self.outlines = 0           # objects whose box is that of their outline
        self._farthest = 0.0        # of all coordinates, from 0

    def bad(self, what: str, then: str = "to leave such entries out") -> None:
        """Report an error; returns only with skip_bad. `what` names file and entry and says what is wrong with it."""
        if not self.skip_bad:
            raise ScratchvitError(f"{what}; correct it, or use --skip-bad {then}")
        self.skipped.append(what)

    def undecodable(self, error: ScratchvitError, picture: Path) -> None:
        """Report an error that was raised when a picture was read; its message is used as it is."""
        if not self.skip_bad:
            raise error
        self.skipped.append(without_advice(error))
        self.pictures.append(picture)

    def box(self, numbers: Sequence[float], size: tuple[int, int], where: str) -> Box | None:
        """Check (x0, y0, x1, y1) as a box in a picture of size (H, W); None if the box is left out.

        where: names file and entry, and shows the numbers as they are written there.
        """
        x0, y0, x1, y1 = map(float, numbers)
        height, width = size
        if (x1 == x0 or y1 == y0) and x1 >= x0 and y1 >= y0:
            self.notes.append(f"{where} has no width or no height; left out")
            return None
        self._farthest = max(self._farthest, *(abs(number) for number in (x0, y0, x1, y1) if math.isfinite(number)), 0)
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

    def check_pixels(self, where: str) -> None:
        """Raise ScratchvitError if all boxes so far are within 0 … 1: they are relative to the picture, not in pixels.

        where: the file, or the files, that they are from. Without this check, the model would learn specks in a corner.
        """
        if 0 < self._farthest <= 1 + _SHARES:
            raise ScratchvitError(
                f"{where}: all boxes are within 0 … 1, relative to the picture, but this format has pixels: multiply "
                "them by the width and height of the picture"
            )

    def note_outlines(self, where: str) -> None:
        """Count the objects whose outline gave their box, in a note."""
        if self.outlines:
            self.notes.append(
                f"{where}: objects with only an outline, whose box is computed from it: {self.outlines:,}"
            )


def same_names(where: str, names: Mapping[int, str], used: Collection[Any]) -> list[str]:
    """A note about each name that several classes have. Raises ScratchvitError if more than one of these is used.

    where: the file that has the names. names: of each class. used: the classes that objects have.
    """
    notes = []
    for name in (name for name, count in Counter(names.values()).items() if count > 1):
        numbers = [number for number, own in names.items() if own == name]
        called = f"{where}: the classes {', '.join(map(str, numbers))} are all called {name}"
        if sum(number in used for number in numbers) > 1:
            raise ScratchvitError(
                f"{called}, so they could not be told apart: give them different names, or use only one of them"
            )
        notes.append(f"{called}; they stay separate classes; at most one of them has objects")
    return notes


def read_json(path: Path, what: str, again: str) -> Any:
    """The content of a JSON file.

    what, again: words of the error message "this {what} is empty; download or {again} it again". Raises
    ScratchvitError for a file that cannot be read, is empty or is not JSON.
    """
    text = read_text(path, what)
    if not text.strip():
        raise ScratchvitError(f"{path}: this {what} is empty; download or {again} it again")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
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
    return [line.strip() for line in read_text(path, "list").splitlines() if line.strip()]
