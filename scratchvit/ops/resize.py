"""Resizing images: each output pixel is a weighted mean of a few input pixels, so resizing an axis is a matrix.

    y = R_h x R_wᵀ,    dx = R_hᵀ dy R_w

with R (out, in) from the sizes alone. What "bilinear", "bicubic", align_corners and antialias mean is only what stands
in R, and stands below in plain NumPy, on the host, in float64.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from scratchvit.backend import Array, array_module
from scratchvit.tensor import op


@op(takes="sums")
def interpolate(
    x: Array, size=None, scale_factor=None, mode: str = "nearest", align_corners: bool = False, antialias: bool = False,
):
    """Resize images x (B, C, H, W) to `size`, an integer or (H', W'), or by `scale_factor`, a number or two.

    mode: "nearest", "bilinear" or "bicubic".  align_corners: the centres of the corner pixels stay where they are,
    instead of the picture's edges.  antialias: where the picture shrinks, average over all pixels that fall into the
    new one (as Pillow does), instead of sampling.
    """
    xp = array_module(x)
    if x.ndim != 4:
        raise ValueError(f"interpolate: x must be (B, C, H, W), not {x.shape}")
    if mode not in ("nearest", "bilinear", "bicubic"):
        raise ValueError(f'interpolate: mode must be "nearest", "bilinear" or "bicubic", not {mode!r}')
    if mode == "nearest" and (align_corners or antialias):
        raise ValueError('interpolate: align_corners and antialias are for "bilinear" and "bicubic"')
    height, width = (
        xp.asarray(resize_matrix(before, after, factor, mode, align_corners, antialias), dtype=x.dtype)
        for before, (after, factor) in zip(x.shape[2:], _targets(x.shape[2:], size, scale_factor))
    )
    return _apply(height, x, width.T), lambda dy: _apply(height.T, dy, width)


def _apply(left: Array, x: Array, right: Array) -> Array:
    """left x right for every plane of x (B, C, H, W)."""
    rows = x.reshape(-1, x.shape[3]) @ right                            # (B·C·H, W')
    return left @ rows.reshape(*x.shape[:3], right.shape[1])            # (B, C, H', W')


def _targets(size_before, size, scale_factor) -> list[tuple[int, float | None]]:
    """For each axis: its new size, and the factor if one was given (sampling then steps by exactly 1 / factor)."""
    if (size is None) == (scale_factor is None):
        raise ValueError(f"interpolate: give size or scale_factor, one of them; got {size!r} and {scale_factor!r}")
    given = size if scale_factor is None else scale_factor
    both = (given, given) if isinstance(given, int | float) else tuple(given)
    if len(both) != 2:
        raise ValueError(f"interpolate: size and scale_factor are one number, or two for (H, W), not {given!r}")
    if scale_factor is None:
        targets: list[tuple[int, float | None]] = [(int(n), None) for n in both]
    else:
        targets = [(math.floor(n * factor), float(factor)) for n, factor in zip(size_before, both)]
    if min(n for n, _ in targets) < 1:
        after = tuple(n for n, _ in targets)
        raise ValueError(f"interpolate: {size_before} cannot become {after}; sizes are at least 1")
    return targets


@functools.lru_cache(maxsize=256)
def resize_matrix(
    before: int, after: int, factor: float | None, mode: str, align_corners: bool, antialias: bool,
) -> np.ndarray:
    """The matrix (after, before) that resizes an axis; its rows sum to 1."""
    if mode == "nearest":
        return _nearest(before, after, factor)
    step = 1 / factor if factor else before / after                     # input pixels for one output pixel
    if align_corners:
        step = (before - 1) / (after - 1) if after > 1 else 0.0
    place = np.arange(after)
    if antialias:
        return _antialiased(before, place, step, mode)
    centre = step * place if align_corners else step * (place + 0.5) - 0.5      # in units of input pixels
    if mode == "bilinear":
        centre, kernel, reach = np.maximum(centre, 0), _triangle, 1
    else:
        kernel, reach = functools.partial(_cubic, a=-0.75), 2
    matrix = np.zeros((after, before))
    left = np.floor(centre).astype(int)
    for tap in range(1 - reach, 1 + reach):
        pixel = np.clip(left + tap, 0, before - 1)                      # the border pixel goes on outside
        np.add.at(matrix, (place, pixel), kernel(centre - (left + tap)))
    return matrix


def _nearest(before: int, after: int, factor: float | None) -> np.ndarray:
    """Pixel ⌊i · step⌋, where PyTorch computes in float32 for every dtype."""
    step = np.float32(1 / factor if factor else np.float32(before) / np.float32(after))
    place = np.arange(after)
    pixel = place if before == after else np.floor(place.astype(np.float32) * step).astype(int)
    matrix = np.zeros((after, before))
    matrix[place, np.minimum(pixel, before - 1)] = 1
    return matrix


def _antialiased(before: int, place: np.ndarray, step: float, mode: str) -> np.ndarray:
    """The kernel, widened to `step` pixels where the picture shrinks, cut at the borders; its weights sum to 1."""
    kernel, reach = (_triangle, 1) if mode == "bilinear" else (functools.partial(_cubic, a=-0.5), 2)
    width = max(step, 1.0)
    centre = (step * (place + 0.5))[:, None]                            # of output pixels, edges counted from 0
    pixel = np.arange(before)
    first = np.maximum(np.floor(centre - reach * width + 0.5), 0)
    last = np.minimum(np.floor(centre + reach * width + 0.5), before)
    matrix = kernel((pixel + 0.5 - centre) / width) * ((pixel >= first) & (pixel < last))
    return matrix / matrix.sum(axis=1, keepdims=True)


def _triangle(distance: np.ndarray) -> np.ndarray:
    """1 at 0, falling to 0 at ±1."""
    return np.maximum(1 - np.abs(distance), 0)


def _cubic(distance: np.ndarray, a: float) -> np.ndarray:
    """Keys' cubic (IEEE Trans. ASSP 29, 1981): two cubic pieces, smooth at 1, zero beyond 2."""
    x = np.abs(distance)
    inner = ((a + 2) * x - (a + 3)) * x * x + 1
    outer = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, inner, np.where(x < 2, outer, 0))
