"""Resizing images, axis by axis. Each output pixel is a weighted mean of a few input pixels, so resizing an axis is

    y = R x,    dx = Rᵀ dy

with a matrix R (after, before) that depends only on the sizes and options. It is computed below in NumPy, on the host,
in float64.

R is sparse. It is applied as *taps*: the first pixel of each row with its weight, then the second, and so on. This
avoids products with zero, also 0 · ∞: an infinite pixel affects only the pixels to which it contributes.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np

from scratchvit.backend import AnyArray, Array, array_module
from scratchvit.dtypes import need_floats
from scratchvit.facts import Facts, nothing, of_an_empty_batch
from scratchvit.replay import numbers
from scratchvit.tensor import op
from scratchvit.threads import parallel_rows

AXES = {"linear": 1, "bilinear": 2, "bicubic": 2, "trilinear": 3}       # number of axes; the nearest modes take any
PLANE_BYTES = 512 << 10         # size of a block of planes: with its temporaries it stays in the cache


@op(takes="sums", facts=Facts(shape=of_an_empty_batch, saves=nothing, macs=0))
def interpolate(
    x: AnyArray, size=None, scale_factor=None, mode: str = "nearest", align_corners: bool = False,
    antialias: bool = False,
):
    """Resize signals x (B, C, W), images (B, C, H, W) or clips (B, C, T, H, W).

    size: the output size, an integer or one for each axis.
    scale_factor: instead of size, a number or one for each axis; the output size is ⌊size · factor⌋.
    mode: "nearest" takes the input pixel that contains the first edge of the output pixel, "nearest-exact" the one that
        contains its centre. "linear" (signals), "bilinear" (images) and "trilinear" (clips) interpolate linearly
        between pixels, "bicubic" (images) with cubic polynomials.
    align_corners: whether to align the centres of the corner pixels instead of the edges of the image.
    antialias: for "bilinear" and "bicubic". When downsampling, average over all input pixels that the output pixel
        covers, as Pillow does, instead of sampling.

    With a scale_factor, pixels are sampled in steps of exactly 1 / factor, as in PyTorch; but if an axis keeps its
    size, the nearest and linear modes copy it. An infinite pixel affects only the output pixels to which it
    contributes.

    Returns an array of x's dtype. The nearest modes take any dtype, the others floating-point numbers.
    Raises ValueError if the options do not fit x or each other or if a size would be 0, TypeError for integers.
    """
    _check(x, mode, align_corners, antialias)
    shape = x.shape
    targets = _targets(shape[2:], size, scale_factor)
    there, back = zip(*(
        _taps(before, after, factor, mode, align_corners, antialias)
        for before, (after, factor) in zip(shape[2:], targets)
    ))
    return _resized(x, there), lambda dy: _resized(dy, back)


def _check(x: Array, mode: str, align_corners: bool, antialias: bool) -> None:
    if mode not in AXES and mode not in ("nearest", "nearest-exact"):
        modes = ", ".join(map(repr, ("nearest", "nearest-exact", *AXES)))
        raise ValueError(f"interpolate: mode must be one of {modes}, not {mode!r}")
    if not 3 <= x.ndim <= 5 or AXES.get(mode, x.ndim - 2) != x.ndim - 2:
        expected = {1: "(B, C, W)", 2: "(B, C, H, W)", 3: "(B, C, T, H, W)"}
        some = [expected[AXES[mode]]] if mode in AXES else list(expected.values())
        raise ValueError(f'interpolate: x must be {" or ".join(some)} for mode {mode!r}, not {tuple(x.shape)}')
    if mode not in AXES and (align_corners or antialias):
        raise ValueError(f"interpolate: align_corners and antialias cannot be used with mode {mode!r}")
    if antialias and AXES[mode] != 2:
        raise ValueError(f'interpolate: antialias is for "bilinear" and "bicubic", not for {mode!r}')
    if mode in AXES:
        need_floats("interpolate", "x", x)


def _targets(size_before, size, scale_factor) -> list[tuple[int, float | None]]:
    """For each axis: its new size, and the factor if one was given (sampling then steps by exactly 1 / factor)."""
    if (size is None) == (scale_factor is None):
        raise ValueError(f"interpolate: give either size or scale_factor, not {size!r} and {scale_factor!r}")
    given, kind = (size, int) if scale_factor is None else (scale_factor, int | float)
    each = (given,) * len(size_before) if isinstance(given, kind) else tuple(given) if hasattr(given, "__len__") else ()
    if len(each) != len(size_before) or not all(isinstance(n, kind) for n in each):
        raise ValueError(
            f"interpolate: size must be an integer and scale_factor a number, or one for each of the "
            f"{len(size_before)} axes after (B, C), not {given!r}"
        )
    targets: list[tuple[int, float | None]] = [(n, None) for n in each]
    if scale_factor is not None:
        targets = [(math.floor(n * factor), float(factor)) for n, factor in zip(size_before, each)]
    after = tuple(n for n, _ in targets)
    if min(*size_before, *after) < 1:
        raise ValueError(f"interpolate: cannot resize {tuple(size_before)} to {after}: sizes must be at least 1")
    return targets


# --- applying a sparse matrix ----------------------------------------------------------------------------------------


class Taps(NamedTuple):
    """A sparse matrix (after, before): row i is the sum of weight[k, i] in column columns[k, i] over k."""

    columns: np.ndarray             # (taps, after)
    weight: np.ndarray | None       # (taps, after); None if all are 1
    empty: np.ndarray | None        # the rows that are all zero; None if there are none


@functools.lru_cache(maxsize=256)
def _taps(*how) -> tuple[Taps | None, Taps | None]:
    """`resize_matrix(*how)` and its transpose; None for the identity."""
    matrix = resize_matrix(*how)
    if np.array_equal(matrix, np.eye(len(matrix))):
        return None, None
    return _nonzero(matrix), _nonzero(matrix.T)


def _nonzero(matrix: np.ndarray) -> Taps:
    counts = np.count_nonzero(matrix, axis=1)
    index = np.argsort(matrix == 0, axis=1, kind="stable")[:, : counts.max()]       # nonzero entries of each row first
    weight = np.take_along_axis(matrix, index, axis=1)
    weight[counts == 0] = 1                 # any number: empty rows are set to 0 after the product
    for row, count in enumerate(counts):
        # Rows with fewer entries repeat the last one, halved each time, since a weight of 0 could give 0 · ∞.
        for k in range(max(1, count), index.shape[1]):
            index[row, k] = index[row, k - 1]
            weight[row, k - 1 : k + 1] = weight[row, k - 1] / 2
    empty = np.flatnonzero(counts == 0)
    return Taps(index.T.copy(), None if (weight == 1).all() else weight.T.copy(), empty if len(empty) else None)


def _resized(x: Array, matrices: tuple[Taps | None, ...]) -> Array:
    """x (B, C, *S) with each axis of S multiplied by its matrix."""
    xp, shape = array_module(x), x.shape
    size = [n if matrix is None else matrix.columns.shape[1] for n, matrix in zip(shape[2:], matrices)]
    steps = [(axis, _on_device(x, matrix)) for axis, matrix in enumerate(matrices, start=1) if matrix is not None]
    steps.sort(key=lambda step: _order(step[0], shape[1 + step[0]], step[1].columns.shape[1]))
    planes = x.reshape(shape[0] * shape[1], *shape[2:])
    y = xp.empty((len(planes), *size), dtype=x.dtype)

    def rows(x: Array, y: Array) -> None:
        for axis, matrix in steps:
            x = _multiplied(matrix, x, axis)
        y[...] = x

    parallel_rows(rows, planes, y, block_bytes=PLANE_BYTES)
    return y.reshape(*shape[:2], *size)


def _order(axis: int, before: int, after: int) -> tuple[float, int]:
    """Sort key: axes that shrink come first. Taking along the last axis is slowest, so it comes when x is smallest."""
    return after / before, axis if after < before else -axis


def _multiplied(matrix: Taps, x: Array, axis: int) -> Array:
    """The matrix times one axis of x, tap by tap."""
    along = [-1 if a == axis else 1 for a in range(x.ndim)]

    def tap(k: int) -> Array:
        part = x.take(matrix.columns[k], axis=axis)
        if matrix.weight is not None:
            part *= matrix.weight[k].reshape(along)
        return part

    y = tap(0)
    for k in range(1, len(matrix.columns)):
        y += tap(k)
    if matrix.empty is not None:
        y[(*[slice(None)] * axis, matrix.empty)] = 0
    return y


def _on_device(x: Array, matrix: Taps) -> Taps:
    """The matrix on the device of x, with weights of x's dtype."""

    def here(array: np.ndarray | None, dtype: Any = None) -> Any:
        if array is None:
            return None
        dtype = dtype or array.dtype
        if array_module(x) is np:
            return np.asarray(array, dtype)
        return numbers(lambda: array, array.shape, dtype)       # nothing else comes from the host in a capture

    return Taps(here(matrix.columns), here(matrix.weight, x.dtype), here(matrix.empty))


