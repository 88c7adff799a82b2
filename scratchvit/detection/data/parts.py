"""Which part of a data set, train, val or test, the name of a file or of a folder speaks of."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePath

PARTS = ("train", "val", "test")
_WORDS = {
    "train": "train", "training": "train", "trainval": "train", "trainset": "train",
    "val": "val", "valid": "val", "validation": "val", "valset": "val", "minival": "val",
    "test": "test", "testing": "test", "testset": "test",
}
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")     # trainImages2017: train, Images


def part_of(name: str) -> str | None:
    """The part that a name has among its words; None if it has none, or two of them.

    Words end at digits, at signs and before a capital: instances_train2017 is train, and train_latest is not test.
    Train and val together are what VOC calls trainval: train.
    """
    named = {_WORDS[word.lower()] for word in _WORD.findall(name) if word.lower() in _WORDS}
    if named == {"train", "val"}:
        return "train"
    return named.pop() if len(named) == 1 else None


def is_part(name: str) -> str | None:
    """The part that a name has, if it has no other words: Train and val2017, but not cat_train."""
    return part_of(name) if all(word.lower() in _WORDS for word in _WORD.findall(name)) else None


def part_of_folders(folders: Iterable[str]) -> str | None:
    """The part that folders name: ("images", "val2017") is val.

    A folder that is called like a part and nothing else counts before others: ("train_data", "val") is val.
    """
    names = [*folders]
    return next((part for rule in (is_part, part_of) for part in map(rule, names) if part), None)


def part_of_file(path: PurePath) -> str | None:
    """The part of a file in a data folder, by its folders. path: relative to the data folder."""
    return part_of_folders(path.parts[:-1])
