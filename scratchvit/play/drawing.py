"""Drawings as pictures like those that a model was trained on.

The page sends strokes, lists of points, and not pixels. So a digit can be drawn again in the size, the place and the
width of pen that the digits of the training data have: the model sees what it knows, wherever and however one draws.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from scratchvit.data.images import to_picture
from scratchvit.errors import ScratchvitError

Strokes = Sequence[NDArray[np.float64]]     # of (n, 2) points each, n ≥ 1: x to the right, y down; 0 … 1 is the canvas
FINE = 256                                  # side of the picture that lines are drawn into, before it is reduced
MOST_POINTS = 20_000
INK = 19.5                                  # of scikit-learn's digits: how many of the 64 cells are ink, on average
PEN = 0.055                                 # width of the pen on the page, of the canvas


def read_strokes(text: bytes) -> Strokes:
    """Strokes from JSON, [[[x, y], …], …]. Raises ScratchvitError if it is anything else, or more than MOST_POINTS."""
    try:
        given = json.loads(text)
        strokes = [np.array(stroke, np.float64) for stroke in given]
        points = all(s.ndim == 2 and s.shape[1] == 2 and len(s) and np.isfinite(s).all() for s in strokes)
        fits = isinstance(given, list) and points
    except (ValueError, TypeError, RecursionError):
        fits = False
    if not fits or sum(map(len, strokes)) > MOST_POINTS:
        raise ScratchvitError(f"a drawing is a list of strokes, of at most {MOST_POINTS:,} points [x, y] in all")
    return [stroke.clip(-1, 2) for stroke in strokes]


def as_optdigits(strokes: Strokes) -> Image.Image:
    """Strokes as one of scikit-learn's digits, 8 × 8 in grey.

    NIST's programs made the scanned digits alike (Garris et al. 1994, NISTIR 5469): shrunk or stretched to 20 × 32 in
    the middle of 32 × 32, thickened or thinned until as much was ink as usual, and sheared until they stood upright.
    Alpaydın and Kaynak counted the ink in cells of 4 × 4. The figures here are read from their 1,797 digits: 32 high,
    20 wide at most, and about INK cells of ink whatever the digit, so that a 1 has a broad line.
    """
    if not strokes:
        return to_picture(np.zeros((8, 8, 1), np.uint8))
    upright, unit = _upright(strokes), FINE / 32

    def cells(pen: float) -> NDArray[np.float64]:
        placed = _fitted(upright, (20 * unit - pen, 32 * unit - pen), most=1.5)
        return np.asarray(_lines(placed, pen).reduce(FINE // 8), np.float64) / 255

    thin, thick = unit, 12 * unit
    while thick - thin > 0.5:
        middle = (thin + thick) / 2
        thin, thick = (middle, thick) if cells(middle).sum() < INK else (thin, middle)
    counts = np.rint(cells(thin) * 16)          # 0 … 16, which `data.load_digits` spreads over 0 … 255
    return to_picture(np.rint(counts * (255 / 16)).astype(np.uint8)[..., None])


def as_mnist(strokes: Strokes) -> Image.Image:
    """Strokes as one of MNIST's digits, 28 × 28 in grey (LeCun et al. 1998, §III A).

    The longer side fills 20 pixels, and the centre of mass is in the middle.
    """
    if not strokes:
        return to_picture(np.zeros((28, 28, 1), np.uint8))
    unit = FINE / 28
    pen = 2.6 * unit
    drawn = _lines(_fitted(strokes, (20 * unit - pen, 20 * unit - pen), most=1), pen)
    mass = np.asarray(drawn, np.float64)
    middle = [float(np.average(np.arange(FINE), weights=mass.sum(axis=axis))) - (FINE - 1) / 2 for axis in (0, 1)]
    moved = drawn.transform(drawn.size, Image.Transform.AFFINE, (1, 0, middle[0], 0, 1, middle[1]))
    return moved.resize((28, 28), Image.Resampling.BOX)


def as_drawn(strokes: Strokes) -> Image.Image:
    """Strokes as they stand on the canvas: black lines on white paper, FINE × FINE in grey."""
    side = 2 * FINE         # reduced, so that edges are smooth
    drawn = _lines([stroke * side for stroke in strokes], PEN * side, side)
    return drawn.reduce(2).point(lambda value: 255 - value)


# {name of the training data: how its pictures are drawn}; others are drawn by `as_drawn`.
STYLES: Mapping[str, Callable[[Strokes], Image.Image]] = {"digits": as_optdigits, "mnist": as_mnist}


def _lines(strokes: Strokes, pen: float, side: int = FINE) -> Image.Image:
    """White lines with round ends on black, `pen` pixels wide: strokes in 0 … side → a grey picture of this side."""
    picture = Image.new("L", (side, side))
    draw, radius = ImageDraw.Draw(picture), max(0, pen - 1) / 2     # Pillow adds the pixel in the middle
    for stroke in strokes:
        points = stroke.tolist()
        if len(points) > 1:
            draw.line([(x, y) for x, y in points], fill=255, width=max(1, round(pen)))
        for x, y in points:         # round joints: Pillow's own leave notches between short lines
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    return picture


def _fitted(strokes: Strokes, size: tuple[float, float], most: float) -> Strokes:
    """Strokes stretched to a size (width, height) in the middle of 0 … FINE.

    most: how many times as much one axis may be stretched as the other. A 1 is a line, which would become a bar.
    """
    points = np.concatenate(list(strokes))
    low, high = points.min(axis=0), points.max(axis=0)
    factors = np.maximum(size, 1) / np.maximum(high - low, 1e-3)
    factors = factors.clip(None, factors.min() * most)
    return [(stroke - (low + high) / 2) * factors + FINE / 2 for stroke in strokes]


def _upright(strokes: Strokes) -> Strokes:
    """Strokes without slant: sheared until x no longer depends on y, by least squares over their length."""
    along = np.concatenate([_evenly(stroke) for stroke in strokes])
    x, y = (along - along.mean(axis=0)).T
    slant = float(np.clip((x * y).sum() / max((y * y).sum(), 1e-9), -0.5, 0.5))
    return [stroke - slant * stroke[:, 1:] * [1, 0] for stroke in strokes]


def _evenly(stroke: NDArray[np.float64], step: float = 0.01) -> NDArray[np.float64]:
    """Points at equal distances along a stroke, because a slow pen leaves more points."""
    way = np.concatenate([[0], np.hypot(*np.diff(stroke, axis=0).T).cumsum()])
    at = np.linspace(0, way[-1], 1 + int(way[-1] / step))
    return np.stack([np.interp(at, way, axis) for axis in stroke.T], axis=1)
