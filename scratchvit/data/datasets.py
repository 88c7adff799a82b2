"""The Dataset protocol, data sets in memory, and stratified splits.

A data set returns uint8 pictures for indices; augmentation and conversion to float happen later, in `transforms`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scratchvit.data.images import resize_image, to_picture
from scratchvit.data.inventory import Inventory
from scratchvit.errors import ScratchvitError


class Pictures(Protocol):
    """N labelled pictures, which a `Loader` turns into batches."""

    name: str
    labels: NDArray[np.int64]  # (N,), each in 0 … number of classes - 1

    def __len__(self) -> int: ...

    def images(self, indices: ArrayLike) -> Any:
        """The pictures of indices (B,), for the first transform: an array (B, H, W, C), or B arrays (h, w, C)."""
        ...


class Dataset(Pictures, Protocol):
    """N labelled pictures of equal shape. A label indexes `classes`."""

    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]  # (H, W, C)

    def images(self, indices: ArrayLike) -> NDArray[np.uint8]:
        """The pictures of indices (B,), as a new array uint8 (B, H, W, C)."""
        ...

    def originals(self, shorter_side: int | None = None) -> Pictures:
        """These pictures before they were resized and cropped to squares, as input of `RandomResizedCrop`.

        shorter_side: a data set of large pictures may reduce them to this (see `RandomResizedCrop.needs`).
        """
        ...

    def subset(self, indices: ArrayLike) -> Self:
        """A data set with the chosen pictures, in the order of indices (n,)."""
        ...


def description(dataset: Dataset) -> str:
    """A data set for `repr`: its type, name, number of pictures, their shape, and the number of classes."""
    shape = "×".join(map(str, dataset.image_shape))
    return f"{type(dataset).__name__}({dataset.name!r}: {len(dataset):,} × {shape}, {len(dataset.classes)} classes)"


class ArrayDataset:
    """A data set in memory.

    images uint8 (N, H, W, C); labels (N,) of any integer type, stored as int64.
    Raises ScratchvitError if shapes, types, counts or labels do not match.
    """

    def __init__(
        self, images: NDArray[np.uint8], labels: ArrayLike, classes: Sequence[str], name: str = "array"
    ):
        labels = np.asarray(labels)
        if images.dtype != np.uint8 or images.ndim != 4:
            raise ScratchvitError(
                f"{name}: images are {images.dtype} {images.shape}, expected uint8 (N, H, W, C)"
            )
        if labels.ndim != 1 or labels.dtype.kind not in "iu":
            raise ScratchvitError(f"{name}: labels are {labels.dtype} {labels.shape}, expected integers (N,)")
        if len(images) != len(labels):
            raise ScratchvitError(f"{name}: {len(images)} images but {len(labels)} labels; every image needs one label")
        wrong = np.flatnonzero((labels < 0) | (labels >= len(classes)))
        if wrong.size:
            raise ScratchvitError(
                f"{name}: entry {wrong[0]} has label {labels[wrong[0]]}, but there are only {len(classes)} "
                f"classes (0 … {len(classes) - 1}); the labels are damaged or belong to another data set"
            )
        self.name = name
        self.classes = tuple(classes)
        self.image_shape = (images.shape[1], images.shape[2], images.shape[3])
        self.labels = labels.astype(np.int64)
        self._images = images

    __repr__ = description

    def __len__(self) -> int:
        return len(self.labels)

    def images(self, indices: ArrayLike) -> NDArray[np.uint8]:
        return self._images[np.asarray(indices, np.intp)]

    def subset(self, indices: ArrayLike) -> Self:
        indices = np.asarray(indices, np.intp)
        return type(self)(self._images[indices], self.labels[indices], self.classes, self.name)

    def originals(self, shorter_side: int | None = None) -> Pictures:
        return self


class Resized:
    """The pictures of another data set at img_size × img_size, resized on access (`resize_image`).

    CIFAR-10 resized to 224² would take 28 GB; a batch of it does not.
    """

    def __init__(self, dataset: Dataset, img_size: int):
        self.name = dataset.name
        self.classes = dataset.classes
        self.labels = dataset.labels
        self.image_shape = (img_size, img_size, dataset.image_shape[2])
        self._dataset = dataset

    __repr__ = description

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

    def originals(self, shorter_side: int | None = None) -> Pictures:
        return self._dataset.originals(shorter_side)


@dataclass(frozen=True)
class Splits:
    """The train, validation and test split.

    test       empty if the data have none
    notes      how the splits were made, and warnings about them
    skipped    names pictures left out, since they cannot be decoded
    inventory  what became of every file of a folder
    """

    train: Dataset
    val: Dataset
    test: Dataset
    notes: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    inventory: Inventory | None = None

    @property
    def held_out(self) -> tuple[str, Dataset]:
        """The split that a trained model is judged by, with its name: "test", or "val" if there is no test split."""
        return ("test", self.test) if len(self.test) else ("val", self.val)


def stratified_share(dataset: Dataset, fraction: float, seed: int) -> Dataset:
    """A random fraction of a data set, the same for every class; a fraction of 1 returns the data set itself.

    Raises ScratchvitError if no picture is left.
    """
    if fraction == 1:
        return dataset
    kept, _ = stratified_split(dataset.labels, 1.0 - fraction, seed)
    if not len(kept):
        raise ScratchvitError(f"{dataset.name}: a fraction of {fraction} leaves no picture; use a larger one")
    return dataset.subset(kept)


def stratified_split(
    labels: ArrayLike, held_out: int | float, seed: int
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Split the indices 0 … N-1 into (rest, held), both sorted, with every class in proportion.

    labels (N,) integers. held_out is a number of entries (int, 0 … N) or a fraction of N (float, 0 … 1).
    A class with n of the N entries contributes ⌊held·n/N⌋ or one more: the remaining places go to the largest
    remainders (Hamilton's method). The same seed gives the same split. Raises ScratchvitError for held_out out of
    range.
    """
    labels = np.asarray(labels)
    is_fraction = isinstance(held_out, float)
    if not 0 <= held_out <= (1 if is_fraction else len(labels)):
        raise ScratchvitError(
            f"cannot hold out {held_out} of {len(labels)} entries: give a fraction from 0.0 to 1.0 "
            f"or an integer from 0 to {len(labels)}"
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
