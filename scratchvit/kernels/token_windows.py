"""Tokens of maps, rolled and cut into windows, or joined again, in one pass.

    plain       roll the map along two axes, reshape, transpose, copy
    problem     the roll copies the map in four parts, the windows are another copy, and both take one core. In Swin-T's
                first stage, the roll takes twice as long as the rest
    idea        both only move whole tokens: token i of the windows is token order[i] of the map. The order follows from
                the sizes, and is made once; the inverse order leads back
"""

from __future__ import annotations

import functools

import numpy as np

from scratchvit.backend import CPU, Array, Backend, backend_of
from scratchvit.threads import parallel_rows

Size = tuple[int, int]


def into_windows(x: Array, window: Size, shift: Size, rolled: Size) -> Array:
    """The tokens of maps x (B, h, w, D) in the order of their windows, (B, h·w, D): see ops/windows.py."""
    B, h, w, D = x.shape
    order, _ = _orders(backend_of(x), (h, w), window, shift, rolled)
    return _take_tokens(x.reshape(B, h * w, D), order)


def from_windows(windows: Array, shape: tuple[int, ...], window: Size, shift: Size, rolled: Size) -> Array:
    """The tokens of windows (B·nW, N, D) at their places in maps of this shape (B, h, w, D)."""
    B, h, w, D = shape
    _, places = _orders(backend_of(windows), (h, w), window, shift, rolled)
    return _take_tokens(windows.reshape(B, h * w, D), places).reshape(shape)


def _take_tokens(x: Array, order: Array) -> Array:
    """x (B, S, D) with its tokens in this order (S,)."""
    if backend_of(x) is not CPU:
        return backend_of(x).xp.take(x, order, axis=1)
    y = np.empty(x.shape, x.dtype)
    parallel_rows(lambda x, y: np.take(x, order, axis=1, out=y, mode="clip"), x, y)     # "raise" would need a buffer
    return y


@functools.lru_cache(maxsize=64)
def _orders(device: Backend, size: Size, window: Size, shift: Size, rolled: Size) -> tuple[Array, Array]:
    """Which token of a map each token of its windows is, and which token of the windows each token of the map: (h·w,),
    on the device."""
    (h, w), (rows, columns) = size, rolled
    numbers = np.arange(h * w).reshape(h, w)
    numbers[:rows, :columns] = np.roll(numbers[:rows, :columns], (-shift[0], -shift[1]), (0, 1))
    by_window = numbers.reshape(h // window[0], window[0], w // window[1], window[1]).transpose(0, 2, 1, 3)
    order = by_window.reshape(-1)
    return device.xp.asarray(order), device.xp.asarray(np.argsort(order))
