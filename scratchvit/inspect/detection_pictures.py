"""Drawings of the results of `inspect/detection.py`: Figures 3, 6, 7 of DETR, arXiv 2005.12872, and the matching."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scratchvit.detection.boxes import box_cxcywh_to_xyxy
from scratchvit.detection.draw_boxes import COLOURS, Found
from scratchvit.inspect.detection import Matching, QueryBoxes
from scratchvit.inspect.figures import INK, VALIDATION, drawable, overlay, sheet

Picture = NDArray[np.uint8]     # (H, W, 3)

SMALL, WIDE, TALL = "#228833", "#ee6677", "#4477aa"     # the paper's green, red and blue, adapted to colour blindness
THRESHOLD = 0.5         # the lowest score of a detection
POINTS = 3              # number of points in a picture whose encoder attention is drawn
MOST_DOTS = 2000        # in a square
LABEL = 10.5            # font size in points of the words in a picture
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


@dataclass(frozen=True)
class Panel:
    """One drawing of a figure, with its title.

    draw     draws it on Matplotlib axes without ticks
    ratio    height / width
    title    in which {name} stands for `name`, the name of a class
    weak     whether it shows detections below the threshold, or none
    """

    draw: Callable[[Any], None]
    ratio: float
    title: str = ""
    name: str = ""
    weak: bool = False

    def titled(self, shown: Callable[[str], str] = str) -> str:
        """The title as text, with the name of the class as `shown` writes it."""
        return self.title.replace("{name}", shown(self.name))


def draw_panels(rows: Sequence[Sequence[Panel]], path: str | Path) -> None:
    """Draw rows of panels with their titles on a sheet, as a PNG file.

    Raises ScratchvitError if Matplotlib is missing or the file cannot be written.
    """
    columns = max(map(len, rows))
    ratio = max(panel.ratio for row in rows for panel in row)
    size = (max(4.0, 1.9 * columns), (1.9 * ratio + 0.35) * len(rows))
    with sheet(path, len(rows), columns, size) as axes:
        for ax in axes.flat:
            ax.set_axis_off()
        for of_row, row in zip(axes, rows):
            for ax, panel in zip(of_row, row):
                panel.draw(ax)
                ax.set_title(
                    panel.titled(drawable), color=VALIDATION if panel.weak else INK, fontsize=8, loc="left"
                )


def cross_attention_panels(
    seen: Seen, classes: Sequence[str], *, threshold: float = THRESHOLD, most: int = 5
) -> list[Panel]:
    """A picture with its detections, then the best of them with their cross-attention (Figure 6).

    threshold: the lowest score of a detection. If none reaches it, the best two are shown, and the title says so.
    """
    scores, boxes, queries = (seen.found[key] for key in ("scores", "boxes", "queries"))
    best = np.argsort(-scores, kind="stable")
    count = int((scores >= threshold).sum())
    chosen = best[: min(count, most) or min(2, most)].tolist()
    colours = _colours(len(chosen))

    def draw_all(ax: Any) -> None:
        _show(ax, seen.picture)
        for place, colour in zip(chosen, colours):
            _box(ax, boxes[place], colour)

    def draw_one(place: int, colour: str, ax: Any) -> None:
        _show(ax, seen.picture, seen.attention[queries[place]])
        _box(ax, boxes[place], colour)

    words = f"{count} detections" if count != 1 else "1 detection"
    ratio, weak = _ratio(seen.picture), not count
    panels = [Panel(draw_all, ratio, f"nothing scores {threshold:.2f}" if weak else words, weak=weak)]
    for place, colour in zip(chosen, colours):
        title, name = f"query {queries[place]}: {{name}}, {scores[place]:.2f}", classes[seen.found["labels"][place]]
        panels.append(Panel(functools.partial(draw_one, place, colour), ratio, title, name, weak))
    return panels


def encoder_attention_panels(
    picture: Picture, points: Sequence[tuple[float, float]], maps: NDArray[np.float32]
) -> list[list[Panel]]:
    """A row for each point: its position, and its self-attention in every encoder layer (Figure 3).

    points: (x, y) in 0 … 1 of the picture; maps (points, layers, H, W): the mean over heads of `encoder_attention` for
    each point.
    """
    def draw(at: tuple[float, float], heat: NDArray[np.float32] | None, ax: Any) -> None:
        _show(ax, picture, heat)
        for colour, width in (("white", 2.4), (VALIDATION, 1.2)):
            ax.plot(*at, "o", markersize=6, markerfacecolor="none", markeredgecolor=colour, markeredgewidth=width)

    rows, ratio = [], _ratio(picture)
    for (x, y), of_layers in zip(points, maps):
        mark = functools.partial(draw, (x * picture.shape[1], y * picture.shape[0]))
        layers = [
            Panel(functools.partial(mark, heat), ratio, f"layer {layer} of {len(of_layers)}")
            for layer, heat in enumerate(of_layers, 1)
        ]
        rows.append([Panel(functools.partial(mark, None), ratio, f"from ({x:.2f}, {y:.2f})"), *layers])
    return rows


def query_box_panels(
    queries: QueryBoxes, *, threshold: float = THRESHOLD, most: int = 20
) -> tuple[list[Panel], list[tuple[str, str]]]:
    """A square for each query, most used first, with a dot at the centre of each of its boxes (Figure 7).

    Returns the squares, and what the colours mean, (words, colour). Green: small boxes, the lower third by area; of the
    others, red ones are wider than tall, relative to the picture, and blue ones are not. Boxes with a score below the
    threshold are pale.
    """
    area = queries.boxes[..., 2] * queries.boxes[..., 3]                        # (n, N)
    small = float(np.quantile(area, 1 / 3))
    colours = np.where(queries.boxes[..., 2] > queries.boxes[..., 3], WIDE, TALL)
    colours = np.where(area <= small, SMALL, colours)
    used = queries.used(threshold)
    step = -(-len(area) // MOST_DOTS)
    dot = min(30.0, max(8.0, 3000 / len(area)))     # size in points², larger for few boxes

    def draw(query: int, ax: Any) -> None:
        boxes, scores = queries.boxes[::step, query], queries.scores[::step, query]
        alpha = np.where(scores >= threshold, 0.95, 0.4)
        ax.scatter(boxes[:, 0], boxes[:, 1], s=dot, c=colours[::step, query], alpha=alpha, linewidths=0)
        ax.set(xlim=(0, 1), ylim=(1, 0))

    shown = np.argsort(-used, kind="stable")[:most].tolist()
    squares = [Panel(functools.partial(draw, query), 1.0, f"query {query}: used in {used[query]:.0%}")
               for query in shown]
    return squares, [
        (f"small: up to {small:.1%} of the picture", SMALL), ("larger and wide", WIDE), ("larger and tall", TALL)
    ]


def matching_panel(picture: Picture, matching: Matching) -> Panel:
    """A picture with its objects (dashed), the boxes of the matched queries, and the costs.

    A line connects the centre of each object with that of the box of its query.
    """
    def draw(ax: Any) -> None:
        _show(ax, picture)
        scale = np.tile(picture.shape[1::-1], 2)        # from boxes in 0 … 1 to pixels
        for place, (query, colour) in enumerate(zip(matching.queries.tolist(), object_colours(matching))):
            there = box_cxcywh_to_xyxy(matching.objects[place] * scale)
            _box(ax, there, colour, dashed=True)
            if query < 0:
                continue
            answer = box_cxcywh_to_xyxy(matching.boxes[query] * scale)
            _box(ax, answer, colour)
            ends = np.stack([there.reshape(2, 2).mean(0), answer.reshape(2, 2).mean(0)]).clip(0, scale[:2])
            ax.plot(*ends.T, "-o", color=colour, linewidth=1.2, markersize=2.5)
            right, low = ends[1] > scale[:2] / 2        # the text goes towards the middle, so that it is not cut
            ax.text(
                *ends[1], f"q{query}  {_number(matching.costs[place, query])}", color="white", fontsize=LABEL,
                ha="right" if right else "left", va="bottom" if low else "top",
                bbox={"facecolor": colour, "edgecolor": "none", "pad": 1},
            )
        _limits(ax, picture)

    return Panel(draw, _ratio(picture))


def object_colours(matching: Matching) -> list[str]:
    """The colour of each object in `matching_panel`."""
    return _colours(len(matching.labels))


def cost_rows(matching: Matching, classes: Sequence[str]) -> list[list[str]]:
    """A table of the costs: its heading, then for each object the query matched to it, the cost with its weighted
    terms, and the cheapest query that was not matched to the object.
    """
    parts = [PARTS.get(name, name) for name in matching.parts]
    rows = [["object", "query", *parts, "cost", "second best"]]
    others, other_costs = matching.second_best()
    for place, (label, query) in enumerate(zip(matching.labels.tolist(), matching.queries.tolist())):
        cells = [_number(values[place, query]) for values in (*matching.parts.values(), matching.costs)]
        if query < 0:
            cells = ["–"] * len(cells)
        other = f"q{others[place]}  {_number(other_costs[place])}" if others[place] >= 0 else "–"
        rows.append([classes[label], f"q{query}" if query >= 0 else "none", *cells, other])
    return rows


def _show(ax: Any, picture: Picture, heat: NDArray[np.float32] | None = None) -> None:
    """Draw a picture, with an attention map over it if there is one; coordinates are its pixels."""
    height, width = picture.shape[:2]
    shown = picture if heat is None else overlay(picture, heat)
    ax.imshow(shown, extent=(-0.5, width - 0.5, height - 0.5, -0.5))
    _limits(ax, picture)


def _limits(ax: Any, picture: Picture) -> None:
    """Show the picture and nothing outside it."""
    height, width = picture.shape[:2]
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
