"""RandAugment as used in the augreg paper, and the seven augmentation levels of that paper.

Every picture gets num_layers operations, drawn uniformly with replacement from sixteen, all at one magnitude (Cubuk et
al. 1909.13719). Implementations differ in what an operation does at a given magnitude; this one follows the code of
Steiner et al. 2106.10270, google-research/big_vision. Three things in it are surprising:

- Magnitude is not strength. At 0, Color, Contrast and Brightness use a factor of 0.1, Posterize keeps 1 bit and
  Solarize inverts; at 5, the first three and Sharpness do nothing. So light1, two layers at 0, does change pictures.
- 10 is not the maximum. At 15 and 20 the same formulas apply: rotations by 45° and 60°, factors of 2.8 and 3.7.
- Thresholds and shifts are uint8 and wrap around beyond its range: see `solarize` and `posterize`.

The operations here are Pillow's, or lookup tables equal to Pillow's, as in timm. Those of TensorFlow, in big_vision,
are the same except:

    Shear               is centred on the middle of the corner pixel, not on its corner: up to half a pixel apart
    Contrast            blends with (number of pixels) / 256, probably a bug, instead of the mean of the picture: a
                        grey of 196 for 224 × 224, nearly black for 32 × 32
    Color, Sharpness    round differently by one grey level, before the factor is applied
    Translate, Cutout   use pixels whatever the size of the picture, and so can blank one of 32 × 32. Here the values
                        are for a picture of 224 × 224 and scale with its size (as timm's TranslateXRel)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from scratchvit.data.images import to_picture
from scratchvit.data.transforms import Images
from scratchvit.errors import ScratchvitError

GREY = 128              # fills pixels from outside the picture
PAPER_SIZE = 224        # the picture size to which the pixel numbers of Translate and Cutout refer

Chance = NDArray[np.float64]    # (B, 3), uniform in 0 … 1: a sign, and a position (y, x), for every picture


class Level(NamedTuple):
    """An augmentation level: `RandAugment(num_layers, magnitude)`, then MixUp with α = mixup_alpha."""

    num_layers: int
    magnitude: int
    mixup_alpha: float


# Steiner et al. §3.3; their code calls the heavy ones "strong".
LEVELS = {
    #         num_layers, magnitude, mixup_alpha
    "none":    Level(0,  0, 0.0),
    "light1":  Level(2,  0, 0.0),
    "light2":  Level(2, 10, 0.2),
    "medium1": Level(2, 15, 0.2),
    "medium2": Level(2, 15, 0.5),
    "heavy1":  Level(2, 20, 0.5),
    "heavy2":  Level(2, 20, 0.8),
}


class RandAugment:
    """Apply num_layers random operations of one magnitude to every picture. Keeps uint8 (B, H, W, C), C 1 or 3.

    magnitude   at least 0; usually up to 10, but the levels of the augreg paper go up to 20
    Raises ScratchvitError for settings out of range.
    """

    def __init__(self, num_layers: int, magnitude: float):
        if num_layers < 0 or not 0 <= magnitude < math.inf:
            raise ScratchvitError(
                f"RandAugment({num_layers}, {magnitude}): num_layers and magnitude must be at least 0; "
                f"the levels of the paper are {', '.join(f'{name} {level[:2]}' for name, level in LEVELS.items())}"
            )
        self.num_layers = num_layers
        self.magnitude = magnitude

    def __call__(self, images: Images, rng: np.random.Generator) -> Images:
        # The random numbers of a picture are one row of one draw, so that they do not depend on the batch size.
        chance = rng.random((len(images), self.num_layers, 4))
        drawn = (chance[..., 0] * len(OPERATIONS)).astype(int)  # (B, num_layers)
        out = images.copy()
        for layer in range(self.num_layers):
            for number, name in enumerate(OPERATIONS):
                rows = np.flatnonzero(drawn[:, layer] == number)
                if rows.size:
                    out[rows] = apply_operation(name, out[rows], self.magnitude, chance[rows, layer, 1:])
        return out


def apply_operation(name: str, images: Images, magnitude: float, chance: Chance) -> Images:
    """Apply one of `OPERATIONS` to uint8 (B, H, W, C); returns a new array.

    chance (B, 3): uniform random numbers in 0 … 1, for a sign and a position (y, x).
    """
    operation = OPERATIONS[name]
    return operation.apply(images, *operation.arguments(magnitude / 10, chance))


# Operations on single pixels, by lookup tables of 256 values, which are made by applying Pillow to the 256 greys.


def auto_contrast(images: Images) -> Images:
    """Stretch every channel of a picture from its range of values to 0 … 255, as `ImageOps.autocontrast`."""
    occurs = _histograms(images) > 0
    lowest, highest = occurs.argmax(axis=-1)[..., None], 255 - occurs[..., ::-1].argmax(axis=-1)[..., None]
    scale = 255.0 / np.maximum(highest - lowest, 1)  # (B, C, 1)
    stretched = np.clip(_GREYS * scale + -lowest * scale, 0, 255)  # (B, C, 256)
    return _look_up_each(images, np.where(lowest == highest, _GREYS, stretched))


def equalize(images: Images) -> Images:
    """Equalise the histogram of every channel of a picture, as `ImageOps.equalize`."""
    histograms = _histograms(images)
    below = np.cumsum(histograms, axis=-1) - histograms  # how many pixels are darker than each value
    step = below.max(axis=-1, keepdims=True, initial=0, where=histograms > 0) // 255  # (B, C, 1)
    equal = np.minimum((below + step // 2) // np.maximum(step, 1), 255)
    return _look_up_each(images, np.where(step == 0, _GREYS, equal))


def invert(images: Images) -> Images:
    """Invert every pixel: 255 - x, as `ImageOps.invert`."""
    return _look_up(images, ImageOps.invert)


def posterize(images: Images, bits: int) -> Images:
    """Keep the `bits` highest bits of each pixel, as `ImageOps.posterize`.

    0 bits, or more than 8, keep 1 bit: TensorFlow shifts a uint8 by 8 - bits, where a negative shift wraps around to a
    large one, and a shift of more than 7 becomes 7.
    """
    return _look_up(images, lambda picture: ImageOps.posterize(picture, bits if 0 < bits <= 8 else 1))


def solarize(images: Images, threshold: int) -> Images:
    """Invert pixels of at least threshold, as `ImageOps.solarize`.

    The threshold is taken modulo 256, as it is a uint8 in big_vision: 256 and 512 (magnitudes 10 and 20) become 0 and
    invert everything; 384 becomes 128.
    """
    return _look_up(images, lambda picture: ImageOps.solarize(picture, threshold % 256))


def solarize_add(images: Images, addition: int) -> Images:
    """Add `addition` to pixels below 128, up to 255."""
    table = [min(x + addition, 255) if x < 128 else x for x in range(256)]
    return _look_up(images, lambda picture: picture.point(table))


def brightness(images: Images, factor: float) -> Images:
    """Multiply every pixel by factor, as `ImageEnhance.Brightness`."""
    return _look_up(images, lambda picture: ImageEnhance.Brightness(picture).enhance(factor))


_GREYS = np.arange(256, dtype=np.uint8)


def _look_up(images: Images, function: Callable[[Image.Image], Image.Image]) -> Images:
    """Apply a function of single pixels by a lookup table of its 256 values."""
    table = np.asarray(function(Image.fromarray(_GREYS[None])))
    # bytes.translate is faster than table[images], which first converts each byte to an 8-byte index.
    return np.frombuffer(bytearray(images).translate(table.tobytes()), np.uint8).reshape(images.shape)


def _look_up_each(images: Images, tables: NDArray[Any]) -> Images:
    """Apply a lookup table to each channel of each picture; tables (B, C, 256)."""
    out = np.empty_like(images)
    for image, result, of_channel in zip(images, out, tables.astype(np.uint8)):
        for channel, table in enumerate(of_channel):
            looked_up = image[..., channel].tobytes().translate(table.tobytes())
            result[..., channel] = np.frombuffer(looked_up, np.uint8).reshape(image.shape[:2])
    return out


def _histograms(images: Images) -> NDArray[np.intp]:
    """Histogram of each channel of each picture: (B, C, 256)."""
    planes = images.transpose(0, 3, 1, 2)
    return np.array([[np.bincount(plane.ravel(), minlength=256) for plane in picture] for picture in planes])


# Operations that Pillow applies to one picture at a time.


def color(images: Images, factor: float) -> Images:
    """Change the saturation, as `ImageEnhance.Color`: factor 0 gives grey, 1 the picture itself, more is stronger.

    Grey pictures (C = 1) do not change.
    """
    return _each(images, lambda picture: ImageEnhance.Color(picture).enhance(factor))


def contrast(images: Images, factor: float) -> Images:
    """Change the contrast, as `ImageEnhance.Contrast`: factor 0 gives the mean grey, 1 the picture itself."""
    return _each(images, lambda picture: ImageEnhance.Contrast(picture).enhance(factor))


def sharpness(images: Images, factor: float) -> Images:
    """Change the sharpness, as `ImageEnhance.Sharpness`: factor 0 gives a smoothed picture, 1 the picture itself."""
    return _each(images, lambda picture: ImageEnhance.Sharpness(picture).enhance(factor))


def rotate(images: Images, degrees: NDArray[np.float64]) -> Images:
    """Rotate each picture about its centre by degrees (B,), counter-clockwise."""
    fill = _fill(images)
    return _each(images, lambda picture, angle: picture.rotate(angle, fillcolor=fill), degrees)


def shear_x(images: Images, factors: NDArray[np.float64]) -> Images:
    """Shift each row of a picture to the left by factor · its y; factors (B,)."""
    return _affine(images, [(1, factor, 0, 0, 1, 0) for factor in factors])


def shear_y(images: Images, factors: NDArray[np.float64]) -> Images:
    """Shift each column of a picture up by factor · its x; factors (B,)."""
    return _affine(images, [(1, 0, 0, factor, 1, 0) for factor in factors])


def translate_x(images: Images, pixels: NDArray[np.float64]) -> Images:
    """Shift each picture to the left by pixels (B,), scaled by width / 224."""
    scale = images.shape[2] / PAPER_SIZE
    return _affine(images, [(1, 0, scale * shift, 0, 1, 0) for shift in pixels])


def translate_y(images: Images, pixels: NDArray[np.float64]) -> Images:
    """Shift each picture up by pixels (B,), scaled by height / 224."""
    scale = images.shape[1] / PAPER_SIZE
    return _affine(images, [(1, 0, 0, 0, 1, scale * shift) for shift in pixels])


def _affine(images: Images, rows: list[tuple[float, ...]]) -> Images:
    """Affine transform: (x, y) gets the pixel nearest to (a x + b y + c, d x + e y + f); rows (B, 6) are (a, …, f)."""
    fill = _fill(images)
    method = Image.Transform.AFFINE
    return _each(images, lambda picture, row: picture.transform(picture.size, method, row, fillcolor=fill), rows)


def _fill(images: Images) -> tuple[int, ...]:
    return (GREY,) * images.shape[-1]


def _each(images: Images, function: Callable[..., Image.Image], *arguments: Any) -> Images:
    """Apply function(picture, *arguments) to every picture; the arguments are sequences of length B."""
    out = np.empty_like(images)
    for row, (image, *own) in enumerate(zip(images, *arguments)):
        out[row] = np.asarray(function(to_picture(image), *own)).reshape(image.shape)
    return out


def cutout(images: Images, half_side: int, centres: NDArray[np.float64]) -> Images:
    """Draw a grey square of side 2 · half_side into each picture, clipped at its borders.

    Source: DeVries and Taylor 1708.04552.
    half_side is in pixels of a picture of 224 and scales with the size; centres (B, 2) are (y, x) in 0 … 1.
    """
    height, width = images.shape[1:3]
    half = int(half_side * min(height, width) / PAPER_SIZE)
    out = images.copy()
    for image, (y, x) in zip(out, (centres * (height, width)).astype(int)):
        image[max(y - half, 0) : y + half, max(x - half, 0) : x + half] = GREY
    return out


class Operation(NamedTuple):
    """An operation, called as apply(images, *arguments(magnitude / 10, chance))."""

    arguments: Callable[[float, Chance], tuple[Any, ...]]
    apply: Callable[..., Images]


def _no_arguments(level: float, chance: Chance) -> tuple[()]:
    return ()


def _factor(level: float, chance: Chance) -> tuple[float]:
    return (level * 1.8 + 0.1,)


def _whole(at_ten: int) -> Callable[[float, Chance], tuple[int]]:
    """The argument level · at_ten, rounded down."""
    return lambda level, chance: (int(level * at_ten),)


def _signed(at_ten: float) -> Callable[[float, Chance], tuple[NDArray[np.float64]]]:
    """The argument ±level · at_ten, with a random sign for each picture (B,)."""
    return lambda level, chance: (np.where(chance[:, 0] < 0.5, -1, 1) * (level * at_ten),)


OPERATIONS = {
    #                                  argument at magnitude 10
    "AutoContrast": Operation(_no_arguments,          auto_contrast),
    "Equalize":     Operation(_no_arguments,          equalize),
    "Invert":       Operation(_no_arguments,          invert),
    "Rotate":       Operation(_signed(30),            rotate),          # ± 30 degrees
    "Posterize":    Operation(_whole(4),              posterize),       # 4 bits
    "Solarize":     Operation(_whole(256),            solarize),        # threshold 256
    "Color":        Operation(_factor,                color),           # factor 1.9, and 0.1 at magnitude 0
    "Contrast":     Operation(_factor,                contrast),
    "Brightness":   Operation(_factor,                brightness),
    "Sharpness":    Operation(_factor,                sharpness),
    "ShearX":       Operation(_signed(0.3),           shear_x),         # ± 0.3 pixels per pixel
    "ShearY":       Operation(_signed(0.3),           shear_y),
    "TranslateX":   Operation(_signed(100),           translate_x),     # ± 100 of 224 pixels
    "TranslateY":   Operation(_signed(100),           translate_y),
    "Cutout":       Operation(lambda level, chance: (int(level * 40), chance[:, 1:]), cutout),  # 80 of 224 pixels
    "SolarizeAdd":  Operation(_whole(110),            solarize_add),    # 110 grey levels
}
