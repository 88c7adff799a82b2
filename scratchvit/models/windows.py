"""Windows on a map of tokens: cut, shifted, masked, and the places of their tokens (Swin, arXiv 2103.14030, §3.2).

Attention within windows costs little, but windows alone never speak to each other. Shifted by half a window, they join
what was apart. To have whole windows still, the map is rolled: what leaves it above comes in below, what leaves it at
the left comes in at the right. A map of 4×4 tokens, windows of 2×2, shifted by 1:

      in place           shifted            rolled              kinds
    +-----+-----+      a | b   c | d      +-----+-----+      +-----+-----+
    | a b | c d |     ---+-------+---     | f g | h e |      | 0 0 | 0 1 |     0  where it was
    | e f | g h |      e | f   g | h      | j k | l i |      | 0 0 | 0 1 |     1  carried over from the left
    +-----+-----+        |       |        +-----+-----+      +-----+-----+     2  from above
    | i j | k l |      i | j   k | l      | n o | p m |      | 0 0 | 0 1 |     3  from both
    | m n | o p |     ---+-------+---     | b c | d a |      | 2 2 | 2 3 |
    +-----+-----+      m | n   o | p      +-----+-----+      +-----+-----+

h and e now share a window, and are no neighbours. So within a window a token may look at its own kind only: this is
the mask (Figure 4 of the paper, whose nine regions are these kinds, told apart from window to window).
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from scratchvit import ops
from scratchvit.backend import Array
from scratchvit.tensor import Tensor


def window_partition(x: Tensor, window: tuple[int, int]) -> Tensor:
    """Cut maps (B, H, W, D) into windows of N = M·M' tokens, (B·nW, N, D); those of an image follow each other."""
    B, H, W, D = x.shape
    x = x.reshape(B, H // window[0], window[0], W // window[1], window[1], D)
    return x.permute((0, 1, 3, 2, 4, 5)).reshape(-1, window[0] * window[1], D)


def window_reverse(windows: Tensor, window: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Put windows (B·nW, N, D) together again to maps (B, H, W, D) of size (H, W)."""
    (H, W), D = size, windows.shape[-1]
    x = windows.reshape(-1, H // window[0], W // window[1], window[0], window[1], D)
    return x.permute((0, 1, 3, 2, 4, 5)).reshape(-1, H, W, D)


def window_and_shift(
    size: tuple[int, int], window: tuple[int, int], shifted: bool
) -> tuple[tuple[int, int], tuple[int, int]]:
    """(window, shift) of a block whose map has that size.

    A window is never larger than the map; along an axis where one window covers the map, there is nothing to shift.
    """
    shift = [m // 2 if shifted and n > m else 0 for n, m in zip(size, window)]
    return (min(size[0], window[0]), min(size[1], window[1])), (shift[0], shift[1])


def padding_of(size: tuple[int, int], window: tuple[int, int]) -> tuple[int, int]:
    """(rows, columns) that a map lacks at its lower and right edge to be whole windows."""
    return -size[0] % window[0], -size[1] % window[1]


def shifted_regions(size: tuple[int, int], window: tuple[int, int], shift: tuple[int, int]) -> Tensor:
    """What kind every token of every window is after the roll, int8 (nW, N): 0, 1, 2 or 3 as in the picture above.

    As in timm, a map that windows do not divide is rolled first and padded then, and yet the last `shift` rows and
    columns *of the padded map* count as carried over. (The paper's authors pad first; weights fit both.)
    """
    padded = [n + more for n, more in zip(size, padding_of(size, window))]
    below, right = (np.arange(n) >= n - s for n, s in zip(padded, shift))
    kinds = (2 * below[:, None] + right).astype(np.int8)                            # (H, W)
    return window_partition(Tensor(kinds[None, :, :, None]), window)[..., 0]        # (nW, N)


def same_region(regions: Tensor, batch: int) -> Array:
    """The mask of attention in shifted windows, bool (B·nW, 1, N, N): True where two tokens are of one kind."""
    kinds = regions.expand((batch, *regions.shape)).reshape(-1, 1, regions.shape[1], 1).data
    return kinds == kinds.swapaxes(2, 3)


def in_windows(
    attend: Callable[..., Tensor], x: Tensor, window: tuple[int, int], shift: tuple[int, int], regions: Tensor | None
) -> Tensor:
    """`attend(tokens, mask)` in every window of the maps x (B, H, W, D); the result has x's shape.

    attend takes tokens (B·nW, N, D) and a mask as `same_region` gives it, or None where nothing is shifted.
    """
    B, H, W, _ = x.shape
    if regions is not None:
        x = ops.roll(x, (-shift[0], -shift[1]), (1, 2))
    below, right = padding_of((H, W), window)
    if below or right:
        x = x.pad((0, 0, 0, right, 0, below))
    windows = attend(window_partition(x, window), None if regions is None else same_region(regions, B))
    x = window_reverse(windows, window, (H + below, W + right))
    if below or right:
        x = x[:, :H, :W]
    return x if regions is None else ops.roll(x, shift, (1, 2))


@functools.lru_cache(maxsize=64)
def relative_position_index(window: tuple[int, int]) -> np.ndarray:
    """Which row of the bias table belongs to a pair of a window's tokens, int32 (N, N).

    The table has a row for every offset (Δy, Δx), row by row from (1-M, 1-M') to (M-1, M'-1). With rows of 2M'-1, the
    difference of two tokens' places is the place of their difference.
    """
    y, x = np.meshgrid(*(np.arange(m, dtype=np.int32) for m in window), indexing="ij")
    place = (y * (2 * window[1] - 1) + x).reshape(-1)
    index = place[:, None] - place + place[-1]
    index.setflags(write=False)         # shared by all who ask
    return index


def bias_of_pairs(table: Tensor, index: Tensor) -> Tensor:
    """B of eq. 4, (heads, N, N), from a table (offsets, heads) and `relative_position_index`."""
    pairs = ops.embedding(index, table).permute((2, 0, 1))
    return pairs.flatten().reshape(pairs.shape)         # laid out head by head, as attention reads it
