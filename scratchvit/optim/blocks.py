"""Applying an optimiser's update to many arrays, in blocks that fit into the cache.

An update is a dozen array operations on each parameter. Each operation on a whole matrix would read it from main memory
again. So the matrix is divided into blocks that stay in the cache for all operations, and the blocks are distributed to
the cores. Small arrays, for which the overhead of a NumPy call dominates, are concatenated and updated together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from scratchvit.backend import CPU, Array, array_module, backend_of
from scratchvit.plain import is_plain
from scratchvit.threads import deal

BLOCK = 32_768      # entries: of parameter, gradient, two moments and scratch together 640 KiB, within the L2 cache
SMALL = 4_096       # arrays with fewer entries are concatenated

Update = Callable[..., None]
"""A function of flat arrays of equal length, which changes some of them in place."""


def apply(update: Update, rows: Sequence[tuple[Array, ...]]) -> None:
    """Call `update(*row)` for all rows, each of flat arrays of equal length: in blocks if large, together if small."""
    if is_plain():
        for row in rows:
            update(*row)
        return
    small = [row for row in rows if row[0].size < SMALL]
    if small:
        joined = [array_module(column[0]).concatenate(column) for column in zip(*small)]
        update(*joined)
        start = 0
        for row in small:
            stop = start + row[0].size
            for array, values in zip(row, joined):
                array[...] = values[start:stop]
            start = stop
    on_cpu = bool(rows) and backend_of(rows[0][0]) is CPU
    blocks = [
        tuple(array[start : start + block] for array in row)
        for row in rows
        if (size := row[0].size) >= SMALL
        for block in [BLOCK if on_cpu else size]
        for start in range(0, size, block)
    ]
    deal(update, blocks, on_cpu)
