"""CUDA kernels against the plain forms on the same device, and against themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from scratchvit.plain import plain_forms
from tests.support.margins import assert_all_close, named, rounding
from tests.support.one_op import run
from tests.support.seeds import seeded


def check(function: Callable[..., Any], arrays: list[np.ndarray]) -> None:
    """Assert that values and gradients of a function of Tensors are those of the plain forms, and the same bits twice.

    They may differ from the plain forms as far as rounding explains it (support/margins.py).
    """
    fast, again = (named(run(function, arrays)) for _ in range(2))
    with plain_forms():
        plain = named(run(function, arrays))
        bounds = rounding(lambda: run(function, arrays), dtype=arrays[0].dtype.type)
    assert {name: x.dtype for name, x in plain.items()} == {name: x.dtype for name, x in fast.items()}
    assert_all_close(fast, plain, bounds)
    assert {name: x.tobytes() for name, x in fast.items()} == {name: x.tobytes() for name, x in again.items()}


def check_shapes(function: Callable[..., Any], shapes: Sequence[tuple[int, ...]], dtype: Any) -> None:
    """`check` on random arrays of these shapes."""
    rng = seeded(0)
    check(function, [rng.standard_normal(shape).astype(dtype) for shape in shapes])
