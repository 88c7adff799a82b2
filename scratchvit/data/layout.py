"""Finding the splits and classes in a folder of pictures, for the usual ways to arrange them.

    photos/train/cat/1.jpg, photos/val/…, photos/test/…     also Training/, valid/, validation/, Testing/, test_set/, …
    photos/cat/1.jpg                                        the classes alone; the splits are drawn
    photos/cat/train/1.jpg                                  the splits inside the classes
    photos/labels.csv, photos/images/1.jpg                  a table of names and labels (`tables`)

Each of these may be some folders down (photos/data/train/cat), and a class may have subfolders
(photos/train/cat/2021/1.jpg), as torchvision and timm read them.
"""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from scratchvit.data.inventory import Inventory, by_name
from scratchvit.data.parts import PARTS, WORDS, words_of
from scratchvit.errors import ScratchvitError
from scratchvit.files import listed, printable

_WORDS = WORDS | {"dev": "val"}
# Words beside those of splits that have no meaning of their own: test_set, train-images.
_EMPTY_WORDS = frozenset({
    "set", "split", "data", "dataset", "folder", "files", "images", "image", "imgs", "img", "pictures", "pics",
    "photos", "jpg", "jpeg", "png",
})


@dataclass
class Layout:
    """Picture files with their classes.

    name         of the data set
    parts        {"train": {class: its pictures}, …}: classes sorted by name, pictures by their path in it
    where        {split: the folder, or the table, that it comes from}
    passed_over  why the other pictures are not among them, in words
    notes        sentences on how the folder was read, for the user
    """

    name: str
    parts: dict[str, dict[str, list[Path]]]
    where: dict[str, Path]
    passed_over: str
    notes: list[str] = field(default_factory=list)


def part_of(name: str) -> str | None:
    """The split that a name means, None if it means none: Training → train, valid → val, test_set → test."""
    part, rest = _part_and_rest(name)
    return part if not rest else None


def _says_nothing(name: str) -> bool:
    """Whether a name consists of words such as train or images only, unlike the name of a class ("7", "犬")."""
    return bool(words_of(name)) and not _part_and_rest(name)[1]


def _part_and_rest(name: str) -> tuple[str | None, tuple[str, ...]]:
    """The split that is a word of the name, and the other words that say something."""
    words = words_of(name)
    parts = {_WORDS[word] for word in words if word in _WORDS}
    rest = tuple(word for word in words if word not in _WORDS and word not in _EMPTY_WORDS)
    return (parts.pop() if len(parts) == 1 else None), rest


class Tree:
    """The picture files of an inventory by the folders that they lie in.

    direct  {folder: the pictures in it itself}
    inner   {folder: its folders with pictures somewhere below them}, sorted by name
    """

    def __init__(self, inventory: Inventory):
        self.root = inventory.root
        self.direct: defaultdict[Path, list[Path]] = defaultdict(list)
        inner: defaultdict[Path, set[Path]] = defaultdict(set)
        for picture in inventory.pictures():
            self.direct[picture.parent].append(picture)
            folder = picture.parent
            while folder != self.root and folder not in inner[folder.parent]:
                inner[folder.parent].add(folder)
                folder = folder.parent
        self.inner = defaultdict(list, {folder: by_name(folders) for folder, folders in inner.items()})
        visible = (folder for folder in inventory.folders if not inventory.hidden(folder))
        self.empty = {folder for folder in visible if not self.direct.get(folder) and not self.inner.get(folder)}

    def below(self, folder: Path) -> list[Path]:
        """All pictures below a folder, sorted by their path in it."""
        found = [*self.direct.get(folder, ())]
        for inner in self.inner.get(folder, ()):
            found += self.below(inner)
        return sorted(found, key=lambda path: path.parts)

    def classes(self, folder: Path) -> dict[str, list[Path]]:
        """{name of each class folder in it: the pictures below that}."""
        return {inner.name: self.below(inner) for inner in self.inner.get(folder, ())}


def by_folders(tree: Tree) -> Layout | None:
    """The layout of a folder that has its splits in folders; None if it has no folder train with class folders.

    Raises ScratchvitError if two folders are meant for one split.
    """
    root = _wrapped(tree)[-1]
    holders = [folder for folder in (root, *tree.inner[root]) if "train" in _parts(tree, folder)]
    if root in holders:
        holders = [root]
    if len(holders) > 1:
        raise ScratchvitError(
            f"{printable(tree.root)}: {_and(holders)} each have a folder train: give the path of the one to use"
        )
    if not holders:
        return None
    folders = _parts(tree, holders[0])
    parts = {part: tree.classes(_unwrapped(tree, folder)) for part, folder in folders.items()}
    check_filled(tree, _unwrapped(tree, folders["train"]))
    name = folders["train"].resolve().parent.name
    notes = [] if root == tree.root == holders[0] else [f"splits: the folders in {printable(holders[0])}"]
    return Layout(name, parts, folders, "in no class folder of train, val or test", notes)


def check_filled(tree: Tree, folder: Path) -> None:
    """Raises ScratchvitError for a class folder in a folder that has no pictures."""
    for empty in by_name(at for at in tree.empty if at.parent == folder):
        raise ScratchvitError(f"{printable(empty)}: no pictures in this class folder; add some or remove the folder")


