"""Pictures of a run: how it learned, and where its model looks. Drawn with Matplotlib, into a file."""

from __future__ import annotations

import contextlib
import csv
import io
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scratchvit.backend import asarray
from scratchvit.errors import ScratchvitError
from scratchvit.inspect.attention import attention_maps, class_attention, rollout
from scratchvit.nn import Module
from scratchvit.tensor import no_grad
from scratchvit.training.checkpoint import write_atomically

TRAIN, VALIDATION, INK = "#4477aa", "#ee6677", "#555555"     # told apart by colour-blind eyes too (P. Tol's "bright")


def draw_curves(metrics_csv: str | Path, path: str | Path) -> None:
    """Loss and accuracy over epochs, in training and validation, from a run's metrics.csv.

    Raises ScratchvitError when Matplotlib is missing.
    """
    with Path(metrics_csv).open(newline="") as file:
        rows = list(csv.DictReader(file))
    epochs = [int(row["epoch"]) for row in rows]
    with sheet(path, 1, 2, size=(9, 3.4)) as axes:
        for ax, what in zip(axes[0], ("loss", "accuracy")):
            for part, colour, name in (("train", TRAIN, "training"), ("val", VALIDATION, "validation")):
                values = [float(row[f"{part}_{what}"]) for row in rows]
                ax.plot(epochs, values, color=colour, linewidth=1.8, label=name)
                ax.plot(epochs[-1], values[-1], "o", color=colour, markersize=4)
            ax.set_title(what, loc="left", color=INK)
            ax.set_xlabel("epoch", color=INK)
            ax.grid(axis="y", color="#dddddd", linewidth=0.7)
            ax.spines[["top", "right", "left"]].set_visible(False)
            ax.tick_params(colors=INK, length=0)
            ax.xaxis.get_major_locator().set_params(integer=True)
        axes[0, 0].legend(frameon=False)


def draw_attention(
    model: Module,
    pictures: np.ndarray,
    normalize: Callable[[np.ndarray], np.ndarray],
    labels: Sequence[int] | np.ndarray,
    classes: Sequence[str],
    path: str | Path,
) -> None:
    """Pictures with what the model says of them and where it looks: a sheet of triples.

    pictures uint8 (B, H, W, C); normalize turns them into what the model eats. A triple is the picture with the
    predicted class (and the true one, where they differ), the attention of the last layer, mean over heads, and the
    rollout over all layers: from the class token, or, in a model without one, as received on average.
    Raises ScratchvitError when Matplotlib is missing or the model has no attention to draw.
    """
    images = normalize(pictures)
    maps = attention_maps(model, images)
    with no_grad():
        predicted = model.eval()(asarray(images)).numpy().argmax(axis=-1)
    prefix, grid = model.num_prefix_tokens, model.patch_embed.grid_size     # type: ignore[attr-defined]
    last = class_attention(maps[-1].mean(axis=1), prefix, grid)
    flow = class_attention(rollout(maps), prefix, grid)

    blocks = 2 if len(pictures) > 4 else 1      # triples side by side
    rows = math.ceil(len(pictures) / blocks)
    with sheet(path, rows, 3, size=(1.5 * 3 * blocks, 1.65 * rows + 0.3), blocks=blocks) as axes:
        for ax in axes.flat:
            ax.set_axis_off()
        for i, picture in enumerate(pictures):
            triple = axes[i % rows, i // rows * 3 :][:3]
            for ax in triple:
                ax.imshow(picture if picture.shape[2] == 3 else picture[..., 0], cmap="gray", vmin=0, vmax=255)
            right = predicted[i] == labels[i]
            says = f"says {classes[predicted[i]]}"
            title = says if right else f"{says}, is {classes[labels[i]]}"
            triple[0].set_title(title, color=INK if right else VALIDATION, fontsize=9)
            _overlay(triple[1], last[i], picture.shape)
            _overlay(triple[2], flow[i], picture.shape)
            if i % rows == 0:
                triple[1].set_title("last layer", color=INK, fontsize=9)
                triple[2].set_title("rollout", color=INK, fontsize=9)


def _overlay(ax: Any, heat: np.ndarray, shape: tuple[int, ...]) -> None:
    """A map over the patches, from its own lowest to its own highest value, on top of the picture of that shape."""
    height, width = shape[:2]
    ax.imshow(
        heat, cmap="inferno", alpha=0.65, interpolation="bicubic", extent=(-0.5, width - 0.5, height - 0.5, -0.5)
    )


@contextlib.contextmanager
def sheet(
    path: str | Path, rows: int, columns: int, size: tuple[float, float], blocks: int = 1
) -> Iterator[np.ndarray]:
    """Axes (rows, blocks · columns) to draw on, with a gap between blocks of columns.

    What was drawn is then written to path, under another name until it is complete.
    """
    try:
        from matplotlib.figure import Figure  # without pyplot: no window system, nothing global
    except ImportError as error:
        raise ScratchvitError('pictures are drawn with Matplotlib: pip install "scratchvit[demo]"') from error
    figure = Figure(figsize=size, layout="constrained")
    parts = figure.subfigures(1, blocks, squeeze=False, wspace=0.04)[0]
    yield np.hstack([part.subplots(rows, columns, squeeze=False) for part in parts])
    png = io.BytesIO()
    figure.savefig(png, dpi=150, format="png")
    write_atomically(Path(path), png.getvalue())
