"""Batches for detection: images of different sizes, padded to one size, with a padding mask.

Padding wastes memory and time: one portrait among landscape pictures makes the whole batch square. So images of similar
shape are batched together: the order of an epoch is shuffled, cut into stretches of several batches, each stretch is
sorted by shape and cut into batches, and the batches are shuffled. Shapes are those after the random crops and resizing
of this epoch, which `transforms` computes without decoding the pictures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scratchvit import backend
from scratchvit.backend import Array, array_module
from scratchvit.data import Batch, Loader, Normalize
from scratchvit.data.draws import ShareOfDraws, whole_batch
from scratchvit.data.transforms import Transform
from scratchvit.detection.data.annotations import DetectionDataset, Target
from scratchvit.detection.data.transforms import Step, View
from scratchvit.errors import ScratchvitError

Images = NDArray[Any]       # float32 or uint8


class DetectionBatch(NamedTuple):
    """What a `DetectionLoader` gives."""

    images: Array               # (B, 3, H, W), float32, 0 on padding: the mean colour; on the device in use
    mask: NDArray[np.bool_]     # (B, H, W), True = padding
    targets: list[Target]       # one an image, of `Annotations.target`; boxes relative to the image without padding


_VIEW, _BATCHES = 2, 3      # further uses of a seed, after the two of Loader


class DetectionLoader(Loader):
    """Iterates over one epoch of `DetectionBatch`es: images float32 (B, 3, H, W), mask bool (B, H, W), targets.

    Images are on the device in use, masks and targets on the host. The padding mask is True on padding, where images
    are 0, the mean colour. Each image has a target, as returned by `Annotations.target`, with boxes relative to the
    image without padding.

    normalize   converts uint8 to normalised float32
    steps       geometric augmentation (`transforms.detr_steps`); by default the whole picture at its own size
    colours     a transform of `data` that does not move pixels, such as `ColorJitter`. It is called with one picture at
                a time, and draws as many numbers for one as for another
    stretch     number of batches that are sorted by shape together; 1: no sorting
    pad_to      the sides of a batch are made multiples of this many pixels; 1: as large as the largest image
    others      as for `Loader`, which does the prefetching, workers and resuming. With a share, images are padded to
                the size of the whole batch

    The view of picture i in pass p over the data depends only on (seed, p, i), its colours on (seed, epoch, batch).
    Raises ScratchvitError as `Loader` does.
    """

    def __init__(
        self, dataset: DetectionDataset, batch_size: int, normalize: Normalize, *,
        steps: Step | None = None, colours: Transform | None = None, stretch: int = 16, pad_to: int = 1,
        shuffle: bool = False, epoch_size: int | None = None, drop_last: bool = False, seed: int = 0,
        prefetch: int = 2, workers: int = 0, share: tuple[int, int] = (0, 1), uneven: bool = False,
    ):
        if stretch < 1:
            raise ScratchvitError(
                f"DetectionLoader: stretch={stretch} must be at least 1: it is the number of batches sorted together"
            )
        views = _Views(dataset, steps or _as_it_is, seed)
        super().__init__(
            views, batch_size, _Collate(views, colours or _unchanged, pad_to), shuffle=shuffle, epoch_size=epoch_size,
            drop_last=drop_last, seed=seed, prefetch=prefetch, workers=workers, share=share,
            uneven=uneven,
        )
        self.normalize = normalize
        self.views = views
        self.stretch = stretch

    def __iter__(self) -> Iterator[DetectionBatch]:  # type: ignore[override]
        with closing(super().__iter__()) as batches:  # type: ignore[type-var]
            for batch in batches:       # of a Loader, whose images are a DetectionBatch
                yield batch.images

    def _finish(self, made: Batch) -> Batch:
        """The images that _Collate has padded, normalised on the device in use; padding is 0 again."""
        pixels, mask, targets = made.images

        def normalized(pixels: Array) -> Array:
            xp = array_module(pixels)
            x = self.normalize(pixels.transpose(0, 2, 3, 1))
            return xp.where(xp.asarray(mask)[:, None], np.float32(0), x) if mask.any() else x

        return made._replace(images=DetectionBatch(backend.upload(pixels, normalized), mask, targets))

    def _order(self, epoch: int) -> NDArray[np.intp]:
        """The samples of an epoch, batch after batch."""
        order = super()._order(epoch)
        if self.stretch == 1:
            return order
        if self.drop_last:      # leave out random pictures, not always those of a rare shape
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

    def _pass(self, number: int) -> NDArray[np.intp]:
        """The samples of a pass over the data, number · N + picture."""
        return super()._pass(number) + number * len(self.dataset)


def by_shape(order: NDArray[np.intp], sizes: ArrayLike, batch_size: int) -> list[NDArray[np.intp]]:
    """Divide `order` (n,) into batches of images of similar shape, given their sizes (n, 2).

    Only the last batch can be smaller than batch_size. The images are sorted by height / width and cut into about
    √(n / batch_size) groups; each group is sorted by area and cut into batches. Images of similar area and ratio have
    similar sides.
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


def pad(
    images: Sequence[Images], multiple: int = 1, others: Sequence[tuple[int, int]] = ()
) -> tuple[Images, NDArray[np.bool_]]:
    """Pad B images (3, h, w) at the right and bottom with 0: (B, 3, H, W), of their dtype, and the mask (B, H, W).

    H and W are the smallest multiples that all images fit in, and further ones of the sizes `others` (height, width).
    """
    height, width = -(-np.max([*(image.shape[1:] for image in images), *others], axis=0) // multiple) * multiple
    padded = np.zeros((len(images), 3, height, width), images[0].dtype)
    mask = np.ones((len(images), height, width), bool)
    for row, image in enumerate(images):
        _, h, w = image.shape
        padded[row, :, :h, :w] = image
        mask[row, :h, :w] = False
    return padded, mask


class _Views:
    """A detection data set in the form that `Loader` needs: sample p · N + i is picture i as seen in pass p."""

    def __init__(self, dataset: DetectionDataset, steps: Step, seed: int):
        self.name = dataset.name
        self.labels: Any = _Themselves()        # Loader returns labels[i]; there are none here, so return i
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
    """The transform of a `Loader`: changes the colours of the samples of a batch and pads them, in uint8."""

    def __init__(self, views: _Views, colours: Transform, pad_to: int):
        self.views, self.colours, self.pad_to = views, colours, pad_to

    def __call__(
        self, samples: Sequence[tuple[NDArray[np.uint8], Target]], rng: np.random.Generator | ShareOfDraws
    ) -> DetectionBatch:
        others = self._skip(rng) if isinstance(rng, ShareOfDraws) else []
        rng, *_ = whole_batch(rng, len(samples))
        images, mask = pad(
            [self.colours(image[None], rng)[0].transpose(2, 0, 1) for image, _ in samples], self.pad_to, others
        )
        return DetectionBatch(images, mask, [target for _, target in samples])

    def _skip(self, draws: ShareOfDraws) -> list[tuple[int, int]]:
        """Draw what the images before the share get, and return the sizes of all images of the batch."""
        for _ in range(draws.rows.start):
            self.colours(np.zeros((1, 1, 1, 3), np.uint8), draws.generator)
        return [self.views.view(place).size for place in draws.indices.tolist()]


def _as_it_is(view: View, rng: np.random.Generator) -> View:
    return view


def _unchanged(images: Any, rng: np.random.Generator) -> Any:
    return images
