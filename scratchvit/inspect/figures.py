"""Figures of a run, drawn with Matplotlib: learning curves and attention maps."""

from __future__ import annotations

import contextlib
import csv
import functools
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from scratchvit.backend import asarray, asnumpy
from scratchvit.data.glyphs import FAMILIES, escaped
from scratchvit.data.images import to_picture
from scratchvit.errors import ScratchvitError, missing
from scratchvit.files import write_atomically
from scratchvit.inspect.attention import attention_maps, class_attention, rollout
from scratchvit.models.vit import VisionTransformer
from scratchvit.nn import Module
from scratchvit.recording import no_grad

TRAIN, VALIDATION, INK = "#4477aa", "#ee6677", "#555555"     # distinguishable with colour blindness (P. Tol's "bright")
GRID = "#dddddd"
LONGEST_NAME = 24       # characters of the name of a class

# Learning curves: columns of metrics.csv, their colours and names.
Lines = Sequence[tuple[str, str, str]]
CURVES: Mapping[str, Lines] = {
    "loss": (("train_loss", TRAIN, "training"), ("val_loss", VALIDATION, "validation")),
    "accuracy": (("train_accuracy", TRAIN, "training"), ("val_accuracy", VALIDATION, "validation")),
    "learning rate": (("lr", INK, "learning rate"),),
}


def read_metrics(metrics_csv: str | Path) -> list[dict[str, float]]:
    """The rows of a run's metrics.csv, with NaN for empty cells.

    Raises ScratchvitError for a file that is missing or damaged.
    """
    try:
        with Path(metrics_csv).open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        return [{name: float(value if value != "" else "nan") for name, value in row.items()} for row in rows]
    except OSError as error:
        raise ScratchvitError(f"{metrics_csv} cannot be read ({error.strerror}): name a run folder") from error
    except (ValueError, TypeError, AttributeError, csv.Error) as error:
        raise ScratchvitError(f"{metrics_csv} is damaged ({error}): --resume writes it again") from error


def draw_curves(metrics_csv: str | Path, path: str | Path) -> None:
    """Draw loss and accuracy over epochs, in training and validation, from a run's metrics.csv.

    Raises ScratchvitError if Matplotlib is missing.
    """
    rows = read_metrics(metrics_csv)
    with sheet(path, 1, 2, size=(9, 3.4)) as axes:
        for ax, what in zip(axes[0], ("loss", "accuracy")):
            _plot(ax, rows, CURVES[what])
            ax.set_title(what, loc="left", color=INK)
            ax.set_xlabel("epoch", color=INK)
        axes[0, 0].legend(frameon=False)


def curve_svg(rows: Sequence[Mapping[str, float]], what: str, lines: Lines) -> str:
    """Curves over the rows of metrics.csv, as the source of an SVG file with text as text; `what` is their title.

    Raises ScratchvitError if Matplotlib is missing.
    """
    figure = _figure((3.2, 2.1))        # shown at least 18 rem wide: text of 10 points gets at least 12 pixels
    from matplotlib import rc_context

    _plot(figure.subplots(), rows, lines)
    svg = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": what}):
        figure.savefig(svg, format="svg", transparent=True)
    return svg.getvalue()


def _plot(ax: Any, rows: Sequence[Mapping[str, float]], lines: Lines) -> None:
    epochs = [row["epoch"] for row in rows]
    for column, colour, name in lines:
        values = [row[column] for row in rows]
        ax.plot(epochs, values, color=colour, linewidth=1.8, label=name)
        ax.plot(epochs[-1:], values[-1:], "o", color=colour, markersize=4)
    ax.grid(axis="y", color=GRID, linewidth=0.7)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.spines["bottom"].set_color(INK)
    ax.tick_params(colors=INK, length=0)
    ax.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)


def first_of_each_class(labels: np.ndarray, count: int) -> np.ndarray:
    """Indices into labels (N,): the first sample of each of the first `count` classes."""
    _, places = np.unique(labels, return_index=True)
    return places[:count]


def draw_attention(
    model: Module,
    pictures: np.ndarray,
    normalize: Callable[[np.ndarray], np.ndarray],
    labels: Sequence[int] | np.ndarray,
    classes: Sequence[str],
    path: str | Path,
) -> None:
    """Draw pictures with predicted classes and attention maps: a sheet of triples.

    pictures uint8 (B, H, W, C); normalize converts them to the input of the model. A triple is the picture with the
    predicted class (and the true one, if it differs), the attention of the last layer, mean over heads, and the
    rollout over all layers. Both maps are those of the class token or, without one, the mean over all tokens.
    Raises ScratchvitError if Matplotlib is missing or the model has no attention.
    """
    last, flow, predicted = last_and_rollout(model, normalize(pictures))
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
            name = drawable(classes[predicted[i]])
            title = name if right else f"{name} (true: {drawable(classes[labels[i]])})"
            triple[0].set_title(title, color=INK if right else VALIDATION, fontsize=9)
            _overlay(triple[1], last[i], picture.shape)
            _overlay(triple[2], flow[i], picture.shape)
            if i % rows == 0:
                triple[1].set_title("last layer", color=INK, fontsize=9)
                triple[2].set_title("rollout", color=INK, fontsize=9)


