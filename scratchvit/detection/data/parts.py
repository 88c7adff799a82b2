"""Which split, train, val or test, the name of a file or folder of a detection data set refers to."""

from __future__ import annotations

from pathlib import PurePath

from scratchvit.data.parts import PARTS, WORDS, words_of

__all__ = ["FOLDER_NAMES", "PARTS", "is_part", "part_of", "part_of_file"]

FOLDER_NAMES = {"train": ("train",), "val": ("val", "valid"), "test": ("test",)}     # the first name is preferred
_WORDS = WORDS | {"trainval": "train", "minival": "val"}        # of VOC and COCO


def part_of(name: str) -> str | None:
    """The split that a name has among its words; None if it has none, or two of them.

    Only whole words count (see `words_of`): instances_train2017 is train, and train_latest is not test. Train and val
    together are what VOC calls trainval: train.
    """
    named = {_WORDS[word] for word in words_of(name) if word in _WORDS}
    if named == {"train", "val"}:
        return "train"
    return named.pop() if len(named) == 1 else None


def is_part(name: str) -> str | None:
    """The split that a name has, if it has no other words: Train and val2017, but not cat_train."""
    return part_of(name) if all(word in _WORDS for word in words_of(name)) else None


def part_of_file(path: PurePath) -> str | None:
    """The split that the folders of a file name: images/val2017/1.jpg is val. path: relative to the data folder.

    A folder whose name is that of a split and nothing else counts before others: train_data/val/1.jpg is val.
    """
    folders = path.parts[:-1]
    return next((part for rule in (is_part, part_of) for part in map(rule, folders) if part), None)
