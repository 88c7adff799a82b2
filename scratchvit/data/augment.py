"""Random crops, colours and erased boxes: what is drawn for a picture besides `RandAugment`.

Sizes and names as in torchvision (`RandomResizedCrop`, `ColorJitter`) and timm (`RandomErasing`); every picture has
its own row in a draw from the batch's generator, so that it comes out the same in a batch of any size.

    Compose(RandomResizedCrop(224), RandomHorizontalFlip(), RandAugment(2, 15), Normalize(mean, std), RandomErasing())
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageEnhance

from scratchvit.data.images import to_picture
from scratchvit.data.transforms import Images
from scratchvit.errors import ScratchvitError

Range = tuple[float, float]
Boxes = NDArray[np.intp]        # (…, 4): top, left, height, width

_ATTEMPTS = 10
_BOX_CHANCE = 2 * _ATTEMPTS + 2     # uniform numbers for a box: an area and a ratio for each attempt, and the place


def _between(chance: NDArray[np.float64], limits: Range) -> NDArray[np.float64]:
    """From uniform in 0 … 1 to uniform between the limits."""
    return limits[0] + chance * (limits[1] - limits[0])


def _draw_boxes(
    chance: NDArray[np.float64], area: NDArray[np.float64], ratio: Range, sizes: ArrayLike, least: int
) -> tuple[Boxes, NDArray[np.bool_]]:
    """Boxes of a given area and a random ratio height / width, at random places: (N, 4), and whether one was found.

    Of ten attempts, chance (N, 22) and area (N, 10) in pixels, the first that fits is taken. Ratios are
    log-uniform, so that 3/4 and 4/3 are equally likely. The pictures' sizes are (N, 2), heights and widths, or (2,)
    for them all. With least 1 a side is at most the picture's; with 0 it is one less, and something of the picture
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
    """Cut a box of random area, shape and place out of each picture and resize it. uint8 (B, H, W, C) → (B, *size, C).

    Instead of an array the pictures may be a list of uint8 (h, w, C), each of its own size (`Dataset.originals`): what
    is cut out of a large photograph has more detail than what is cut out of the small square that was made of it.

    The crop of Inception (Szegedy et al. 1409.4842 §6), drawn as torchvision draws it: an area uniform in `scale`, as
    a share of the picture, a ratio width / height log-uniform in `ratio`; after ten boxes that do not fit, the
    largest central one of a permitted ratio. Resized by Pillow, that is, antialiased.

    scale           (0.05, 1.0) as the augreg paper's code, (0.08, 1.0) as torchvision. That code leaves the draw to
                    TensorFlow, for which heights and ratios are uniform, not areas and log-ratios: its boxes cover
                    0.38 of a picture on average, these 0.46. Nor does it antialias
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
                f"RandomResizedCrop({size}, scale={scale}, ratio={ratio}): size at least 1; "
                "0 < least ≤ most for scale, a share of the picture of at most 1, and for ratio, width / height."
            )
        if interpolation not in ("nearest", "bilinear", "bicubic"):
            raise ScratchvitError(f"RandomResizedCrop: {interpolation!r}; take nearest, bilinear or bicubic.")
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

    def boxes(self, sizes: ArrayLike, rng: np.random.Generator) -> Boxes:
        """The boxes (B, 4) for pictures of these sizes (B, 2): heights and widths."""
        sizes = np.reshape(sizes, (-1, 2))      # also where there are none
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

    brightness, contrast, saturation   b draws a factor from max(0, 1 - b) … 1 + b; (low, high) from these; 1 is no
                                       change
    hue                                h turns the circle of colours by a share from -h … h, at most 0.5; or (low, high)
    As torchvision's, on Pillow's pictures. Grey pictures have neither saturation nor hue to change.
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
        """For each of count pictures what is changed, in this order, and by which factor."""
        chance = rng.random((count, 2 * len(self.ranges)))
        names = list(self.ranges)
        orders = chance[:, : len(names)].argsort(axis=1)  # (B, 4)
        low, high = np.transpose(list(self.ranges.values()))
        factors = low + chance[:, len(names) :] * (high - low)  # (B, 4)
        idle = [self.ranges[name] == (_NO_CHANGE[name],) * 2 for name in names]
        return [[(names[i], float(own[i])) for i in order if not idle[i]] for order, own in zip(orders, factors)]


_NO_CHANGE = {"brightness": 1, "contrast": 1, "saturation": 1, "hue": 0}


def _range(name: str, value: float | Range) -> Range:
    """What ColorJitter's argument of that name means."""
    least, most = (-0.5, 0.5) if name == "hue" else (0.0, math.inf)
    if isinstance(value, tuple):
        low, high = value
    else:
        low, high = _NO_CHANGE[name] - value, _NO_CHANGE[name] + value
        low = low if name == "hue" else max(low, 0)
    if not least <= low <= high <= most or high == math.inf:
        raise ScratchvitError(
            f"ColorJitter: {name}={value} gives {low:g} … {high:g}; it must be a range within {least:g} … {most:g}."
        )
    return low, high


