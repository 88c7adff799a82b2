"""Detection with nothing to download: scenes composed of scikit-learn's real handwritten digits.

Each scene is a coloured, textured ground with one to six digits on it, brighter or darker than the ground, of varied
colour, size, stretch and tilt. A digit is drawn large from its 8 × 8 pixels, and its box is exact: the smallest around
its ink, which no other digit covers. Boxes may overlap a little, where the ink does not.

Train, val and test are made of the digits of the same parts (`data.digits`), so that no handwriting of the test is ever
trained on. Every scene depends on (seed, part, index) alone. Those of train never end: index goes on from one epoch to
the next.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from scratchvit.data import Dataset
from scratchvit.data.digits import load_digits
from scratchvit.detection.data.annotations import Annotations, DetectionDataset, DetectionSplits
from scratchvit.detection.data.reading import AnnotationList
from scratchvit.errors import ScratchvitError

Pixels = NDArray[np.uint8]

MOST_DIGITS = 6
_SIDES = (0.19, 0.44)       # of a digit's 8 × 8 square, as a share of the scene's side
_STRETCH = 1.2              # a digit is up to that much wider or narrower than it was written
_TILT = 15                  # degrees to either side
_ATTEMPTS = 30              # places tried for a digit before it is given up
_OVERLAP = 0.15             # of two boxes, as a share of the smaller
_CONTRAST = (70, 130)       # between the brightness of a digit and of the ground, 0 … 255
_FAINT = 80                 # ink below that, of 255, is none
_FIXED_SEED = 0             # of val and test, whatever the run's seed


@dataclass(frozen=True)
class Digit:
    """A digit in a scene.

    label       0 … 9
    place       (top, left) of `ink` in the scene
    ink         uint8 (h, w), how much of the digit's colour covers the ground; cut to what is inked
    """

    label: int
    place: tuple[int, int]
    ink: Pixels

    @property
    def box(self) -> tuple[int, int, int, int]:
        """(x0, y0, x1, y1): the smallest around the ink."""
        (top, left), (height, width) = self.place, self.ink.shape
        return left, top, left + width, top + height


class Scenes(DetectionDataset):
    """Scenes of img_size × img_size made of the pictures of `digits`.

    length      how many there are, or with endless, how many an epoch takes
    key         (seed, part): with the index, where all chance comes from

    Raises ScratchvitError for a side below 48 pixels, on which the smallest digits could not be told apart.
    """

    def __init__(self, digits: Dataset, img_size: int, length: int, key: tuple[int, int], endless: bool, name: str):
        if img_size < 48 or length < 1:
            raise ScratchvitError(f"scenes: img_size={img_size} is at least 48 pixels, and their number {length} 1.")
        self.name = name
        self.classes = digits.classes
        self.category_ids = tuple(range(1, len(digits.classes) + 1))
        self.endless = endless
        self.img_size = img_size
        self._length = length
        self._key = key
        self._written = digits.images(range(len(digits)))[..., 0]   # (N, 8, 8)
        self._labels = digits.labels

    def __len__(self) -> int:
        return self._length

    def size(self, index: int) -> tuple[int, int]:
        return self.img_size, self.img_size

    def annotations(self, index: int) -> Annotations:
        return self._annotated(index, self.digits(index))

    def picture(self, index: int) -> Image.Image:
        return self._painted(index, self.digits(index))

    def example(self, index: int) -> tuple[Image.Image, Annotations]:
        digits = self.digits(index)
        return self._painted(index, digits), self._annotated(index, digits)

    def digits(self, index: int) -> list[Digit]:
        """What is in a scene: at least one digit, the largest placed first."""
        rng = self._generator(index, 0)
        count = int(rng.integers(1, MOST_DIGITS + 1))
        least, most = np.log(_SIDES)
        sides = np.sort(np.exp(rng.uniform(least, most, count)))[::-1] * self.img_size
        taken = np.zeros((self.img_size, self.img_size), bool)      # inked
        digits: list[Digit] = []
        for side, chosen in zip(sides, rng.integers(len(self._labels), size=count)):
            ink = _draw(self._written[chosen], float(side), rng)
            place = _free_place(ink, taken, [digit.box for digit in digits], rng)
            if place is not None:
                digits.append(Digit(int(self._labels[chosen]), place, ink))
        return digits

    def ground(self, index: int) -> Pixels:
        """uint8 (H, W, 3): the scene before there are digits on it."""
        return _ground(self.img_size, self._generator(index, 1))

    def _painted(self, index: int, digits: list[Digit]) -> Image.Image:
        scene = self.ground(index).astype(np.float32)
        rng = self._generator(index, 2)
        for digit in digits:
            x0, y0, x1, y1 = digit.box
            under = scene[y0:y1, x0:x1]
            cover = digit.ink[..., None] / np.float32(255)
            under += cover * (_colour_on(under, rng) - under)
        return Image.fromarray(np.rint(scene).astype(np.uint8))

    def _annotated(self, index: int, digits: list[Digit]) -> Annotations:
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
    """Scenes of 96 × 96: `train` in an epoch, never the same twice, by seed; val and test always the same.

    Raises ScratchvitError without scikit-learn, which carries the digits.
    """
    digits = load_digits()
    return DetectionSplits(
        Scenes(digits.train, img_size, train, (seed, 0), endless=True, name="scenes train"),
        Scenes(digits.val, img_size, val, (_FIXED_SEED, 1), endless=False, name="scenes val"),
        Scenes(digits.test, img_size, test, (_FIXED_SEED, 2), endless=False, name="scenes test"),
        (f"scenes: train is made as it goes, from seed {seed}; val and test are always the same {val} and {test}.",),
    )


def _draw(written: Pixels, side: float, rng: np.random.Generator) -> Pixels:
    """A digit (8, 8) as ink (h, w): brought to about side × side, stretched, tilted, its edges sharpened."""
    stretch = np.exp(rng.uniform(-1, 1) * np.log(_STRETCH) / 2)
    size = round(side * stretch), round(side / stretch)     # Pillow's: width, height
    padded = Image.fromarray(np.pad(written, 2))            # room to turn in
    large = padded.resize((size[0] * 12 // 8, size[1] * 12 // 8), Image.Resampling.BICUBIC)
    turned = np.asarray(large.rotate(rng.uniform(-_TILT, _TILT), Image.Resampling.BICUBIC), np.float32)
    ink = np.clip((turned - 72) * 2, 0, 255).astype(np.uint8)      # 72 … 200 of the blurred stroke: its edge
    ink[ink < _FAINT] = 0
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _free_place(
    ink: Pixels, taken: NDArray[np.bool_], boxes: list[tuple[int, int, int, int]], rng: np.random.Generator
) -> tuple[int, int] | None:
    """(top, left) where the ink covers no other and boxes overlap little, or None; marks the ink in `taken`."""
    room = np.array(taken.shape) - ink.shape + 1
    for top, left in (rng.random((_ATTEMPTS, 2)) * room).astype(int).tolist():
        window = taken[top : top + ink.shape[0], left : left + ink.shape[1]]
        if (window & (ink > 0)).any() or any(_overlap((top, left), ink.shape, box) > _OVERLAP for box in boxes):
            continue
        window |= ink > 0
        return top, left
    return None


def _overlap(place: tuple[int, int], shape: tuple[int, ...], box: tuple[int, int, int, int]) -> float:
    """The common part of two boxes, as a share of the smaller."""
    x0, y0, x1, y1 = box
    across = min(place[1] + shape[1], x1) - max(place[1], x0)
    down = min(place[0] + shape[0], y1) - max(place[0], y0)
    return max(across, 0) * max(down, 0) / min(shape[0] * shape[1], (x1 - x0) * (y1 - y0))


def _ground(side: int, rng: np.random.Generator) -> Pixels:
    """Two colours of like brightness in smooth patches, streaks over them, and grain."""
    brightness = rng.uniform(50, 205)
    tints = rng.uniform(-35, 35, (2, 3))
    colours = brightness + tints - tints.mean(axis=1, keepdims=True) + rng.uniform(-14, 14, (2, 1))
    share = _smooth(side, int(rng.integers(3, 7)), int(rng.integers(3, 7)), rng)[..., None]
    streaks = _smooth(side, int(rng.integers(3, 9)), int(rng.integers(10, 25)), rng)[..., None] - 0.5
    grain = rng.normal(0, rng.uniform(2, 7), (side, side, 1))
    ground = colours[0] + share * (colours[1] - colours[0]) + rng.uniform(0, 30) * streaks + grain
    if rng.random() < 0.5:      # streaks run either way
        ground = ground.swapaxes(0, 1)
    return np.clip(np.rint(ground), 0, 255).astype(np.uint8)


def _smooth(side: int, rows: int, columns: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """(side, side) in about 0 … 1: random numbers on a coarse grid, and what is between them."""
    coarse = Image.fromarray(rng.random((rows, columns), np.float32))
    return np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC))


def _colour_on(ground: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """A colour (3,) clearly brighter or darker than the ground under a digit."""
    under = float(ground.mean())
    contrast = rng.uniform(*_CONTRAST)
    up = rng.random() < 0.5 if 100 < under < 155 else under < 128
    tint = rng.uniform(-45, 45, 3)
    colour = under + (contrast if up else -contrast) + tint - tint.mean()
    return np.clip(colour, 0, 255).astype(np.float32)
