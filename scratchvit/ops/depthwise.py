"""Depth-wise convolution: every channel has filters of its own, so there is no sum over channels for a product to make.

What is left is a weighted sum of slices, tap by tap, plane by plane (a plane is one channel of one image). With stride
1 a shortcut makes it fast: laid flat, row behind row, a padded plane meets a tap in one long run, not in H' short ones.

    a b c d | e f g h | i j k l       2×2 window, tap (1, 0), places 2×3:  e f g h i j k    where h, past the
                                      row's end, belongs to no place: computed with the rest, and dropped
"""

from __future__ import annotations

import itertools
import math

from scratchvit.backend import Array, array_module, parallel_rows
from scratchvit.ops.windows import Windows

PLANE_BYTES = 256 << 10         # a block of planes, so that it stays in the cache with its temporaries


def depthwise(x: Array, weight: Array, bias: Array | None, windows: Windows, groups: int) -> Array:
    """y = Σ_tap weight[tap] · slice[tap].  x (B, C, *S); weight (C·m, 1, *kernel) → (B, C·m, *S')."""
    xp = array_module(x)
    taps = _runs(windows)
    planes, filters = x.reshape(-1, 1, *windows.size), _filters(weight, len(x), groups)
    y = xp.empty((len(planes), filters.shape[1], *windows.output), dtype=x.dtype)       # (B·C, m, *S')

    def rows(planes: Array, filters: Array, y: Array) -> None:
        padded = _flat(windows.pad(planes), windows)
        grid, total = _grid(y, windows)
        for tap, window in enumerate(taps):
            total += padded[window] * _of_tap(filters, tap, total)
        y[...] = grid[_places(windows)]

    parallel_rows(rows, planes, filters, y, block_bytes=PLANE_BYTES)
    y = y.reshape(len(x), len(weight), *windows.output)
    if bias is not None:
        y += bias.reshape(-1, *(1 for _ in windows.size))
    return y


def depthwise_dx(dy: Array, weight: Array, windows: Windows, groups: int) -> Array:
    """Every tap sends weight[tap] · dy back to the slice that it had read."""
    xp = array_module(dy)
    taps = _runs(windows)
    filters = _filters(weight, len(dy), groups)
    dy = dy.reshape(*filters.shape[:2], *windows.output)                                # (B·C, m, *S')
    dx = xp.empty((len(dy), 1, *windows.size), dtype=dy.dtype)

    def rows(dy: Array, filters: Array, dx: Array) -> None:
        padded = xp.zeros((len(dx), 1, *windows.padded), dtype=dx.dtype)
        flat = _flat(padded, windows)
        grid, spread = _grid(dy, windows)
        grid[_places(windows)] = dy
        for tap, window in enumerate(taps):
            sent = spread * _of_tap(filters, tap, spread)
            flat[window] += sent if sent.shape[1] == 1 else sent.sum(axis=1, keepdims=True)
        dx[...] = padded[(..., *windows.inside)]

    parallel_rows(rows, dy, filters, dx, block_bytes=PLANE_BYTES)
    return dx.reshape(len(dx) // groups, groups, *windows.size)


def depthwise_dw(dy: Array, x: Array, windows: Windows, groups: int) -> Array:
    """dweight[tap] = Σ_b ⟨dy, slice[tap]⟩."""
    xp = array_module(x)
    taps = _runs(windows)
    planes = x.reshape(-1, 1, *windows.size)
    dy = dy.reshape(len(planes), dy.shape[1] // groups, *windows.output)                # (B·C, m, *S')
    dw = xp.empty((*dy.shape[:2], len(taps)), dtype=x.dtype)

    def rows(planes: Array, dy: Array, dw: Array) -> None:
        padded = _flat(windows.pad(planes), windows)
        grid, spread = _grid(dy, windows)
        grid[_places(windows)] = dy
        spread = spread.reshape(*dy.shape[:2], math.prod(spread.shape[2:]))             # (n, m, places)
        for tap, window in enumerate(taps):
            slices = padded[window].reshape(len(padded), spread.shape[2], 1)            # (n, places, 1)
            dw[:, :, tap] = (spread @ slices)[:, :, 0]

    parallel_rows(rows, planes, dy, dw, block_bytes=PLANE_BYTES)
    return dw.reshape(len(x), groups * dw.shape[1], len(taps)).sum(axis=0)


def _filters(weight: Array, batch: int, groups: int) -> Array:
    """(C·m, 1, *kernel) → (B·C, m, taps): each plane's own."""
    filters = weight.reshape(1, groups, len(weight) // groups, -1)
    filters = array_module(weight).broadcast_to(filters, (batch, *filters.shape[1:]))
    return filters.reshape(batch * groups, *filters.shape[2:])


def _of_tap(filters: Array, tap: int, like: Array) -> Array:
    return filters[:, :, tap].reshape(*filters.shape[:2], *(1 for _ in like.shape[2:]))


# --- the flat view, where the stride is 1; otherwise these leave things as they are ---------------------------------


def _is_flat(windows: Windows) -> bool:
    return max(windows.stride) == 1


def _flat(padded: Array, windows: Windows) -> Array:
    return padded.reshape(*padded.shape[:2], math.prod(windows.padded)) if _is_flat(windows) else padded


def _runs(windows: Windows) -> list[tuple]:
    """windows.taps(), as runs of the flat plane."""
    if not _is_flat(windows):
        return windows.taps()
    pitch = [math.prod(windows.padded[axis + 1 :]) for axis in range(len(windows.padded))]
    starts = itertools.product(*(range(0, reach + 1, d) for reach, d in zip(windows.reach, windows.dilation)))
    return [
        (..., slice(start, start + _run_length(windows)))
        for start in (sum(position * p for position, p in zip(tap, pitch)) for tap in starts)
    ]


def _run_length(windows: Windows) -> int:
    """From the first place to the last, in a flat plane."""
    return 1 + sum((n - 1) * math.prod(windows.padded[axis + 1 :]) for axis, n in enumerate(windows.output))


def _grid(y: Array, windows: Windows) -> tuple[Array, Array]:
    """Zeros that hold y (n, m, *S') in rows as long as the padded plane's; and their run from first place to last."""
    size = windows.padded if _is_flat(windows) else windows.output
    grid = array_module(y).zeros((*y.shape[:2], *size), dtype=y.dtype)
    return grid, _flat(grid, windows)[..., : _run_length(windows)] if _is_flat(windows) else grid


def _places(windows: Windows) -> tuple:
    return (..., *(slice(n) for n in windows.output))
