"""Functions that make many numbers one. `dim`: an axis, several axes, or None for all; `keepdim` leaves axes of size 1.

The transpose of summing is repeating: every backward here first gives dy its lost axes back (`_spread`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

from scratchvit.backend import Array, array_module
from scratchvit.tensor import op

Dim: TypeAlias = int | Sequence[int] | None


def _axes(x: Array, dim: Dim) -> tuple[int, ...]:
    if dim is None:
        return tuple(range(x.ndim))
    dims = (dim,) if isinstance(dim, int) else tuple(dim)
    axes = x.ndim or 1          # a single number may be reduced over axis 0, as in PyTorch
    if any(not -axes <= d < axes for d in dims):
        raise ValueError(f"dim {dim} is no axis of an array of shape {x.shape}")
    return tuple(d % axes for d in dims) if x.ndim else ()


def _spread(dy: Array, axes: tuple[int, ...], keepdim: bool) -> Array:
    """dy with an axis of size 1 wherever one was reduced."""
    return dy if keepdim else array_module(dy).expand_dims(dy, axes)


@op
def sum(x: Array, dim: Dim = None, keepdim: bool = False):
    """Σ x:  dx = dy, repeated."""
    xp, shape, axes = array_module(x), x.shape, _axes(x, dim)
    return x.sum(axis=axes, keepdims=keepdim), lambda dy: xp.broadcast_to(_spread(dy, axes, keepdim), shape)


@op
def mean(x: Array, dim: Dim = None, keepdim: bool = False):
    """Σ x / n:  dx = dy / n, repeated."""
    xp, shape, axes = array_module(x), x.shape, _axes(x, dim)
    n = math.prod(shape[a] for a in axes)
    return x.mean(axis=axes, keepdims=keepdim), lambda dy: xp.broadcast_to(_spread(dy / n, axes, keepdim), shape)


@op
def var(x: Array, dim: Dim = None, correction: int = 1, keepdim: bool = False):
    """Σ (x - μ)² / (n - correction):  dx = 2 dy (x - μ) / (n - correction); what passes through μ sums to zero."""
    axes = _axes(x, dim)
    n = math.prod(x.shape[a] for a in axes) - correction
    centred = x - x.mean(axis=axes, keepdims=True)
    y = (centred * centred).sum(axis=axes, keepdims=keepdim) / n
    return y, lambda dy: centred * (_spread(dy, axes, keepdim) * (2 / n))


@op
def max(x: Array, dim: Dim = None, keepdim: bool = False):
    """The greatest value (PyTorch's `amax`); where several are equal they share the gradient."""
    axes = _axes(x, dim)
    y = x.max(axis=axes, keepdims=keepdim)
    return y, lambda dy: _share_among_equal(x, y, dy, axes, keepdim)


@op
def min(x: Array, dim: Dim = None, keepdim: bool = False):
    """The least value (PyTorch's `amin`); where several are equal they share the gradient."""
    axes = _axes(x, dim)
    y = x.min(axis=axes, keepdims=keepdim)
    return y, lambda dy: _share_among_equal(x, y, dy, axes, keepdim)


def _share_among_equal(x: Array, y: Array, dy: Array, axes: tuple[int, ...], keepdim: bool) -> Array:
    chosen = (x == _spread(y, axes, keepdim)).astype(x.dtype)
    chosen /= chosen.sum(axis=axes, keepdims=True)
    return chosen * _spread(dy, axes, keepdim)
