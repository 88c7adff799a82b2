"""Shifting and masking windows of tokens, and relative positions within them.

From Swin (arXiv 2103.14030, §3.2); Swin V2 uses the same. `swin.Block.attend` has the steps in order; ops/windows.py
cuts a map into windows.

Attention within windows is cheap, but no information crosses window borders. Shifting the windows by half their size
puts tokens of different windows into one. It would also create smaller windows at the border: with windows of 7×7,
shifted by 3, a map of 56×56 would have 9×9 = 81 windows instead of 8×8 = 64. So the map is rolled instead, as by
`ops.roll`: rows shifted out at the top re-enter at the bottom, and columns shifted out at the left re-enter at the
right. There are still 64 windows of the same size, which form a batch. A map of 4×4 tokens, windows of 2×2, shifted by
1:

      regular            shifted            rolled              kinds
    +-----+-----+      a | b   c | d      +-----+-----+      +-----+-----+
    | a b | c d |     ---+-------+---     | f g | h e |      | 0 0 | 0 1 |     0  neither
    | e f | g h |      e | f   g | h      | j k | l i |      | 0 0 | 0 1 |     1  re-entered at the right
    +-----+-----+        |       |        +-----+-----+      +-----+-----+     2  re-entered at the bottom
    | i j | k l |      i | j   k | l      | n o | p m |      | 0 0 | 0 1 |     3  both
    | m n | o p |     ---+-------+---     | b c | d a |      | 2 2 | 2 3 |
    +-----+-----+      m | n   o | p      +-----+-----+      +-----+-----+

h and e now share a window but are not neighbours. So a token may attend only to tokens of its own kind in its window:
this is the mask: p, all of whose neighbours in the window are of other kinds, attends to itself alone. (Figure 4 of the
paper distinguishes nine regions; inside one window, four kinds suffice.)

Where windows do not divide the map, padding fills the last ones. It has no mask of its own: it has a kind like other
tokens and is attended to. The libraries that publish weights differ here, and weights need the rule that they were
trained with (`window_rule`). With 5 rows, windows of 4 and a shift of 2, the rows of the two windows are:

    timm           rolled, then padded        2 3 4 0 | 1 · · ·     a window is never larger than the map
    huggingface    padded, then rolled        2 3 4 · | · · 0 1     the same; both axes have the same window and shift
    torchvision    padded, then rolled        2 3 4 · | · · 0 1     a window is never smaller than configured

Where windows divide every map and the image is square, all three are the same.

`scratchvit inspect swin_tiny_patch4_window7_224` draws all of this for every block.

    B       images                              h, w    rows and columns of the map (with its padding, where it is cut)
    D       channels of a token                 M, M'   rows and columns of a window, `window`
    nW      windows of an image                 N       tokens of a window, M·M'
"""

from __future__ import annotations

import functools

import numpy as np

from scratchvit import ops
from scratchvit.backend import Array
from scratchvit.tensor import Tensor

WINDOW_RULES = ("timm", "huggingface", "torchvision")


