"""Lists of arrays in one launch: where they are in memory is an argument of the kernel.

    plain       for row in rows: update(*row), where a row is, for example, a parameter, its gradient and its moments
    problem     a model has hundreds of parameters, most of them small. A launch for each costs the host more time than
                the GPU, of which it uses a small part
    idea        a launch takes up to 64 rows. Their pointers and lengths travel with the launch, by value like a number,
                in 3.5 KB of the 4 KB that arguments may have. Nothing is copied to the device before
    who

        row 0: 9,000 entries            row 1: 7     row 2: 5,000
        ┌─────────┬─────────┬──────┐    ┌─┐          ┌─────────┬──┐         a block has 4,096 entries of a row; a
        │ block 0 │ block 1 │ 2    │    │3│          │ block 4 │ 5│         thread has every 256th of them, at most 16
        └─────────┴─────────┴──────┘    └─┘          └─────────┴──┘

        first_block     0   3   4                   block 4 is of row 2: the last whose first block is ≤ 4

A row may be empty: it has no block. A row may have a shadow, an array of 16 bits that an update writes too. The type of
shadows is T here, and what is computed is of type A.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from scratchvit.backend import Array
from scratchvit.kernels import cuda
from scratchvit.kernels.cuda.modules import launch

ROWS, COLUMNS = 64, 4           # of a table
CHUNK, THREADS = 4096, 256      # entries and threads of a block

Shadows: TypeAlias = Sequence[Array | None] | None      # of each row

TEXT = r"""
// --- array_lists.py ---

struct Rows {
    A* at[4][64]; // at[column][row]
    T* shadow[64]; // or null
    size length[64];
    int first_block[64];
    int group[64]; // which of the numbers of an update are this row's
    int count;
};

// Which entries are those of this block: entries first, …, last - 1 of a row.
struct Piece {
    int row;
    size first, last;
};

__device__ inline Piece own_piece(const Rows& rows) {
    int row = 0, end = rows.count; // the row is in [row, end)
    while (end - row > 1) {
        int middle = (row + end) / 2;
        if (rows.first_block[middle] <= (int)blockIdx.x) row = middle;
        else end = middle;
    }
    size first = (size)((int)blockIdx.x - rows.first_block[row]) * 4096;
    return {row, first, min(first + 4096, rows.length[row])};
}
"""

# The struct Rows, as NumPy sees it.
TABLE = np.dtype(
    [
        ("at", np.uint64, (COLUMNS, ROWS)), ("shadow", np.uint64, ROWS), ("length", np.int64, ROWS),
        ("first_block", np.int32, ROWS), ("group", np.int32, ROWS), ("count", np.int32),
    ],
    align=True,
)
BYTES = np.dtype((np.void, TABLE.itemsize))     # the same without fields, which CuPy is quicker to pass on


class Table(NamedTuple):
    """Up to 64 rows, as the argument of a kernel."""

    rows: np.ndarray        # (1,), the struct Rows
    blocks: int


def takes(rows: Sequence[Sequence[Array]], shadows: Shadows = None, chars: str = "fd") -> bool:
    """Whether the kernels compute on these rows: contiguous arrays of equal size, and all of one dtype.

    shadows: an array for each row, or None; contiguous, all of float16 or all of bfloat16, for rows of float32. chars:
    the dtypes that the rows may have.
    """
    if not rows or not cuda.takes(rows[0][0]) or len({array.dtype.char for row in rows for array in row}) > 1:
        return False
    beside = [(shadow, row[0]) for row, shadow in zip(rows, shadows or ()) if shadow is not None]
    if beside and "".join({shadow.dtype.char for shadow, _ in beside}) not in ("e", "E"):
        return False
    return (
        rows[0][0].dtype.char in ("f" if beside else chars)
        and all(array.flags.c_contiguous and array.size == row[0].size for row in rows for array in row)
        and all(shadow.flags.c_contiguous and shadow.size == x.size for shadow, x in beside)
    )


def tables(
    rows: Sequence[Sequence[Array]], groups: Sequence[int] | None = None, shadows: Shadows = None
) -> Iterator[Table]:
    """The tables of rows of 1 to 4 arrays of equal size. groups: the group of each row, 0 by default. shadows: of each
    row an array or None.

    They are made anew for every launch, since gradients are new arrays in every step: 0.1 ms for 150 rows of 4.
    """
    pointers = np.array([[array.data.ptr for array in row] for row in rows], np.uint64).T
    lengths = np.array([row[0].size for row in rows], np.int64)
    beside = [0 if shadow is None else shadow.data.ptr for shadow in shadows or ()]
    for start in range(0, len(rows), ROWS):
        part = slice(start, start + ROWS)
        table = np.zeros(1, TABLE)
        fields: Any = table[0]
        blocks = -(-lengths[part] // CHUNK)
        n = fields["count"] = len(blocks)
        fields["at"][: len(pointers), :n] = pointers[:, part]
        fields["shadow"][: len(beside[part])] = beside[part]
        fields["length"][:n] = lengths[part]
        fields["first_block"][1:n] = np.cumsum(blocks[:-1])
        if groups is not None:
            fields["group"][:n] = groups[part]
        yield Table(table.view(BYTES), int(blocks.sum()))


def launch_rows(
    name: str, rows: Sequence[Sequence[Array]], *arguments: Any, groups: Sequence[int] | None = None,
    shadows: Shadows = None,
) -> None:
    """Launch a kernel of the module "updates" on all rows. arguments: what it takes after the rows."""
    like = next((shadow for shadow in shadows or () if shadow is not None), rows[0][0])
    for table in tables(rows, groups, shadows):
        launch("updates", name, like, (table.blocks,), (THREADS,), table.rows, *arguments)
