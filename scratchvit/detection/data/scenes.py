"""Generated detection data without a download: scenes with scikit-learn's handwritten digits.

Each scene is a coloured, textured background with one to six digits, brighter or darker than the background, of random
colour, size, aspect ratio and rotation. A digit is enlarged from its 8 × 8 pixels, and its box is exact: the smallest
box around its ink. The ink of two digits never overlaps; their boxes can, a little.

The splits train, val and test use the digits of the same splits of `data.digits`, so no test digit is seen in training.
A scene depends only on (seed, split, index). The training scenes never repeat: the index continues from one epoch to
the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from scratchvit.data import Dataset
from scratchvit.data.digits import load_digits
from scratchvit.detection.data.annotations import Annotations, DetectionDataset, DetectionSplits
from scratchvit.detection.data.reading import AnnotationList
from scratchvit.errors import ScratchvitError

Pixels = NDArray[np.uint8]
Colour: TypeAlias = NDArray[np.float32]     # (3,): red, green, blue, 0 … 255

MOST_DIGITS = 6
SIDES = (0.19, 0.44)        # side of a digit's 8 × 8 square as a fraction of the side of the scene
_STRETCH = 1.2              # largest change of a digit's aspect ratio
_TILT = 15                  # largest rotation, in degrees
_ATTEMPTS = 30              # random positions tried for a digit before it is left out
_OVERLAP = 0.15             # largest overlap of two boxes, as a fraction of the smaller one
_CONTRAST = (70, 130)       # difference in brightness between a digit and the background, of 255
_FAINT = 80                 # ink below this, of 255, is set to 0
_FIXED_SEED = 0             # seed of val and test, independent of the run's seed


class Form(NamedTuple):
    """How a digit is drawn.

    which       index of the handwritten digit in the data set of digits
    side        side of its 8 × 8 square in pixels of the scene
    stretch     the square becomes side · stretch wide and side / stretch high
    tilt        rotation in degrees, counterclockwise
    """

    which: int
    side: float
    stretch: float
    tilt: float


@dataclass(frozen=True)
class Digit:
    """A digit in a scene.

    label       0 … 9
    form        how it is drawn
    place       (top, left) of `ink` in the scene
    ink         uint8 (h, w), opacity of the digit's colour, cropped to the inked pixels
    """

    label: int
    form: Form
    place: tuple[int, int]
    ink: Pixels

    @property
    def box(self) -> tuple[int, int, int, int]:
        """The smallest box around the ink: (x0, y0, x1, y1)."""
        (top, left), (height, width) = self.place, self.ink.shape
        return left, top, left + width, top + height


class Scenes(DetectionDataset):
    """A data set of scenes of img_size × img_size with the pictures of `digits`.

    length      number of scenes or, if endless, of scenes in an epoch
    key         (seed, split); together with the index, the seed of a scene
    labels      int64 (N,): the labels of `digits`, to which `Form.which` counts

    Raises ScratchvitError for a side below 48 pixels, at which the smallest digits could not be recognised.
    """

    def __init__(self, digits: Dataset, img_size: int, length: int, key: tuple[int, int], endless: bool, name: str):
        if img_size < 48 or length < 1:
            raise ScratchvitError(f"scenes: img_size={img_size} must be at least 48 and length={length} at least 1")
        self.name = name
        self.classes = digits.classes
        self.category_ids = tuple(range(1, len(digits.classes) + 1))
        self.endless = endless
        self.img_size = img_size
        self._length = length
        self._key = key
        self._written = digits.images(range(len(digits)))[..., 0]   # (N, 8, 8)
        self.labels = digits.labels

    def __len__(self) -> int:
        return self._length

    def size(self, index: int) -> tuple[int, int]:
        return self.img_size, self.img_size

    def annotations(self, index: int) -> Annotations:
        return self.annotated(index, self.digits(index))

    def picture(self, index: int) -> Image.Image:
        return self._painted(index, self.digits(index))[0]

    def example(self, index: int) -> tuple[Image.Image, Annotations]:
        digits = self.digits(index)
        return self._painted(index, digits)[0], self.annotated(index, digits)

    def digits(self, index: int) -> list[Digit]:
        """The digits of a scene, at least one, sorted from large to small."""
        rng = self._generator(index, 0)
        count = int(rng.integers(1, MOST_DIGITS + 1))
        least, most = np.log(SIDES)
        sides = np.sort(np.exp(rng.uniform(least, most, count)))[::-1] * self.img_size
        digits: list[Digit] = []
        for side, which in zip(sides.tolist(), rng.integers(len(self.labels), size=count).tolist()):
            digit = self._placed(which, side, digits, rng)
            if digit is not None:
                digits.append(digit)
        return digits

    def ground(self, index: int) -> Pixels:
        """The background of a scene, uint8 (H, W, 3)."""
        return _ground(self.img_size, self._generator(index, 1))

    def colours(self, index: int) -> list[Colour]:
        """The colour of each of `digits(index)`."""
        return self._painted(index, self.digits(index))[1]

    def drawn(self, form: Form, place: tuple[int, int]) -> Digit:
        """The digit of this form at a place (top, left)."""
        return Digit(int(self.labels[form.which]), form, place, _draw(self._written[form.which], form))

    def another(self, label: int, digits: Sequence[Digit], rng: np.random.Generator) -> Digit | None:
        """A random digit with this label beside `digits`, as those of a scene are; None if there is no room for it."""
        least, most = np.log(SIDES)
        side = float(np.exp(rng.uniform(least, most))) * self.img_size
        return self._placed(int(rng.choice(np.flatnonzero(self.labels == label))), side, digits, rng)

    def _placed(self, which: int, side: float, digits: Sequence[Digit], rng: np.random.Generator) -> Digit | None:
        """A handwritten digit of random stretch and tilt, at a free place; None if none is found."""
        form = Form(which, side, float(np.exp(rng.uniform(-1, 1) * np.log(_STRETCH) / 2)), rng.uniform(-_TILT, _TILT))
        digit = self.drawn(form, (0, 0))
        place = _free_place(digit.ink, self.img_size, digits, rng)
        return None if place is None else replace(digit, place=place)

    def _painted(self, index: int, digits: Sequence[Digit]) -> tuple[Image.Image, list[Colour]]:
        scene, colours = self.ground(index).astype(np.float32), []
        rng = self._generator(index, 2)
        for digit in digits:
            colours.append(colour_on(part_under(scene, digit), rng))
            paint(scene, digit, colours[-1])
        return as_picture(scene), colours

    def annotated(self, index: int, digits: Sequence[Digit]) -> Annotations:
        """The annotations of scene `index`, if these are its digits."""
        found = AnnotationList()
        for digit in digits:
            x0, y0, x1, y1 = map(float, digit.box)
            found.add((x0, y0, x1, y1), digit.label)
        return found.annotations(index + 1, f"{self.name} {index}", self.size(index))

    def _generator(self, index: int, use: int) -> np.random.Generator:
        seed, part = self._key
        return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(part, index, use)))


def load_scenes(
    img_size: int = 96, *, seed: int = 0, train: int = 2000, val: int = 200, test: int = 500
) -> DetectionSplits:
    """Generated scenes of 96 × 96 as DetectionSplits.

    train       number of training scenes in an epoch; they depend on seed and never repeat
    val, test   numbers of validation and test scenes, which do not depend on seed

    Raises ScratchvitError if scikit-learn, which contains the digits, is not installed.
    """
    digits = load_digits()
    return DetectionSplits(
        Scenes(digits.train, img_size, train, (seed, 0), endless=True, name="scenes train"),
        Scenes(digits.val, img_size, val, (_FIXED_SEED, 1), endless=False, name="scenes val"),
        Scenes(digits.test, img_size, test, (_FIXED_SEED, 2), endless=False, name="scenes test"),
        (f"scenes: train is generated from seed {seed}; val and test are always the same {val} and {test}",),
    )


def part_under(scene: NDArray[Any], digit: Digit) -> NDArray[Any]:
    """The part of a scene (H, W, …) inside the digit's box, a view."""
    x0, y0, x1, y1 = digit.box
    return scene[y0:y1, x0:x1]