def window_and_shift(
    size: tuple[int, int], window: tuple[int, int], shifted: bool, rule: str = "timm"
) -> tuple[tuple[int, int], tuple[int, int]]:
    """(window, shift) of a block whose map has this size (h, w), for a configured window and one of `WINDOW_RULES`.

    Along an axis where one window covers the map there is nothing to shift. A window is never larger than the map,
    except in torchvision, where padding fills it. In Hugging Face's Swin the shorter side decides for both axes.
    """
    if rule == "huggingface":
        size = min(size), min(size)
    shift = [m // 2 if shifted and n > m else 0 for n, m in zip(size, window)]
    if rule != "torchvision":
        window = min(size[0], window[0]), min(size[1], window[1])
    return window, (shift[0], shift[1])


def padding_of(size: tuple[int, int], window: tuple[int, int]) -> tuple[int, int]:
    """(rows, columns) of padding at the bottom and right of a map (h, w), so that the window size divides it."""
    return -size[0] % window[0], -size[1] % window[1]


def pad_below_and_right(x: Tensor, padding: tuple[int, int]) -> Tensor:
    """Add rows and columns of zeros: (B, h, w, D) → (B, h + rows, w + columns, D)."""
    rows, columns = padding
    return x.pad((0, 0, 0, columns, 0, rows)) if rows or columns else x


def crop(x: Tensor, padding: tuple[int, int]) -> Tensor:
    """Take away the last rows and columns, the inverse of `pad_below_and_right`."""
    rows, columns = padding
    return x[:, : x.shape[1] - rows, : x.shape[2] - columns] if rows or columns else x


def shifted_regions(size: tuple[int, int], window: tuple[int, int], shift: tuple[int, int]) -> Tensor:
    """The kind of every token of every window after the roll, int8 (nW, N): 0, 1, 2 or 3 as in the drawing above.

    The last `shift` rows and columns *of the padded map* count as re-entered. With timm's rule, which rolls before it
    pads, some of them are padding, and rows that did re-enter count as 0: opposite edges may then meet.
    """
    padded = [n + more for n, more in zip(size, padding_of(size, window))]
    below, right = (np.arange(n) >= n - s for n, s in zip(padded, shift))
    kinds = (2 * below[:, None] + right).astype(np.int8)                            # (h, w), padded
    return ops.window_partition(Tensor(kinds[None, :, :, None]), window)[..., 0]    # (nW, N)


def same_region(regions: Tensor, batch: int) -> Array:
    """The attention mask of shifted windows, bool (B·nW, 1, N, N): True if two tokens are of the same kind.

    regions (nW, N), from `shifted_regions`; batch: B. Each image has the same windows.
    """
    kinds = regions.expand((batch, *regions.shape))                                 # (B, nW, N)
    kinds = kinds.reshape(-1, 1, regions.shape[1], 1).data                          # (B·nW, 1, N, 1)
    return kinds == kinds.swapaxes(2, 3)                                            # (B·nW, 1, N, N)


@functools.lru_cache(maxsize=64)
def relative_position_index(window: tuple[int, int]) -> np.ndarray:
    """The row of the bias table for each pair (query, key) of the tokens of a window: int32 (N, N).

    An offset is query minus key. The table has a row for each offset (Δy, Δx), from (1-M, 1-M') to (M-1, M'-1) in
    row-major order. In a window of 2×2 there are 9. Query 0, at the upper left, and key 3, at the lower right, have the
    offset (-1, -1), row 0; a token with itself has (0, 0), row 4:

    >>> relative_position_index((2, 2))
    array([[4, 3, 1, 0],
           [5, 4, 2, 1],
           [7, 6, 4, 3],
           [8, 7, 5, 4]], dtype=int32)

    A token (y, x) gets the number y·(2M'-1) + x. Then number(query) - number(key) depends only on (Δy, Δx), and differs
    for different offsets, since |Δx| < M'. The largest number is added, so that rows start at 0.
    """
    y, x = np.meshgrid(*(np.arange(m, dtype=np.int32) for m in window), indexing="ij")
    number = (y * (2 * window[1] - 1) + x).reshape(-1)      # (N,)
    index = number[:, None] - number + number[-1]           # (N, N), 0 … (2M-1)(2M'-1) - 1
    index.setflags(write=False)         # it is cached and shared by all callers
    return index


def bias_of_pairs(table: Tensor, index: Tensor) -> Tensor:
    """The attention bias (B in eq. 4) for every pair of tokens: (heads, N, N), in the table's dtype.

    table (offsets, heads); index (N, N) from `relative_position_index`.
    """
    pairs = ops.embedding(index, table).permute((2, 0, 1))      # (N, N, heads) → (heads, N, N)
    return pairs.flatten().reshape(pairs.shape)         # (heads, N, N), contiguous, which is faster in attention
