"""Transforms from a batch of uint8 pictures to the input of a model. Each works on the whole batch at once.

Random transforms come first and stay in uint8, a quarter of the memory of float32; `Normalize` comes last:

    Compose(RandomCrop(4), RandomHorizontalFlip(), Normalize(*channel_stats(train)))

They work on NumPy arrays, `Normalize` on those of a GPU too: if it is the last one, a loader takes the uint8 to the GPU
and calls it there.

A transform is called with the batch and the `np.random.Generator` of the batch, its only source of randomness. If
several processes divide the batch (`Loader`, share), it is called with the images of one of them, and a `ShareOfDraws`
that gives them the numbers that they get in the whole batch: one row for each image, see draws.py.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from scratchvit.backend import Array, array_module
from scratchvit.data.datasets import Dataset
from scratchvit.errors import ScratchvitError

Images = NDArray[np.uint8]  # (B, H, W, C)
Transform = Callable[[Any, np.random.Generator], Any]

_CHUNK = 256  # pictures that `channel_stats` reads at a time


class Compose:
    """Apply several transforms one after the other, with the same generator."""

    def __init__(self, *transforms: Transform):
        self.transforms = transforms

    def __call__(self, images: Images, rng: np.random.Generator) -> Any:
        for transform in self.transforms:
            images = transform(images, rng)
        return images


class Normalize:
    """uint8 (B, H, W, C) → a new array float32 (B, C, H, W): (pixel/255 - mean) / std, channel by channel.

    mean and std (C,) refer to pixels from 0 to 1. Raises ScratchvitError for a std that is not positive, and when
    called with pictures of another number of channels.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        self.mean, self.std = tuple(map(float, mean)), tuple(map(float, std))
        if len(self.mean) != len(self.std) or not all(s > 0 for s in self.std):
            raise ScratchvitError(
                f"Normalize: mean {self.mean} and std {self.std} must have the same length, and every std must be > 0"
            )
        # One multiply and one add per pixel: pixel · 1/(255 std) - mean/std.
        sigma = np.array(self.std)[:, None, None]
        self._scale = (1 / (255 * sigma)).astype(np.float32)  # (C, 1, 1)
        self._shift = (-np.array(self.mean)[:, None, None] / sigma).astype(np.float32)

    def __call__(self, images: Array, rng: np.random.Generator | None = None) -> Array:
        if images.shape[-1] != len(self.mean):
            raise ScratchvitError(
                f"Normalize is for {len(self.mean)} channels, the pictures have {images.shape[-1]}"
            )
        xp = array_module(images)
        x = images.transpose(0, 3, 1, 2).astype(np.float32, order="C")  # (B, C, H, W)
        x *= xp.asarray(self._scale)
        x += xp.asarray(self._shift)
        return x


def split_normalize(transform: Transform) -> tuple[Transform, Normalize | None]:
    """A transform without the `Normalize` at its end, and that; None if there is none at its end."""
    steps = transform.transforms if isinstance(transform, Compose) else (transform,)
    if steps and isinstance(steps[-1], Normalize):
        return Compose(*steps[:-1]), steps[-1]
    return transform, None


class RandomCrop:
    """Pad every side and crop to the original size at a random position per picture. Keeps uint8 (B, H, W, C).

    padding: pixels on each side, at least 0
    fill: "zero" (black, as in He et al. 1512.03385 §4.2) or "reflect"
    Raises ScratchvitError for other arguments.
    """

    def __init__(self, padding: int, fill: Literal["zero", "reflect"] = "zero"):
        if padding < 0 or fill not in ("zero", "reflect"):
            raise ScratchvitError(
                f"RandomCrop({padding}, {fill!r}): padding must be at least 0, and fill 'zero' or 'reflect'"
            )
        self.padding = padding
        self.fill = fill

    def __call__(self, images: Images, rng: np.random.Generator) -> Images:
        count, height, width, _ = images.shape
        p = self.padding
        rows, columns = (rng.integers(0, 2 * p + 1, size=count) for _ in range(2))
        around = ((0, 0), (p, p), (p, p), (0, 0))
        padded = np.pad(images, around, mode="constant" if self.fill == "zero" else "reflect")
        windows = sliding_window_view(padded, (height, width), axis=(1, 2))  # (B, 2p+1, 2p+1, C, H, W)
        return windows[np.arange(count), rows, columns].transpose(0, 2, 3, 1)


class RandomHorizontalFlip:
    """Flip each picture left to right with probability p. Keeps uint8 (B, H, W, C)."""

    def __init__(self, p: float = 0.5):
        if not 0 <= p <= 1:
            raise ScratchvitError(f"RandomHorizontalFlip({p}): p is a probability, from 0 to 1")
        self.p = p

    def __call__(self, images: Images, rng: np.random.Generator) -> Images:
        flip = rng.random(len(images)) < self.p
        out, mirrored = images.copy(), images[flip][:, :, ::-1]
        for channel in range(images.shape[-1]):     # copying each channel is faster than copying pixels of 3 bytes
            out[flip, ..., channel] = mirrored[..., channel]
        return out


def channel_stats(dataset: Dataset) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of every channel over all pixels of a data set, scaled to 0 … 1, for `Normalize`.

    Exact: computed from the histogram of the 256 values. Raises ScratchvitError for an empty data set.
    """
    if len(dataset) == 0:
        raise ScratchvitError(f"{dataset.name}: no pictures to compute mean and standard deviation from")
    channels = dataset.image_shape[2]
    counts = np.zeros((channels, 256), np.int64)
    for start in range(0, len(dataset), _CHUNK):
        images = dataset.images(np.arange(start, min(start + _CHUNK, len(dataset))))
        for channel in range(channels):
            counts[channel] += np.bincount(images[..., channel].ravel(), minlength=256)

    share = counts / counts.sum(axis=1, keepdims=True)  # (C, 256), float64
    values = np.arange(256) / 255
    mean = share @ values
    variance = (share * (values - mean[:, None]) ** 2).sum(axis=1)
    return tuple(mean.tolist()), tuple(np.sqrt(variance).tolist())
