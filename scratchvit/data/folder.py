"""Data sets of picture files, from folders of classes (`layout`) or tables of labels (`tables`)."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scratchvit.data.copies import copies
from scratchvit.data.datasets import Splits, stratified_split
from scratchvit.data.images import SUFFIXES, load_image, open_image, reduce_image
from scratchvit.data.inventory import Inventory, by_name
from scratchvit.data.layout import Layout, Tree, by_classes, by_folders, check_classes, check_filled, part_of
from scratchvit.data.parts import PARTS
from scratchvit.data.rows import TABLES
from scratchvit.data.tables import by_table, by_tables
from scratchvit.errors import ScratchvitError
from scratchvit.files import counted, printable

__all__ = ["SUFFIXES", "TEST_FRACTION", "ImageFolder", "OriginalPictures", "by_name", "load_folder", "picture_files"]

CACHE_BYTES = 512 << 20  # of decoded pictures that are kept in memory
TEST_FRACTION = 0.2  # fraction of train that becomes the test split if there is no test folder


def picture_files(path: Path) -> list[Path]:
    """The picture files in a folder and in the folders in it, or the path itself if it is not a folder.

    A broken link is among them, so that reading it raises an error. Raises ScratchvitError for a folder without
    pictures.
    """
    if not path.is_dir():
        return [path]
    inventory = Inventory(path)
    found = [at for at in inventory.files if at.suffix.lower() in SUFFIXES and not inventory.hidden(at)]
    if not found:
        raise ScratchvitError(f"{printable(path)}: no pictures in this folder; there are {inventory.endings(path)}")
    return sorted(found, key=lambda at: at.relative_to(path).parts)


class ImageFolder:
    """A data set of picture files, decoded on access, as RGB squares of img_size (see `load_image`).

    paths and labels (N,) belong together; `ImageFolder.scan` makes both from a folder. `images` raises
    ScratchvitError with the file name if a picture cannot be decoded.
    """

    def __init__(
        self, paths: Sequence[Path], labels: ArrayLike, classes: Sequence[str], img_size: int, name: str
    ):
        self.name = name
        self.classes = tuple(classes)
        self.image_shape = (img_size, img_size, 3)
        self.labels = np.asarray(labels, np.int64)
        self.paths = tuple(paths)
        self._keep = len(self.paths) * img_size * img_size * 3 <= CACHE_BYTES
        self._decoded: dict[Path, NDArray[np.uint8]] = {}

    @classmethod
    def scan(cls, folder: Path, img_size: int) -> Self:
        """The data set of folder/<class>/, also of the folders in a class, with classes and files sorted by name.

        Hidden files are ignored. Raises ScratchvitError if there is no class folder, or one without pictures.
        """
        inventory = Inventory(folder)
        tree = Tree(inventory)
        check_filled(tree, folder)
        classes = tree.classes(folder)
        if not classes:
            raise _no_classes(folder, inventory)
        return cls.of(classes, img_size, folder.resolve().parent.name)

    @classmethod
    def of(cls, classes: Mapping[str, Sequence[Path]], img_size: int, name: str) -> Self:
        """The data set of {class: its picture files}."""
        paths = [path for pictures in classes.values() for path in pictures]
        labels = [label for label, pictures in enumerate(classes.values()) for _ in pictures]
        return cls(paths, labels, list(classes), img_size, name)

    def __len__(self) -> int:
        return len(self.paths)

    def images(self, indices: ArrayLike) -> NDArray[np.uint8]:
        indices = np.asarray(indices, np.intp)
        out = np.empty((len(indices), *self.image_shape), np.uint8)
        for row, index in enumerate(indices):
            out[row] = self._picture(self.paths[index])
        return out

    def subset(self, indices: ArrayLike) -> Self:
        indices = np.asarray(indices, np.intp)
        paths = [self.paths[index] for index in indices]
        part = type(self)(paths, self.labels[indices], self.classes, self.image_shape[0], self.name)
        part._decoded = self._decoded  # share the cache of decoded pictures
        return part

    def originals(self, shorter_side: int | None = None) -> "OriginalPictures":
        return OriginalPictures(self, shorter_side)

    def bad_pictures(self, each: Callable[[], object] = lambda: None) -> dict[int, str]:
        """{index: error message} for every picture that cannot be decoded. Decodes all pictures, in threads.

        each: called after each picture.
        """

        def problem(path: Path) -> str | None:
            try:
                self._picture(path)
            except ScratchvitError as error:
                return str(error)
            return None

        bad = {}
        with ThreadPoolExecutor() as pool:  # Pillow decodes outside the GIL
            for index, text in enumerate(pool.map(problem, self.paths)):
                if text:
                    bad[index] = text
                each()
        return bad

    def _picture(self, path: Path) -> NDArray[np.uint8]:
        if path in self._decoded:
            return self._decoded[path]
        picture = load_image(path, self.image_shape[0])
        if self._keep:
            self._decoded[path] = picture
        return picture


class OriginalPictures:
    """The pictures of an ImageFolder at their original sizes and shapes, as RGB.

    shorter_side: pictures with a longer one are reduced to it (`reduce_image`).

    Decoded pictures are kept as long as they need less than CACHE_BYTES together; the others are decoded on every
    access.
    """

    def __init__(self, folder: ImageFolder, shorter_side: int | None = None):
        self.name = folder.name
        self.labels = folder.labels
        self._paths = folder.paths
        self._shorter_side = shorter_side
        self._decoded: dict[Path, NDArray[np.uint8]] = {}
        self._room = CACHE_BYTES

    def __len__(self) -> int:
        return len(self._paths)

    def images(self, indices: ArrayLike) -> list[NDArray[np.uint8]]:
        """The pictures of indices (B,), as B arrays (h, w, 3). Raises ScratchvitError as `ImageFolder.images` does."""
        return [self._picture(self._paths[index]) for index in np.asarray(indices, np.intp)]

    def _picture(self, path: Path) -> NDArray[np.uint8]:
        if path in self._decoded:
            return self._decoded[path]
        image = open_image(path)
        picture = np.asarray(image if self._shorter_side is None else reduce_image(image, self._shorter_side))
        if picture.nbytes <= self._room:
            self._room -= picture.nbytes
            self._decoded[path] = picture
        return picture


def load_folder(
    path: Path, img_size: int, val_fraction: float, seed: int, skip_bad: bool, test_from_train: bool = False
) -> Splits:
    """Train, validation and test split of a folder of pictures, or of a table of names and labels.

    The folder may be arranged as in `layout` or `tables`. If it has neither val nor test, both are drawn from train by
    seed: a fifth for test, then val_fraction of the rest for val, but at least one picture. If it has only test, val
    is drawn. If it has only val, there is no test, and that split is empty. `notes` says so, and what else should be
    known: classes without pictures, pictures that are in two splits. `inventory` says what became of every file.
    With test_from_train, test is drawn even if there is val, as version 0.1 did.
    With skip_bad, every picture is decoded first; those that fail are left out and named in `skipped`.
    Raises ScratchvitError for a folder in which no classes are found, or whose splits have classes that train lacks.
    """
    layout, inventory = read_layout(path)
    parts = {part: ImageFolder.of(classes, img_size, layout.name) for part, classes in layout.parts.items()}
    bad: dict[Path, str] = {}
    if skip_bad:
        for part, dataset in parts.items():
            problems = dataset.bad_pictures()
            parts[part] = _without(problems, dataset)
            bad |= {dataset.paths[index]: text for index, text in problems.items()}

    notes = layout.notes
    if "val" in parts and "test" not in parts and not test_from_train:
        parts["test"] = parts["val"].subset([])
        notes.append("test: there is none; the figures at the end of a run are those of val")
    for part, fraction in (("test", TEST_FRACTION), ("val", val_fraction)):
        if part not in parts:
            labels = parts["train"].labels
            held_out: int | float = fraction
            if part == "val" and fraction and round(fraction * len(labels)) < 1 < len(labels):
                held_out = 1        # a run cannot go without
            rest, held = stratified_split(labels, held_out, seed)
            parts["train"], parts[part] = parts["train"].subset(rest), parts["train"].subset(held)
            where = printable(layout.where["train"])
            notes.append(f"{part}: {counted(len(held), 'picture')} drawn from {where} with seed {seed}")
    parts = {part: parts[part] for part in PARTS}
    notes += copies({part: dataset.paths for part, dataset in parts.items()}, inventory)
    for part, dataset in parts.items():
        inventory.use(part, dataset.paths)
    inventory.leave_out(layout.passed_over, [path for path in inventory.pictures() if not inventory.is_used(path)])
    inventory.leave_out("cannot be decoded", bad)
    return Splits(parts["train"], parts["val"], parts["test"], tuple(notes), tuple(bad.values()), inventory)


def is_folder_or_table(path: Path) -> bool:
    """Whether a path can be read as your own pictures: a folder, or a file that by its name is a table."""
    return path.is_dir() or (path.is_file() and path.suffix.lower() in TABLES)


def read_layout(path: Path) -> tuple[Layout, Inventory]:
    """The splits and classes of a folder, or of a table of names and labels, and the inventory of its files.

    Raises ScratchvitError if no classes are found, or if a split has classes that train lacks.
    """
    inventory = Inventory(path if path.is_dir() else path.parent)
    layout = _layout_of(inventory) if path.is_dir() else by_table(inventory, path)
    check_classes(layout)
    return layout, inventory


def _layout_of(inventory: Inventory) -> Layout:
    """How a folder is arranged: folders of splits come before a table, and that before folders of classes.

    Raises ScratchvitError if no classes are found.
    """
    tree = Tree(inventory)
    layout = by_folders(tree)
    if layout is not None:
        return layout
    classes = by_classes(tree)
    try:
        layout = by_tables(inventory)
    except ScratchvitError as error:
        if classes is None:
            raise
        classes.notes.append(f"not used: {printable(error)}")
    found = layout or classes
    if found is None:
        trains = [at for at in inventory.root.iterdir() if at.is_dir() and part_of(at.name) == "train"]
        raise _no_classes(trains[0] if trains else inventory.root, inventory, "" if trains else "no folder train and ")
    return found


def _no_classes(folder: Path, inventory: Inventory, also: str = "") -> ScratchvitError:
    name = printable(folder)
    has_boxes = any(at.name.lower() in ("labels", "annotations") for at in inventory.folders)
    hint = "; pictures with boxes are for `scratchvit detect-train`" if has_boxes else ""
    return ScratchvitError(
        f"{name}: {also}no class folders; expected {name}/<class>/*.jpg, or a table labels.csv of file names and "
        f"labels; there are {inventory.endings(folder)}{hint}"
    )


def _without(problems: Mapping[int, str], dataset: ImageFolder) -> ImageFolder:
    """The data set without its bad pictures. Raises ScratchvitError if nothing is left of a class."""
    good = dataset.subset([index for index in range(len(dataset)) if index not in problems])
    emptied = np.setdiff1d(dataset.labels, good.labels)
    if len(emptied):
        folder = dataset.paths[int(np.flatnonzero(dataset.labels == emptied[0])[0])].parent
        raise ScratchvitError(
            f"{printable(folder)}: no picture of this class can be decoded; repair or remove the folder"
        )
    return good
