"""How commands lay out what they print: filled to the terminal's width, in aligned rows, in tables."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence
from typing import Any


def columns(most: int) -> int:
    """The width of the terminal, 80 if there is none, at least 40 and at most this."""
    return max(40, min(most, shutil.get_terminal_size((80, 24)).columns))


def filled(text: str, indent: int = 0) -> str:
    """Fill a sentence to the terminal's width. Words are not broken, so a path without spaces stays whole.

    indent: of the lines after the first.
    """
    width = columns(100)
    if max(map(len, text.split()), default=0) > width - indent:     # no line is long enough for this path
        return text
    return textwrap.fill(
        text, width, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False
    )


def labelled_lines(rows: Sequence[tuple[str, str | None]], width: int = 8) -> str:
    """Format (label, text) pairs as aligned lines. Pairs without text are left out. width: of the labels, at least."""
    width = max([width, *(len(label) for label, text in rows if text)])
    return "\n".join(filled(f"{label:<{width}}  {text}", width + 2) for label, text in rows if text)


def table(rows: Sequence[Sequence[Any]]) -> str:
    """Rows of cells as text in aligned columns: the first column flush left, the others flush right.

    A table is as wide as its columns need, which can be more than the terminal: a row on two lines is hard to read.
    """
    widths = [max(len(str(cell)) for cell in column) for column in zip(*rows)]
    lines = []
    for first, *rest in rows:
        cells = [f"{first:<{widths[0]}}", *(f"{cell!s:>{width}}" for cell, width in zip(rest, widths[1:]))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