def _turn_hue(picture: Image.Image, share: float) -> Image.Image:
    """Turn the circle of colours by that share of it; Pillow's hue is an 8-bit number."""
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
    """Overwrite random boxes of some pictures (Zhong et al. 1708.04896), after Normalize, in its float (B, C, H, W).

    After it, because what is written is the normalised picture's: 0 is the mean colour of the data, and the noise has
    its deviation. Written in place: the array is Normalize's own, and a copy would cost more than the boxes.

    p       chance of a picture to be touched at all
    scale   the boxes' area, together, as a share of the picture, uniform
    ratio   height / width of a box, log-uniform
    mode    "const": 0; "rand": one normal colour a box; "pixel": normal noise
    count   1 … count boxes on a picture that is touched
    As timm's. The boxes do not depend on the batch's size; the noise is drawn after them, for one box after the
    other. Raises ScratchvitError for settings out of range, and when given uint8.
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
                f"RandomErasing({p}, scale={scale}, ratio={ratio}, count={count}): p is a probability; 0 < least ≤ "
                "most for scale, a share of the picture of at most 1, and for ratio; at least 1 box."
            )
        if mode not in ("const", "rand", "pixel"):
            raise ScratchvitError(f"RandomErasing: mode {mode!r}; take const, rand or pixel.")
        self.p = p
        self.scale = scale
        self.ratio = ratio
        self.mode = mode
        self.count = count

    def __call__(self, images: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
        if images.dtype.kind != "f":
            raise ScratchvitError(f"RandomErasing comes after Normalize, on float32 (B, C, H, W), not {images.dtype}.")
        for row, boxes in enumerate(self.boxes(images.shape, rng)):
            for top, left, height, width in boxes:
                box = images[row, :, top : top + height, left : left + width]
                noise_shape = box.shape if self.mode == "pixel" else (len(box), 1, 1)
                box[...] = 0 if self.mode == "const" else rng.standard_normal(noise_shape, images.dtype)
        return images

    def boxes(self, shape: tuple[int, ...], rng: np.random.Generator) -> list[Boxes]:
        """The boxes (n, 4) of each picture of that shape (B, C, H, W); a box that fits nowhere is left out."""
        images, height, width = shape[0], shape[2], shape[3]
        chance = rng.random((images, 2 + self.count * _BOX_CHANCE))
        counts = np.where(chance[:, 0] < self.p, 1 + (chance[:, 1] * self.count).astype(int), 0)

        owner = np.repeat(np.arange(images), counts)        # the picture of each box
        nth = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
        chance = chance[:, 2:].reshape(images, self.count, _BOX_CHANCE)[owner, nth]
        area = _between(chance[:, :_ATTEMPTS], self.scale) * (height * width) / counts[owner, None]
        boxes, found = _draw_boxes(chance, area, self.ratio, (height, width), least=0)
        return [boxes[found & (owner == image)] for image in range(images)]
