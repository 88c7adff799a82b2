"""Chapter 8: the windows of a block on a photograph, drawn."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from scratchvit import ops
from scratchvit.errors import missing
from scratchvit.inspect.swin import BlockWindows, places_in_windows
from scratchvit.inspect.swin_pictures import KINDS
from scratchvit.models.windows import relative_position_index, shifted_regions
from scratchvit.nn import Module
from scratchvit.tensor import Tensor

CHOSEN = "#cc3311"      # what the reader has chosen

Picture = NDArray[np.uint8]


def photograph(side: int) -> Picture:
    """The centre square of a photograph that comes with scikit-learn, uint8 (side, side, 3).

    Raises ScratchvitError if scikit-learn is missing.
    """
    package = importlib.util.find_spec("sklearn")       # not imported, which takes a second
    if package is None or package.origin is None:
        raise missing("the photograph of this chapter comes with scikit-learn", "scikit-learn")
    with Image.open(Path(package.origin).parent / "datasets/images/china.jpg") as picture:
        left = (picture.width - picture.height) // 2
        square = picture.crop((left, 0, left + picture.height, picture.height))
        return np.asarray(square.resize((side, side), Image.Resampling.LANCZOS))


def block_of(side: int, window: int, shift: int) -> BlockWindows:
    """The windows of a block on a map of side × side tokens, which windows divide. It has no attention layer."""
    size = side, side
    places = places_in_windows(size, (window, window), (shift, shift))
    kinds = shifted_regions(size, (window, window), (shift, shift)).numpy()
    return BlockWindows(1, 1, size, (window, window), (shift, shift), places, kinds, False, Module())


def pieces_without_roll(side: int, window: int, shift: int) -> int:
    """How many windows there are, of all sizes, if shifted windows end at the edges of the map."""
    edges = {0, side, *range(shift, side, window)}
    return (len(edges) - 1) ** 2


def shares_allowed(block: BlockWindows) -> NDArray[np.float64]:
    """The share of the pairs in each window that its mask allows, (nW,)."""
    return np.mean(block.masks(), axis=(1, 2))


def rolled_picture(picture: Picture, block: BlockWindows, token: int) -> Picture:
    """The picture as attention in shifted windows is given it: windows of the same size, side by side.

    token: pixels along a side of a token.
    """
    h, w = block.size
    tokens = picture.reshape(h, token, w, token, 3).swapaxes(1, 2).reshape(1, h, w, -1)     # (1, h, w, D)
    cut = ops.window_partition(Tensor(tokens), block.window, block.shift)                   # (nW, N, D)
    together = ops.window_reverse(cut, block.window, block.size).numpy()                    # (1, h, w, D)
    return together.reshape(h, w, token, token, 3).swapaxes(1, 2).reshape(picture.shape)


def tinted(picture: Picture, kinds: NDArray[np.int8], token: int) -> Picture:
    """The picture with a colour over every token that the roll brought to another side. kinds (h, w)."""
    colours = np.array([[int(name[i : i + 2], 16) for i in (1, 3, 5)] for name in KINDS])
    kinds = kinds.repeat(token, axis=0).repeat(token, axis=1)
    mixed = (0.45 * picture + 0.55 * colours[kinds]).astype(np.uint8)
    return np.where(kinds[..., None] > 0, mixed, picture)


def draw_windows(axes: list[Any], picture: Picture, block: BlockWindows, number: int) -> None:
    """Draw the windows in place, on the rolled map, and the mask of a window, on three Matplotlib axes.

    number: of the window whose tokens are framed and whose mask is drawn, from 0.
    """
    from matplotlib.patches import Rectangle

    token, (_, w), (M, _) = len(picture) // block.size[0], block.size, block.window
    in_place = tinted(picture, block.in_place(block.kinds), token)
    rolled = tinted(rolled_picture(picture, block, token), block.side_by_side(block.kinds), token)
    for ax, drawn, start in ((axes[0], in_place, block.shift[0]), (axes[1], rolled, 0)):
        ax.imshow(drawn)
        for at in range(start, w + 1, M):
            ax.axhline(at * token - 0.5, color="white", linewidth=1.6)
            ax.axvline(at * token - 0.5, color="white", linewidth=1.6)
        ax.set_axis_off()
    for place in block.places[number].tolist():
        y, x = divmod(place, w)
        axes[0].add_patch(Rectangle(
            (x * token + 1, y * token + 1), token - 3, token - 3, fill=False, edgecolor=CHOSEN, linewidth=1.2
        ))
    row, column = divmod(number, w // M)
    axes[1].add_patch(Rectangle(
        (column * M * token, row * M * token), M * token - 1, M * token - 1, fill=False, edgecolor=CHOSEN, linewidth=2.5
    ))
    axes[2].imshow(block.masks()[number], cmap="Blues", vmin=0, vmax=1.4)
    axes[2].set(xticks=[], yticks=[])


def draw_index(pairs: Any, table: Any, M: int, query: int, key: int) -> None:
    """Draw the row of the bias table for each pair of tokens in a window, and the table by offset, on two axes.

    The pair (query, key) is framed in both.
    """
    from matplotlib.patches import Rectangle

    index, rows = relative_position_index((M, M)), np.arange((2 * M - 1) ** 2).reshape(2 * M - 1, -1)
    pairs.imshow(index, cmap="viridis")
    table.imshow(rows, cmap="viridis", extent=(-M + 0.5, M - 0.5, M - 0.5, -M + 0.5))
    for ax, numbers, first in ((pairs, index, 0), (table, rows, 1 - M)):
        ax.locator_params(integer=True)
        for (y, x), number in np.ndenumerate(numbers):
            if M <= 3:      # larger ones have no room for numbers
                colour = "black" if number > 0.7 * rows.max() else "white"
                ax.text(x + first, y + first, number, ha="center", va="center", color=colour, fontsize=9)
    (dy, dx) = np.subtract(divmod(query, M), divmod(key, M)).tolist()
    for ax, x, y in ((pairs, key, query), (table, dx, dy)):
        ax.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, edgecolor=CHOSEN, linewidth=2.5))


@contextlib.contextmanager
def changed(module: Any, **attributes: Any) -> Iterator[None]:
    """Context manager in which a module has other attributes."""
    before = {name: getattr(module, name) for name in attributes}
    for name, value in attributes.items():
        setattr(module, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)


@contextlib.contextmanager
def biases_times(blocks: list[BlockWindows], factor: float) -> Iterator[None]:
    """Context manager in which the relative position biases of a Swin's blocks are multiplied by a factor."""
    attentions: list[Any] = [block.attention for block in blocks]
    tables = [attention.relative_position_bias_table for attention in attentions]
    before = [table.numpy().copy() for table in tables]
    for table, values in zip(tables, before):
        table.assign(factor * values)
    try:
        yield
    finally:
        for table, values in zip(tables, before):
            table.assign(values)
