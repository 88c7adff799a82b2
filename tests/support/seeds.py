"""Where the suite's random numbers begin: all of its generators, moved together by `pytest --seed N`.

A margin that holds for the one seed that somebody tried says little. Tests therefore draw from `seeded(n)` where they
would have written `np.random.default_rng(n)`, and pass `moved(n)` to other generators. `--seed 0`, the default, changes
neither. Hypothesis tries the examples of that seed, the same ones in every run. Generators that nobody seeds (of a
layer made by itself, of `ops.dropout`) start from the name of the test, so that it draws the same numbers in any order:
see `begin`.
"""

from __future__ import annotations

import functools
import os
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

import scratchvit as sv

VARIABLE = "SCRATCHVIT_TEST_SEED"           # in the environment, so that processes that a test starts move along


def shift() -> int:
    """The N of `--seed N`."""
    return int(os.environ.get(VARIABLE, "0"))


def seeded(seed: int | Sequence[int] = 0) -> np.random.Generator:
    """NumPy's generator for this seed, moved by `--seed`."""
    if not shift():
        return np.random.default_rng(seed)
    return np.random.default_rng([*([seed] if isinstance(seed, int) else seed), shift()])


def moved(seed: int) -> int:
    """The seed for a generator that is not NumPy's, such as PyTorch's, moved by `--seed`."""
    return seed + 1_000_003 * shift()


# --- generators inside the package ----------------------------------------------------------------------------------

_default_rng = np.random.default_rng
_create_model = sv.create_model
_unseeded: np.random.SeedSequence = np.random.SeedSequence(0)


def begin(test: str) -> None:
    """Let what nobody seeds draw from the name of the test, and a model's default weights from `--seed`."""
    global _unseeded
    _unseeded = np.random.SeedSequence([zlib.crc32(test.encode()), shift()])
    sv.random.DEFAULT.load_state_dict({"seed": int(_unseeded.generate_state(1)[0]), "draws": 0})


def install() -> None:
    """Put generators that `begin` seeds in the place of those that the operating system would."""

    @functools.wraps(_default_rng)
    def default_rng(seed: Any = None) -> np.random.Generator:
        return _default_rng(_unseeded.spawn(1)[0] if seed is None else seed)

    @functools.wraps(_create_model)
    def create_model(name: str, *, seed: int = 0, **overrides: Any) -> Any:
        return _create_model(name, seed=moved(seed), **overrides)

    np.random.default_rng = default_rng     # type: ignore[assignment]
    sv.create_model = create_model
