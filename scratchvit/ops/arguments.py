"""Checks of arguments that many ops share. They look at shapes only, so nothing waits for a GPU."""

from __future__ import annotations

from scratchvit.backend import Array


def axis_of(name: str, x: Array, dim: int) -> int:
    """The axis dim of x, counted from 0. Raises ValueError, naming the op, where x has no such axis."""
    axes = x.ndim or 1          # a single number has an axis 0, as in PyTorch
    if not -axes <= dim < axes:
        raise ValueError(f"{name}: dim {dim} is no axis of an array of shape {x.shape}")
    return dim % axes
