"""Drawings of a Swin's windows, attention masks, bias tables and receptive fields, computed by `inspect/swin.py`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scratchvit.files import counted
from scratchvit.inspect.figures import GRID, INK, TRAIN, VALIDATION, make_folder, sheet
from scratchvit.inspect.swin import PADDING, BlockWindows, extent, mask_kinds, merged_into, pixels

# P. Tol's "light" colours, which suit text on top of them and can be distinguished with colour blindness.
KINDS = ("#99ddff", "#ee8866", "#44bb99", "#eedd88")    # by region of a token after the roll
ORIGINS = ("0: not wrapped around", "1: wrapped around from the left", "2: from the top", "3: from both")
PAPER, PADDED = "#f7f7f7", "#bbbbbb"                    # background without a picture; padding
ATTENDS, ATTENDS_PADDING, MASKED = TRAIN, "#aabbd4", PAPER
SHARE = 0.75                                            # opacity of colours over the picture
MOST_BLOCKS, MOST_HEADS, MOST_TABLES = 24, 12, 12       # limits for one picture
MOST_LETTERS, THIN = 256, 0.03                          # windows with letters; part of a map's width that is too narrow
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Scene:
    """The content of the drawings.

    name         name of the model, for the titles
    blocks       the windows of its blocks
    token        (row, column) in the first map of the token whose receptive field is drawn
    reached      its receptive field after every block, bool (h, w) in patches
    patch_size   (height, width) in pixels
    tables       relative position bias of every block by offset, (heads, 2M-1, 2M'-1)
    picture      background, uint8 (H, W, 3) in the size of the model's images; None: white
    """

    name: str
    blocks: Sequence[BlockWindows]
    token: tuple[int, int]
    reached: Sequence[NDArray[np.bool_]]
    patch_size: tuple[int, int]
    tables: Sequence[NDArray]
    picture: NDArray[np.uint8] | None = None

    def pale(self) -> NDArray[np.float64]:
        """The picture in pale colours, as a background, (H, W, 3) in 0 … 1."""
        if self.picture is not None:
            return 0.25 + 0.75 * self.picture / 255
        (rows, columns), (P, Q) = self.blocks[0].size, self.patch_size
        return np.full((rows * P, columns * Q, 3), _rgb(PAPER))

    @property
    def ratio(self) -> float:
        """Height / width of the image, limited to a range that is useful for axes."""
        (rows, columns), (P, Q) = self.blocks[0].size, self.patch_size
        return min(max(rows * P / (columns * Q), 0.4), 2.0)

    def token_size(self, block: BlockWindows) -> tuple[int, int]:
        """The size (height, width) in pixels of a token in the map of a block."""
        return self.patch_size[0] << (block.stage - 1), self.patch_size[1] << (block.stage - 1)

    def tiles(self, block: BlockWindows) -> NDArray[np.float64]:
        """The pale picture divided into the tokens of a block, (h·w, P, Q, 3); white for the padding of merging."""
        (h, w), (P, Q), pale = block.size, self.token_size(block), self.pale()
        whole = np.ones((h * P, w * Q, 3))
        whole[: len(pale), : len(pale[0])] = pale
        return whole.reshape(h, P, w, Q, 3).swapaxes(1, 2).reshape(-1, P, Q, 3)


def draw_windows(scene: Scene, path: Path) -> None:
    """Draw the windows of every stage: regular, shifted, and on the rolled and padded map, as attention sees them."""
    stages = [[b for b in scene.blocks if b.stage == stage][:2] for stage in range(1, scene.blocks[-1].stage + 1)]
    title = f"{scene.name}: the windows of every stage"
    with _page(path, len(stages), 3, (8.8, (2.5 * scene.ratio + 0.35) * len(stages) + 1.0), title) as (page, axes):
        for (left, middle, right), blocks in zip(axes, stages):
            first, second = blocks[0], blocks[-1]
            _draw_map(left, scene, first, rolled=True)
            pad = f", padded by {by(first.padding)}" if any(first.padding) else ""
            _title(left, f"not shifted: windows of {by(first.window)}{pad}")
            left.set_ylabel(f"stage {first.stage}: {by(first.size)} tokens", color=INK, fontsize=9)
            if not any(second.shift):
                middle.set_axis_off(), right.set_axis_off()
                whole = np.greater_equal(second.window, second.size).all()
                covers = "one window covers the map" if whole else "windows are one token wide"
                _title(middle, f"no shift: {'there is only one block' if len(blocks) == 1 else covers}")
                continue
            _draw_map(middle, scene, second, rolled=False)
            _title(middle, f"shifted by {by(second.shift)}")
            _draw_map(right, scene, second, rolled=True)
            _title(right, "the same windows, rolled")
        entries, note = _regions(scene.blocks)
        (h, w), (P, Q) = scene.blocks[0].size, scene.patch_size
        last = np.multiply(scene.blocks[-1].size, scene.token_size(scene.blocks[-1]))
        entries += [("#ffffff", "outside the picture")] * bool((last > (h * P, w * Q)).any())
        _legend(page, entries, f"Parts with the same letter belong to one window.{note}")


def draw_masks(scene: Scene, path: Path) -> None:
    """Draw the rolled map of every stage with its regions, and the distinct attention masks of its windows."""
    blocks = {b.stage: b for b in scene.blocks if any(b.shift)}.values()
    title = f"{scene.name}: attention masks of shifted windows"
    if not blocks:
        with _page(path, 1, 1, (7.5, 1.2), title) as (_, axes):
            axes[0, 0].set_axis_off()
            _title(axes[0, 0], "no block has shifted windows, so there are no masks")
        return
    kinds, plain = [mask_kinds(block) for block in blocks], replace(scene, picture=None)
    columns = 1 + max(map(len, kinds))
    with _page(path, len(blocks), columns, (2.35 * columns, 2.6 * len(blocks) + 1.2), title) as (page, axes):
        for row, block, masks in zip(axes, blocks, kinds):
            letters = np.select([kind.windows for kind in masks], list(LETTERS.lower()[: len(masks)]), "")
            _draw_map(row[0], plain, block, rolled=True, letters=letters)
            _title(row[0], f"regions, windows of {by(block.window)}")
            row[0].set_ylabel(f"stage {block.stage}: {by(block.size)} tokens", color=INK, fontsize=9)
            for ax in row[1 + len(masks) :]:
                ax.set_axis_off()
            for ax, kind, letter in zip(row[1:], masks, LETTERS.lower()):
                count, N = int(kind.windows.sum()), len(kind.mask)
                attends = np.where(kind.padding[:, None], _rgb(ATTENDS_PADDING), _rgb(ATTENDS))
                colours = np.where(kind.mask[..., None], attends, _rgb(MASKED))
                ax.imshow(colours, interpolation="nearest", extent=(0.5, N + 0.5, N + 0.5, 0.5))
                _ticks(ax, (1, N), (1, N))
                _title(ax, f"{letter}: mask of {counted(count, 'window')}")
            row[1].set_ylabel("query token", color=INK, fontsize=8)
            row[1].set_xlabel("key token", color=INK, fontsize=8)
        entries, note = _regions(scene.blocks)
        entries += [(ATTENDS, "True: attends"), (MASKED, "False: −∞ before the softmax")]
        entries += [(ATTENDS_PADDING, "True: attends to padding")] * any(any(block.padding) for block in blocks)
        words = "The letter in a window names its mask. The tokens of a window are numbered row by row."
        _legend(page, entries, words + note)


def draw_bias(scene: Scene, path: Path) -> None:
    """Draw the relative position bias by offset: a row for each block, a column for each head."""
    chosen = np.unique(np.linspace(0, len(scene.blocks) - 1, MOST_TABLES).round().astype(int))
    tables = [(scene.blocks[i], scene.tables[i]) for i in chosen]
    most = max(len(table) for _, table in tables)
    columns = min(most, MOST_HEADS)
    shown = [f"{len(chosen)} of {len(scene.blocks)} blocks"] * (len(chosen) < len(scene.blocks))
    shown += [f"at most {columns} of {most} heads"] * (columns < most)
    title = f"{scene.name}: relative position bias" + (f" ({', '.join(shown)})" if shown else "")
    tall = max(table.shape[1] / max(table.shape[1:]) for _, table in tables)        # height of a cell of width 1
    size = (max(7.5, 0.7 * columns + 2.4), (0.65 * tall + 0.05) * len(tables) + 1.4)
    with _page(path, len(tables), 1, size, title) as (page, axes):
        for ax, (block, table) in zip(axes[:, 0], tables):
            centred = table - table.mean(axis=(1, 2), keepdims=True)
            largest = np.abs(centred).max()
            H, W = table.shape[1:]
            up, left = 0.46 * H / max(H, W), 0.46 * W / max(H, W)
            for head, values in enumerate(centred[:columns]):
                ax.imshow(
                    values, cmap="RdBu_r", vmin=-largest, vmax=max(largest, np.finfo(np.float32).tiny),
                    interpolation="nearest", extent=(head + 0.5 - left, head + 0.5 + left, up, -up),
                )
            ax.set(xlim=(0, columns), ylim=(tall / 2, -tall / 2), xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
            heads = counted(len(table), "head")
            words = f"stage {block.stage}, block {block.number}\n{by((H, W))} offsets, {heads}"
            _write(ax, -0.1, 0, words, ha="right")
            _write(ax, min(columns, len(table)) + 0.08, 0, f"±{largest:.2g}", ha="left")
        for head in range(columns):
            _write(axes[0, 0], head + 0.5, -tall / 2 - 0.12, f"head {head + 1}", ha="center")
        page.supxlabel(
            "Rows and columns of a table are Δy and Δx, the position of the query minus that of the key; (0, 0) is in\n"
            "the middle. Red: more attention, blue: less. The mean of each table is subtracted, which does not change\n"
            "the softmax. The number to the right of a block is the end of its colour scale.",
            x=0.01, ha="left", color=INK, fontsize=8,
        )


def draw_receptive(scene: Scene, path: Path) -> None:
    """Draw the receptive field of the token after each block, and the tokens that it attends to in this block."""
    whole = [bool(reached.all()) for reached in scene.reached]
    count = min(MOST_BLOCKS, whole.index(True) + 1 if any(whole) else len(whole))
    title = f"{scene.name}: receptive field of the token in row {scene.token[0]}, column {scene.token[1]}"
    if count < len(whole):
        title += f"\nafter the first {count} of {len(whole)} blocks"
        title += "; after the others, the whole image" if whole[count - 1] else ""
    columns = min(count, 6)
    rows = -(-count // columns)
    size = (max(7.5, 2.0 * columns), (1.75 * scene.ratio + 0.5) * rows + 0.8)
    with _page(path, rows, columns, size, title) as (page, axes):
        for ax in axes.flat[count:]:
            ax.set_axis_off()
        for ax, block, reached in zip(axes.flat, scene.blocks[:count], scene.reached):
            _draw_reach(ax, scene, block, reached)
        _legend(
            page, [(KINDS[0], "receptive field"), (VALIDATION, "the token itself"),
                   ("#ffffff", "outlined: the tokens that it attends to in this block")],
        )


PICTURES = {
    "windows.png": draw_windows, "masks.png": draw_masks, "bias.png": draw_bias, "receptive.png": draw_receptive,
}


def in_words(reached: NDArray[np.bool_], patch_size: tuple[int, int]) -> str:
    """The size of a receptive field as text, "28×28 px": the box around it. Gaps occur if opposite edges are joined."""
    height, width = extent(reached)
    gaps = ", with gaps" if height * width > reached.sum() else ""
    return by((height * patch_size[0], width * patch_size[1])) + f" px{gaps}"


def _draw_map(
    ax: Any, scene: Scene, block: BlockWindows, rolled: bool, letters: NDArray[np.str_] | None = None
) -> None:
    """Draw the map of a block with its windows over the picture; windows with several regions are coloured.

    rolled: draw the rolled and padded map, as attention sees it. letters (nW,): text in the windows.
    """
    arrange = block.side_by_side if rolled else block.in_place
    nW, N = block.places.shape
    joined = np.ptp(block.kinds, axis=1) > 0
    if letters is None:
        letters = np.full(nW, "")
        if joined.sum() <= len(LETTERS):
            letters[joined] = list(LETTERS[: joined.sum()])
    of_tokens = np.repeat(np.arange(nW)[:, None], N, axis=1)
    places, kinds, windows, coloured = map(arrange, (block.places, block.kinds, of_tokens, joined[of_tokens]))
    absent = places == PADDING

    tiles, (P, Q), (h, w) = scene.tiles(block), scene.token_size(block), places.shape
    below = np.where(absent[..., None, None, None], _rgb(PADDED), tiles[places])        # (h, w, P, Q, 3)
    colours = np.array([_rgb(kind) for kind in KINDS])[kinds][:, :, None, None]
    share = (np.where(absent, SHARE / 2, SHARE) * coloured)[..., None, None, None]
    shown = (share * colours + (1 - share) * below).swapaxes(1, 2).reshape(h * P, w * Q, 3)
    ax.imshow(shown, extent=(0, w, h, 0), interpolation="nearest", aspect=P / Q)
    if max(h, w) <= 64:
        ax.vlines(range(1, w), 0, h, color=GRID, linewidth=0.25)
        ax.hlines(range(1, h), 0, w, color=GRID, linewidth=0.25)
    pieces = len(KINDS) * windows + kinds
    _outline(ax, windows if rolled else pieces)
    _ticks(ax, (0, w), (0, h))
    if nW > MOST_LETTERS:
        return
    from scipy import ndimage  # slow to import

    for piece in np.unique(pieces[(kinds == 0) | (not rolled)]):        # in a rolled map, each window has one letter
        letter = letters[piece // len(KINDS)]
        parts, _ = ndimage.label(pieces == piece) if letter else (np.zeros_like(pieces), 0)
        for rows, columns in ndimage.find_objects(parts):
            height, width = (rows.stop - rows.start) * P, (columns.stop - columns.start) * Q
            if min(height, width) > THIN * w * Q:
                middle = (columns.start + columns.stop) / 2, (rows.start + rows.stop) / 2
                _write(ax, *middle, letter, ha="center", color="black", size=6)


def _draw_reach(ax: Any, scene: Scene, block: BlockWindows, reached: NDArray[np.bool_]) -> None:
    """Draw the picture with the receptive field, the token, and the tokens that it attends to."""
    P, Q = scene.token_size(block)
    here = merged_into(scene.token, block.stage)
    token = np.zeros(block.size, bool)
    token[here] = True
    shown = scene.pale()
    H, W = shown.shape[:2]
    where = pixels(reached, scene.patch_size)
    shown[where] = (1 - SHARE) * shown[where] + SHARE * _rgb(KINDS[0])
    shown[here[0] * P :, here[1] * Q :][:P, :Q] = _rgb(VALIDATION)
    ax.imshow(shown, extent=(0, W, H, 0), interpolation="nearest")
    seen = np.pad(block.looked_at(token), 1)
    _outline(ax, seen, corner=(-Q, -P), token=(Q, P))
    ax.set(xlim=(-0.01 * W, 1.01 * W), ylim=(1.01 * H, -0.01 * H))
    _ticks(ax, (0, W), (0, H))
    how = "shifted" if any(block.shift) else "not shifted"
    size = in_words(reached, scene.patch_size)
    _title(ax, f"stage {block.stage}, block {block.number}, {how}\n{size}, {reached.mean():.1%}")


def _outline(ax: Any, pieces: NDArray, corner: tuple[int, int] = (0, 0), token: tuple[int, int] = (1, 1)) -> None:
    """Draw lines between neighbours of a map that belong to different pieces.

    corner: (x, y) of the map's upper left. token: (width, height).
    """
    (left, top), (dx, dy) = corner, token
    y, x = np.nonzero(pieces[:, 1:] != pieces[:, :-1])
    ax.vlines(left + (x + 1) * dx, top + y * dy, top + (y + 1) * dy, color="black", linewidth=0.8)
    y, x = np.nonzero(pieces[1:] != pieces[:-1])
    ax.hlines(top + (y + 1) * dy, left + x * dx, left + (x + 1) * dx, color="black", linewidth=0.8)


def _ticks(ax: Any, x: tuple[int, int], y: tuple[int, int]) -> None:
    """Label only the ends of both axes."""
    ax.set(xticks=x, yticks=y)
    ax.tick_params(colors=INK, labelsize=6, length=2, pad=1.5)
    ax.spines[:].set_color(INK)


def _title(ax: Any, words: str) -> None:
    ax.set_title(words, color=INK, fontsize=8, loc="left")


def _write(ax: Any, x: float, y: float, words: str, ha: str, color: str = INK, size: int = 7) -> None:
    ax.text(x, y, words, ha=ha, va="center", color=color, fontsize=size)


def _regions(blocks: Sequence[BlockWindows]) -> tuple[list[tuple[str, str]], str]:
    """The legend of rolled maps, (colour, text) each, and a note about padding."""
    entries, note = [*zip(KINDS, ORIGINS)], ""
    if any(any(block.padding) for block in blocks):
        entries.append((PADDED, "padding"))
    if any(any(block.padding) and any(block.shift) and not block.pads_first for block in blocks):
        note = (
            "\nAs in timm, maps are rolled before they are padded, but regions are computed from the padded edge. So"
            "\nsome tokens that were wrapped around are in region 0, and attend to tokens of the opposite edge."
        )
    return entries, note


def _legend(page: Any, entries: Sequence[tuple[str, str]], note: str | None = None) -> None:
    """Draw a legend at the bottom of the page."""
    from matplotlib.patches import Patch  # Matplotlib is installed: it drew the page

    handles = [Patch(facecolor=colour, edgecolor="black", linewidth=0.5, label=words) for colour, words in entries]
    legend = page.legend(
        handles=handles, loc="outside lower left", ncols=min(len(handles), 4), frameon=False, fontsize=8,
        labelcolor=INK, title=note, title_fontsize=8, alignment="left",
    )
    legend.get_title().set_color(INK)


@contextlib.contextmanager
def _page(
    path: Path, rows: int, columns: int, size: tuple[float, float], title: str
) -> Iterator[tuple[Any, NDArray[np.object_]]]:
    """A `sheet` with a title: (page, axes). Its folder is created at the end, so that a failure leaves nothing."""
    with sheet(path, rows, columns, size) as axes:
        page = axes[0, 0].figure
        page.suptitle(title, x=0.01, ha="left", color=INK, fontsize=10)
        yield page, axes
        make_folder(path.parent)


def by(size: tuple[int, ...]) -> str:
    """Format a size: (7, 7) becomes "7×7"."""
    return "×".join(map(str, size))


def _rgb(colour: str) -> NDArray[np.float64]:
    """Convert a colour such as "#4477aa" to three numbers in 0 … 1."""
    return np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
