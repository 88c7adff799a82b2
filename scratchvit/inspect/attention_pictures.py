"""Drawing the attention of every head and layer of a ViT over a picture, with Matplotlib."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from scratchvit.data.images import reduce_image, to_picture
from scratchvit.inspect.figures import INK, overlay, sheet

TILE = 112      # shorter side in pixels of a picture in the sheet
GAP = 8


def as_seen(image: NDArray[np.float32]) -> NDArray[np.uint8]:
    """What a model is given, float32 (C, H, W), as a picture uint8 (H, W, C); 0 is its smallest number."""
    low, high = image.min(), image.max()
    shares = (image - low) / max(high - low, np.finfo(np.float32).tiny)
    return np.rint(255 * shares.transpose(1, 2, 0)).astype(np.uint8)


def draw_heads(
    picture: NDArray[np.uint8], maps: NDArray[np.float32], title: str, path: str | Path,
    patch: tuple[int, int] | None = None,
) -> None:
    """Draw a sheet with a row for each layer and a column for each head: its map over the picture.

    picture uint8 (H, W, C), C 1 or 3; maps (layers, heads, rows, columns), each drawn from its minimum to its maximum.
    patch: row and column of the one whose attention this is, which gets a frame.
    Raises ScratchvitError if Matplotlib is missing.
    """
    small = np.asarray(reduce_image(to_picture(picture), TILE))
    small = small.reshape(*small.shape[:2], -1)
    tiles = [[overlay(small, heat) for heat in of_layer] for of_layer in maps]
    if patch is not None:
        tiles = [[_framed(tile, patch, maps.shape[2:]) for tile in of_layer] for of_layer in tiles]
    height, width = tiles[0][0].shape[:2]
    layers, heads = maps.shape[:2]
    whole = np.full((layers * (height + GAP) - GAP, heads * (width + GAP) - GAP, 3), 255, np.uint8)
    for layer, of_layer in enumerate(tiles):
        for head, tile in enumerate(of_layer):
            top, left = layer * (height + GAP), head * (width + GAP)
            whole[top : top + height, left : left + width] = tile
    size = (0.8 * heads * width / min(height, width) + 1, 0.8 * layers * height / min(height, width) + 0.8)
    with sheet(path, 1, 1, size) as axes:
        (ax,) = axes[0]
        ax.imshow(whole)
        ax.set_title(title, color=INK, fontsize=9)
        ax.set_xticks([head * (width + GAP) + width / 2 for head in range(heads)], [f"head {h}" for h in range(heads)])
        ax.set_yticks(
            [layer * (height + GAP) + height / 2 for layer in range(layers)], [f"layer {n}" for n in range(layers)]
        )
        ax.tick_params(colors=INK, length=0, labelsize=8)
        for spine in ax.spines.values():
            spine.set_visible(False)


def _framed(tile: NDArray[np.uint8], patch: tuple[int, int], grid: tuple[int, ...]) -> NDArray[np.uint8]:
    """A copy of a tile with a white frame around a patch."""
    picture = Image.fromarray(tile)
    tall, wide = tile.shape[0] / grid[0], tile.shape[1] / grid[1]
    corners = (patch[1] * wide, patch[0] * tall, (patch[1] + 1) * wide - 1, (patch[0] + 1) * tall - 1)
    ImageDraw.Draw(picture).rectangle(corners, outline="white", width=2)
    return np.asarray(picture)
