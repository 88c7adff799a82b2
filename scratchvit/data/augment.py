"""Random crops, colour jitter and random erasing.

Names and defaults follow torchvision (`RandomResizedCrop`, `ColorJitter`) and timm (`RandomErasing`). Every picture has
its own row of random numbers, so that its augmentation does not depend on the batch size.

    Compose(RandomResizedCrop(224), RandomHorizontalFlip(), RandAugment(2, 15), Normalize(mean, std), RandomErasing())
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageEnhance

from scratchvit.data.draws import whole_batch
from scratchvit.data.images import to_picture
from scratchvit.data.transforms import Images
from scratchvit.errors import ScratchvitError

Range = tuple[float, float]
Boxes = NDArray[np.intp]        # (…, 4): top, left, height, width

_ATTEMPTS = 10
_BOX_CHANCE = 2 * _ATTEMPTS + 2     # random numbers per box: an area and a ratio for each attempt, and the position


def _between(chance: NDArray[np.float64], limits: Range) -> NDArray[np.float64]:
    """Scale uniform numbers from 0 … 1 to the limits."""
    return limits[0] + chance * (limits[1] - limits[0])


def _draw_boxes(
    chance: NDArray[np.float64], area: NDArray[np.float64], ratio: Range, sizes: ArrayLike, least: int
) -> tuple[Boxes, NDArray[np.bool_]]:
    """Boxes (N, 4) of given area and random ratio height / width at random positions, and whether one was found (N,).

    The first of ten attempts that fits is used; chance (N, 22), area (N, 10) in pixels. Ratios are log-uniform, so
    that 3/4 and 4/3 are equally likely. sizes are the heights and widths of the pictures, (N, 2), or (2,) for all.
    With least=1 a side is at most that of the picture; with least=0 it is smaller, so that some of the picture
    remains.
    """
    shape = np.exp(_between(chance[:, _ATTEMPTS : 2 * _ATTEMPTS], (np.log(ratio[0]), np.log(ratio[1]))))
    sides = np.rint(np.sqrt([area * shape, area / shape])).astype(int)  # (2, N, 10): heights, widths
    limits = np.transpose(np.reshape(sizes, (-1, 2)))[..., None]  # (2, N or 1, 1)
    fits = np.all((sides >= least) & (sides < least + limits), axis=0)
    chosen = sides[:, np.arange(len(area)), fits.argmax(axis=1)]  # (2, N)
    places = (chance[:, -2:].T * (limits[..., 0] - chosen + 1)).astype(int)
    return np.concatenate([places, chosen]).T, np.any(fits, axis=1)


class RandomResizedCrop:
    """Crop a random box from each picture and resize it: uint8 (B, H, W, C) → (B, *size, C).

    The pictures can also be a list of uint8 (h, w, C) of different sizes (`Dataset.originals`): a crop of a large photo
    has more detail than a crop of the same photo after it was made small.

    This is the crop of Inception (Szegedy et al. 1409.4842 §6), drawn as in torchvision: an area uniform in `scale`, as
    a fraction of the picture, and a ratio width / height log-uniform in `ratio`; after ten boxes that do not fit, the
    largest central box with an allowed ratio. Resizing is done by Pillow, with antialiasing.

    scale           (0.05, 1.0) in the augreg paper's code, (0.08, 1.0) in torchvision. The augreg code leaves the draw
                    to TensorFlow, where heights and ratios are uniform, not areas and log-ratios: its boxes cover 0.38
                    of a picture on average, these 0.46. Nor does it use antialiasing
    interpolation   "nearest", "bilinear" or "bicubic"
    Raises ScratchvitError for settings out of range.
    """

    def __init__(
        self,
        size: int | tuple[int, int],
        scale: Range = (0.05, 1.0),
        ratio: Range = (3 / 4, 4 / 3),
        interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear",
    ):
        self.size = (size, size) if isinstance(size, int) else size  # height, width
        if min(self.size) < 1 or not 0 < scale[0] <= scale[1] <= 1 or not 0 < ratio[0] <= ratio[1]:
            raise ScratchvitError(
                f"RandomResizedCrop({size}, scale={scale}, ratio={ratio}): size must be at least 1, scale (fraction of "
                "the area) must satisfy 0 < low ≤ high ≤ 1, and ratio (width / height) 0 < low ≤ high"
            )
        if interpolation not in ("nearest", "bilinear", "bicubic"):
            raise ScratchvitError(
                f"RandomResizedCrop: interpolation must be nearest, bilinear or bicubic, not {interpolation!r}"
            )
        self.scale = scale
        self.ratio = ratio
        self.interpolation = Image.Resampling[interpolation.upper()]

    def __call__(self, images: Images | Sequence[Images], rng: np.random.Generator) -> Images:
        height, width = self.size
        channels = images[0].shape[-1] if len(images) else 3
        out = np.empty((len(images), height, width, channels), np.uint8)
        boxes = self.boxes([image.shape[:2] for image in images], rng)
        for image, result, (top, left, box_height, box_width) in zip(images, out, boxes):
            crop = to_picture(image[top : top + box_height, left : left + box_width])
            result[...] = np.asarray(crop.resize((width, height), self.interpolation)).reshape(result.shape)
        return out

    def needs(self) -> int:
        """The shorter side of a picture in which no box is smaller than `size`. More pixels than that show no more."""
        height_to_width = min(1 / self.ratio[1], self.ratio[0])
        return math.ceil(max(self.size) / math.sqrt(self.scale[0] * height_to_width))

    def boxes(self, sizes: ArrayLike, rng: np.random.Generator) -> Boxes:
        """Random boxes (B, 4) for pictures of given sizes (B, 2): heights and widths."""
        sizes = np.reshape(sizes, (-1, 2))      # for an empty list, too
        chance = rng.random((len(sizes), _BOX_CHANCE))
        area = _between(chance[:, :_ATTEMPTS], self.scale) * sizes.prod(axis=1, keepdims=True)
        height_to_width = 1 / self.ratio[1], 1 / self.ratio[0]
        boxes, found = _draw_boxes(chance, area, height_to_width, sizes, least=1)
        for row in np.flatnonzero(~found):
            boxes[row] = self._central(*sizes[row].tolist())
        return boxes

    def _central(self, height: int, width: int) -> tuple[int, int, int, int]:
        box_height, box_width = height, width
        if width / height < self.ratio[0]:
            box_height = max(1, round(width / self.ratio[0]))
        elif width / height > self.ratio[1]:
            box_width = max(1, round(height * self.ratio[1]))
        return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


class ColorJitter:
    """Change brightness, contrast, saturation and hue by random factors, in random order. Keeps uint8 (B, H, W, C).

    brightness, contrast, saturation   b: the factor is drawn from max(0, 1 - b) … 1 + b; (low, high): from this range.
                                       A factor of 1 means no change
    hue                                h: the hue is shifted by -h … h of the colour circle, at most 0.5; or (low, high)
    Same as torchvision's on Pillow images. Saturation and hue do not change grey pictures.
    Raises ScratchvitError for settings out of range.
    """

    def __init__(
        self,
        brightness: float | Range = 0,
        contrast: float | Range = 0,
        saturation: float | Range = 0,
        hue: float | Range = 0,
    ):
        given = {"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue}
        self.ranges = {name: _range(name, value) for name, value in given.items()}

    def __call__(self, images: Images, rng: np.random.Generator) -> Images:
        out = np.empty_like(images)
        for row, changes in enumerate(self.changes(len(images), rng)):
            picture = to_picture(images[row])
            for name, factor in changes:
                picture = _JITTER[name](picture, factor)
            out[row] = np.asarray(picture).reshape(images.shape[1:])
        return out

    def changes(self, count: int, rng: np.random.Generator) -> list[list[tuple[str, float]]]:
        """For each of count pictures, the random list of (property, factor), in the order of application."""
        chance = rng.random((count, 2 * len(self.ranges)))
        names = list(self.ranges)
        orders = chance[:, : len(names)].argsort(axis=1)  # (B, 4)
        low, high = np.transpose(list(self.ranges.values()))
        factors = low + chance[:, len(names) :] * (high - low)  # (B, 4)
        idle = [self.ranges[name] == (_NO_CHANGE[name],) * 2 for name in names]
        return [[(names[i], float(own[i])) for i in order if not idle[i]] for order, own in zip(orders, factors)]


_NO_CHANGE = {"brightness": 1, "contrast": 1, "saturation": 1, "hue": 0}


def _range(name: str, value: float | Range) -> Range:
    """The range of factors that an argument of ColorJitter stands for."""
    least, most = (-0.5, 0.5) if name == "hue" else (0.0, math.inf)
    if isinstance(value, tuple):
        low, high = value
    else:
        low, high = _NO_CHANGE[name] - value, _NO_CHANGE[name] + value
        low = low if name == "hue" else max(low, 0)
    if not least <= low <= high <= most or high == math.inf:
        raise ScratchvitError(
            f"ColorJitter: {name}={value} gives the range {low:g} … {high:g}; it must lie within {least:g} … {most:g}"
        )
    return low, high


def _turn_hue(picture: Image.Image, share: float) -> Image.Image:
    """Shift the hue by a fraction of the colour circle; Pillow's hue is an 8-bit number."""
    if picture.mode == "L":
        return picture
    hue, saturation, value = picture.convert("HSV").split()
    turned = hue.point([(h + int(share * 255)) % 256 for h in range(256)])
    return Image.merge("HSV", (turned, saturation, value)).convert(picture.mode)


