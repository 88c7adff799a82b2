"""The YOLO format (Redmon's darknet and its successors): one text file per picture.

    images/train/0001.jpg     labels/train/0001.txt     (or train/images/…, train/labels/…, or both in one folder)
    data.yaml with names, or classes.txt with one name per line

A line of a text file is one object: class cx cy w h, the box relative to the picture, in 0 … 1; or class x y x y x y …,
an outline, whose box is the one around it. A picture without a text file, or with an empty one, has no objects: this is
how the format expresses it. `yolo_files` finds the pictures of each split.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scratchvit.detection.data.annotations import AnnotatedPictures
from scratchvit.detection.data.data_yaml import Names
from scratchvit.detection.data.outlines import around
from scratchvit.detection.data.reading import AnnotationList, Faults, picture_size
from scratchvit.errors import ScratchvitError
from scratchvit.files import counted, read_text


@dataclass(frozen=True)
class YoloFiles:
    """The files of a split.

    name        the folder of its pictures, or the list of them
    pictures    (the picture, its name in results), in order
    texts       {picture: its text file}
    missing     sentences about pictures that are listed, or that a text file belongs to, and are not there
    sources     further files that were read, such as the list
    """

    name: str
    pictures: Sequence[tuple[Path, str]]
    texts: dict[Path, Path]
    missing: Sequence[str] = ()
    sources: Sequence[Path] = ()


def read_yolo(
    files: YoloFiles, names: Names, *, keypoints: bool = False, skip_bad: bool = False
) -> AnnotatedPictures:
    """Read the pictures of a split. Image ids are 1, 2, …; category ids are those of the text files.

    names       class → name
    keypoints   lines go on with key points after the box, which are not used
    skip_bad    leave out bad entries, and pictures that cannot be decoded

    Raises ScratchvitError for a bad entry, such as a text file without a picture.
    """
    faults = Faults(skip_bad)
    for what in files.missing:
        faults.bad(what)
    labels = {number: label for label, number in enumerate(names)}

    paths, objects = [], []
    bare = 0
    for path, file_name in files.pictures:
        try:
            size = picture_size(path)
        except ScratchvitError as error:
            faults.undecodable(error, path)
            continue
        found = AnnotationList()
        text = files.texts.get(path)
        if text:
            try:
                lines = read_text(text, "text file of labels").splitlines()
            except ScratchvitError as error:
                faults.bad(str(error), then="to leave such pictures out")
                faults.pictures.append(path)
                continue
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    _add(line.strip(), found, labels, size, keypoints, f"{text}: line {number}", faults)
        bare += not text
        paths.append(path)
        objects.append(found.annotations(len(paths), file_name, size))
    if bare:
        of_all = f"{bare} of {counted(len(paths), 'picture')}"
        faults.notes.append(f"{files.name}: {of_all} have no text file, so no objects")
    faults.note_outlines(files.name)
    dataset = AnnotatedPictures(
        files.name, paths, objects, [*names.values()], [*names], faults.notes, faults.skipped,
        sources=[*files.texts.values(), *files.sources], unusable=faults.pictures,
    )
    return dataset.without_bad() if skip_bad else dataset


def numbers_of(line: str) -> list[float] | None:
    """The numbers of a line of labels: class cx cy w h, or class x y x y x y …; None if it is no such line."""
    try:
        numbers = [float(word) for word in line.split()]
    except ValueError:
        return None
    return numbers if len(numbers) == 5 or (len(numbers) >= 7 and len(numbers) % 2) else None


def _add(
    line: str, found: AnnotationList, labels: dict[int, int], size: tuple[int, int], keypoints: bool, where: str,
    faults: Faults,
) -> None:
    height, width = size
    where += f": {line[:60]!r}"
    numbers = [*map(float, line.split()[:5])] if keypoints and len(line.split()) > 5 else numbers_of(line)
    if numbers is None:
        faults.bad(f"{where} is neither the five numbers class cx cy w h, nor a class and at least three points")
        return
    category, *shares = numbers
    if category not in labels:
        known = ", ".join(map(str, labels))
        faults.bad(f"{where} has the unknown class {category:g}; known are {known}")
        return
    if max(map(abs, shares)) > 2 and all(map(math.isfinite, shares)):
        faults.bad(f"{where} is not in 0 … 1; pixels must be divided by the size of the picture")
        return
    if len(shares) == 4:
        cx, cy, w, h = shares
        x0, y0, x1, y1 = cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2
    else:
        try:
            x0, y0, x1, y1 = around(shares[::2], shares[1::2])
        except ValueError as error:
            faults.bad(f"{where} cannot be used: {error}")
            return
        faults.outlines += 1
    box = faults.box((x0 * width, y0 * height, x1 * width, y1 * height), size, where)
    if box:
        found.add(box, labels[int(category)])
