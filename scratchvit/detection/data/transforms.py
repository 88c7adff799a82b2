"""Transforms for detection: random flips, crops and resizing of pictures together with their boxes.

A random step does not touch pixels. It changes a `View`, which says which box of the picture is shown at which size;
only the final view is turned into an image, by a single resampling. So a loader knows the size of every image of an
epoch before decoding any (`batches`).

    steps = Steps(RandomHorizontalFlip(), RandomResize((480, 512), 800))
    view = steps(View.whole((480, 640)), rng)
    image, (boxes, kept) = view.of_picture(picture), view.of_boxes(boxes)

`detr_steps` is the augmentation of the paper (Carion et al. 2005.12872 §A.4) and its code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from scratchvit.errors import ScratchvitError

Boxes = NDArray[np.float64]     # (n, 4)


@dataclass(frozen=True)
class View:
    """A box of a picture, resized to an image and possibly flipped.

    box         left, top, right, bottom in pixels of the picture
    size        (H, W) of the resulting image
    mirrored    whether the image is flipped left to right
    """

    box: tuple[float, float, float, float]
    size: tuple[int, int]
    mirrored: bool = False

    @classmethod
    def whole(cls, size: tuple[int, int]) -> View:
        """The view of a whole picture of size (H, W), unchanged."""
        return cls((0.0, 0.0, float(size[1]), float(size[0])), size)

    def resized(self, height: int, width: int) -> View:
        return replace(self, size=(height, width))

    def flipped(self) -> View:
        return replace(self, mirrored=not self.mirrored)

    def cropped(self, top: int, left: int, height: int, width: int) -> View:
        """The view of a part of this view; the part must lie within it. In pixels of the image."""
        if self.mirrored:
            left = self.size[1] - left - width
        x0, y0, x1, y1 = self.box
        across, down = (x1 - x0) / self.size[1], (y1 - y0) / self.size[0]   # picture pixels per image pixel
        box = (     # min: rounding must not leave the old box
            x0 + left * across, y0 + top * down,
            min(x0 + (left + width) * across, x1), min(y0 + (top + height) * down, y1),
        )
        return View(box, (height, width), self.mirrored)

    def of_picture(self, picture: Image.Image) -> Image.Image:
        """The image (H, W) that this view shows of a picture; bilinear with antialiasing, as in the paper's code."""
        height, width = self.size
        image = picture.resize((width, height), Image.Resampling.BILINEAR, box=self.box)
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if self.mirrored else image

    def of_boxes(self, boxes: Boxes) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Transform boxes (n, 4) of the picture, (x0, y0, x1, y1) in pixels, to the image.

        Returns float32 (k, 4), (cx, cy, w, h) in 0 … 1, clipped to the image, and which boxes were kept, bool (n,).
        Boxes outside the image are dropped, and so are boxes that are clipped to less than a pixel of the picture:
        nothing of the object is visible, and GIoU would divide by an area near zero.
        """
        x0, y0, x1, y1 = self.box
        corners = np.asarray(boxes, np.float64).reshape(-1, 2, 2)       # (n, first or second corner, x or y)
        inside = np.clip(corners, (x0, y0), (x1, y1))
        visible, own = inside[:, 1] - inside[:, 0], corners[:, 1] - corners[:, 0]
        kept = np.all((visible > 0) & (visible >= np.minimum(own, 1)), axis=1)
        inside = (inside[kept] - (x0, y0)) / (x1 - x0, y1 - y0)
        centre, sides = inside.mean(axis=1), inside[:, 1] - inside[:, 0]
        if self.mirrored:
            centre[:, 0] = 1 - centre[:, 0]
        return np.concatenate([centre, sides], axis=1).astype(np.float32), kept


Step = Callable[[View, np.random.Generator], View]


class Steps:
    """Apply several steps one after the other."""

    def __init__(self, *steps: Step):
        self.steps = steps

    def __call__(self, view: View, rng: np.random.Generator) -> View:
        for step in self.steps:
            view = step(view, rng)
        return view


class RandomHorizontalFlip:
    """Flip left to right with probability p."""

    def __init__(self, p: float = 0.5):
        _check_probability("RandomHorizontalFlip", p)
        self.p = p

    def __call__(self, view: View, rng: np.random.Generator) -> View:
        return view.flipped() if rng.random() < self.p else view


class RandomResize:
    """Resize the shorter side to a random one of `short_sides`, but the longer side to at most `longest` pixels.

    With a single short side, as in evaluation, nothing is random. Raises ScratchvitError for sizes below 1.
    """

    def __init__(self, short_sides: Sequence[int], longest: int | None = None):
        if not short_sides or min(*short_sides, 1 if longest is None else longest) < 1:
            raise ScratchvitError(
                f"RandomResize({tuple(short_sides)}, {longest}): needs at least one side, and each must be at least 1"
            )
        self.short_sides = tuple(short_sides)
        self.longest = longest

    def __call__(self, view: View, rng: np.random.Generator) -> View:
        short = self.short_sides[rng.integers(len(self.short_sides))]
        scale = short / min(view.size)
        if self.longest is not None:
            scale = min(scale, self.longest / max(view.size))
        height, width = (max(1, round(side * scale)) for side in view.size)
        return view.resized(height, width)


class RandomSizeCrop:
    """Crop a part at a random position, with height and width each drawn from least … most. Boxes are clipped to it.

    A side shorter than `least` is kept whole. Raises ScratchvitError unless 1 ≤ least ≤ most.
    """

    def __init__(self, least: int, most: int):
        if not 1 <= least <= most:
            raise ScratchvitError(f"RandomSizeCrop({least}, {most}): must satisfy 1 ≤ least ≤ most")
        self.least = least
        self.most = most

    def __call__(self, view: View, rng: np.random.Generator) -> View:
        height, width = (int(rng.integers(min(self.least, side), min(self.most, side) + 1)) for side in view.size)
        top, left = (int(rng.integers(whole - part + 1)) for whole, part in zip(view.size, (height, width)))
        return view.cropped(top, left, height, width)


class RandomSelect:
    """Apply one of two steps: `first` with probability p, otherwise `second`."""

    def __init__(self, first: Step, second: Step, p: float = 0.5):
        _check_probability("RandomSelect", p)
        self.first = first
        self.second = second
        self.p = p

    def __call__(self, view: View, rng: np.random.Generator) -> View:
        return (self.first if rng.random() < self.p else self.second)(view, rng)


def detr_steps(short_side: int = 800, longest: int | None = None) -> Step:
    """The training augmentation of DETR: a random flip; for half of the pictures a random crop; one of 11 sizes.

    The sizes are 0.6 … 1 of `short_side`. The crops are 0.48 … 0.75 of it, taken after resizing to 0.5, 0.625 or 0.75
    of it. For 800 these are the 480, 512, …, 800 and the 384 … 600 of the paper's code. longest: 5/3 of short_side
    unless given (1333 in the paper's code).
    """
    if longest is None:
        longest = round(short_side * 5 / 3)
    sizes = RandomResize([round(short_side * share) for share in np.linspace(0.6, 1, 11)], longest)
    smaller = RandomResize([round(short_side * share) for share in (0.5, 0.625, 0.75)])
    part = RandomSizeCrop(round(short_side * 0.48), round(short_side * 0.75))
    return Steps(RandomHorizontalFlip(), RandomSelect(sizes, Steps(smaller, part, sizes)))


def _check_probability(name: str, p: float) -> None:
    if not 0 <= p <= 1:
        raise ScratchvitError(f"{name}: p is a probability, from 0 to 1, not {p}")
