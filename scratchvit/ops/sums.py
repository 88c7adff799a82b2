"""Sums over rows that keep their digits.

NumPy adds pairwise along an axis whose numbers lie side by side, but row upon row along any other: of N rows in
float32, the last digits of the sum are wrong by up to N roundings.
"""

from __future__ import annotations

from scratchvit.backend import Array, array_module

ROWS = 64       # one product with ones sums so many; few enough for the roundings, and enough for BLAS to be quick


def sum_rows(x: Array) -> Array:
    """Σ over axis 0 of x (N, D): (D,). Of blocks of rows, then of blocks of these sums, and so on: log N roundings.

    A block is a product with ones, which reads x once, at the speed of the memory, for wide rows and for narrow ones.
    """
    xp = array_module(x)
    ones = xp.ones((1, ROWS), dtype=x.dtype)
    while len(x) > ROWS:
        blocks = len(x) // ROWS
        whole = blocks * ROWS
        sums = xp.matmul(ones, x[:whole].reshape(blocks, ROWS, x.shape[1]))[:, 0]       # (N / 64, D)
        if whole < len(x):
            sums[-1] += x[whole:].sum(axis=0)
        x = sums
    return x.sum(axis=0)
