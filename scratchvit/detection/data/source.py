"""Loading detection data: generated scenes, or a folder in any of the formats."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scratchvit.data.folder import TEST_FRACTION
from scratchvit.detection.data.annotations import AnnotatedPictures, DetectionSplits
from scratchvit.detection.data.coco_files import coco_anywhere, coco_by_name
from scratchvit.detection.data.files import DataFolder
from scratchvit.detection.data.parts import PARTS
from scratchvit.detection.data.scenes import load_scenes
from scratchvit.detection.data.tables import read_tables
from scratchvit.detection.data.unknown import what_is_missing
from scratchvit.detection.data.voc_files import voc_anywhere, voc_by_lists
from scratchvit.detection.data.yolo_files import yolo_anywhere, yolo_by_name
from scratchvit.errors import NoSuchData, ScratchvitError
from scratchvit.files import counted

# First what names say, then what is inside of files; the first that finds annotations has the folder.
_FORMATS = (coco_by_name, voc_by_lists, yolo_by_name, coco_anywhere, voc_anywhere, read_tables, yolo_anywhere)


def load_detection(
    name_or_path: str | Path = "scenes", *, val_fraction: float = 0.1, seed: int = 0, skip_bad: bool = False
) -> DetectionSplits:
    """Load pictures with boxes as `DetectionSplits(train, val, test)`.

    name_or_path  "scenes" (`scenes.load_scenes`), or a folder in one of these formats, which is detected:

        COCO    annotations/instances_train2017.json, …_val2017.json and the pictures in train2017, val2017 (any names
                with the word train, val or test); or train.json, …; or train/_annotations.coco.json, … of Roboflow;
                or one JSON file for all pictures, as CVAT and Label Studio write
        VOC     JPEGImages, Annotations, ImageSets/Main/train.txt, …, also for several years; or XML files beside
                pictures, or in a folder annotations, perhaps in folders train, valid, test
        YOLO    images/train, labels/train, …, or where data.yaml says; names in data.yaml or classes.txt; or pictures
                and text files without splits
        CSV     filename,width,height,class,xmin,ymin,xmax,ymax, or VIA's

    val_fraction  fraction of the training pictures that becomes the validation split, by seed, if there is none
    skip_bad      leave out bad entries and pictures that cannot be decoded, and name them in `skipped`

    Without a test split, val is also used for test, as is usual for COCO; without both, a fifth of train is drawn for
    test. `notes` says what was done, `files` what became of each file. Raises ScratchvitError for a folder in none of
    the formats, and for a bad entry.
    """
    if not 0 <= val_fraction < 1 or seed < 0:
        raise ScratchvitError(f"val_fraction={val_fraction} must be in [0, 1), and seed={seed} at least 0")
    if name_or_path == "scenes":
        return load_scenes(seed=seed)
    root = Path(name_or_path)
    if root.is_file():
        raise ScratchvitError(f"{root}: this is a file: give the folder that contains it")
    if not root.is_dir():
        raise NoSuchData(
            f"{root}: no such folder; give one with COCO, VOC, YOLO or CSV annotations, or 'scenes'", str(root)
        )
    folder = DataFolder(root)
    for read in _FORMATS:
        parts = read(folder, skip_bad)
        if parts is not None:
            splits = _completed(parts, float(val_fraction), seed)
            return DetectionSplits(
                splits.train, splits.val, splits.test, (*splits.drawn, *_shared(parts)), _account(folder, splits)
            )
    raise ScratchvitError(what_is_missing(folder))


@dataclass(frozen=True)
class _Splits:
    train: AnnotatedPictures
    val: AnnotatedPictures
    test: AnnotatedPictures
    drawn: tuple[str, ...]


def _completed(parts: Mapping[str, AnnotatedPictures], val_fraction: float, seed: int) -> _Splits:
    train, val, test = parts["train"], parts.get("val"), parts.get("test")
    drawn: list[str] = []

    def draw(part: str, fraction: float) -> AnnotatedPictures:
        nonlocal train
        order = np.random.default_rng(seed).permutation(len(train))
        count = max(1, round(fraction * len(train)))
        if count >= len(train):
            raise ScratchvitError(
                f"{train.name} has {counted(len(train), 'picture')}, too few to draw a {part} split from; add a {part} "
                "split"
            )
        held, rest = np.sort(order[:count]), np.sort(order[count:])
        drawn.append(f"{part}: {counted(count, 'picture')} drawn from {train.name} with seed {seed}")
        held_out, train = train.subset(held), train.subset(rest)
        return held_out

    if test is None and val is not None:
        test = val
        drawn.append(f"test: there is none, so val is used ({val.name})")
    if test is None:
        test = draw("test", TEST_FRACTION)
    if val is None:
        val = draw("val", val_fraction)
    return _Splits(train, val, test, tuple(drawn))


def _shared(parts: Mapping[str, AnnotatedPictures]) -> list[str]:
    """Notes about pictures in more than one split: results on pictures that a model was trained on say little."""
    notes = []
    for first, second in (("train", "val"), ("train", "test"), ("val", "test")):
        if first in parts and second in parts:
            paths = {*parts[first].paths}
            count = sum(path in paths for path in parts[second].paths)
            if count:
                notes.append(f"{second}: {count:,} of its {counted(len(parts[second]), 'picture')} are also in {first}")
    return notes


def _account(folder: DataFolder, splits: _Splits) -> tuple[str, ...]:
    """What became of every file of the folder."""
    inventory = folder.inventory
    serves: defaultdict[Path, list[str]] = defaultdict(list)
    for name in PARTS:
        part: AnnotatedPictures = getattr(splits, name)
        inventory.leave_out("bad pictures, or with bad annotations", part.unusable)
        inventory.use("annotations", map(folder.listed, part.sources))
        for path in part.paths:
            serves[folder.listed(path)].append(name)
    for first in PARTS:
        for path, names in serves.items():
            if names[0] == first:
                inventory.use(" and ".join(dict.fromkeys(names)), [path])
    return tuple(inventory.lines())