def by_classes(tree: Tree) -> Layout | None:
    """The layout of a folder that has class folders instead of a folder train; None if there are none.

    Folders val and test may lie beside them. If each class has folders train, val and test, they are the splits.
    """
    root = _wrapped(tree)[-1]
    beside = _parts(tree, root)     # val and test
    folders = [folder for folder in tree.inner[root] if folder not in beside.values()]
    named = [part_of(folder.name) for folder in folders]
    if "train" in named and len([part for part in named if part]) > 1:
        return None     # train/ and test/, without class folders
    twice = [folder for folder in folders if _repeats(tree, folder, folders)]
    # A class may be called train, as bus and car; test without class folders has no labels.
    classes = [folder for folder, part in zip(folders, named) if part in (None, "train") and folder not in twice]
    if not classes or (len(classes) == 1 and _says_nothing(classes[0].name)):
        return None     # all pictures in train/, or in images/
    notes = [f"{printable(folder)} is left out: it repeats the class folders beside it" for folder in twice]
    empty = [folder.name for folder in by_name(tree.empty) if folder.parent == root]
    if empty:
        notes.append(f"folders without pictures, which are not classes: {listed(empty)}")
    parts = _splits_of_classes(tree, classes)
    if parts is None:
        parts = {"train": {folder.name: tree.below(folder) for folder in classes}}
        parts |= {part: tree.classes(_unwrapped(tree, folder)) for part, folder in beside.items()}
        if root != tree.root or beside:
            notes.append(f"classes: the folders in {printable(root)}")
    where = {part: beside.get(part, root) for part in parts}
    return Layout(root.resolve().name, parts, where, "in no class folder", notes)


def _splits_of_classes(tree: Tree, classes: Iterable[Path]) -> dict[str, dict[str, list[Path]]] | None:
    """{split: {class: pictures}} of class folders that have nothing but folders of splits; None if one has more."""
    parts: dict[str, dict[str, list[Path]]] = {part: {} for part in PARTS}
    for folder in classes:
        inner = [(part_of(at.name), at) for at in tree.inner[folder]]
        if tree.direct.get(folder) or "train" not in dict(inner):
            return None
        for part, at in inner:
            if part is None:
                return None
            parts[part].setdefault(folder.name, []).extend(tree.below(at))
    return {part: pictures for part, pictures in parts.items() if pictures}


def check_classes(layout: Layout) -> None:
    """Give all splits the classes of train, and note those that one lacks.

    Raises ScratchvitError for pictures of a class that train does not have.
    """
    train = layout.parts["train"]
    written = {unicodedata.normalize("NFC", name): name for name in train}     # macOS writes é as two characters
    for part, classes in layout.parts.items():
        pictures: dict[str, list[Path]] = {name: [] for name in train}
        foreign = []
        for name, files in classes.items():
            known = name if name in train else written.get(unicodedata.normalize("NFC", name))
            if known is not None:
                pictures[known] += files
            elif files:
                foreign.append(name)
        if foreign:
            raise ScratchvitError(
                f"{printable(layout.where[part])}: its classes differ from those of "
                f"{printable(layout.where['train'])}; only here: {listed(foreign)}: move some of "
                "their pictures there, or these folders away"
            )
        missing = [name for name, files in pictures.items() if not files]
        if missing:
            layout.notes.append(f"{part} has no pictures of {listed(missing)}")
        layout.parts[part] = pictures
    if len(train) == 1:
        layout.notes.append(f"warning: there is only one class, {listed(train)}, so there is nothing to classify")


def _wrapped(tree: Tree) -> list[Path]:
    """The root and, as long as there is nothing but one folder that holds folders, that folder."""
    folders = [tree.root]
    while len(tree.inner[folders[-1]]) == 1 and not tree.direct.get(folders[-1]) and not _parts(tree, folders[-1]):
        (only,) = tree.inner[folders[-1]]
        if not tree.inner.get(only):
            break
        folders.append(only)
    return folders


def _unwrapped(tree: Tree, folder: Path) -> Path:
    """The folder of a split, or the folder in it that alone holds everything and has no other meaning: train/train."""
    while len(tree.inner[folder]) == 1 and not tree.direct.get(folder):
        (only,) = tree.inner[folder]
        if only.name.lower() != folder.name.lower() and not _says_nothing(only.name):
            break
        folder = only
    return folder


def _parts(tree: Tree, folder: Path) -> dict[str, Path]:
    """{split: its folder} of the folders in a folder that have class folders.

    Names like seg_train count if there is also a seg_test, since alone it may be anything.
    """
    found: defaultdict[tuple[str, ...], defaultdict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    alike: defaultdict[tuple[str, ...], set[str]] = defaultdict(set)
    for inner in tree.inner[folder]:
        part, rest = _part_and_rest(inner.name)
        if part is not None:
            alike[rest].add(part)
            if tree.inner.get(_unwrapped(tree, inner)):
                found[rest][part].append(inner)
    whole = [parts for rest, parts in found.items() if "train" in parts and (not rest or len(alike[rest]) > 1)]
    named = found[()] if found[()] or not whole else whole[0]
    for part, folders in named.items():
        if len({inner.resolve() for inner in folders}) > 1:
            raise ScratchvitError(f"{printable(folder)}: {_and(folders)} could both be {part}: rename one of them")
    return {part: named[part][0] for part in PARTS if part in named}


def _repeats(tree: Tree, folder: Path, beside: Iterable[Path]) -> bool:
    """Whether a folder has nothing but folders with the names of those beside it: the archive was packed twice."""
    inner = {at.name for at in tree.inner.get(folder, ())}
    return len(inner) > 1 and not tree.direct.get(folder) and inner <= {at.name for at in beside if at != folder}


def _and(folders: Iterable[Path]) -> str:
    return " and ".join(printable(folder.name) for folder in folders)
