"""Which pictures of one split are in another too? Accuracy on pictures that a model has learned says little."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from scratchvit.data.inventory import Inventory
from scratchvit.files import counted, printable

_HEAD = 4096    # bytes that are compared first


def copies(parts: Mapping[str, Sequence[Path]], inventory: Inventory) -> list[str]:
    """A sentence for every two splits that share pictures: the same file, by a link, or files with the same bytes.

    Only files of equal size are read, first their beginnings, so this is quick if there are no copies.
    """
    groups: list[list[tuple[str, Path]]] = [[(part, path) for part, paths in parts.items() for path in paths]]
    for key in (lambda path: inventory.sizes[path], _head, _digest):
        finer: defaultdict[object, list[tuple[str, Path]]] = defaultdict(list)
        for number, group in enumerate(groups):
            for part, path in group:
                finer[number, key(path)].append((part, path))
        groups = [group for group in finer.values() if len({part for part, _ in group}) > 1]

    shared: Counter[tuple[str, str]] = Counter()
    example: dict[tuple[str, str], tuple[Path, Path]] = {}
    for group in sorted(groups, key=lambda group: group[0][1].parts):
        first = dict(reversed(group))
        for one, other in itertools.combinations(parts, 2):
            if one in first and other in first:
                shared[one, other] += sum(part == other for part, _ in group)
                example.setdefault((one, other), (first[one], first[other]))
    return [
        f"warning: {count:,} of the {counted(len(parts[other]), 'picture')} of {other} are also in {one} "
        f"({' = '.join(printable(path.relative_to(inventory.root)) for path in example[one, other])}): the accuracy on "
        f"{other} {'is too high' if one == 'train' else 'is not an independent check'}"
        for (one, other), count in sorted(shared.items(), key=lambda item: [*parts].index(item[0][0]))
    ]


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_HEAD)
    except OSError:     # an error when it is decoded
        return str(path).encode(errors="surrogateescape")


def _digest(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "blake2b").digest()
    except OSError:
        return str(path).encode(errors="surrogateescape")
