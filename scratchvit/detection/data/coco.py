"""The COCO format (Lin et al. 1405.0312; cocodataset.org, "Data format"): all annotations of a split in one JSON file.

    {"images": [{"id", "file_name", "width", "height"}],
     "annotations": [{"id", "image_id", "category_id", "bbox": [x, y, width, height], "area", "iscrowd"}],
     "categories": [{"id", "name"}]}

Category ids may have gaps (COCO's 80 go up to 90): labels number the categories in order of id. Pictures without
annotations are kept, since a detector must also learn to find nothing. An object with a segmentation and no bbox gets
the box around it. `coco_files` finds the file of each split.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from scratchvit.detection.data.annotations import AnnotatedPictures
from scratchvit.detection.data.files import DataFolder, in_words
from scratchvit.detection.data.outlines import of_segmentation
from scratchvit.detection.data.reading import AnnotationList, Faults, picture_size, read_json, same_names
from scratchvit.errors import ScratchvitError

Categories = dict[int, str]     # id → name, in order of id

# "iscrowd" as tools write it. JSON's true is equal to 1 here, and false to 0.
_CROWD = {"1": True, "true": True, "0": False, "false": False, "": False}


@dataclass
class _Picture:
    path: Path
    file_name: str
    size: tuple[int, int]       # (H, W)
    found: AnnotationList = field(default_factory=AnnotationList)


def read_coco(
    path: Path, folder: DataFolder, near: Sequence[Path], part: str | None = None, *,
    categories: Categories | None = None, skip_bad: bool = False,
) -> AnnotatedPictures:
    """Read a COCO annotation file.

    folder        the data folder that has the pictures
    near          folders in it that should have them; the first that contains any of them is where they belong
    part          "train", "val" or "test": a picture that has to be searched for is not taken from another split
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
    used = {entry.get("category_id") for entry in content["annotations"] if _has_id(entry, "category_id")}
    faults.notes += same_names(str(path), own, used)
    pictures = _pictures(path, content["images"], folder, near, part, faults)
    _add_annotations(path, content, pictures, own, faults)
    faults.check_pixels(str(path))
    faults.note_outlines(str(path))
    dataset = AnnotatedPictures(
        str(path),
        [one.path for one in pictures.values()],
        [one.found.annotations(number, one.file_name, one.size) for number, one in pictures.items()],
        [*own.values()], [*own], faults.notes, faults.skipped, sources=[path], unusable=faults.pictures,
    )
    return dataset.without_bad() if skip_bad else dataset


def is_coco(path: Path) -> bool:
    """Whether this is a COCO annotation file; False for a file that is not JSON or has another structure."""
    try:
        return bool(_lists(path))
    except ScratchvitError:
        return False


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


def _pictures(
    path: Path, entries: list[Any], folder: DataFolder, near: Sequence[Path], part: str | None, faults: Faults
) -> dict[int, _Picture]:
    """The existing pictures, by id."""
    names = [entry["file_name"] for entry in entries if _is_picture(entry)]
    if not names:
        raise ScratchvitError(f"{path}: lists no pictures (images, each with an integer id and a file_name)")
    home = next((at for at in near if any(folder.at(at, name) for name in names[:100])), None)
    if home is None and not any(folder.find(name, near, part) for name in names[:100]):
        raise ScratchvitError(
            f"{path}: the pictures that it lists ({', '.join(map(str, names[:2]))}, …) are not in "
            f"{' or '.join(map(str, near))}; put them into one of these folders"
        )
    places = [home, *(at for at in near if at != home)] if home else [*near]
    pictures: dict[int, _Picture] = {}
    moved: dict[int, tuple[str, Path]] = {}     # not where the file says
    for place, entry in enumerate(entries):
        where = f"{path}: images[{place}]"
        if not _is_picture(entry):
            faults.bad(f"{where} is {_shown(entry)}, expected an integer id and a file_name")
            continue
        number, name = entry["id"], entry["file_name"]
        if number in pictures:
            faults.bad(f"{where} ({name}) has the same id, {number}, as {pictures[number].file_name}")
            continue
        there = folder.at(home, name) if home else None
        found = [there] if there and there.is_file() else folder.find(name, places, part)
        if len(found) != 1:
            missing = f"no picture {(home or near[0]) / name}"
            several = f"more than one picture that {name} could be: {in_words(folder, found)}"
            faults.bad(f"{where}: there is {several if found else missing}", then="to leave such pictures out")
            continue
        if there != found[0]:
            moved[number] = name, found[0]
        try:
            pictures[number] = _Picture(found[0], name, _size(entry) or picture_size(found[0]))
        except ScratchvitError as error:
            faults.undecodable(error, found[0])
    claims = Counter(one.path for one in pictures.values())
    for number in [number for number in moved if number in pictures and claims[pictures[number].path] > 1]:
        name, at = moved.pop(number)
        faults.bad(f"{path}: there is no picture {name}, and {at} is already that of another entry")
        del pictures[number]
    if moved:
        name, at = next(iter(moved.values()))
        faults.notes.append(
            f"{path}: pictures that are not where it says, found by the end of their paths: {len(moved):,} ({name} is "
            f"{folder.relative(at)}{', …' if len(moved) > 1 else ''})"
        )
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
    if numbers is not None and numbers != [] and not (
        isinstance(numbers, list) and len(numbers) == 4 and all(map(_is_number, numbers))
    ):
        faults.bad(f"{where}: bbox is {_shown(numbers)}, expected four numbers: x, y, width, height")
        return
    crowd = entry.get("iscrowd")
    crowd = _CROWD.get(crowd.strip().lower(), crowd) if isinstance(crowd, str) else crowd
    if crowd not in (None, 0, 1):
        faults.bad(f"{where}: iscrowd is {_shown(crowd)}, expected 0 or 1")
        return
    if not numbers or 0 in numbers[2:]:
        try:
            outline = of_segmentation(entry.get("segmentation"))
        except ValueError as error:
            faults.bad(f"{where} has no box, and {error}")
            return
        if outline is not None:
            faults.outlines += 1
            x0, y0, x1, y1 = outline
            numbers = [x0, y0, x1 - x0, y1 - y0]
    if not numbers:
        faults.notes.append(f"{where} has no box; left out")
        return
    x, y, width, height = numbers
    box = faults.box((x, y, x + width, y + height), picture.size, f"{where}: bbox {numbers}")
    area = entry.get("area")
    if box:
        area = float(area) if _is_number(area) and math.isfinite(area) and area > 0 else None
        picture.found.add(box, label, area, crowd=bool(crowd))


def _has_id(entry: Any, key: str) -> bool:
    return isinstance(entry, dict) and type(entry.get(key)) is int


def _is_picture(entry: Any) -> TypeGuard[dict[str, Any]]:
    return _has_id(entry, "id") and isinstance(entry.get("file_name"), str)


def _size(entry: dict[str, Any]) -> tuple[int, int] | None:
    height, width = entry.get("height"), entry.get("width")
    if type(height) is not int or type(width) is not int or min(height, width) <= 0:
        return None
    return height, width


def _is_number(thing: Any) -> TypeGuard[float]:
    return type(thing) is float or (type(thing) is int and abs(thing) < 1 << 53)    # JSON integers can have any length


def _shown(thing: Any) -> str:
    text = repr(thing)
    return text if len(text) <= 60 else f"{text[:57]}..."