# --- the matrices ----------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=256)
def resize_matrix(
    before: int, after: int, factor: float | None, mode: str, align_corners: bool, antialias: bool,
) -> np.ndarray:
    """The matrix (after, before) that resizes an axis; its rows sum to 1."""
    if mode.startswith("nearest"):
        return _nearest(before, after, factor, exact=mode == "nearest-exact")
    linear = mode != "bicubic"
    if before == after and linear and not antialias:
        return np.eye(before)
    step = 1 / factor if factor else before / after                     # input pixels per output pixel
    if align_corners:
        step = (before - 1) / (after - 1) if after > 1 else 0.0
    place = np.arange(after)
    if antialias:
        return _antialiased(before, place, step, mode)
    centre = step * place if align_corners else step * (place + 0.5) - 0.5      # in units of input pixels
    if linear:
        centre, kernel, reach = np.maximum(centre, 0), _triangle, 1
    else:
        kernel, reach = functools.partial(_cubic, a=-0.75), 2
    matrix = np.zeros((after, before))
    left = np.floor(centre).astype(int)
    for tap in range(1 - reach, 1 + reach):
        pixel = np.clip(left + tap, 0, before - 1)                      # replicate the border pixels
        np.add.at(matrix, (place, pixel), kernel(centre - (left + tap)))
    return matrix


