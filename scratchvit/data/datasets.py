"""What a data set is, the one that lives in memory, and how a split is carved from another.

A data set gives uint8 pictures for indices; everything random or floating happens later, in `transforms`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scratchvit.data.images import resize_image, to_picture
from scratchvit.errors import ScratchvitError


class Pictures(Protocol):
    """N pictures, with a class each: what a `Loader` makes batches of."""

    name: str
    labels: NDArray[np.int64]  # (N,), each in 0 … number of classes - 1

    def __len__(self) -> int: ...

    def images(self, indices: ArrayLike) -> Any:
        """For indices (B,), what the first transform takes: an array (B, H, W, C), or B arrays (h, w, C)."""
        ...


class Dataset(Pictures, Protocol):
    """N pictures of one shape."""

    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]  # (H, W, C)

    def images(self, indices: ArrayLike) -> NDArray[np.uint8]:
        """uint8 (B, H, W, C), a fresh array, for indices (B,)."""
        ...

    def originals(self) -> Pictures:
        """The same pictures before they were brought to one size, for `RandomResizedCrop` to cut from."""
        ...

    def subset(self, indices: ArrayLike) -> Self:
        """The same kind of data set with the chosen pictures, in the order given."""
        ...


class ArrayDataset:
    """Pictures held in memory.

    images uint8 (N, H, W, C); labels (N,) of any integer type, kept as int64.
    Raises ScratchvitError when shapes, types, counts or labels do not fit together.
    """

    def __init__(
        self, images: NDArray[np.uint8], labels: ArrayLike, classes: Sequence[str], name: str = "array"
    ):
        labels = np.asarray(labels)
        if images.dtype != np.uint8 or images.ndim != 4:
            raise ScratchvitError(
                f"{name}: images are {images.dtype} {images.shape}, expected uint8 (N, H, W, C)."
            )
        if labels.ndim != 1 or labels.dtype.kind not in "iu":
            raise ScratchvitError(f"{name}: labels are {labels.dtype} {labels.shape}, expected integers (N,).")
        if len(images) != len(labels):
            raise ScratchvitError(f"{name}: {len(images)} images but {len(labels)} labels; one label for each.")
        wrong = np.flatnonzero((labels < 0) | (labels >= len(classes)))
        if wrong.size:
            raise ScratchvitError(
                f"{name}: entry {wrong[0]} has label {labels[wrong[0]]}, but there are only {len(classes)} "
                f"classes (0 … {len(classes) - 1}); the labels are damaged or of another data set."
            )
        self.name = name
        self.classes = tuple(classes)
        self.image_shape = (images.shape[1], images.shape[2], images.shape[3])
        self.labels = labels.astype(np.int64)
        self._images = images

    def __len__(self) -> int:
        return len(self.labels)

    def images(self, indices: ArrayLike) -> NDArray[np.uint8]:
        return self._images[np.asarray(indices, np.intp)]

    def subset(self, indices: ArrayLike) -> Self:
        indices = np.asarray(indices, np.intp)
        return type(self)(self._images[indices], self.labels[indices], self.classes, self.name)

    def originals(self) -> Pictures:
        return self


class Resized:
    """Another data set's pictures at img_size × img_size, resized as they are asked for (`resize_image`).

    CIFAR-10 at 224² would fill 28 GB; a batch of it does not.
    """

    def __init__(self, dataset: Dataset, img_size: int):
        self.name = dataset.name
        self.classes = dataset.classes
        self.labels = dataset.labels
        self.image_shape = (img_size, img_size, dataset.image_shape[2])
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def images(self, indices: ArrayLike) -> NDArray[np.uint8]:
        originals = self._dataset.images(indices)
        out = np.empty((len(originals), *self.image_shape), np.uint8)
        for row, original in enumerate(originals):
            out[row] = np.asarray(resize_image(to_picture(original), self.image_shape[0])).reshape(self.image_shape)
        return out

    def subset(self, indices: ArrayLike) -> Self:
        return type(self)(self._dataset.subset(indices), self.image_shape[0])

    def originals(self) -> Pictures:
        return self._dataset.originals()


@dataclass(frozen=True)
class Splits:
    """The three parts of a data set; `notes` says how they came about, `skipped` names pictures left out."""

    train: Dataset
    val: Dataset
    test: Dataset
    notes: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()


def stratified_share(dataset: Dataset, fraction: float, seed: int) -> Dataset:
    """That share of a data set, class by class; of a share of 1, the data set itself.

    Raises ScratchvitError where no picture is left.
    """
    if fraction == 1:
        return dataset
    kept, _ = stratified_split(dataset.labels, 1.0 - fraction, seed)
    if not len(kept):
        raise ScratchvitError(f"{dataset.name}: no picture is left of a share of {fraction}; take a larger one.")
    return dataset.subset(kept)


def stratified_split(
    labels: ArrayLike, held_out: int | float, seed: int
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Divide 0 … N-1 into (rest, held), both sorted, every class in proportion.

    labels (N,) integers. held_out is a number of entries (int, 0 … N) or a fraction of N (float, 0 … 1).
    A class with n of the N entries gives ⌊held·n/N⌋ or one more: the leftover places go to the largest
    remainders (Hamilton's method). The same seed gives the same split. Raises ScratchvitError.
    """
    labels = np.asarray(labels)
    is_fraction = isinstance(held_out, float)
    if not 0 <= held_out <= (1 if is_fraction else len(labels)):
        raise ScratchvitError(
            f"Cannot hold out {held_out} of {len(labels)} entries: give a fraction from 0.0 to 1.0 "
            f"or a whole number from 0 to {len(labels)}."
        )
    held_count = round(held_out * len(labels)) if is_fraction else int(held_out)

    _, class_of, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    places, remainders = np.divmod(held_count * sizes, max(len(labels), 1))
    leftover = held_count - places.sum()
    places[np.argsort(-remainders, kind="stable")[:leftover]] += 1

    rng = np.random.default_rng(seed)
    is_held = np.zeros(len(labels), bool)
    for label, count in enumerate(places):
        is_held[rng.permutation(np.flatnonzero(class_of == label))[:count]] = True
    return np.flatnonzero(~is_held), np.flatnonzero(is_held)
