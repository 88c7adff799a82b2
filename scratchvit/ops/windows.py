"""Cutting maps of tokens into windows, and joining them again; models/windows.py says what for, with a drawing.

Both rearrange tokens, so the backward of each is the other.
"""

from __future__ import annotations

from scratchvit.backend import Array, array_module
from scratchvit.facts import moves
from scratchvit.kernels.token_windows import from_windows, into_windows
from scratchvit.plain import is_plain
from scratchvit.tensor import op

Size = tuple[int, int]


@op(takes="any", facts=moves(lambda x, window: _windows_shape(x.shape, window)))
def window_partition(x: Array, window: Size, shift: Size = (0, 0), rolled: Size | None = None):
    """Roll maps (B, h, w, D), then partition them into windows (B·nW, N, D), the windows of an image row by row.

    x: (B, h, w, D), any dtype.
    window: (rows, columns) of a window, which has N = rows · columns tokens.
    shift: (rows, columns) by which a map is rolled before (Swin, arXiv 2103.14030, §3.2): up and to the left, so that
        the token at `shift` becomes the first.
    rolled: (rows, columns) at the upper left that are rolled, while the others stay; if not given, the whole map.
    Raises ValueError if the window does not divide the map: pad it first.
    """
    shape, windows_shape = x.shape, _windows_shape(x.shape, window)
    rolled = rolled or shape[1:3]
    if is_plain():
        y = _cut(_roll(x, (-shift[0], -shift[1]), rolled), window)
    else:
        y = into_windows(x, window, shift, rolled)

    def backward(dy):
        if is_plain():
            return _roll(_join(dy, window, shape), shift, rolled)
        return from_windows(dy, shape, window, shift, rolled)

    return y.reshape(windows_shape), backward


@op(takes="any", facts=moves(lambda windows, size, window: _maps_shape(windows.shape, window, size)))
def window_reverse(windows: Array, window: Size, size: Size, shift: Size = (0, 0), rolled: Size | None = None):
    """Join windows (B·nW, N, D) to maps (B, h, w, D): the inverse of `window_partition` with the same arguments.

    windows: (B·nW, N, D), any dtype.
    size: (h, w).
    Raises ValueError if the window does not divide the map, or if the windows do not form whole maps.
    """
    shape, rolled = _maps_shape(windows.shape, window, size), rolled or size
    windows_shape = windows.shape
    if is_plain():
        y = _roll(_join(windows, window, shape), shift, rolled)
    else:
        y = from_windows(windows, shape, window, shift, rolled)

    def backward(dy):
        if is_plain():
            return _cut(_roll(dy, (-shift[0], -shift[1]), rolled), window).reshape(windows_shape)
        return into_windows(dy, window, shift, rolled).reshape(windows_shape)

    return y, backward


def _roll(x: Array, shift: Size, rolled: Size) -> Array:
    """x (B, h, w, D) with its upper left part of size `rolled` rolled down and to the right."""
    xp, y = array_module(x), x.copy()
    part = slice(None), slice(rolled[0]), slice(rolled[1])
    y[part] = xp.roll(x[part], shift, (1, 2))
    return y


def _cut(x: Array, window: Size) -> Array:
    """Maps (B, h, w, D) → windows (B·nW, N, D)."""
    B, h, w, D = x.shape
    x = x.reshape(B, h // window[0], window[0], w // window[1], window[1], D)   # (B, h/M, M, w/M', M', D)
    x = x.transpose(0, 1, 3, 2, 4, 5)                                           # (B, h/M, w/M', M, M', D)
    return x.reshape(_windows_shape((B, h, w, D), window))                      # (B·nW, N, D)


def _join(windows: Array, window: Size, shape: tuple[int, ...]) -> Array:
    """Windows (B·nW, N, D) → maps of this shape (B, h, w, D)."""
    B, h, w, D = shape
    x = windows.reshape(B, h // window[0], w // window[1], window[0], window[1], D)     # (B, h/M, w/M', M, M', D)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(shape)                                 # (B, h, w, D)


def _windows_shape(shape: tuple[int, ...], window: Size) -> tuple[int, int, int]:
    """(B·nW, N, D) for maps (B, h, w, D)."""
    B, h, w, D = shape
    _check_division((h, w), window)
    return B * (h // window[0]) * (w // window[1]), window[0] * window[1], D


def _maps_shape(shape: tuple[int, ...], window: Size, size: Size) -> tuple[int, int, int, int]:
    """(B, h, w, D) for windows (B·nW, N, D)."""
    count, N, D = shape
    _check_division(size, window)
    of_an_image = size[0] // window[0] * (size[1] // window[1])
    if window[0] * window[1] != N or count % of_an_image:
        raise ValueError(
            f"window_reverse: windows {shape} of {window[0]}×{window[1]} tokens do not form whole maps of "
            f"{size[0]}×{size[1]}, each of which has {of_an_image}"
        )
    return count // of_an_image, *size, D


def _check_division(size: Size, window: Size) -> None:
    if min(*size, *window) < 1 or size[0] % window[0] or size[1] % window[1]:
        raise ValueError(
            f"windows of {window[0]}×{window[1]} do not divide a map of {size[0]}×{size[1]}: pad it first"
        )
