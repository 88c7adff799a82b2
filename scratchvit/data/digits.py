"""scikit-learn's 1,797 handwritten digits, 8 × 8 (Alpaydın and Kaynak, UCI 1998): real, and no download."""

import numpy as np

from scratchvit.data.datasets import ArrayDataset, Splits, stratified_split
from scratchvit.errors import ScratchvitError

TEST_COUNT, VAL_COUNT, SPLIT_SEED = 360, 180, 0


def load_digits() -> Splits:
    """Grey uint8 (8, 8, 1), ten classes; always the same train 1,257 / val 180 / test 360.

    Raises ScratchvitError when scikit-learn, which carries the pictures, is not installed.
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ScratchvitError('The digits come with scikit-learn: pip install "scratchvit[demo]"') from error
    bunch = datasets.load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)  # (1797, 8, 8), stored as 0 … 16
    digits = ArrayDataset(images[..., None], bunch.target, tuple("0123456789"), "digits")

    rest, test = stratified_split(digits.labels, TEST_COUNT, SPLIT_SEED)
    train, val = stratified_split(digits.labels[rest], VAL_COUNT, SPLIT_SEED)
    return Splits(
        digits.subset(rest[train]),
        digits.subset(rest[val]),
        digits.subset(test),
        notes=("digits: always the same 1,257 train, 180 val, 360 test, whatever val_fraction and seed.",),
    )
