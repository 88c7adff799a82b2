"""The error message for a folder with annotations in none of the known formats."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from scratchvit.detection.data.files import DataFolder
from scratchvit.detection.data.reading import read_json
from scratchvit.errors import ScratchvitError

_EXPECTED = (
    "expected annotations/instances_train*.json (COCO), Annotations/*.xml (VOC), images/train and labels/train/*.txt "
    "(YOLO), or a table with the columns filename, class, xmin, ymin, xmax, ymax (CSV)"
)


def what_is_missing(folder: DataFolder) -> str:
    """A sentence about what was found in the folder, why none of it is used, and what is expected."""
    if not folder.files:
        return f"{folder.root}: no annotations in a known format: this folder is empty; {_EXPECTED}"
    found = f"{folder.root}: no annotations in a known format: it has {folder.summary()}"
    try:
        foreign = _foreign(folder)
    except ScratchvitError as error:        # a JSON file that is damaged
        return f"{found}; {error}"
    if foreign:
        return f"{found}; {foreign}: export it again as COCO, Pascal VOC or YOLO"
    why = {
        ".json": "no JSON file has COCO's lists images, annotations and categories",
        ".xml": "no XML file begins with <annotation>, as VOC's do",
        ".txt": "no text file has the name of a picture and lines of class cx cy w h, as YOLO's do",
        ".csv": "no CSV file has those columns",
    }
    missing = [what for suffix, what in why.items() if folder.with_suffix(suffix)] or ["there is no annotation file"]
    if not folder.pictures:
        missing.insert(0, "there are no pictures")
    return f"{found}; but {'; '.join(missing)}; {_EXPECTED}"


def _foreign(folder: DataFolder) -> str:
    """Which file is in which format that is not read; "" if none is known. Raises ScratchvitError for a damaged one."""
    for path in folder.with_suffix(".xml")[:1]:
        with contextlib.suppress(OSError):
            if b"<annotations" in path.read_bytes()[:4096]:
                return f"{folder.relative(path)} is in CVAT's own format (CVAT for images)"
    for path in folder.with_suffix(".json")[:1]:
        kind = _kind(path)
        if kind:
            return f"{folder.relative(path)} is in the format of {kind}"
    return ""


def _kind(path: Path) -> str:
    """The program that writes such a JSON file; "" for an unknown one. Raises ScratchvitError for a damaged one."""
    content: Any = read_json(path, "file", "export")
    first = content[0] if isinstance(content, list) and content else content
    keys = first.keys() if isinstance(first, dict) else ()
    if {"shapes", "imagePath"} <= {*keys}:
        return "LabelMe"
    if "_via_img_metadata" in keys or "_via_settings" in keys:
        return "a VIA project"
    if {"image", "annotations"} <= {*keys}:
        return "CreateML"
    return "Label Studio" if {"id", "data"} <= {*keys} else ""