def _nearest(before: int, after: int, factor: float | None, exact: bool) -> np.ndarray:
    """The matrix that selects pixel ⌊i · step⌋, or ⌊(i + ½) · step⌋ if exact.

    As in PyTorch, this is computed in float32 for every dtype, and for twice the size the step is ½ for every factor.
    """
    step = np.float32(1 / factor if factor and after != 2 * before else np.float32(before) / np.float32(after))
    place = np.arange(after)
    start = place.astype(np.float32) + np.float32(0.5 if exact else 0)
    pixel = place if before == after else np.floor(start * step).astype(int)
    matrix = np.zeros((after, before))
    matrix[place, np.minimum(pixel, before - 1)] = 1
    return matrix


def _antialiased(before: int, place: np.ndarray, step: float, mode: str) -> np.ndarray:
    """The kernel, stretched by `step` when downsampling and truncated at the borders; each row sums to 1."""
    kernel, reach = (_triangle, 1) if mode == "bilinear" else (functools.partial(_cubic, a=-0.5), 2)
    width = max(step, 1.0)
    centre = (step * (place + 0.5))[:, None]                            # of output pixels, from the image's edge
    pixel = np.arange(before)
    first = np.maximum(np.floor(centre - reach * width + 0.5), 0)
    last = np.minimum(np.floor(centre + reach * width + 0.5), before)
    matrix = kernel((pixel + 0.5 - centre) / width) * ((pixel >= first) & (pixel < last))
    return matrix / matrix.sum(axis=1, keepdims=True)


def _triangle(distance: np.ndarray) -> np.ndarray:
    """The triangle (linear) kernel: 1 at 0, 0 from ±1 on."""
    return np.maximum(1 - np.abs(distance), 0)


def _cubic(distance: np.ndarray, a: float) -> np.ndarray:
    """Keys' cubic convolution kernel (IEEE Trans. ASSP 29, 1981): two cubic pieces, smooth at 1, zero beyond 2."""
    x = np.abs(distance)
    inner = ((a + 2) * x - (a + 3)) * x * x + 1
    outer = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, inner, np.where(x < 2, outer, 0))
