"""Check a backward against finite differences in float64, and under the conditions of a network.

A backward computes the vector-Jacobian product Jᵀv, with J the Jacobian of the function and v a cotangent. Finite
differences compute J u, the directional derivative along u. Both must give the same number ⟨v, J u⟩ = ⟨Jᵀ v, u⟩. This
takes one backward and a few forward passes, whatever the size of J. What makes the check reliable:

- **u and v are random.** If v is all ones ("sum the outputs and differentiate"), the gradient of softmax is zero,
  because its outputs always sum to 1, and errors in its backward can go unnoticed. If u is all ones, errors that cancel
  in the sum over the entries go unnoticed, and so does a permuted gradient.
- **float64 and a suitable step.** A central difference has a truncation error of h² φ‴/6 and a rounding error of about
  ε|φ|/h (ε = 2e-16). Two steps, h and h/2, cancel the h² term (Richardson extrapolation): h = 1e-4 gives eleven digits.
- **A kink is not a wrong gradient.** Within h of the corner of relu or of a tie in max, differences are meaningless.
  There, either the two steps disagree, or the left and right slopes do not converge as h shrinks. The same happens
  where a function has strong curvature within h; smaller steps distinguish the two cases.
- **Correct numbers are not enough.** In a network a backward also gets views, some inputs and outputs are not needed,
  and it runs in float32: see backward_rules.py.
- **The check itself is tested**: tests/test_gradcheck.py breaks the backward of every op, and each must be caught.
  docs/gradcheck.md lists which errors it can and cannot find, compared with PyTorch's check.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from scratchvit.backend import asnumpy, is_array
from scratchvit.backward_rules import (
    Arrays,
    GradientError,
    Recorded,
    Rules,
    check_float32,
    evaluate,
    first_non_finite,
    on_host,
    plain,
    rounds_to_float32,
)
from scratchvit.errors import WrongState, WrongType
from scratchvit.precision import autocast_dtype

DIRECTIONS = 2                  # pairs (u, v): one finds almost every error, the second guards against an unlucky draw
KINK = 1e-4                     # a larger relative disagreement of the steps is a kink; smooth functions stay below it


class GradcheckWarning(UserWarning):
    """The check passed, but at this point or for this function it cannot find some kinds of errors."""


def gradcheck(
    fn: Callable[..., Any],
    *arrays: Any,
    jacobian: bool = False,
    seed: int = 0,
    step: float = 1e-4,
    tolerance: float = 1e-7,
    float32: bool = True,
) -> None:
    """Check the gradients of `fn(*tensors)` with respect to every entry of the arrays; return None if they are right.

    In addition, it checks the backward under the conditions of a network: views as cotangents, inputs that need no
    gradient, unused outputs, shared memory, a second backward pass, float32. See backward_rules.py for these rules.
    They apply to fn as a whole, so check an op by itself: in a longer function, the ops after it decide which
    cotangents its backward gets.

    fn: takes a Tensor for each array and returns a Tensor or a tuple of Tensors, float64 for float64. It may use
        Modules, whose parameters must be float64 too (the check adds to their `.grad`). It must be deterministic.
    arrays: the point at which to check, float64, of any shapes, on the host or on the device in use. Good points have
        axes of different lengths, broadcast if fn supports it, and have positive and negative entries, none of them
        near a kink. The check does not write to them.
    jacobian: whether to compare every entry of the Jacobian too; this takes one backward per output entry.
    seed: of the random directions; errors report it.
    step: the larger of the two steps of the differences. Use a smaller one if fn has strong curvature within 1e-4.
    tolerance: the largest relative difference that passes.
    float32: whether to compare fn in float32 with fn in float64 as well. Use False for a function that only takes
        float64, such as one with a float64 Module inside, or that is meant to be inaccurate in float32 (TF32).

    Raises GradientError, an AssertionError, with one sentence on what is wrong: the worst entry and its two values, or
        the violated rule. Also raises it if fn cannot be checked: it is not deterministic or not finite, or the
        differences disagree (a kink).
    Raises TypeError for arrays or results that are not float64, and for results that are not Tensors; RuntimeError
        inside `autocast`.
    Warns with GradcheckWarning if the check passed but some errors could not be found: no input is broadcast although
        fn supports it, every axis has the same length, every matrix is symmetric, no entry is negative although fn
        takes negative ones, or fn does not return float32 for float32.

    Source: ⟨v, J u⟩ = ⟨Jᵀ v, u⟩ as in HIPS autograd's `test_util`; differences by Richardson (1911).
    """
    if autocast_dtype() != "float32":
        raise WrongState(
            f"gradcheck: inside autocast({autocast_dtype()!r}), where float32 is rounded to 16 bits, differences say "
            "nothing about a gradient: check it outside"
        )
    point = [_float64(array, f"input {number}") for number, array in enumerate(arrays)]
    check = _Check(fn, point, seed, step, tolerance)
    rules = check.numbers(jacobian)
    rules.inputs_alone()
    remarks = _weak_spots(fn, point, check.value)
    if float32 and (reason := check_float32(fn, rules)):
        remarks.append(f"float32 was not checked: {reason}. Pass float32=False if this is intended")
    for remark in remarks:
        warnings.warn(f"gradcheck: {remark}", GradcheckWarning, stacklevel=2)


class _Slope(NamedTuple):
    """Derivatives by finite differences, one per row, and estimates of their error."""

    value: np.ndarray
    kink: np.ndarray        # the disagreement of the two steps, or of the two sides; near 0 for a smooth function
    noise: np.ndarray       # a bound on the rounding error


class _Check:
    """One function at one point."""

    def __init__(self, fn: Callable[..., Any], point: Arrays, seed: int, step: float, tolerance: float):
        self.fn, self.point = fn, point
        self.seed, self.step, self.tolerance = seed, step, tolerance
        self.graph = Recorded(fn, point)
        self.value = _finite(self.graph.values)
        _require_deterministic(self.value, evaluate(fn, point))

    def numbers(self, jacobian: bool) -> Rules:
        """Run every comparison with finite differences. Returns the rules that remain to be checked.

        The rules for outputs are checked between two comparisons, so that the second one finds any side effects.
        """
        if jacobian:
            self.entry_by_entry(np.eye(sum(v.size for v in self.value)))
        rng = np.random.default_rng(self.seed)
        (u, v), *others = [(_random_like(self.point, rng), _random_like(self.value, rng)) for _ in range(DIRECTIONS)]
        returned = self.graph.pull_back(v)
        rules = Rules(self.fn, self.graph, v, returned, self.tolerance, self._noise(_flat(v)[None])[0])
        self.along(u, v, rules.right)
        for number, gradient in enumerate(rules.right):
            if rounds_to_float32(gradient, rules.noise):
                raise GradientError(
                    f"the gradient of input {number} is rounded to float32: every entry is representable in float32"
                )
        rules.outputs_alone()
        for u, v in others:
            self.along(u, v, rules.another(v), rules.explain)
        return rules

    def along(
        self, direction: Arrays, cotangent: Arrays, gradient: Arrays, explain: Callable[[], None] = lambda: None
    ) -> None:
        """Compare ⟨v, J u⟩ by differences with ⟨Jᵀ v, u⟩ by backward; on failure, find the violated rule or entry."""
        analytic = _flat(gradient) * _flat(direction)
        slope = self._differences(direction, _flat(cotangent)[None])
        scale = max(abs(slope.value[0]), np.linalg.norm(analytic))
        error = abs(analytic.sum() - slope.value[0])
        if error <= self.tolerance * scale + slope.noise[0] and slope.kink[0] <= KINK * scale + slope.noise[0]:
            return
        explain()
        self.entry_by_entry(_flat(cotangent)[None])
        raise GradientError(
            f"wrong gradient, or a kink, along a random direction: backward gives {analytic.sum():.10g}, differences "
            f"give {slope.value[0]:.10g}, although no single entry is clearly wrong (seed {self.seed})"
        )

    def entry_by_entry(self, cotangents: np.ndarray) -> None:
        """Compare ⟨v, ∂f/∂xⱼ⟩ for every entry xⱼ of the inputs and every row v of cotangents (rows, output entries)."""
        rows = [
            _flat(on_host(Recorded(self.fn, self.point).pull_back(self._split(v)), self.point)) for v in cotangents
        ]
        if len(cotangents) == 0:        # all outputs are empty
            return
        worst, message = 0.0, ""
        for j, (number, index) in enumerate(_entries(self.point)):
            analytic = np.array([row[j] for row in rows])
            unit = [np.zeros_like(x) for x in self.point]
            unit[number][index] = 1
            slope = self._differences(unit, cotangents)
            scale = np.maximum(np.abs(slope.value), np.abs(analytic))
            where = f"input {number}, index {plain(index)}"
            if np.any(slope.kink > KINK * scale + slope.noise):
                raise self._disagreement(where, unit, cotangents)
            excess = np.abs(analytic - slope.value) / (self.tolerance * scale + slope.noise + np.finfo(float).tiny)
            i = int(np.argmax(excess))
            if excess[i] > worst:
                worst = excess[i]
                message = f"{where}{self._output(cotangents[i])}: backward gives {analytic[i]:.10g}, " \
                          f"differences give {slope.value[i]:.10g}"
        if worst > 1:
            raise GradientError(f"wrong gradient, worst at {message} (seed {self.seed})")

    def _disagreement(self, where: str, unit: Arrays, cotangents: np.ndarray) -> GradientError:
        """The error for two steps that disagree. Smaller steps distinguish a kink at the point from other causes."""
        found = f"differences with steps of {self.step:g} and {self.step / 2:g} disagree at {where}"
        slopes = ((step, self._differences(unit, cotangents, step)) for step in self.step / 10 ** np.arange(1, 5))
        for (step, slope), (_, finer) in itertools.pairwise(slopes):
            bound = KINK * np.abs(slope.value)
            if np.all(slope.kink <= bound) and np.all(np.abs(slope.value - finer.value) <= bound + finer.noise):
                return GradientError(
                    f"{found}: the function has strong curvature or a kink within that distance. Steps of {step:g} "
                    f"agree: pass step={step:g}, or move the input (seed {self.seed})"
                )
        return GradientError(
            f"{found}, and smaller steps do too: the function has a kink or a jump there, or rounds its value, so "
            f"differences cannot check its gradient; move the input away (seed {self.seed})"
        )

    def _differences(self, direction: Arrays, cotangents: np.ndarray, step: float | None = None) -> _Slope:
        """The derivative of φ(t) = ⟨v, f(x + t u)⟩ at t = 0 for every row v of cotangents."""

        def phi(t: float) -> np.ndarray:
            moved = [x + t * u for x, u in zip(self.point, direction)]
            return cotangents @ _flat(_finite(evaluate(self.fn, moved)))

        h = step or self.step
        middle = cotangents @ _flat(self.value)
        left, right = phi(-h), phi(h)
        near_left, near_right = phi(-h / 2), phi(h / 2)
        wide, narrow = (right - left) / (2 * h), (near_right - near_left) / h
        # Right slope minus left slope is h φ″ for a smooth φ, and a constant at a corner. Twice its value for h/2 minus
        # that for h is therefore 0 for a smooth φ, and the constant at a corner.
        corner = 2 * (near_right - 2 * middle + near_left) / (h / 2) - (right - 2 * middle + left) / h
        return _Slope(
            value=(4 * narrow - wide) / 3,
            kink=np.maximum(np.abs(wide - narrow), np.abs(corner)),
            noise=self._noise(cotangents) * self.step / h,
        )

    def _noise(self, cotangents: np.ndarray) -> np.ndarray:
        """A bound on the rounding error of differences with `self.step`, for every row v of cotangents."""
        return 64 * np.finfo(float).eps * (np.abs(cotangents) @ np.abs(_flat(self.value))) / self.step

    def _split(self, flat: np.ndarray) -> Arrays:
        """Split a flat cotangent into one array per output."""
        ends = np.cumsum([v.size for v in self.value])[:-1]
        return [part.reshape(v.shape) for part, v in zip(np.split(flat, ends), self.value)]

    def _output(self, cotangent: np.ndarray) -> str:
        """The output entry that a one-hot cotangent selects, as text; "" for other cotangents."""
        if np.count_nonzero(cotangent) != 1:
            return ""
        number, index = _entries(self.value)[int(np.argmax(cotangent))]
        return f", output {number}, index {plain(index)}"


# --- requirements on fn and the point ---------------------------------------------------------------------------------


def _float64(array: Any, what: str) -> np.ndarray:
    dtype = getattr(array, "dtype", None)
    if dtype != np.float64:
        raise WrongType(
            f"gradcheck: {what} is {dtype or type(array).__name__}; finite differences need float64 throughout, "
            "so use float64 arrays and modules"
        )
    return asnumpy(array) if is_array(array) else np.asarray(array)


def _finite(values: Arrays) -> Arrays:
    for number, value in enumerate(values):
        _float64(value, f"output {number}")
        if not np.isfinite(value).all():
            raise GradientError(f"output {number} is not finite at {first_non_finite(value)}")
    return values


def _require_deterministic(first: Arrays, second: Arrays) -> None:
    for number, (a, b) in enumerate(zip(first, second)):
        if a.shape != b.shape or not np.array_equal(a, b):
            raise GradientError(
                f"fn is not deterministic: output {number} differs between two calls with the same input; "
                "seed its random numbers (for instance of dropout) inside fn"
            )


# --- points that hide errors ------------------------------------------------------------------------------------------


def _weak_spots(fn: Callable[..., Any], point: Arrays, value: Arrays) -> list[str]:
    """For each kind of error that cannot be found at this point: a sentence that says what to do."""
    found = []
    lengths = {n for x in point for n in x.shape if n > 1}
    several_axes = [x for x in point if sum(n > 1 for n in x.shape) > 1]
    if several_axes and len(lengths) == 1:
        found.append(
            f"every axis of the inputs has length {lengths.pop()}, so a backward that confuses two axes may pass; use "
            "different lengths"
        )
    if several_axes and all(_is_symmetric(x) for x in several_axes):
        found.append("every matrix is symmetric, so a transposed gradient may pass; use random entries")
    if _could_broadcast(fn, point, value):
        found.append(
            "fn broadcasts, but its inputs have the same shape, so a backward that does not sum over broadcast axes "
            "passes; check a point with a smaller input too"
        )
    if _could_be_negative(fn, point, value):
        found.append(
            "no entry is negative, although fn takes negative ones, so a backward with a wrong sign or a missing case "
            "may pass; draw the entries from a normal distribution"
        )
    return found


def _is_symmetric(x: np.ndarray) -> bool:
    return x.shape[-1] == x.shape[-2] and np.array_equal(x, x.swapaxes(-1, -2))


def _could_broadcast(fn: Callable[..., Any], point: Arrays, value: Arrays) -> bool:
    """Whether all inputs have the same shape, but fn gives the same shapes if an axis of the last one has length 1."""
    if len(point) < 2 or len({x.shape for x in point}) > 1 or point[0].size < 2:
        return False
    axis = int(np.argmax(point[0].shape))
    return _takes(fn, [*point[:-1], point[-1].take([0], axis)], value)


def _could_be_negative(fn: Callable[..., Any], point: Arrays, value: Arrays) -> bool:
    """Whether no entry is negative, which is not by chance, although fn is finite where all entries are negative."""
    entries = _flat(point)
    return entries.size > 3 and bool((entries >= 0).all()) and _takes(fn, [-x for x in point], value)


def _takes(fn: Callable[..., Any], point: Arrays, value: Arrays) -> bool:
    """Whether fn takes another point, and gives finite values of the same shapes there."""
    try:
        with np.errstate(all="ignore"):
            others = evaluate(fn, point)
    except Exception:       # fn may refuse the point with any exception
        return False
    return [v.shape for v in others] == [v.shape for v in value] and bool(np.isfinite(_flat(others)).all())


# --- lists of arrays as one vector ------------------------------------------------------------------------------------


def _flat(arrays: Arrays) -> np.ndarray:
    return np.concatenate([np.zeros(0), *(a.reshape(-1) for a in arrays)])


def _random_like(arrays: Arrays, rng: np.random.Generator) -> Arrays:
    return [rng.standard_normal(a.shape) for a in arrays]


def _entries(arrays: Arrays) -> list[tuple[int, tuple[int, ...]]]:
    """(array number, index) of every entry, in the order of `_flat`."""
    return [(number, index) for number, array in enumerate(arrays) for index in np.ndindex(array.shape)]
