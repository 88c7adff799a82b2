"""The COCO format (Lin et al. 1405.0312; cocodataset.org, "Data format"): all annotations of a split in one JSON file.

    {"images": [{"id", "file_name", "width", "height"}],
     "annotations": [{"id", "image_id", "category_id", "bbox": [x, y, width, height], "area", "iscrowd"}],
     "categories": [{"id", "name"}]}

Category ids may have gaps (COCO's 80 go up to 90): labels number the categories in order of id. Pictures without
annotations are kept, since a detector must also learn to find nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from scratchvit.detection.data.annotations import AnnotatedPictures
from scratchvit.detection.data.reading import AnnotationList, Faults, picture_size, read_json
from scratchvit.errors import ScratchvitError

Categories = dict[int, str]     # id → name, in order of id


@dataclass
class _Picture:
    path: Path
    file_name: str
    size: tuple[int, int]       # (H, W)
    found: AnnotationList = field(default_factory=AnnotationList)


def read_coco(
    path: Path, folders: Sequence[Path], *, categories: Categories | None = None, skip_bad: bool = False
) -> AnnotatedPictures:
    """Read a COCO annotation file.

    folders       where to look for the pictures; the first folder that contains any of them is used
    categories    for val and test: the categories of train, which must be the same
    skip_bad      leave out bad entries, and pictures that cannot be decoded

    Raises ScratchvitError for a bad entry, and always for a file that is not a COCO annotation file.
    """
    content = _lists(path)
    own = _categories(path, content["categories"])
    if categories is not None and own != categories:
        differing = sorted({*own.items()} ^ {*categories.items()})
        raise ScratchvitError(
            f"{path}: its categories differ from those of train; only in one of them: "
            f"{', '.join(f'{number} {name}' for number, name in differing)}; both files need the same"
        )
    faults = Faults(skip_bad)
    pictures = _pictures(path, content["images"], folders, faults)
    _add_annotations(path, content, pictures, own, faults)
    dataset = AnnotatedPictures(
        str(path),
        [one.path for one in pictures.values()],
        [one.found.annotations(number, one.file_name, one.size) for number, one in pictures.items()],
        [*own.values()], [*own], faults.notes, faults.skipped,
    )
    return dataset.without_bad() if skip_bad else dataset


def read_image_ids(path: Path) -> tuple[dict[str, int], Categories]:
    """({file_name: image id}, categories) of a COCO file, which may lack annotations, as COCO's own test files do.

    Raises ScratchvitError for a file that is not of this format, and for a bad entry.
    """
    content = _lists(path, ("images", "categories"))
    ids = {}
    for place, entry in enumerate(content["images"]):
        if not _is_picture(entry):
            raise ScratchvitError(
                f"{path}: images[{place}] is {_shown(entry)}, expected an integer id and a file_name"
            )
        ids[entry["file_name"]] = entry["id"]
    return ids, _categories(path, content["categories"])


def _lists(path: Path, keys: Sequence[str] = ("images", "annotations", "categories")) -> dict[str, list[Any]]:
    """The lists of a COCO file. Raises ScratchvitError if one is missing."""
    content = read_json(path, "annotation file", "export")
    for key in keys:
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            kind = "is a list, like a results file" if isinstance(content, list) else f"has no list {key!r}"
            raise ScratchvitError(
                f"{path}: this file {kind}; COCO annotations are an object with the lists images, annotations and "
                "categories"
            )
    return content


def _categories(path: Path, entries: list[Any]) -> Categories:
    """The categories. Bad ones are errors even with skip_bad: without them the labels have no meaning."""
    names: Categories = {}
    for place, entry in enumerate(entries):
        where = f"{path}: categories[{place}]"
        if not isinstance(entry, dict) or type(entry.get("id")) is not int or not isinstance(entry.get("name"), str):
            raise ScratchvitError(f"{where} is {_shown(entry)}; expected an integer id and a name")
        if entry["id"] in names:
            raise ScratchvitError(f"{where} ({entry['name']}) has the same id, {entry['id']}, as {names[entry['id']]}")
        names[entry["id"]] = entry["name"]
    if not names:
        raise ScratchvitError(f"{path}: has no categories, so there is nothing to detect")
    return dict(sorted(names.items()))


def _pictures(path: Path, entries: list[Any], folders: Sequence[Path], faults: Faults) -> dict[int, _Picture]:
    """The existing pictures, by id."""
    names = [entry["file_name"] for entry in entries if _is_picture(entry)]
    if not names:
        raise ScratchvitError(f"{path}: lists no pictures (images, each with an integer id and a file_name)")
    folder = next((folder for folder in folders if any((folder / name).is_file() for name in names[:100])), None)
    if folder is None:
        raise ScratchvitError(
            f"{path}: the pictures that it lists ({', '.join(map(str, names[:2]))}, …) are not in "
            f"{' or '.join(map(str, folders))}; put them into one of these folders"
        )
    pictures: dict[int, _Picture] = {}
    for place, entry in enumerate(entries):
        where = f"{path}: images[{place}]"
        if not _is_picture(entry):
            faults.bad(f"{where} is {_shown(entry)}, expected an integer id and a file_name")
            continue
        number, name = entry["id"], entry["file_name"]
        if number in pictures:
            faults.bad(f"{where} ({name}) has the same id, {number}, as {pictures[number].file_name}")
        elif not (folder / name).is_file():
            faults.bad(f"{where}: there is no picture {folder / name}", then="to leave such pictures out")
        else:
            size = entry.get("height"), entry.get("width")
            try:
                known = all(type(side) is int and side > 0 for side in size)
                pictures[number] = _Picture(folder / name, name, size if known else picture_size(folder / name))
            except ScratchvitError as error:
                faults.undecodable(error)
    return pictures


def _add_annotations(
    path: Path, content: dict[str, list[Any]], pictures: dict[int, _Picture], categories: Categories, faults: Faults
) -> None:
    """Add every annotation to its picture."""
    labels = {number: label for label, number in enumerate(categories)}
    listed = {entry["id"] for entry in content["images"] if _is_picture(entry)}
    places: dict[int, int] = {}     # annotation id → index of its first occurrence
    for place, entry in enumerate(content["annotations"]):
        where = f"{path}: annotations[{place}]"
        if not isinstance(entry, dict):
            faults.bad(f"{where} is {_shown(entry)}, expected an object with id, image_id, category_id and bbox")
            continue
        number, image, category = (entry.get(key) for key in ("id", "image_id", "category_id"))
        if type(number) is int:
            where += f" (id {number})"
            first = places.setdefault(number, place)
            if first != place:
                faults.bad(f"{where} has the same id as annotations[{first}]")
                continue
        if type(image) is not int or image not in listed:
            faults.bad(f"{where}: there is no image with the id {_shown(image)}")
        elif type(category) is not int or category not in labels:
            faults.bad(f"{where}: there is no category with the id {_shown(category)}")
        elif image in pictures:     # the picture was not left out
            _add(entry, pictures[image], labels[category], f"{where}, {pictures[image].file_name}", faults)


def _add(entry: dict[str, Any], picture: _Picture, label: int, where: str, faults: Faults) -> None:
    numbers = entry.get("bbox")
    if numbers is None or numbers == []:
        faults.notes.append(f"{where} has no box; left out")
    elif not isinstance(numbers, list) or len(numbers) != 4 or not all(map(_is_number, numbers)):
        faults.bad(f"{where}: bbox is {_shown(numbers)}, expected four numbers: x, y, width, height")
    else:
        x, y, width, height = numbers
        box = faults.box((x, y, x + width, y + height), picture.size, f"{where}: bbox {numbers}")
        area = entry.get("area")
        if box:
            area = float(area) if _is_number(area) and math.isfinite(area) else None
            picture.found.add(box, label, area, crowd=entry.get("iscrowd") == 1)


def _is_picture(entry: Any) -> bool:
    return isinstance(entry, dict) and type(entry.get("id")) is int and isinstance(entry.get("file_name"), str)


def _is_number(thing: Any) -> TypeGuard[float]:
    return type(thing) is float or (type(thing) is int and abs(thing) < 1 << 53)    # JSON integers can have any length


def _shown(thing: Any) -> str:
    text = repr(thing)
    return text if len(text) <= 60 else f"{text[:57]}..."
