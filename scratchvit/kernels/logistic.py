"""The logistic function σ(x) = 1 / (1 + e⁻ˣ), which sigmoid, silu and several losses consist of.

    plain       1 / (1 + exp(-x))
    problem     e⁻ˣ overflows for very negative x; on a GPU, every operator is a launch
    idea        from e^{-|x|}, which never overflows and keeps small values accurate; a kernel in cuda/maps.py
"""

from __future__ import annotations

from scratchvit.backend import Array, array_module
from scratchvit.kernels import cuda
from scratchvit.kernels.cuda import maps


def logistic(x: Array) -> Array:
    """σ(x) of a floating-point array of any shape."""
    if cuda.takes(x):
        return maps.logistic(x)
    xp = array_module(x)
    small = xp.exp(-xp.abs(x))
    y = xp.where(x >= 0, x.dtype.type(1), small)
    small += 1
    y /= small
    return y


def logistic_dx(dy: Array, y: Array) -> Array:
    """dy σ (1 - σ), with y = σ(x)."""
    return maps.logistic_dx(dy, y) if cuda.takes(dy) else dy * y * (1 - y)
