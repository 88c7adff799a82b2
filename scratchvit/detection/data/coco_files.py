"""Which JSON files of a folder are the annotations of train, val and test in COCO's format.

    annotations/instances_train2017.json   train2017/…          COCO itself
    annotations/custom_train.json          images/…             any name with the word train, val or test
    train.json                             train/…
    train/_annotations.coco.json           train/…              Roboflow
    annotations/instances_default.json     images/…             CVAT; result.json of Label Studio: one file for all
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from scratchvit.detection.data.annotations import AnnotatedPictures
from scratchvit.detection.data.coco import is_coco, read_coco
from scratchvit.detection.data.files import DataFolder, in_words
from scratchvit.detection.data.parts import FOLDER_NAMES, PARTS, part_of
from scratchvit.errors import ScratchvitError

_WITHOUT_BOXES = "image_info"       # the lists of COCO's test pictures, whose annotations nobody has
_MANY = 20      # JSON files: so many are one a picture, of another format, and are not opened


def coco_by_name(folder: DataFolder, skip_bad: bool) -> dict[str, AnnotatedPictures] | None:
    """The splits, if there are files whose names say that they are COCO's; None without one for train.

    Raises ScratchvitError if more than one could be meant, and as `read_coco` does.
    """
    listed = [path for path in folder.with_suffix(".json") if path.parent == folder.root / "annotations"]
    named = [path for path in listed if not path.name.startswith(_WITHOUT_BOXES)]
    files = {part: _exact(folder.root, part) for part in PARTS}
    for part in PARTS:
        if files[part] is None:
            files[part] = _only([path for path in named if part_of(path.stem) == part], folder, part)
    if files["train"] is None:      # mytrain.json, and with it myval.json
        others = [path for path in named if path not in files.values() and part_of(path.stem) is None]
        files["train"] = _only([path for path in others if "train" in path.stem], folder, "train")
    train = files["train"]
    if train is None:
        return None
    for part in ("val", "test"):
        siblings = (train.with_name(train.name.replace("train", name)) for name in FOLDER_NAMES[part])
        if files[part] is None:
            files[part] = next((path for path in siblings if path != train and path in named), None)
    return _read({part: path for part, path in files.items() if path}, folder, skip_bad)


def coco_anywhere(folder: DataFolder, skip_bad: bool) -> dict[str, AnnotatedPictures] | None:
    """The splits, if there are COCO files anywhere in the folder; one that names no split is for all pictures.

    Raises ScratchvitError if more than one could be meant, and as `read_coco` does.
    """
    listed = folder.with_suffix(".json")
    if len(listed) > _MANY:
        listed = [path for path in listed if part_of(path.stem) or path.name.startswith(("instances", "_annotations"))]
    found = [path for path in listed[:_MANY] if is_coco(path)]
    by_part: defaultdict[str | None, list[Path]] = defaultdict(list)
    for path in found:
        by_part[folder.part_by_name(path)].append(path)
    if "train" not in by_part:
        by_part["train"] = by_part[None]
    files = {part: _only(by_part[part], folder, part) for part in PARTS}
    if found and files["train"] is None:
        raise ScratchvitError(
            f"{folder.root}: there are COCO annotations ({in_words(folder, found)}), but none for train: name a file "
            "train.json"
        )
    return _read({part: path for part, path in files.items() if path}, folder, skip_bad) if found else None


def _exact(root: Path, part: str) -> Path | None:
    """The annotation file whose name alone says whose it is."""
    for name in FOLDER_NAMES[part]:
        for path in (
            root / name / "_annotations.coco.json", root / f"{name}.json", root / "annotations" / f"{name}.json"
        ):
            if path.is_file():
                return path
    return None


def _only(files: Sequence[Path], folder: DataFolder, part: str) -> Path | None:
    """The one of these files that is meant. Raises ScratchvitError if it could be more than one."""
    instances = [path for path in files if path.name.startswith("instances")] or [*files]
    if len(instances) > 1:
        raise ScratchvitError(
            f"{instances[0].parent}: {', '.join(path.name for path in instances)} could all be meant for {part}: leave "
            f"only one of them there, or name it {part}.json"
            if len({path.parent for path in instances}) == 1 else
            f"{folder.root}: {in_words(folder, instances)} could all be meant for {part}: leave only one of them there"
        )
    return next(iter(instances), None)


def _read(files: dict[str, Path], folder: DataFolder, skip_bad: bool) -> dict[str, AnnotatedPictures]:
    parts: dict[str, AnnotatedPictures] = {}
    for part, path in files.items():
        like = parts.get("train")
        parts[part] = read_coco(
            path, folder, _near(folder.root, path, part), part if len(files) > 1 else None,
            categories=dict(zip(like.category_ids, like.classes)) if like else None, skip_bad=skip_bad,
        )
    return parts


def _near(root: Path, path: Path, part: str) -> list[Path]:
    """Folders that should have the pictures of an annotation file."""
    names = path.stem.removeprefix("instances_"), *FOLDER_NAMES[part]       # train2017
    near = [path.parent, *(root / name for name in names), *(root / "images" / name for name in names)]
    near += [root / "images", root]
    return [each for each in dict.fromkeys(near) if each.is_dir()]
