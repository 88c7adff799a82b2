"""Masking: numbers where a mask is True and zeros elsewhere, for the gradients of relu, clip and max.

    plain       xp.where(mask, x, 0)
    problem     NumPy's `where` branches at every number, and with a mask like relu's the branch prediction fails half
                of the time: it takes eight times as long as `x * mask`. But ∞ · 0 is NaN.
    idea        a product of the *bits*, as integers, with 0 or 1 is as fast, and also right for infinities
"""

from __future__ import annotations

from scratchvit.backend import CPU, Array, array_module, backend_of


def masked(x: Array, mask: Array) -> Array:
    """x, floating-point, where the mask (bool, x's shape) holds and 0 elsewhere, in x's dtype, as a new array."""
    if backend_of(x) is not CPU or x.ndim == 0:
        return array_module(x).where(mask, x, x.dtype.type(0))
    return (x.view(f"u{x.itemsize}") * mask).view(x.dtype)
