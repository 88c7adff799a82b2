"""The rows of a table in CSV, or with tabs, semicolons or bars between its columns."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from scratchvit.errors import ScratchvitError
from scratchvit.files import printable, read_text

TABLES = frozenset({".csv", ".tsv"})    # suffixes of such files


def delimiter_of(line: str) -> str:
    """The character between the columns of a table, judged by its first line."""
    return max(",;\t|", key=line.count)


def read_rows(path: Path) -> list[tuple[int, list[str]]]:
    """The rows of a table with the numbers of the lines on which they end, without empty rows.

    Spaces around entries are removed. Raises ScratchvitError if the file cannot be read or is no such table.
    """
    text = read_text(path, "table")
    delimiter = delimiter_of(text.lstrip().partition("\n")[0])
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        rows = [(reader.line_num, [entry.strip() for entry in row]) for row in reader]
    except csv.Error as error:
        raise ScratchvitError(
            f"{printable(path)}: this table cannot be read at line {reader.line_num}: {error}"
        ) from error
    return [(line, row) for line, row in rows if any(row)]
