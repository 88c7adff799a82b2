"""Image folders: ROOT/train/<class>/*.jpg, and optionally ROOT/val and ROOT/test in the same layout."""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scratchvit.data.datasets import Splits, stratified_split
from scratchvit.data.images import load_image, open_image
from scratchvit.errors import ScratchvitError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
CACHE_BYTES = 512 << 20  # decoded pictures are kept in memory if all of them fit into this
TEST_FRACTION = 0.2  # fraction of train that becomes the test split if there is no test folder


def by_name(paths: Iterable[Path]) -> list[Path]:
    """Paths sorted by name, in the same order on every system. (Windows' paths compare without case.)"""
    return sorted(paths, key=lambda path: path.name)


def picture_files(path: Path) -> list[Path]:
    """The picture files in a folder, or the path itself if it is not a folder.

    Raises ScratchvitError for a folder without pictures.
    """
    if not path.is_dir():
        return [path]
    try:
        found = by_name(entry for entry in path.iterdir() if entry.suffix.lower() in SUFFIXES and entry.name[0] != ".")
    except OSError as error:
        raise ScratchvitError(f"{path}: the folder cannot be read ({error.strerror})") from error
    if not found:
        raise ScratchvitError(f"{path}: no pictures in this folder ({', '.join(sorted(SUFFIXES))})")
    return found


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
        """The data set of folder/<class>/, with classes and files sorted by name; hidden files are ignored.

        Raises ScratchvitError if there is no class folder, or one without pictures.
        """
        class_folders = by_name(entry for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != ".")
        if not class_folders:
            raise ScratchvitError(f"{folder}: no class folders; expected {folder}/<class>/*.jpg")
        paths: list[Path] = []
        labels: list[int] = []
        for label, class_folder in enumerate(class_folders):
            pictures = by_name(
                path
                for path in class_folder.iterdir()
                if path.suffix.lower() in SUFFIXES and path.name[0] != "." and path.is_file()
            )
            if not pictures:
                raise ScratchvitError(
                    f"{class_folder}: no pictures in this class folder ({', '.join(sorted(SUFFIXES))}); "
                    "add some or remove the folder"
                )
            paths += pictures
            labels += [label] * len(pictures)
        return cls(
            paths, labels, [entry.name for entry in class_folders], img_size, folder.resolve().parent.name
        )

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

    def originals(self) -> "OriginalPictures":
        return OriginalPictures(self)

    def bad_pictures(self) -> dict[int, str]:
        """{index: error message} for every picture that cannot be decoded. Decodes all pictures, in threads."""

        def problem(path: Path) -> str | None:
            try:
                self._picture(path)
            except ScratchvitError as error:
                return str(error)
            return None

        with ThreadPoolExecutor() as pool:  # Pillow decodes outside the GIL
            return {index: text for index, text in enumerate(pool.map(problem, self.paths)) if text}

    def _picture(self, path: Path) -> NDArray[np.uint8]:
        if path in self._decoded:
            return self._decoded[path]
        picture = load_image(path, self.image_shape[0])
        if self._keep:
            self._decoded[path] = picture
        return picture


class OriginalPictures:
    """The pictures of an ImageFolder at their original sizes, decoded on every access: they may not fit into memory."""

    def __init__(self, folder: ImageFolder):
        self.name = folder.name
        self.labels = folder.labels
        self._paths = folder.paths

    def __len__(self) -> int:
        return len(self._paths)

    def images(self, indices: ArrayLike) -> list[NDArray[np.uint8]]:
        """The pictures of indices (B,), as B arrays (h, w, 3). Raises ScratchvitError as `ImageFolder.images` does."""
        return [np.asarray(open_image(self._paths[index])) for index in np.asarray(indices, np.intp)]


def load_folder(root: Path, img_size: int, val_fraction: float, seed: int, skip_bad: bool) -> Splits:
    """Train, validation and test split of an image folder.

    A split without a folder is drawn from train by seed: a fifth for test, val_fraction for val; `notes` says so.
    With skip_bad, every picture is decoded first; those that fail are left out and named in `skipped`.
    Raises ScratchvitError for a folder without train, with empty classes, or whose splits have different classes.
    """
    if not (root / "train").is_dir():
        raise ScratchvitError(f"{root}: no folder train; expected {root}/train/<class>/*.jpg")
    parts = {
        part: ImageFolder.scan(root / part, img_size)
        for part in ("train", "val", "test")
        if (root / part).is_dir()
    }
    for part, dataset in parts.items():
        if dataset.classes != parts["train"].classes:
            differing = sorted(set(dataset.classes) ^ set(parts["train"].classes))
            raise ScratchvitError(
                f"{root / part}: its classes differ from those of {root / 'train'}; only in one of them: "
                f"{', '.join(differing)}"
            )

    skipped: list[str] = []
    if skip_bad:
        for part, dataset in parts.items():
            parts[part], problems = _without_bad(dataset)
            skipped += problems

    notes = []
    for part, fraction in (("test", TEST_FRACTION), ("val", val_fraction)):
        if part not in parts:
            rest, held = stratified_split(parts["train"].labels, fraction, seed)
            parts["train"], parts[part] = parts["train"].subset(rest), parts["train"].subset(held)
            notes.append(f"{part}: {len(held)} pictures drawn from {root / 'train'} with seed {seed}")
    return Splits(parts["train"], parts["val"], parts["test"], tuple(notes), tuple(skipped))


def _without_bad(dataset: ImageFolder) -> tuple[ImageFolder, list[str]]:
    problems = dataset.bad_pictures()
    good = dataset.subset([index for index in range(len(dataset)) if index not in problems])
    counts = np.bincount(good.labels, minlength=len(dataset.classes))
    if not counts.all():
        emptied = dataset.paths[int(np.flatnonzero(dataset.labels == counts.argmin())[0])].parent
        raise ScratchvitError(f"{emptied}: no picture of this class can be decoded; repair or remove the folder")
    return good, list(problems.values())