_JITTER: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "brightness": lambda picture, factor: ImageEnhance.Brightness(picture).enhance(factor),
    "contrast": lambda picture, factor: ImageEnhance.Contrast(picture).enhance(factor),
    "saturation": lambda picture, factor: ImageEnhance.Color(picture).enhance(factor),
    "hue": _turn_hue,
}


class RandomErasing:
    """Erase random boxes of some images (Zhong et al. 1708.04896). Comes after Normalize; float (B, C, H, W), in place.

    After normalisation, 0 is the mean colour of the data and the noise has their standard deviation. It writes into its
    input, which Normalize has just created, because a copy would cost more than the boxes.

    p       probability that an image is changed
    scale   total area of the boxes as a fraction of the image, uniform
    ratio   height / width of a box, log-uniform
    mode    fill: "const", 0; "rand", one normally distributed colour per box; "pixel", normally distributed noise
    count   largest number of boxes; the number is uniform from 1 to count
    Same as timm's. The boxes do not depend on the batch size; the noise is drawn after them, box by box. So for a share
    of a batch, the noise of all its images has to be drawn. Raises ScratchvitError for settings out of range, and when
    called with uint8.
    """

    def __init__(
        self,
        p: float = 0.5,
        scale: Range = (0.02, 1 / 3),
        ratio: Range = (0.3, 1 / 0.3),
        mode: Literal["const", "rand", "pixel"] = "const",
        count: int = 1,
    ):
        if not 0 <= p <= 1 or not 0 < scale[0] <= scale[1] <= 1 or not 0 < ratio[0] <= ratio[1] or count < 1:
            raise ScratchvitError(
                f"RandomErasing({p}, scale={scale}, ratio={ratio}, count={count}): p is a probability, scale (fraction "
                "of the area) must satisfy 0 < low ≤ high ≤ 1, ratio 0 < low ≤ high, and count must be at least 1"
            )
        if mode not in ("const", "rand", "pixel"):
            raise ScratchvitError(f"RandomErasing: mode must be const, rand or pixel, not {mode!r}")
        self.p = p
        self.scale = scale
        self.ratio = ratio
        self.mode = mode
        self.count = count

    def __call__(self, images: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
        if images.dtype.kind != "f":
            raise ScratchvitError(f"RandomErasing comes after Normalize, on float32 (B, C, H, W), not {images.dtype}")
        rng, rows, whole = whole_batch(rng, len(images))
        channels = images.shape[1]
        for row, boxes in enumerate(self.boxes((whole, *images.shape[1:]), rng)):
            for top, left, height, width in boxes:
                noise_shape = (channels, height, width) if self.mode == "pixel" else (channels, 1, 1)
                fill = 0 if self.mode == "const" else rng.standard_normal(noise_shape, images.dtype)
                if rows.start <= row < rows.stop:       # otherwise an image of another process
                    images[row - rows.start, :, top : top + height, left : left + width] = fill
        return images

    def boxes(self, shape: tuple[int, ...], rng: np.random.Generator) -> list[Boxes]:
        """Random boxes (n, 4) for each image of a batch of shape (B, C, H, W); a box that does not fit is left out."""
        images, height, width = shape[0], shape[2], shape[3]
        chance = rng.random((images, 2 + self.count * _BOX_CHANCE))
        counts = np.where(chance[:, 0] < self.p, 1 + (chance[:, 1] * self.count).astype(int), 0)

        owner = np.repeat(np.arange(images), counts)        # the picture of each box
        nth = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
        chance = chance[:, 2:].reshape(images, self.count, _BOX_CHANCE)[owner, nth]
        area = _between(chance[:, :_ATTEMPTS], self.scale) * (height * width) / counts[owner, None]
        boxes, found = _draw_boxes(chance, area, self.ratio, (height, width), least=0)
        return [boxes[found & (owner == image)] for image in range(images)]
