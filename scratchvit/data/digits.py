"""scikit-learn's 1,797 handwritten digits, 8 × 8 (Alpaydın and Kaynak, UCI 1998), which need no download."""

import importlib.util
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scratchvit.data.datasets import ArrayDataset, Splits, stratified_split
from scratchvit.errors import missing

TEST_COUNT, VAL_COUNT, SPLIT_SEED = 360, 180, 0
FILE = "datasets/data/digits.csv.gz"        # in the folder of scikit-learn


def load_digits() -> Splits:
    """The digits as Splits: grey uint8 (8, 8, 1), ten classes; always the same train 1,257 / val 180 / test 360.

    Raises ScratchvitError if scikit-learn, which contains the pictures, is not installed.
    """
    numbers, labels = _numbers_and_labels()
    images = np.rint(numbers * (255 / 16)).astype(np.uint8)
    digits = ArrayDataset(images[..., None], labels, tuple("0123456789"), "digits")

    rest, test = stratified_split(digits.labels, TEST_COUNT, SPLIT_SEED)
    train, val = stratified_split(digits.labels[rest], VAL_COUNT, SPLIT_SEED)
    return Splits(
        digits.subset(rest[train]),
        digits.subset(rest[val]),
        digits.subset(test),
        notes=("digits: the splits are fixed; val_fraction and seed do not change them",),
    )


def _numbers_and_labels() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Pixels 0 … 16 (1797, 8, 8) and labels (1797,), read from the file: importing scikit-learn takes a second."""
    package = importlib.util.find_spec("sklearn")
    if package is None or package.origin is None:
        raise missing("the digits come with scikit-learn", "scikit-learn", "matplotlib")    # figures need the latter
    try:
        table = np.loadtxt(Path(package.origin).parent / FILE, delimiter=",")
    except OSError:     # another version of scikit-learn, with the file elsewhere
        from sklearn import datasets

        bunch = datasets.load_digits()
        return bunch.images, bunch.target
    return table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(np.int64)
