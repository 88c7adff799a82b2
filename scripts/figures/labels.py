"""Words beside points of a picture, none on top of another."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

SIZE = 9                            # of the letters, in points
HEIGHT, WIDTH = 1.2 * SIZE, 0.6 * SIZE      # of a line and, about, of a letter


def label_points(ax: Any, points: Iterable[tuple[float, float, str, str]]) -> None:
    """Write each (x, y, text, colour) to the right of its point; where two would meet, the higher one moves up.

    Scales and limits of the axes stay as they are: set them before, with room at the right.
    """
    root = ax.figure.figure
    root.draw_without_rendering()           # lays the axes out
    written: list[tuple[float, float, str]] = []            # left end and middle of each text, in points
    for x, y, text, colour in sorted(points, key=lambda point: point[1]):
        left, middle = ax.transData.transform((x, y)) * 72 / root.dpi
        height = middle
        for other_left, other, other_text in written:       # from the lowest to the highest
            apart = left > other_left + WIDTH * len(other_text) or other_left > left + WIDTH * len(text)
            if not apart and abs(height - other) < HEIGHT:
                height = other + HEIGHT
        written.append((left, height, text))
        written.sort(key=lambda label: label[1])
        ax.annotate(
            text, (x, y), (8, height - middle), textcoords="offset points", va="center", color=colour, fontsize=SIZE
        )


def label_in_column(ax: Any, points: Iterable[tuple[float, float, str, str]]) -> None:
    """Write each (x, y, text, colour) in a column at the right edge, with a thin line to its point: for a crowd."""
    root = ax.figure.figure
    root.draw_without_rendering()
    line = HEIGHT * root.dpi / 72 / ax.bbox.height              # of the axes' height
    placed: list[tuple[float, tuple[float, float, str, str]]] = []
    for point in sorted(points, key=lambda point: point[1]):
        height = ax.transAxes.inverted().transform(ax.transData.transform(point[:2]))[1]
        placed.append((max(height, placed[-1][0] + line) if placed else height, point))
    for height, (x, y, text, colour) in placed:
        ax.annotate(
            text, (x, y), (1.02, height), textcoords="axes fraction", va="center",
            color=colour, fontsize=SIZE, annotation_clip=False,
            arrowprops={"arrowstyle": "-", "relpos": (0, 0.5), "color": colour, "linewidth": 0.5, "alpha": 0.5},
        )
