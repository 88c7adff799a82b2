"""Drawings of the results of `inspect/detection.py`: Figures 3, 6, 7 of DETR, arXiv 2005.12872, and the matching."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scratchvit.detection.boxes import box_cxcywh_to_xyxy
from scratchvit.detection.draw_boxes import COLOURS, Found
from scratchvit.inspect.detection import Matching, QueryBoxes
from scratchvit.inspect.figures import GRID, INK, VALIDATION, drawable, overlay, sheet

Picture = NDArray[np.uint8]     # (H, W, 3)

SMALL, WIDE, TALL = "#228833", "#ee6677", "#4477aa"     # the paper's green, red and blue, adapted to colour blindness
THRESHOLD = 0.5         # the lowest score of a detection
POINTS = 3              # number of points in a picture whose encoder attention is drawn
SQUARES_IN_A_ROW = 5
MOST_DOTS = 2000        # in a square
OBJECTS_IN_TABLE = 12
PARTS = {"bbox": "L1", "giou": "GIoU"}      # terms of the matching cost, with the paper's names


@dataclass(frozen=True)
class Seen:
    """A picture with its detections and cross-attention.

    found        detections from `postprocess`, with boxes in pixels of the picture and the index of each query
    attention    (N, H, W): attention of every query, the mean of `cross_attention` over heads (axis 0)
    """

    picture: Picture
    found: Found
    attention: NDArray[np.float32]


def draw_cross_attention(
    seen: Sequence[Seen], classes: Sequence[str], path: str | Path, *, threshold: float = THRESHOLD, most: int = 5
) -> None:
    """Draw a row for each picture: its detections, then the best of them with their cross-attention (Figure 6).

    threshold: the lowest score of a detection. If none reaches it, the best two are shown, and the title says so.
    Raises ScratchvitError if Matplotlib is missing or the file cannot be written.
    """
    ratio = max(_ratio(one.picture) for one in seen)
    with sheet(path, len(seen), 1 + most, size=(1.9 * (1 + most), (1.9 * ratio + 0.35) * len(seen))) as axes:
        for row, one in zip(axes, seen):
            for ax in row:
                ax.set_axis_off()
            scores, boxes, queries = (one.found[key] for key in ("scores", "boxes", "queries"))
            best = np.argsort(-scores, kind="stable")
            count = int((scores >= threshold).sum())
            chosen = best[: min(count, most) or min(2, most)].tolist()
            _show(row[0], one.picture)
            words = f"{count} detections" if count != 1 else "1 detection"
            _title(row[0], words if count else f"nothing scores {threshold:.2f}", INK if count else VALIDATION)
            for ax, place, colour in zip(row[1:], chosen, _colours(len(chosen))):
                _box(row[0], boxes[place], colour)
                _show(ax, one.picture, one.attention[queries[place]])
                _box(ax, boxes[place], colour)
                name = drawable(classes[one.found["labels"][place]])
                words = f"query {queries[place]}: {name}, {scores[place]:.2f}"
                _title(ax, words, INK if count else VALIDATION)


def draw_encoder_attention(
    picture: Picture, points: Sequence[tuple[float, float]], maps: NDArray[np.float32], path: str | Path
) -> None:
    """Draw a row for each point: its position, and its self-attention in every encoder layer (Figure 3).

    points: (x, y) in 0 … 1 of the picture; maps (points, layers, H, W): the mean over heads of `encoder_attention` for
    each point. Raises ScratchvitError as `draw_cross_attention` does.
    """
    columns = 1 + maps.shape[1]
    size = (max(4.0, 1.9 * columns), (1.9 * _ratio(picture) + 0.35) * len(points))
    with sheet(path, len(points), columns, size) as axes:
        for row, (x, y), of_layers in zip(axes, points, maps):
            for layer, ax in enumerate(row):
                ax.set_axis_off()
                _show(ax, picture, of_layers[layer - 1] if layer else None)
                _title(ax, f"layer {layer} of {len(of_layers)}" if layer else f"from ({x:.2f}, {y:.2f})")
                at = x * picture.shape[1], y * picture.shape[0]
                ax.plot(*at, "o", markersize=6, markerfacecolor="none", markeredgecolor="white", markeredgewidth=2.4)
                ax.plot(*at, "o", markersize=6, markerfacecolor="none", markeredgecolor=VALIDATION, markeredgewidth=1.2)


def draw_query_boxes(queries: QueryBoxes, path: str | Path, *, threshold: float = THRESHOLD, most: int = 20) -> None:
    """Draw a square for each query, most used first, with a dot at the centre of each of its boxes (Figure 7).

    Green: small boxes, the lower third by area; of the others, red ones are wider than tall, relative to the picture,
    and blue ones are not. Boxes with a score below the threshold are pale.
    Raises ScratchvitError as `draw_cross_attention` does.
    """
    area = queries.boxes[..., 2] * queries.boxes[..., 3]                        # (n, N)
    small = float(np.quantile(area, 1 / 3))
    colours = np.where(queries.boxes[..., 2] > queries.boxes[..., 3], WIDE, TALL)
    colours = np.where(area <= small, SMALL, colours)
    used = queries.used(threshold)
    shown = np.argsort(-used, kind="stable")[:most]
    columns = min(SQUARES_IN_A_ROW, len(shown))
    rows = -(-len(shown) // columns)
    step = -(-len(area) // MOST_DOTS)
    dot = min(20.0, max(3.0, 1000 / len(area)))     # size in points², larger for few boxes
    with sheet(path, rows, columns, size=(max(4.5, 1.6 * columns), 1.85 * rows + 0.5)) as axes:
        for ax in axes.flat[len(shown) :]:
            ax.set_axis_off()
        for ax, query in zip(axes.flat, shown.tolist()):
            boxes, scores = queries.boxes[::step, query], queries.scores[::step, query]
            alpha = np.where(scores >= threshold, 0.9, 0.25)
            ax.scatter(boxes[:, 0], boxes[:, 1], s=dot, c=colours[::step, query], alpha=alpha, linewidths=0)
            ax.set(xlim=(0, 1), ylim=(1, 0), xticks=[], yticks=[], aspect="equal")
            ax.spines[:].set_color(GRID)
            _title(ax, f"query {query}: used in {used[query]:.0%}")
        words = f"small: up to {small:.1%} of the picture", "larger and wide", "larger and tall"
        _legend(axes[0, 0].figure, [*zip((SMALL, WIDE, TALL), words)])


def draw_matching(
    pictures: Sequence[Picture], matchings: Sequence[Matching], classes: Sequence[str], path: str | Path
) -> None:
    """Draw a row for each picture: its objects (dashed), the boxes of the matched queries, and a table of the costs.

    A line connects the centre of each object with that of the box of its query. The table lists the cost with its
    weighted terms, and the cheapest query that was not matched to the object.
    Raises ScratchvitError as `draw_cross_attention` does.
    """
    ratio = max(_ratio(picture) for picture in pictures)
    with sheet(path, len(pictures), 2, size=(9.5, (4.6 * min(ratio, 1.5) + 0.2) * len(pictures))) as axes:
        for (left, right), picture, matching in zip(axes, pictures, matchings, strict=True):
            left.set_axis_off()
            right.set_axis_off()
            _show(left, picture)
            scale = np.tile(picture.shape[1::-1], 2)        # from boxes in 0 … 1 to pixels
            colours = _colours(len(matching.labels))
            for place, (query, colour) in enumerate(zip(matching.queries.tolist(), colours)):
                there = box_cxcywh_to_xyxy(matching.objects[place] * scale)
                _box(left, there, colour, dashed=True)
                if query < 0:
                    continue
                answer = box_cxcywh_to_xyxy(matching.boxes[query] * scale)
                _box(left, answer, colour)
                ends = np.stack([there.reshape(2, 2).mean(0), answer.reshape(2, 2).mean(0)]).clip(0, scale[:2])
                left.plot(*ends.T, "-o", color=colour, linewidth=1.2, markersize=2.5)
                words = f"q{query}  {_number(matching.costs[place, query])}"
                left.text(
                    *ends[1], words, color="white", fontsize=6.5, va="bottom",
                    bbox={"facecolor": colour, "edgecolor": "none", "pad": 1}, clip_on=True,
                )
            left.set(xlim=(-0.5, picture.shape[1] - 0.5), ylim=(picture.shape[0] - 0.5, -0.5))
            _cost_table(right, matching, classes, colours)


def _cost_table(ax: Any, matching: Matching, classes: Sequence[str], colours: Sequence[str]) -> None:
    """Write a table with a line for each object: its matched query, the terms of the cost, the second best query."""
    parts = [PARTS.get(name, name) for name in matching.parts]
    heads = ["object", "query", *parts, "cost", "second best"]
    places = [0.0, *np.linspace(0.32, 0.78, len(heads) - 2), 1.0]   # the first cell flush left, the others flush right
    others, other_costs = matching.second_best()
    lines = [(INK, heads)]
    for place, (label, query) in enumerate(zip(matching.labels.tolist(), matching.queries.tolist())):
        cells = [_number(values[place, query]) for values in (*matching.parts.values(), matching.costs)]
        if query < 0:
            cells = ["–"] * len(cells)
        other = f"q{others[place]}  {_number(other_costs[place])}" if others[place] >= 0 else "–"
        name = classes[label] if len(classes[label]) <= 14 else f"{classes[label][:13]}…"
        lines.append((colours[place], [drawable(name), f"q{query}" if query >= 0 else "none", *cells, other]))
    if len(lines) == 1:
        lines.append((INK, ["no objects"]))
    if len(lines) > 1 + OBJECTS_IN_TABLE:
        lines[1 + OBJECTS_IN_TABLE :] = [(INK, [f"and {len(lines) - 1 - OBJECTS_IN_TABLE} more"])]
    for i, (colour, cells) in enumerate(lines):
        y = 0.97 - 0.94 * i / (2 + OBJECTS_IN_TABLE)
        for place, cell in zip(places, cells):
            ax.text(
                place, y, cell, transform=ax.transAxes, ha="left" if place == 0 else "right", va="top", fontsize=7.5,
                color=colour if place == 0 else INK,
            )


def _show(ax: Any, picture: Picture, heat: NDArray[np.float32] | None = None) -> None:
    """Draw a picture, with an attention map over it if there is one; coordinates are its pixels."""
    height, width = picture.shape[:2]
    shown = picture if heat is None else overlay(picture, heat)
    ax.imshow(shown, extent=(-0.5, width - 0.5, height - 0.5, -0.5))
    ax.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))


def _box(ax: Any, box: NDArray[np.float32], colour: str, dashed: bool = False) -> None:
    """Draw the outline of a box (left, top, right, bottom). Its numbers are edges, those of the axes pixel centres."""
    from matplotlib.patches import Rectangle  # Matplotlib is installed: it made the axes

    left, top, right, bottom = (float(edge) - 0.5 for edge in box)
    style = "--" if dashed else "-"
    for line, width in (("white", 2.6), (colour, 1.4)):     # visible on any background
        ax.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, ec=line, lw=width, ls=style))


def _number(cost: float) -> str:
    return f"{cost:.2f}".replace("-", "−")


def _colours(count: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(count)]


def _ratio(picture: Picture) -> float:
    return picture.shape[0] / picture.shape[1]


def _title(ax: Any, words: str, colour: str = INK) -> None:
    ax.set_title(words, color=colour, fontsize=8, loc="left")


def _legend(page: Any, entries: Sequence[tuple[str, str]]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], linestyle="", marker="o", color=colour, label=words) for colour, words in entries]
    page.legend(
        handles=handles, loc="outside lower left", ncols=len(handles), frameon=False, fontsize=8, labelcolor=INK
    )
