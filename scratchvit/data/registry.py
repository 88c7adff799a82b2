"""Loading a data set by its name, or a folder of pictures by its path."""

import dataclasses
import difflib
from collections.abc import Callable
from pathlib import Path

from scratchvit.data import cifar, idx
from scratchvit.data.datasets import ArrayDataset, Dataset, Resized, Splits, stratified_split
from scratchvit.data.digits import load_digits
from scratchvit.data.folder import is_folder_or_table, load_folder
from scratchvit.errors import NoSuchData, ScratchvitError
from scratchvit.files import counted

# Data sets that are published as files, already split into (train, test).
_FROM_FILES: dict[str, Callable[[str, Path | None, bool], tuple[ArrayDataset, ArrayDataset]]] = {
    **dict.fromkeys(idx.DATASETS, idx.load_mnist),
    **dict.fromkeys(cifar.DATASETS, cifar.load_cifar),
}


def list_datasets() -> tuple[str, ...]:
    """The names of the data sets that `load` knows."""
    return ("digits", *_FROM_FILES)


def load(
    name_or_path: str | Path,
    *,
    data_dir: str | Path | None = None,
    img_size: int | None = None,
    val_fraction: float = 0.1,
    seed: int = 0,
    skip_bad: bool = False,
    download: bool = False,
    test_from_train: bool = False,
) -> Splits:
    """Load a data set as `Splits(train, val, test)`.

    name_or_path  one of `list_datasets()`; a folder of pictures, arranged as train/<class>/*.jpg or <class>/*.jpg, or
                  with a table of names and labels, labels.csv (`layout` and `tables` say what else); or such a table
    data_dir      folder with the files of a named data set; by default the system's folder and the user's cache
    img_size      side of the pictures; required for a folder, by default that of the data set
    val_fraction  fraction of the training pictures that becomes the validation split (stratified, drawn by seed), if
                  the data set has none
    skip_bad      leave out pictures of a folder that cannot be decoded, and name them in `skipped`
    download      download missing files of a named data set into data_dir or the cache, and check their MD5 sums
    test_from_train  draw a test split from train even if a folder has a validation split, as version 0.1 did

    Raises ScratchvitError for an unknown name, missing or damaged files, and values out of range.
    """
    if img_size is not None and img_size < 1:
        raise ScratchvitError(f"img_size={img_size}: the side of a picture is at least 1 pixel")
    if not 0 <= val_fraction < 1:
        raise ScratchvitError(
            f"val_fraction={val_fraction}: the fraction of train that becomes val must be in [0, 1)"
        )
    if seed < 0:
        raise ScratchvitError(f"seed={seed}: a seed must be an integer of at least 0")

    if name_or_path == "digits":
        return _resized(load_digits(), img_size)
    if name_or_path in _FROM_FILES:
        splits = _load_named(str(name_or_path), data_dir, float(val_fraction), seed, download)
        return _resized(splits, img_size)

    path = Path(name_or_path)
    if not is_folder_or_table(path):
        raise _unknown(str(name_or_path))
    if img_size is None:
        raise ScratchvitError(
            f"{path}: the pictures of a folder can have any size; give the size to resize them to, img_size=…"
        )
    return load_folder(path, img_size, float(val_fraction), seed, skip_bad, test_from_train)


def _load_named(
    name: str, data_dir: str | Path | None, val_fraction: float, seed: int, download: bool
) -> Splits:
    folder = Path(data_dir) if data_dir is not None else None
    if folder and not folder.is_dir() and not download:
        raise ScratchvitError(f"{folder}: no such folder (given as --data-dir or data_dir for {name})")
    train, test = _FROM_FILES[name](name, folder, download)
    rest, held = stratified_split(train.labels, val_fraction, seed)
    note = f"val: {counted(len(held), 'picture')} drawn from train with seed {seed}"
    return Splits(train.subset(rest), train.subset(held), test, notes=(note,))


def _resized(splits: Splits, img_size: int | None) -> Splits:
    def resized(dataset: Dataset) -> Dataset:
        own = dataset.image_shape[:2] == (img_size, img_size)
        return dataset if img_size is None or own else Resized(dataset, img_size)

    return dataclasses.replace(
        splits, train=resized(splits.train), val=resized(splits.val), test=resized(splits.test)
    )


def _unknown(name: str) -> NoSuchData:
    near = difflib.get_close_matches(name.lower(), list_datasets(), n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return NoSuchData(f"{name!r} is neither a folder nor a known data set ({', '.join(list_datasets())}){hint}", name)
