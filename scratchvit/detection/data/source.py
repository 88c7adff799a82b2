"""Loading detection data: generated scenes, or a folder in COCO, VOC or YOLO format."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from scratchvit.data.folder import TEST_FRACTION, by_name
from scratchvit.detection.data.annotations import AnnotatedPictures, DetectionSplits
from scratchvit.detection.data.coco import read_coco
from scratchvit.detection.data.reading import PART_NAMES, read_lines
from scratchvit.detection.data.scenes import load_scenes
from scratchvit.detection.data.voc import read_voc
from scratchvit.detection.data.yolo import part_folders, read_names, read_yolo
from scratchvit.errors import ScratchvitError

_Part = AnnotatedPictures | None


def load_detection(
    name_or_path: str | Path = "scenes", *, val_fraction: float = 0.1, seed: int = 0, skip_bad: bool = False
) -> DetectionSplits:
    """Load pictures with boxes as `DetectionSplits(train, val, test)`.

    name_or_path  "scenes" (`scenes.load_scenes`), or a folder in one of these formats, which is detected:

        COCO    annotations/instances_train2017.json, …_val2017.json and the pictures in train2017, val2017 (any names
                with train, val or test in them); or train.json, …; or train/_annotations.coco.json, …, as Roboflow
        VOC     JPEGImages, Annotations, ImageSets/Main/train.txt, …; possibly one folder further down
        YOLO    images/train, labels/train, … and data.yaml or classes.txt

    val_fraction  fraction of the training pictures that becomes the validation split, by seed, if there is none
    skip_bad      leave out bad entries and pictures that cannot be decoded, and name them in `skipped`

    Without a test split, val is also used for test, as is usual for COCO; without both, a fifth of train is drawn for
    test. `notes` says what was done. Raises ScratchvitError for a folder in none of the formats, and for a bad entry.
    """
    if not 0 <= val_fraction < 1 or seed < 0:
        raise ScratchvitError(f"val_fraction={val_fraction} must be in [0, 1), and seed={seed} at least 0")
    if name_or_path == "scenes":
        return load_scenes(seed=seed)
    root = Path(name_or_path)
    if not root.is_dir():
        raise ScratchvitError(f"{root}: no such folder; give one with COCO, VOC or YOLO annotations, or 'scenes'")
    for read in (_coco, _voc, _yolo):
        parts = read(root, skip_bad)
        if parts is not None:
            return _completed(*parts, float(val_fraction), seed)
    raise ScratchvitError(
        f"{root}: no annotations in a known format; expected annotations/instances_train*.json "
        "(COCO), Annotations/*.xml and ImageSets/Main/train.txt (VOC), or images/train and labels/train/*.txt (YOLO)"
    )


def _coco(root: Path, skip_bad: bool) -> tuple[AnnotatedPictures, _Part, _Part] | None:
    files = {part: _json_of(root, names) for part, names in PART_NAMES.items()}
    train = files["train"]
    if train is None:
        return None

    def read(part: str, like: AnnotatedPictures | None = None) -> _Part:
        path = files[part]
        if path is None:
            return None
        folder = path.stem.removeprefix("instances_")       # train2017
        names = folder, *PART_NAMES[part]
        folders = [path.parent, *(root / name for name in names), *(root / "images" / name for name in names)]
        folders += [root / "images", root]
        categories = dict(zip(like.category_ids, like.classes)) if like else None
        return read_coco(path, [each for each in folders if each.is_dir()], categories=categories, skip_bad=skip_bad)

    first = read("train")
    assert first is not None
    return first, read("val", first), read("test", first)


def _json_of(root: Path, names: tuple[str, ...]) -> Path | None:
    """The annotation file of a split with one of these names. Raises ScratchvitError if it is ambiguous."""
    for name in names:
        exact = root / name / "_annotations.coco.json", root / f"{name}.json", root / "annotations" / f"{name}.json"
        for path in exact:
            if path.is_file():
                return path
    files = by_name((root / "annotations").glob("*.json"))
    found = [path for path in files if names[0] in path.name.replace("trainval", "train")]      # trainval is not val
    instances = [path for path in found if path.name.startswith("instances")]
    if len(instances or found) > 1:
        raise ScratchvitError(
            f"{root / 'annotations'}: {', '.join(path.name for path in instances or found)} could all be meant for "
            f"{names[0]}: leave only one of them there, or name it {names[0]}.json"
        )
    return next(iter(instances or found), None)


def _voc(root: Path, skip_bad: bool) -> tuple[AnnotatedPictures, _Part, _Part] | None:
    listed = [at for at in (root, *by_name(root.iterdir())) if (at / "ImageSets" / "Main" / "train.txt").is_file()]
    if not listed:
        return None
    at = listed[0]
    listing = at / "classes.txt"
    classes = read_lines(listing) if listing.is_file() else None
    train = read_voc(at, "train", classes=classes, skip_bad=skip_bad)

    def read(part: str) -> _Part:
        if not (at / "ImageSets" / "Main" / f"{part}.txt").is_file():
            return None
        return read_voc(at, part, classes=train.classes, skip_bad=skip_bad)

    return train, read("val"), read("test")


def _yolo(root: Path, skip_bad: bool) -> tuple[AnnotatedPictures, _Part, _Part] | None:
    if part_folders(root, "train") is None:
        return None
    names = read_names(root)

    def read(part: str) -> _Part:
        return read_yolo(root, part, names, skip_bad=skip_bad) if part_folders(root, part) else None

    return read_yolo(root, "train", names, skip_bad=skip_bad), read("val"), read("test")


def _completed(train: AnnotatedPictures, val: _Part, test: _Part, val_fraction: float, seed: int) -> DetectionSplits:
    drawn = []

    def draw(part: str, fraction: float) -> AnnotatedPictures:
        nonlocal train
        order = np.random.default_rng(seed).permutation(len(train))
        count = max(1, round(fraction * len(train)))
        if count >= len(train):
            raise ScratchvitError(
                f"{train.name}: {len(train)} pictures are too few to draw a {part} split from; add a {part} split"
            )
        held, rest = np.sort(order[:count]), np.sort(order[count:])
        drawn.append(f"{part}: {count} pictures drawn from {train.name} with seed {seed}")
        held_out, train = train.subset(held), train.subset(rest)
        return held_out

    if test is None and val is not None:
        test = val
        drawn.append(f"test: there is none, so val is used ({val.name})")
    if test is None:
        test = draw("test", TEST_FRACTION)
    if val is None:
        val = draw("val", val_fraction)
    return DetectionSplits(train, val, test, tuple(drawn))
