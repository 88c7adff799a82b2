"""Sums over the rows and over the columns of a block of rows, weighted or not, as the kernels of norms need them.

    plain       (x * w).sum(axis=-1, keepdims=True);  (x * y).sum(axis=-1, keepdims=True);  (x * w).sum(axis=0)
    problem     NumPy adds along a row more slowly than BLAS multiplies, and along columns one row after the other
    idea        on the CPU, products with ones or with the weights w. On a GPU, reductions: there, the dot products of
                all rows would be one batch of as many products as there are tokens, where 65,535 is the most that every
                GPU takes at once; and with TF32 (CUPY_TF32=1), which does for the products with weights, a product
                would round what it adds to 10 bits, and so statistics
"""

from __future__ import annotations

import numpy as np

from scratchvit.backend import CPU, Array, backend_of
from scratchvit.kernels.sums import total


def column_of_ones(x: Array, length: int) -> Array | None:
    """The weights (length, 1) for an unweighted `sum_rows` of arrays like x; None on a GPU, where none are needed."""
    return np.ones((length, 1), dtype=x.dtype) if backend_of(x) is CPU else None


def sum_rows(x: Array, weights: Array | None, out: Array | None = None) -> Array:
    """Σ_d x_d w_d over the last axis of x (…, D): (…, 1). weights: (D, 1), or `column_of_ones`."""
    if weights is not None and backend_of(x) is CPU:
        return np.matmul(x, weights, out=out)
    weighted = x if weights is None else x * weights[:, 0]
    return weighted.sum(axis=-1, keepdims=True, out=out)


def dot_rows(x: Array, y: Array, out: Array) -> None:
    """Write Σ_d x_d y_d over the last axis of x and y (…, D) into out (…, 1)."""
    if backend_of(x) is CPU:
        np.matmul(x[..., None, :], y[..., None], out=out[..., None])
    else:
        (x * y).sum(axis=-1, keepdims=True, out=out)


def sum_columns(x: Array, weights: Array | None = None) -> Array:
    """Σ_n w_n x_n over the rows of x (N, D): (D,). weights: (N, 1); None: of ones."""
    if backend_of(x) is CPU:
        return (np.ones(len(x), dtype=x.dtype) if weights is None else weights[:, 0]) @ x
    return total(x if weights is None else x * weights, (0,))
