"""The names of the splits train, val and test, as folders and files have them."""

from __future__ import annotations

import re

PARTS = ("train", "val", "test")
WORDS = {       # word in a name → the split that it means
    "train": "train", "training": "train", "trainset": "train",
    "val": "val", "valid": "val", "validation": "val", "valset": "val",
    "test": "test", "testing": "test", "testset": "test",
}
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[^\W\d_A-Za-z]+")


def words_of(name: str) -> list[str]:
    """The words in a name, in lower case. They end at digits, at signs and before a capital.

    "TrainSet_2017" → ["train", "set"]
    """
    return [word.lower() for word in _WORD.findall(name)]
