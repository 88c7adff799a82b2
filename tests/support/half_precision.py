"""Kernels on arrays of float16 and bfloat16: against the plain forms in float32, on the same rounded inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from scratchvit.backend import asarray, asnumpy
from scratchvit.plain import plain_forms
from scratchvit.signature import takes_need
from tests.support.margins import EPSILON, records
from tests.support.seeds import seeded

CHARS = ("e", "E")                          # dtype.char of float16, and of ml_dtypes' bfloat16
UNITS = {"e": 2.0**-11, "E": 2.0**-8}       # the largest relative error of rounding to nearest
SMALLEST = {"e": 2.0**-24, "E": 2.0**-133}
ROUNDINGS = 64                              # of float32, relative to the largest entry


def dtype_of(char: str) -> np.dtype:
    """float16 for "e", bfloat16 for "E"."""
    if char == "e":
        return np.dtype(np.float16)
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16)


def rounded(array: np.ndarray, char: str) -> np.ndarray:
    """The array in 16 bits."""
    return array.astype(dtype_of(char))


def check(
    function: Callable[..., Any], arrays: Sequence[np.ndarray], char: str, results: str, inner: float = 0
) -> None:
    """Assert that a function of arrays computes from 16-bit arrays as from the same numbers in float32, by plain forms.

    function: returns a value and its backward, as an op's function does (`ops.NAME.__wrapped__`). arrays: 16-bit ones
    are given to the kernels as they are, and to the plain forms in float32; others as they are. results: the type of
    the value, and of each gradient: T for 16 bits, A for float32, "-" for one that is None. A result in T may differ by
    its rounding, one in A not even by that. inner: how many roundings to 16 bits are made in between, relative to the
    largest entry. The kernels give the same bits twice.
    """
    found, again = (_run(function, [asarray(a) for a in arrays], char) for _ in range(2))
    with plain_forms():
        wide = [a.astype(np.float32) if a.dtype == dtype_of(char) else a for a in arrays]
        expected = _run(function, [asarray(a) for a in wide], char)
    assert len(found) == len(expected) == len(results)
    for number, (ours, twice, theirs, kind) in enumerate(zip(found, again, expected, results)):
        assert (ours is None) == (kind == "-")
        if ours is None:
            continue
        assert ours.dtype == (dtype_of(char) if kind == "T" else np.float32)
        assert ours.tobytes() == twice.tobytes()
        assert_close(ours, theirs, UNITS[char] if kind == "T" else 0, char, inner, f"{char} result {number}")


def assert_close(
    found: np.ndarray, expected: np.ndarray, unit: float, char: str, inner: float = 0, what: str = ""
) -> None:
    """Assert that the difference is at most a rounding by `unit`, some of float32, and `inner` ones to 16 bits."""
    assert found.shape == expected.shape
    ours, theirs = found.astype(np.float64), expected.astype(np.float64)
    finite = np.isfinite(theirs)
    np.testing.assert_array_equal(ours[~finite], theirs[~finite])
    if not finite.any():
        return
    largest = np.abs(theirs[finite]).max()
    noise = (ROUNDINGS * EPSILON[np.float32] + inner * UNITS[char]) * largest
    bound = unit * np.abs(theirs) + noise + (SMALLEST[char] if unit else 0)
    quotient = np.max(np.abs(ours - theirs)[finite] / np.maximum(bound, 1e-300)[finite])
    records.append((float(quotient), what))
    assert quotient <= 1, f"{what}: {quotient:.3g} times the allowed difference"


def random(char: str, *shapes: tuple[int, ...]) -> list[np.ndarray]:
    """Random arrays of 16 bits."""
    rng = seeded(0)
    return [rounded(rng.standard_normal(shape), char) for shape in shapes]


def _run(function: Callable[..., Any], arrays: list[Any], char: str) -> list[np.ndarray | None]:
    """The value of a function, and its gradients for a cotangent of 16-bit numbers, on the host."""
    value, backward = function(*arrays)
    dy = rounded(seeded(1).standard_normal(value.shape), char).astype(asnumpy(value).dtype)
    given = asarray(dy)
    gradients = backward(given, [True] * len(arrays)) if takes_need(backward) else backward(given)
    gradients = gradients if isinstance(gradients, tuple | list) else [gradients]
    return [asnumpy(value), *(None if g is None else asnumpy(g) for g in gradients)]
