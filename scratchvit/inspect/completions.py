"""Pictures whose lower parts are completed by an iGPT (Chen et al., ICML 2020)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scratchvit.backend import asnumpy
from scratchvit.data.palette import decode, encode
from scratchvit.inspect.figures import INK, sheet
from scratchvit.models.igpt import IGPT
from scratchvit.models.igpt_sample import sample

HIDDEN = np.array([0.80, 0.84, 0.90])       # fills the hidden part; a colour that is not grey


def complete(
    model: IGPT,
    pictures: NDArray[np.uint8],
    samples: int,
    rng: np.random.Generator,
    rows: int | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
) -> NDArray[np.uint8]:
    """Complete pictures (B, H, W, C) from their first rows, by default half of them: (B, samples, H, W, C).

    The given rows are also reduced to the palette of the model. Raises ScratchvitError as `igpt_sample.sample` does.
    """
    B, H, W, C = pictures.shape
    palette = asnumpy(model.palette.data)
    given = encode(pictures, palette)[:, : (H // 2 if rows is None else rows) * W]
    tokens = sample(model, np.repeat(given, samples, axis=0), temperature, top_k, rng)      # (B · samples, H · W)
    return decode(asnumpy(tokens), palette, (H, W)).reshape(B, samples, H, W, C)


def draw_completions(
    model: IGPT,
    pictures: NDArray[np.uint8],
    path: str | Path,
    rng: np.random.Generator,
    samples: int = 4,
    temperature: float = 1.0,
    top_k: int | None = None,
) -> None:
    """Draw a row for each picture (B, H, W, C): the picture, its upper half, and `samples` completions.

    Raises ScratchvitError if Matplotlib is missing, and as `igpt_sample.sample` does.
    """
    drawn = complete(model, pictures, samples, rng, temperature=temperature, top_k=top_k)
    titles = ("picture", "given", "completed", *[""] * (samples - 1))
    with sheet(path, len(pictures), 2 + samples, size=(0.9 * (2 + samples), 0.9 * len(pictures) + 0.3)) as axes:
        for row, picture, completions in zip(axes, pictures, drawn):
            given = _in_colour(picture)
            given[len(given) // 2 :] = HIDDEN
            for ax, image in zip(row, (_in_colour(picture), given, *map(_in_colour, completions))):
                ax.imshow(image, interpolation="nearest")
                ax.set_axis_off()
        for ax, title in zip(axes[0], titles):
            ax.set_title(title, color=INK, fontsize=8)


def _in_colour(picture: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Convert uint8 (H, W, 1 or 3) to RGB (H, W, 3) in 0 … 1."""
    return np.repeat(picture, 3 // picture.shape[2], axis=2) / 255
