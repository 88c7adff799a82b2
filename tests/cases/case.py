"""What a row of the op table is. Every op has rows; each row drives the gradient check, the dtype check, the strict
array module, the real GPU where there is one, and the comparison with PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.support.seeds import seeded


@dataclass(frozen=True)
class Case:
    """One op on one set of inputs.

    op: the op's name in `scratchvit.tensor.OPS`.
    inputs: the shapes of the differentiable inputs, or a function from a NumPy generator to the float64 arrays.
    ours: takes the inputs as Tensors, returns a Tensor or a tuple of them.
    theirs: the same through PyTorch, given (torch, *tensors); None where PyTorch has nothing to compare with.
    note: tells rows of one op apart.
    """

    op: str
    inputs: tuple[tuple[int, ...], ...] | Callable[[np.random.Generator], list[np.ndarray]]
    ours: Callable[..., Any]
    theirs: Callable[..., Any] | None
    note: str = ""

    def __str__(self) -> str:
        return f"{self.op}-{self.note}" if self.note else self.op

    def make(self, dtype: Any = np.float64, seed: int = 0) -> list[np.ndarray]:
        """The inputs; other numbers for another seed."""
        rng = seeded(seed)
        made = self.inputs(rng) if callable(self.inputs) else [rng.standard_normal(shape) for shape in self.inputs]
        return [array.astype(dtype) for array in made]


def positive(*shapes: tuple[int, ...]) -> Callable[[np.random.Generator], list[np.ndarray]]:
    """Inputs in (0.5, 2)."""
    return lambda rng: [rng.uniform(0.5, 2.0, shape) for shape in shapes]


def away_from_zero(*shapes: tuple[int, ...]) -> Callable[[np.random.Generator], list[np.ndarray]]:
    """Inputs in (0.5, 2) and (-2, -0.5)."""
    return lambda rng: [rng.uniform(0.5, 2.0, shape) * rng.choice([-1, 1], shape) for shape in shapes]


def apart(*shapes: tuple[int, ...]) -> Callable[[np.random.Generator], list[np.ndarray]]:
    """Inputs whose entries all differ by 0.05 or more, so that no max or sort has a tie within a finite difference."""

    def make(rng: np.random.Generator) -> list[np.ndarray]:
        sizes = [int(np.prod(shape)) for shape in shapes]
        values = rng.permutation(np.arange(sum(sizes)) * 0.05 - 0.025 * sum(sizes) + 0.0125)
        return [part.reshape(shape) for part, shape in zip(np.split(values, np.cumsum(sizes)[:-1]), shapes)]

    return make
