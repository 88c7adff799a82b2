"""Boxes around outlines: for objects that are annotated as polygons or masks, without a box.

COCO has polygons, [[x, y, x, y, …], …], and masks as run lengths (RLE): the number of pixels outside, inside, outside,
…, going down the columns, as a list or packed into a string. Run lengths are decoded here and not by pycocotools, whose
C code reads past the end of a string that is truncated.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scratchvit.detection.data.reading import Box

_LARGEST = 1 << 31      # pixels of a mask


def around(xs: list[float], ys: list[float]) -> Box:
    """The box around points. Raises ValueError unless all are finite and there are at least three."""
    if len(xs) != len(ys) or len(xs) < 3:
        raise ValueError("an outline has at least three points")
    if not all(map(math.isfinite, (*xs, *ys))):
        raise ValueError("its outline has numbers that are not finite")
    return min(xs), min(ys), max(xs), max(ys)


def of_segmentation(segmentation: Any) -> Box | None:
    """The box (x0, y0, x1, y1) around a segmentation of COCO: polygons or run lengths; None if there is none.

    Raises ValueError for something else, or with values that cannot be.
    """
    if not segmentation:
        return None
    if isinstance(segmentation, dict):
        return _of_runs(segmentation)
    if not isinstance(segmentation, list):
        raise ValueError("its segmentation is neither polygons nor run lengths")
    polygons = [segmentation] if not isinstance(segmentation[0], list) else segmentation
    numbers = [number for polygon in polygons if isinstance(polygon, list) for number in polygon]
    if len(polygons) != sum(isinstance(polygon, list) and len(polygon) % 2 == 0 for polygon in polygons) or not all(
        type(number) in (int, float) and abs(number) < 1 << 53 for number in numbers
    ):
        raise ValueError("its polygons are not lists of x, y, x, y, …")
    return around([float(x) for x in numbers[::2]], [float(y) for y in numbers[1::2]]) if numbers else None


def _of_runs(mask: dict[str, Any]) -> Box | None:
    """{"counts", "size": [H, W]}."""
    size, counts = mask.get("size"), mask.get("counts")
    if not (isinstance(size, list) and len(size) == 2 and all(type(side) is int and side > 0 for side in size)):
        raise ValueError("its run lengths have no size [height, width]")
    height, width = size
    runs = _unpacked(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or not all(type(run) is int and 0 <= run < _LARGEST for run in runs):
        raise ValueError("its run lengths are not counts of pixels")
    if sum(runs) != height * width or height * width >= _LARGEST:
        raise ValueError(f"its run lengths add up to {sum(runs):,} pixels, not to {height} × {width}")
    ends: NDArray[np.int64] = np.cumsum(np.array(runs, np.int64))
    starts, ends = ends[:-1:2], ends[1::2]          # of the runs inside
    starts, ends = starts[starts < ends], ends[starts < ends]
    if not len(starts):
        return None
    last = ends - 1
    several = starts // height != last // height    # a run that goes on in the next column has been at the bottom
    top = 0 if several.any() else int((starts % height).min())
    bottom = height if several.any() else int((last % height).max()) + 1
    return float(starts[0] // height), float(top), float(last[-1] // height + 1), float(bottom)


def _unpacked(text: str) -> list[int]:
    """The counts of a string: five bits a character, a sixth if another follows, from the third on as differences."""
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 30:
            raise ValueError("its run lengths are not packed as COCO packs them")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (1 << shift) if bits & 16 else 0
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("its run lengths are cut off")
    return counts
