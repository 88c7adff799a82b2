"""Batches for detection: pictures of many sizes, padded to one, with a mask that says where there is no picture.

Padding is what a batch of detection wastes memory and time on: one upright picture among lying ones makes all of them
square. So an epoch's order is shuffled, cut into stretches of some batches, each stretch sorted by shape, and the
batches that come of it shuffled again: chance remains, and like is batched with like. This goes by the size that each
image will have after this epoch's crops and resizing, which `transforms` tells without a picture being decoded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scratchvit.data import Compose, Loader, Normalize
from scratchvit.data.transforms import Transform
from scratchvit.detection.data.annotations import DetectionDataset, Target
from scratchvit.detection.data.transforms import Step, View
from scratchvit.errors import ScratchvitError

Images = NDArray[np.float32]


class DetectionBatch(NamedTuple):
    """What a `DetectionLoader` gives."""

    images: Images              # (B, 3, H, W), 0 on padding: the mean colour
    mask: NDArray[np.bool_]     # (B, H, W), True = padding
    targets: list[Target]       # one an image, of `Annotations.target`; boxes relative to the image without padding


_VIEW, _BATCHES = 2, 3      # uses of a seed, beside the Loader's two


class DetectionLoader(Loader):
    """Iterating gives one epoch of `DetectionBatch`es: images float32 (B, 3, H, W), mask bool (B, H, W), targets.

    normalize   makes float32 of uint8
    steps       what of each picture is shown (`transforms.detr_steps`); by default all of it, as it is
    colours     a transform of `data` that leaves every pixel in its place, such as `ColorJitter`
    stretch     batches that are sorted by shape together; 1 leaves the order as it is drawn
    others      as in `Loader`, whose places, prefetching, workers and resuming these are

    What is shown of picture i in epoch e depends on (seed, e, i) alone, its colours on (seed, e, batch). Raises
    ScratchvitError as `Loader` does.
    """

    def __init__(
        self, dataset: DetectionDataset, batch_size: int, normalize: Normalize, *,
        steps: Step | None = None, colours: Transform | None = None, stretch: int = 16, shuffle: bool = False,
        drop_last: bool = False, seed: int = 0, prefetch: int = 2, workers: int = 0,
    ):
        if stretch < 1:
            raise ScratchvitError(f"DetectionLoader: stretch={stretch}, the batches sorted together, is at least 1.")
        views = _Views(dataset, steps or _as_it_is, seed)
        collate = _Collate(Compose(colours or _unchanged, normalize))
        super().__init__(
            views, batch_size, collate, shuffle=shuffle, drop_last=drop_last, seed=seed, prefetch=prefetch,
            workers=workers,
        )
        self.views = views
        self.stretch = stretch

    def __iter__(self) -> Iterator[DetectionBatch]:  # type: ignore[override]
        with closing(super().__iter__()) as batches:  # type: ignore[type-var]
            for batch in batches:       # of a Loader, whose images are what _Collate made
                yield DetectionBatch(*batch.images)

    def _order(self, epoch: int) -> NDArray[np.intp]:
        """The epoch's places, epoch · N + picture, batch after batch."""
        order = super()._order(epoch) + epoch * len(self.dataset)
        if self.stretch == 1:
            return order
        if self.drop_last:      # what is left out is drawn, not what is left over of a shape
            order = order[: len(self) * self.batch_size]
        sizes = np.array([self.views.view(place).size for place in order.tolist()])
        stretches = range(0, len(order), self.stretch * self.batch_size)
        ends = [slice(start, start + self.stretch * self.batch_size) for start in stretches]
        batches = [batch for part in ends for batch in by_shape(order[part], sizes[part], self.batch_size)]
        if self.shuffle:
            whole = [batch for batch in batches if len(batch) == self.batch_size]
            rest = [batch for batch in batches if len(batch) < self.batch_size]     # must stay last
            batches = [whole[i] for i in self._generator(_BATCHES, epoch).permutation(len(whole))] + rest
        return np.concatenate(batches)


def by_shape(order: NDArray[np.intp], sizes: ArrayLike, batch_size: int) -> list[NDArray[np.intp]]:
    """`order` (n,) as batches of images of like shape, given their sizes (n, 2); only the last may be smaller.

    Sorted by height / width and cut into about √(n / batch_size) groups, each sorted by area and cut into batches: what
    has a like area and a like ratio has like sides.
    """
    height, width = np.reshape(sizes, (-1, 2)).T
    by_ratio = np.argsort(height / width, kind="stable")
    batches = -(-len(order) // batch_size)
    group = batch_size * max(1, round(np.sqrt(batches)))
    sorted_places = np.concatenate([
        part[np.argsort((height * width)[part], kind="stable")]
        for part in (by_ratio[start : start + group] for start in range(0, len(order), group))
    ])
    return [order[sorted_places[start : start + batch_size]] for start in range(0, len(order), batch_size)]


def pad(images: Sequence[Images]) -> tuple[Images, NDArray[np.bool_]]:
    """B images (3, h, w) at the top left of (B, 3, H, W), the rest 0, and a mask (B, H, W), True on that rest."""
    height, width = np.max([image.shape[1:] for image in images], axis=0)
    padded = np.zeros((len(images), 3, height, width), np.float32)
    mask = np.ones((len(images), height, width), bool)
    for row, image in enumerate(images):
        _, h, w = image.shape
        padded[row, :, :h, :w] = image
        mask[row, :h, :w] = False
    return padded, mask


class _Views:
    """A detection data set as a `Loader` wants it: sample epoch · N + i is picture i as it is shown in that epoch."""

    def __init__(self, dataset: DetectionDataset, steps: Step, seed: int):
        self.name = dataset.name
        self.labels: Any = _Themselves()        # a Loader gives the class of each sample: here, which it is
        self.source = dataset
        self.steps = steps
        self.seed = seed

    def __len__(self) -> int:
        return len(self.source)

    def view(self, place: int) -> View:
        rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(_VIEW, place)))
        return self.steps(View.whole(self.source.size(self._index(place))), rng)

    def images(self, places: ArrayLike) -> list[tuple[NDArray[np.uint8], Target]]:
        return [self._image(place) for place in np.asarray(places, np.intp).tolist()]

    def _image(self, place: int) -> tuple[NDArray[np.uint8], Target]:
        picture, annotations = self.source.example(self._index(place))
        view = self.view(place)
        return np.asarray(view.of_picture(picture)), annotations.target(view)

    def _index(self, place: int) -> int:
        return place if self.source.endless else place % len(self.source)


class _Themselves:
    def __getitem__(self, places: Any) -> Any:
        return places


class _Collate:
    """Colours, normalisation and padding: what a `Loader` calls with the samples of a batch and its generator."""

    def __init__(self, pixels: Transform):
        self.pixels = pixels

    def __call__(self, samples: Sequence[tuple[NDArray[np.uint8], Target]], rng: np.random.Generator) -> DetectionBatch:
        images, mask = pad([self.pixels(image[None], rng)[0] for image, _ in samples])
        return DetectionBatch(images, mask, [target for _, target in samples])


def _as_it_is(view: View, rng: np.random.Generator) -> View:
    return view


def _unchanged(images: Any, rng: np.random.Generator) -> Any:
    return images