def paint(scene: NDArray[np.float32], digit: Digit, colour: Colour) -> None:
    """Paint a digit into a scene (H, W, 3), 0 … 255, in place."""
    under = part_under(scene, digit)
    cover = digit.ink[..., None] / np.float32(255)
    under += cover * (colour - under)


def as_picture(scene: NDArray[np.float32]) -> Image.Image:
    """A painted scene (H, W, 3), 0 … 255, as an RGB picture."""
    return Image.fromarray(np.rint(scene).astype(np.uint8))


def _draw(written: Pixels, form: Form) -> Pixels:
    """Turn a digit (8, 8) into ink (h, w): resized to about side × side, stretched, rotated, and sharpened."""
    size = round(form.side * form.stretch), round(form.side / form.stretch)     # Pillow's: width, height
    padded = Image.fromarray(np.pad(written, 2))            # room for the rotation
    large = padded.resize((size[0] * 12 // 8, size[1] * 12 // 8), Image.Resampling.BICUBIC)
    turned = np.asarray(large.rotate(form.tilt, Image.Resampling.BICUBIC), np.float32)
    ink = np.clip((turned - 72) * 2, 0, 255).astype(np.uint8)      # 72 … 200 of the blurred stroke: its edge
    ink[ink < _FAINT] = 0
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _free_place(
    ink: Pixels, side: int, digits: Sequence[Digit], rng: np.random.Generator
) -> tuple[int, int] | None:
    """A random position (top, left) where ink does not overlap with that of digits, and boxes hardly do, or None."""
    taken = np.zeros((side, side), bool)        # inked
    for digit in digits:
        part_under(taken, digit)[digit.ink > 0] = True
    room = np.array(taken.shape) - ink.shape + 1
    for top, left in (rng.random((_ATTEMPTS, 2)) * room).astype(int).tolist():
        window = taken[top : top + ink.shape[0], left : left + ink.shape[1]]
        if (window & (ink > 0)).any():
            continue
        if all(_overlap((top, left), ink.shape, digit.box) <= _OVERLAP for digit in digits):
            return top, left
    return None


def _overlap(place: tuple[int, int], shape: tuple[int, ...], box: tuple[int, int, int, int]) -> float:
    """The intersection of two boxes as a fraction of the smaller one."""
    x0, y0, x1, y1 = box
    across = min(place[1] + shape[1], x1) - max(place[1], x0)
    down = min(place[0] + shape[0], y1) - max(place[0], y0)
    return max(across, 0) * max(down, 0) / min(shape[0] * shape[1], (x1 - x0) * (y1 - y0))


def _ground(side: int, rng: np.random.Generator) -> Pixels:
    """A random background: smooth patches of two colours of similar brightness, with streaks and noise."""
    brightness = rng.uniform(50, 205)
    tints = rng.uniform(-35, 35, (2, 3))
    colours = brightness + tints - tints.mean(axis=1, keepdims=True) + rng.uniform(-14, 14, (2, 1))
    share = _smooth(side, int(rng.integers(3, 7)), int(rng.integers(3, 7)), rng)[..., None]
    streaks = _smooth(side, int(rng.integers(3, 9)), int(rng.integers(10, 25)), rng)[..., None] - 0.5
    grain = rng.normal(0, rng.uniform(2, 7), (side, side, 1))
    ground = colours[0] + share * (colours[1] - colours[0]) + rng.uniform(0, 30) * streaks + grain
    if rng.random() < 0.5:      # horizontal or vertical streaks
        ground = ground.swapaxes(0, 1)
    return np.clip(np.rint(ground), 0, 255).astype(np.uint8)


def _smooth(side: int, rows: int, columns: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Smooth noise (side, side), about in 0 … 1: random numbers on a coarse grid, interpolated."""
    coarse = Image.fromarray(rng.random((rows, columns), np.float32))
    return np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC))


def colour_on(ground: NDArray[np.float32], rng: np.random.Generator) -> Colour:
    """A random colour, clearly brighter or darker than the background (…, 3) under a digit."""
    under = float(ground.mean())
    contrast = rng.uniform(*_CONTRAST)
    up = rng.random() < 0.5 if 100 < under < 155 else under < 128
    tint = rng.uniform(-45, 45, 3)
    colour = under + (contrast if up else -contrast) + tint - tint.mean()
    return np.clip(colour, 0, 255).astype(np.float32)