MOST_SCORES = 1 << 18      # attention scores per head: 512 tokens


def shows_attention(model: Module | None) -> bool:
    """Whether `draw_attention` can draw it: all layers attend over the same patches, as in ViT, DeiT and hybrids.

    False for a ResNet, for attention in windows and for pyramids, and if the sequence is so long that attention is
    computed in blocks, without the whole matrix.
    """
    return isinstance(model, VisionTransformer) and model.num_tokens**2 <= MOST_SCORES


def last_and_rollout(model: Module, images: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The attention of the last layer (mean over heads), the rollout over all layers, and the predicted classes.

    images (B, C, H, W) → two maps (B, rows, columns) and classes (B,). The model is set to evaluation mode.
    """
    maps = attention_maps(model, images)
    with no_grad():
        predicted = asnumpy(model.eval()(asarray(images)).data.argmax(axis=-1))
    prefix, grid = model.num_prefix_tokens, model.patch_embed.grid_size     # type: ignore[attr-defined]
    last = class_attention(maps[-1].mean(axis=1), prefix, grid)
    return last, class_attention(rollout(maps), prefix, grid), predicted


def overlay(picture: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Overlay a coloured map (rows, columns) on a picture uint8 (H, W, C); both get at least 112 pixels: uint8 RGB.

    Raises ScratchvitError if Matplotlib, which has the colour map, is missing.
    """
    try:
        from matplotlib import colormaps
    except ImportError as error:
        raise missing("pictures are drawn with Matplotlib", "matplotlib") from error
    H, W = picture.shape[:2]
    factor = max(1, math.ceil(112 / min(H, W)))
    size = (W * factor, H * factor)
    lowest, highest = heat.min(), heat.max()
    shares = (heat - lowest) / max(highest - lowest, np.finfo(np.float32).tiny)
    smooth = np.asarray(Image.fromarray(shares.astype(np.float32)).resize(size, Image.Resampling.BICUBIC))
    colours = colormaps["inferno"](smooth.clip(0, 1))[..., :3] * 255
    below = np.asarray(to_picture(picture).convert("RGB").resize(size, Image.Resampling.NEAREST))
    return (0.35 * below + 0.65 * colours).round().astype(np.uint8)


def _overlay(ax: Any, heat: np.ndarray, shape: tuple[int, ...]) -> None:
    """Draw a map of the patches, scaled from its minimum to its maximum, over a picture of the given shape."""
    height, width = shape[:2]
    ax.imshow(
        heat, cmap="inferno", alpha=0.65, interpolation="bicubic", extent=(-0.5, width - 0.5, height - 0.5, -0.5)
    )


def make_folder(folder: Path) -> None:
    """Create a folder if it does not exist. Raises ScratchvitError if that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ScratchvitError(f"the folder {folder} cannot be created ({error.strerror}): name another one") from error


@contextlib.contextmanager
def sheet(
    path: str | Path, rows: int, columns: int, size: tuple[float, float], blocks: int = 1
) -> Iterator[np.ndarray]:
    """Context manager that gives Matplotlib axes (rows, blocks · columns), with a gap between blocks of columns.

    At the end the figure is written to path atomically.
    """
    figure = _figure(size)
    from matplotlib import rc_context

    with rc_context({"font.family": list(_fonts())}):
        parts = figure.subfigures(1, blocks, squeeze=False, wspace=0.04)[0]
        yield np.hstack([part.subplots(rows, columns, squeeze=False) for part in parts])
        png = io.BytesIO()
        figure.savefig(png, dpi=150, format="png")
    write_atomically(Path(path), png.getvalue())


def image_of(draw: Callable[[Any], None], size: tuple[float, float]) -> Image.Image:
    """An RGBA picture of what `draw` draws on Matplotlib axes without frame, which fill `size` (width, height) inches.

    Raises ScratchvitError if Matplotlib is missing.
    """
    figure = _figure(size, layout=None)
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set_axis_off()
    draw(ax)
    ax.set_aspect("auto")
    png = io.BytesIO()
    figure.savefig(png, dpi=150, format="png", transparent=True)
    return Image.open(png)


def drawable(name: str) -> str:
    """A name for a text of Matplotlib: short, without mathematics, and with escapes for what no font here has."""
    from matplotlib import font_manager

    fonts = [font_manager.get_font(path) for path in _fonts().values()]
    text = escaped(name, lambda character: any(font.get_char_index(ord(character)) for font in fonts))
    text = text if len(text) <= LONGEST_NAME else f"{text[: LONGEST_NAME - 1]}…"
    return text.replace("$", r"\$")      # text between two $ would be read as TeX


@functools.cache
def _fonts() -> dict[str, str]:
    """The fonts of `FAMILIES` that this machine has: {family: file}. Matplotlib takes each character from the first."""
    from matplotlib import font_manager

    known = {font.name for font in font_manager.fontManager.ttflist}
    return {name: font_manager.findfont(name) for name in FAMILIES if name in known}


def _figure(size: tuple[float, float], layout: Literal["constrained"] | None = "constrained") -> Any:
    try:
        from matplotlib.figure import Figure  # without pyplot, which needs a window system and has global state
    except ImportError as error:
        raise missing("pictures are drawn with Matplotlib", "matplotlib") from error
    return Figure(figsize=size, layout=layout)
