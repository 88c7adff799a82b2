"""Reductions. `dim`: an axis, several axes, or None for all; `keepdim`: keep the reduced axes with length 1.

The transpose of a sum is broadcasting: every backward here first restores the reduced axes of dy (`_spread`).
"""

from __future__ import annotations

import builtins
import math
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np

from scratchvit.backend import Array, array_module
from scratchvit.facts import Facts, Shape, nothing, one_like_x
from scratchvit.kernels.masks import masked
from scratchvit.kernels.sums import total
from scratchvit.ops.checks import axes_of
from scratchvit.tensor import Tensor, op

Dim: TypeAlias = int | Sequence[int] | None


def _axes(name: str, x: Array, dim: Dim) -> tuple[int, ...]:
    """The axes to reduce, counted from 0. None and () mean all. As in PyTorch, shape () also has the axes 0 and -1."""
    if dim is None or dim == () or dim == []:
        return tuple(range(x.ndim))
    axes = axes_of(name, dim, x.shape or (1,))
    return axes if x.ndim else ()


def _shape(function: Any, x: Array, dim: Dim, keepdim: bool) -> Shape:
    axes = _axes(function.__name__, x, dim)
    return tuple(1 if axis in axes else n for axis, n in enumerate(x.shape) if keepdim or axis not in axes)


def _reduction(saves: Any, passes_on: bool = False) -> Facts:
    return Facts(shape=_shape, saves=saves, macs=0, passes_on=passes_on)


def _spread(dy: Array, axes: tuple[int, ...], keepdim: bool) -> Array:
    """dy with an axis of size 1 wherever one was reduced."""
    return dy if keepdim else array_module(dy).expand_dims(dy, axes)


@op(takes="any", autocast="sums", facts=_reduction(saves=nothing, passes_on=True))
def sum(x: Array, dim: Dim = None, keepdim: bool = False):
    """The sum over the axes `dim`.

    x: any shape and dtype; integers give integers.
    dim: an axis, several axes, or None or () for all.
    keepdim: whether to keep the reduced axes, with length 1.
    Raises IndexError if x has no axis dim, ValueError if an axis is repeated.

        y = Σ x,    dx = dy, broadcast to the shape of x
    """
    xp, shape, axes = array_module(x), x.shape, _axes("sum", x, dim)
    return total(x, axes, keepdim), lambda dy: xp.broadcast_to(_spread(dy, axes, keepdim), shape)


@op(takes="sums", facts=_reduction(saves=nothing, passes_on=True))
def mean(x: Array, dim: Dim = None, keepdim: bool = False):
    """The mean over the axes `dim`; NaN if there are no entries.

    x: any shape, floating-point; float16 is computed in float32.  dim, keepdim: as for `sum`.
    Raises what `sum` raises, and TypeError for integers.

        y = Σ x / n,    dx = dy / n, broadcast to the shape of x
    """
    xp, shape, axes = array_module(x), x.shape, _axes("mean", x, dim)
    n = math.prod(shape[a] for a in axes)
    with np.errstate(invalid="ignore"):         # 0 / 0
        y = total(x, axes, keepdim) / n
    return y, lambda dy: xp.broadcast_to(_spread(dy / (n or 1), axes, keepdim), shape)


@op(takes="sums", facts=_reduction(saves=one_like_x))
def var(x: Array, dim: Dim = None, correction: int = 1, keepdim: bool = False):
    """The variance over the axes `dim`, with Bessel's correction by default.

    x: any shape, floating-point; float16 is computed in float32.
    correction: what is subtracted from n in the divisor; 0 for the biased variance.
    dim, keepdim: as for `sum`.
    Raises what `sum` raises, and TypeError for integers.
    If n ≤ correction, the value is that of a division by 0, as in PyTorch: infinite, or NaN if all deviations are 0 or
    there are no entries.

        y = Σ (x - μ)² / (n - correction),    dx = 2 dy (x - μ) / (n - correction)

    The gradient through μ is zero, since the deviations sum to zero. In float32, the rounding error of μ can be larger
    than small deviations; their mean is therefore subtracted once more.
    """
    axes = _axes("var", x, dim)
    n = math.prod(x.shape[a] for a in axes)
    degrees = builtins.max(n - correction, 0)
    centred = x - total(x, axes, True) / (n or 1)
    centred -= total(centred, axes, True) / (n or 1)
    share = 1 / degrees if degrees else math.inf
    with np.errstate(invalid="ignore"):         # ∞ · 0
        squares = total(centred * centred, axes, keepdim)
        y = squares * share

    def backward(dy):
        with np.errstate(invalid="ignore"):
            return centred * (_spread(dy, axes, keepdim) * (2 * share))

    return y, backward


class Extremes(Tensor):
    """What `max` and `min` return: a Tensor that is not unpacked.

    PyTorch's `values, indices = x.max(1)` would take the first two rows for values and indices. So iterating raises
    TypeError; `unbind` gives the rows.
    """

    __slots__ = ()

    def __iter__(self) -> Iterator[Tensor]:
        raise TypeError(
            "max and min give the values alone, as PyTorch's amax and amin, and no indices to unpack: for indices take "
            "numpy().argmax(dim) of the input, for the rows of this result .unbind(0)"
        )


@op(takes="any", facts=_reduction(saves=lambda x, out: [x, out]), gives=Extremes)
def max(x: Array, dim: Dim = None, keepdim: bool = False):
    """The maximum over the axes `dim` (PyTorch's `amax`); equal maxima share the gradient equally.

    x: any shape and dtype.  dim, keepdim: as for `sum`.
    There are no indices, unlike in PyTorch's `max(dim)`: `values, indices = x.max(1)` raises TypeError.
    Raises what `sum` raises, and ValueError if a reduced axis has length 0.
    """
    axes = _filled_axes("max", x, dim)
    y = x.max(axis=axes, keepdims=keepdim)
    return y, lambda dy: _share_among_equal(x, y, dy, axes, keepdim)


@op(takes="any", facts=_reduction(saves=lambda x, out: [x, out]), gives=Extremes)
def min(x: Array, dim: Dim = None, keepdim: bool = False):
    """The minimum over the axes `dim` (PyTorch's `amin`); equal minima share the gradient equally.

    x: any shape and dtype.  dim, keepdim: as for `sum`.  Raises what `max` raises.
    """
    axes = _filled_axes("min", x, dim)
    y = x.min(axis=axes, keepdims=keepdim)
    return y, lambda dy: _share_among_equal(x, y, dy, axes, keepdim)


def _filled_axes(name: str, x: Array, dim: Dim) -> tuple[int, ...]:
    axes = _axes(name, x, dim)
    if any(x.shape[a] == 0 for a in axes):
        raise ValueError(f"{name}: x of shape {x.shape} has no entries along dim {dim}")
    return axes


def _share_among_equal(x: Array, y: Array, dy: Array, axes: tuple[int, ...], keepdim: bool) -> Array:
    chosen = x == _spread(y, axes, keepdim)
    share = _spread(dy, axes, keepdim) / chosen.sum(axis=axes, keepdims=True).astype(x.dtype)
    return masked(array_module(x).broadcast_to(share, x.shape), chosen)
