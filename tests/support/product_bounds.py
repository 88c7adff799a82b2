"""How far a product of matrices in float32 may be from the exact one."""

from __future__ import annotations

import numpy as np

from tests.support.margins import assert_close


def exact(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The product in float64, and a bound for its error in float32: eps Σ |x| |y| (1 + √k).

    Roundings of k sums add up like √k, if there are many; with few, a rounding of each term counts as well.
    """
    x, y = x.astype(np.float64), y.astype(np.float64)
    return x @ y, np.finfo(np.float32).eps * (np.abs(x) @ np.abs(y)) * (1 + x.shape[-1] ** 0.5) + 1e-30


def within(found: np.ndarray, expected: np.ndarray, bound: np.ndarray) -> None:
    """Assert that every entry is as near as its own bound says."""
    assert_close((found - expected) / bound, np.zeros(expected.shape), 1)
