"""Is this backward right? Compare it with finite differences, in float64.

A backward computes Jᵀv: the transposed Jacobian of the function times a cotangent v. Finite differences compute J u,
the change of the value along a direction u. Both must give the same number ⟨v, J u⟩ = ⟨Jᵀ v, u⟩, for one backward and a
handful of forwards, whatever the size of J. What makes such a check sound:

- **u and v are random.** With v all ones, "sum the outputs and differentiate", softmax has gradient zero whatever its
  backward forgets, since its outputs always sum to 1. With u all ones, an error that cancels over the entries is
  invisible, and so is a permuted gradient.
- **float64 and the right step.** A central difference errs by h² φ‴/6 through truncation and by about ε|φ|/h through
  rounding (ε = 2e-16). Two steps, h and h/2, cancel the h² term (Richardson): at h = 1e-4 eleven digits are left.
- **A kink is not a wrong gradient.** Within h of the corner of relu or of a tie in max, differences mean nothing. Two
  signs give it away: the two steps disagree, or the slopes left and right do not meet as h shrinks.
- **The check is checked**: tests/test_gradcheck.py breaks every op's backward on purpose, and each must be caught.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from scratchvit.backend import asarray, asnumpy, is_array
from scratchvit.graph import run_backward
from scratchvit.recording import no_grad
from scratchvit.tensor import Tensor, edge_to

Arrays = list[np.ndarray]
DIRECTIONS = 2                  # pairs (u, v); one sees almost every error, two forgive an unlucky draw
KINK = 1e-4                     # relative disagreement that no smooth function shows at the default step


class GradientError(AssertionError):
    """A backward that does not match its function, or a function that cannot be checked at this input."""


def gradcheck(
    fn: Callable[..., Any],
    *arrays: Any,
    jacobian: bool = False,
    seed: int = 0,
    step: float = 1e-4,
    tolerance: float = 1e-6,
) -> None:
    """Check the gradients of `fn(*tensors)` with respect to every entry of the arrays; return None if they are right.

    fn: takes Tensors, returns a Tensor or a tuple of them, all float64. It may use Modules, whose parameters must be
        float64 too (the check adds to their `.grad`). It must give the same value each time it is called.
    arrays: the point at which to check, float64, on the host or on the device in use.
    jacobian: compare every entry of the Jacobian instead of two random projections; one backward per output entry.
    seed: of the random directions; an error names it.
    step: the larger of the two steps of the differences; smaller for functions that bend within 1e-4.
    tolerance: the relative difference that passes.

    Raises GradientError with the worst entry and its two values; TypeError for arrays or results that are not float64.
    Method: ⟨v, J u⟩ = ⟨Jᵀ v, u⟩ as in HIPS autograd's `test_util`; the differences as above.
    """
    point = [_float64(array, f"input {number}") for number, array in enumerate(arrays)]
    value = _evaluate(fn, point)
    _require_deterministic(value, _evaluate(fn, point))
    check = _Check(fn, point, value, seed, step, tolerance)
    if jacobian:
        check.entry_by_entry(np.eye(sum(v.size for v in value)))
        return
    rng = np.random.default_rng(seed)
    for _ in range(DIRECTIONS):
        check.along(_random_like(point, rng), _random_like(value, rng))


class _Slope(NamedTuple):
    """Derivatives by differences, one per row, and what is known of their error."""

    value: np.ndarray
    kink: np.ndarray        # how far two steps, or the two sides, disagree; vanishes for a smooth function
    noise: np.ndarray       # how far rounding alone may carry the value


class _Check:
    """One function at one point."""

    def __init__(self, fn: Callable[..., Any], point: Arrays, value: Arrays, seed: int, step: float, tolerance: float):
        self.fn, self.point, self.value = fn, point, value
        self.seed, self.step, self.tolerance = seed, step, tolerance

    def along(self, direction: Arrays, cotangent: Arrays) -> None:
        """⟨v, J u⟩ by differences against ⟨Jᵀ v, u⟩ by backward; on failure, find the entry to blame."""
        gradient = _pull_back(self.fn, self.point, cotangent)
        analytic = _flat(gradient) * _flat(direction)
        slope = self._differences(direction, _flat(cotangent)[None])
        scale = max(abs(slope.value[0]), np.linalg.norm(analytic))
        error = abs(analytic.sum() - slope.value[0])
        if error <= self.tolerance * scale + slope.noise[0] and slope.kink[0] <= KINK * scale + slope.noise[0]:
            return
        self.entry_by_entry(_flat(cotangent)[None])
        raise GradientError(
            f"wrong gradient, or a kink, along a random direction: backward says {analytic.sum():.10g}, differences "
            f"say {slope.value[0]:.10g}, though no single entry stands out (seed {self.seed})"
        )

    def entry_by_entry(self, cotangents: np.ndarray) -> None:
        """Compare ⟨v, ∂f/∂xⱼ⟩ for every entry xⱼ of the inputs and every row v (outputs' entries,) of cotangents."""
        rows = [_flat(_pull_back(self.fn, self.point, self._split(v))) for v in cotangents]
        if len(cotangents) == 0:        # fn has only empty outputs
            return
        worst, message = 0.0, ""
        for j, (number, index) in enumerate(_entries(self.point)):
            analytic = np.array([row[j] for row in rows])
            unit = [np.zeros_like(x) for x in self.point]
            unit[number][index] = 1
            slope = self._differences(unit, cotangents)
            scale = np.maximum(np.abs(slope.value), np.abs(analytic))
            where = f"input {number}, index {_plain(index)}"
            if np.any(slope.kink > KINK * scale + slope.noise):
                raise GradientError(
                    f"the function has a kink within {self.step:g} of this input, at {where}: differences say nothing "
                    f"there; move the input away from it (seed {self.seed})"
                )
            excess = np.abs(analytic - slope.value) / (self.tolerance * scale + slope.noise + np.finfo(float).tiny)
            i = int(np.argmax(excess))
            if excess[i] > worst:
                worst = excess[i]
                message = f"{where}{self._output(cotangents[i])}: backward says {analytic[i]:.10g}, " \
                          f"differences say {slope.value[i]:.10g}"
        if worst > 1:
            raise GradientError(f"wrong gradient, worst at {message} (seed {self.seed})")

    def _differences(self, direction: Arrays, cotangents: np.ndarray) -> _Slope:
        """The derivative of φ(t) = ⟨v, f(x + t u)⟩ at t = 0 for every row v of cotangents."""

        def phi(t: float) -> np.ndarray:
            return cotangents @ _flat(_evaluate(self.fn, [x + t * u for x, u in zip(self.point, direction)]))

        h = self.step
        middle = cotangents @ _flat(self.value)
        left, right = phi(-h), phi(h)
        near_left, near_right = phi(-h / 2), phi(h / 2)
        wide, narrow = (right - left) / (2 * h), (near_right - near_left) / h
        # Right slope minus left slope is h φ″ for a smooth φ: twice the narrow one less the wide one leaves a corner.
        corner = 2 * (near_right - 2 * middle + near_left) / (h / 2) - (right - 2 * middle + left) / h
        magnitude = np.abs(cotangents) @ np.abs(_flat(self.value))
        return _Slope(
            value=(4 * narrow - wide) / 3,
            kink=np.maximum(np.abs(wide - narrow), np.abs(corner)),
            noise=64 * np.finfo(float).eps * magnitude / h,
        )

    def _split(self, flat: np.ndarray) -> Arrays:
        """One flat cotangent as an array per output."""
        ends = np.cumsum([v.size for v in self.value])[:-1]
        return [part.reshape(v.shape) for part, v in zip(np.split(flat, ends), self.value)]

    def _output(self, cotangent: np.ndarray) -> str:
        """The output entry that a one-hot cotangent picks, in words; nothing for a mixed one."""
        if np.count_nonzero(cotangent) != 1:
            return ""
        number, index = _entries(self.value)[int(np.argmax(cotangent))]
        return f", output {number}, index {_plain(index)}"


# --- from and to the device -----------------------------------------------------------------------------------------


def _tensors(outputs: Any) -> Sequence[Tensor]:
    outputs = outputs if isinstance(outputs, tuple | list) else (outputs,)
    for output in outputs:
        if not isinstance(output, Tensor):
            raise TypeError(f"gradcheck: fn must return Tensors, not {type(output).__name__}")
    return outputs


def _evaluate(fn: Callable[..., Any], point: Arrays) -> Arrays:
    """The outputs of fn as float64 arrays on the host."""
    with no_grad():
        outputs = _tensors(fn(*(Tensor(asarray(x.copy())) for x in point)))
    values = [_float64(output.data, f"output {number}") for number, output in enumerate(outputs)]
    for number, value in enumerate(values):
        if not np.isfinite(value).all():
            raise GradientError(f"output {number} is not finite at {_first_non_finite(value)}")
    return values


def _pull_back(fn: Callable[..., Any], point: Arrays, cotangents: Arrays) -> Arrays:
    """Jᵀv: the gradient of every input, zeros where nothing depends on it."""
    inputs = [Tensor(asarray(x.copy()), requires_grad=True) for x in point]
    outputs = _tensors(fn(*inputs))
    run_backward([(edge_to(y), asarray(v)) for y, v in zip(outputs, cotangents) if y.requires_grad])
    gradients = [np.zeros_like(x) if t.grad is None else asnumpy(t.grad) for x, t in zip(point, inputs)]
    for number, gradient in enumerate(gradients):
        if not np.isfinite(gradient).all():
            raise GradientError(f"the gradient of input {number} is not finite at {_first_non_finite(gradient)}")
    return gradients


def _float64(array: Any, what: str) -> np.ndarray:
    dtype = getattr(array, "dtype", None)
    if dtype != np.float64:
        raise TypeError(
            f"gradcheck: {what} is {dtype or type(array).__name__}; finite differences need float64 throughout, "
            "so give float64 arrays and modules"
        )
    return asnumpy(array) if is_array(array) else np.asarray(array)


def _require_deterministic(first: Arrays, second: Arrays) -> None:
    for number, (a, b) in enumerate(zip(first, second)):
        if a.shape != b.shape or not np.array_equal(a, b):
            raise GradientError(
                f"fn is not deterministic: output {number} differs between two calls with the same input; "
                "seed its random numbers (dropout!) inside fn"
            )


# --- lists of arrays as one vector ----------------------------------------------------------------------------------


def _flat(arrays: Arrays) -> np.ndarray:
    return np.concatenate([np.zeros(0), *(a.reshape(-1) for a in arrays)])


def _random_like(arrays: Arrays, rng: np.random.Generator) -> Arrays:
    return [rng.standard_normal(a.shape) for a in arrays]


def _entries(arrays: Arrays) -> list[tuple[int, tuple[int, ...]]]:
    """(array number, index) of every entry, in the order of `_flat`."""
    return [(number, index) for number, array in enumerate(arrays) for index in np.ndindex(array.shape)]


def _plain(index: tuple[int, ...]) -> str:
    return str(tuple(int(i) for i in index))


def _first_non_finite(array: np.ndarray) -> str:
    index = tuple(np.argwhere(~np.isfinite(array))[0])
    return f"index {_plain(index)}: {array[index]}"
