"""The rules that a backward must follow besides returning the right numbers, and how `gradcheck` checks them.

A backward that is right for a single call with a newly made cotangent can still be wrong in a network. There,
cotangents are views with any memory layout, some inputs need no gradient, some outputs are unused, and arrays are
shared. The rules:

- The function does not write to its inputs, and does not write to an output after returning it.
- The backward does not write to inputs, outputs or cotangents, and returns the same gradient each time it is called.
- It takes a cotangent with any strides, which may be read-only.
- Its gradients do not depend on which other gradients are needed. A cotangent of None is treated as zeros.
- It returns new arrays: writing to a gradient changes nothing else.
- For float32 it returns float32, with the values of float64 up to rounding.

For a correct function the checks are cheap: the same graph is used several times, and several rules are checked at
once. Only on failure are they checked one by one, to find out which rule is violated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from scratchvit.backend import Array, array_module, asarray, asnumpy
from scratchvit.errors import WrongType
from scratchvit.graph import reachable, run_backward
from scratchvit.recording import no_grad
from scratchvit.tensor import Tensor, edge_to

Arrays = list[np.ndarray]


class GradientError(AssertionError):
    """A backward that does not match its function or violates a rule, or a function that cannot be checked."""


# --- a graph for several backward passes ------------------------------------------------------------------------------


class Recorded:
    """One call of fn with its graph, which is kept for several backward passes.

    point: a host array per input. wanted: for each input, whether it requires a gradient; None for all.
    """

    def __init__(self, fn: Callable[..., Any], point: Arrays, wanted: Sequence[bool] | None = None):
        self.point = point
        self.inputs = [
            Tensor(asarray(x.copy()), requires_grad=want) for x, want in zip(point, wanted or [True] * len(point))
        ]
        self.outputs = _tensors(fn(*self.inputs))
        self.values = [asnumpy(y.data).copy() for y in self.outputs]
        self._nodes = [(node, node.backward, node.edges) for node in reachable([edge_to(y) for y in self.outputs])[0]]
        self.require_kept("fn")

    def pull_back(self, cotangents: Sequence[Any], when: str = "") -> list[Array | None]:
        """Jᵀv: the gradient of every input, as the engine returns it; None if no output depends on the input.

        cotangents: an array per output, on the host or the device; None for an unused output.
        when: the condition that is checked, for error messages, with a leading space.
        """
        for node, backward, edges in self._nodes:
            node.backward, node.edges = backward, edges
        for tensor in self.inputs:
            tensor.grad = None
        given = [None if v is None else asarray(v) for v in cotangents]
        before = [None if v is None else asnumpy(v).copy() for v in given]
        roots = [(edge_to(y), v) for y, v in zip(self.outputs, given) if v is not None and y.requires_grad]
        try:
            run_backward(roots)
        except Exception as error:      # a user's backward can raise anything; say under which condition it did
            raise GradientError(f"the backward raises {type(error).__name__}{when}: {error}") from error
        for number, (v, copy) in enumerate(zip(given, before)):
            if v is not None and copy is not None and not _same_bits(asnumpy(v), copy):
                raise GradientError(
                    f"the backward writes to its cotangent, of output {number}{when}; use a new array"
                )
        self.require_kept("the backward", when)
        return [tensor.grad for tensor in self.inputs]

    def require_kept(self, who: str, when: str = "") -> None:
        """Raise GradientError if inputs or outputs have changed; `who` is named as the cause."""
        for what, tensors, copies in (("input", self.inputs, self.point), ("output", self.outputs, self.values)):
            for number, (tensor, copy) in enumerate(zip(tensors, copies)):
                if not _same_bits(asnumpy(tensor.data), copy):
                    raise GradientError(f"{who} writes to {what} {number}{when}; use a new array")


def evaluate(fn: Callable[..., Any], point: Arrays) -> Arrays:
    """The outputs of fn at this point, on the host, without a graph."""
    with no_grad():
        return [asnumpy(y.data) for y in _tensors(fn(*(Tensor(asarray(x.copy())) for x in point)))]


def on_host(gradients: Sequence[Array | None], point: Arrays, when: str = "") -> Arrays:
    """Copies of the gradients on the host, zeros for None. Raises GradientError if one is not finite."""
    copies = [np.zeros_like(x) if g is None else asnumpy(g).copy() for g, x in zip(gradients, point)]
    for number, gradient in enumerate(copies):
        if not np.isfinite(gradient).all():
            raise GradientError(
                f"the gradient of input {number} is not finite{when} at {first_non_finite(gradient)}"
            )
    return copies


def _tensors(outputs: Any) -> Sequence[Tensor]:
    outputs = outputs if isinstance(outputs, tuple | list) else (outputs,)
    for output in outputs:
        if not isinstance(output, Tensor):
            raise WrongType(f"gradcheck: fn must return Tensors, not {type(output).__name__}")
    return outputs


# --- memory layouts of cotangents -------------------------------------------------------------------------------------


def _fortran(v: Array) -> Array:
    return v.T.copy().T


def _gapped(v: Array) -> Array:
    """A view of every second entry of memory, with NaN between, for code that reads memory and ignores strides."""
    memory = array_module(v).full((*v.shape, 2), float("nan"), v.dtype)
    memory[..., 0] = v
    return memory[..., 0]


def _reversed(v: Array) -> Array:
    return _backwards(_backwards(v).copy())


def _gapped_and_reversed(v: Array) -> Array:
    return _backwards(_gapped(_backwards(v)))


def _backwards(v: Array) -> Array:
    """A view of v reversed along every axis."""
    return v[(*[slice(None, None, -1)] * v.ndim, ...)]


def _read_only(v: Array) -> Array:
    if isinstance(v, np.ndarray):       # CuPy has no read-only arrays
        v.flags.writeable = False
    return v


LAYOUTS: dict[str, Callable[[Array], Array]] = {
    "in Fortran order": _fortran,
    "with gaps in memory, as `a[..., 0]` has": _gapped,
    "with negative strides": _reversed,
    "that is read-only": _read_only,
}


def _laid_out(cotangents: Arrays, *layouts: Callable[[Array], Array]) -> list[Array]:
    result = []
    for cotangent in cotangents:
        v = asarray(cotangent.copy())
        for layout in layouts:
            v = layout(v)
        result.append(v)
    return result


# --- the rules --------------------------------------------------------------------------------------------------------


class Rules:
    """The rules for one function at one point, given a gradient whose values are known to be right.

    graph: of fn at the point. cotangent: that of its first backward pass, which returned the gradients `returned`.
    tolerance: the largest relative difference that passes. noise: the largest absolute difference.
    """

    def __init__(
        self, fn: Callable[..., Any], graph: Recorded, cotangent: Arrays, returned: list[Array | None],
        tolerance: float, noise: float,
    ):
        self.fn, self.graph, self.point, self.cotangent = fn, graph, graph.point, cotangent
        self.returned, self.right = returned, on_host(returned, graph.point)
        self.tolerance, self.noise = tolerance, noise

    def outputs_alone(self) -> None:
        """Use each output alone, with a cotangent that has gaps and negative strides: the gradients must add up.

        This uses the same graph again, and then writes to the gradients that its first backward pass returned.
        """
        self.graph.require_kept("a later call")
        total = [np.zeros_like(x) for x in self.point]
        second: list[Array | None] = []
        right: Arrays = []
        try:
            for j in range(len(self.cotangent)):
                second = self.graph.pull_back(_only(j, _laid_out(self.cotangent, _gapped_and_reversed)))
                right = on_host(second, self.point)
                for part, gradient in zip(total, right):
                    part += gradient
            self._require_right(total, " for cotangents with gaps and negative strides, when each output is used alone")
        except GradientError:
            self.explain()
            raise
        self._require_own_memory(second, right)

    def _require_own_memory(self, second: list[Array | None], right: Arrays) -> None:
        """Write to each gradient of the first backward pass in turn, and check that nothing else changes."""
        for number, gradient in enumerate(self.returned):
            if gradient is None:
                continue
            if not _same_bits(asnumpy(gradient), self.right[number]):
                raise GradientError(
                    f"the gradient of input {number} changes after it was returned: a later backward pass, or writing "
                    "to another gradient, changes it; return a new array each time"
                )
            gradient[...] = float("nan")
            self.graph.require_kept(f"writing to the gradient of input {number} also")
            for other, copy in zip(second, right):
                if other is not None and not _same_bits(asnumpy(other), copy):
                    raise GradientError(
                        f"two backward passes return the same memory as the gradient of input {number}; "
                        "return a new array each time"
                    )

    def another(self, cotangent: Arrays) -> Arrays:
        """The gradient for another cotangent, read-only and in Fortran order, by the same graph."""
        try:
            return on_host(self.graph.pull_back(_laid_out(cotangent, _fortran, _read_only)), self.point)
        except GradientError:
            self.explain()
            raise

    def inputs_alone(self) -> None:
        """Require gradients for some inputs only, in new graphs: each alone, and of three or more, all but one."""
        for wanted in _patterns(len(self.point)):
            when = f" when only some inputs require a gradient, need={list(wanted)}"
            try:
                found = on_host(Recorded(self.fn, self.point, wanted).pull_back(self.cotangent, when), self.point, when)
                self._require_right(found, when, wanted)
            except GradientError:
                self.explain()
                raise

    def explain(self) -> None:
        """Check one condition at a time; raise GradientError with the first that changes the gradient."""
        when = " in a second backward pass of a new graph"
        self._require_right(self._fresh_gradient(self.cotangent, when), when)

        when = " in a second backward pass of the same graph: the first changed an array that the op had saved"
        graph = Recorded(self.fn, self.point)
        graph.pull_back(self.cotangent)
        self._require_right(on_host(graph.pull_back(self.cotangent, when), self.point, when), when)
        when = " after writing to the gradient of an earlier backward pass: it was an array that the op had saved"
        graph = Recorded(self.fn, self.point)
        for gradient in graph.pull_back(self.cotangent):
            if gradient is not None:
                gradient[...] = 0
        self._require_right(on_host(graph.pull_back(self.cotangent, when), self.point, when), when)

        for name, layout in LAYOUTS.items():
            when = f" for a cotangent {name}"
            self._require_right(self._fresh_gradient(_laid_out(self.cotangent, layout), when), when)

        for j in range(len(self.cotangent)):
            when = f" when only output {j} is used, and the other cotangents are None"
            zeros = [v if i == j else np.zeros_like(v) for i, v in enumerate(self.cotangent)]
            found = self._fresh_gradient(_only(j, self.cotangent), when)
            self._require_right(found, when, expected=self._fresh_gradient(zeros))

    def _fresh_gradient(self, cotangents: Sequence[Any], when: str = "") -> Arrays:
        return on_host(Recorded(self.fn, self.point).pull_back(cotangents, when), self.point, when)

    def _require_right(
        self, found: Arrays, when: str, wanted: Sequence[bool] | None = None, expected: Arrays | None = None
    ) -> None:
        for number, (a, b) in enumerate(zip(found, expected or self.right)):
            if wanted is None or wanted[number]:
                allowed = self.tolerance * np.abs(b) + 1e-9 * np.abs(b).max(initial=0) + self.noise
                _require_close(a, b, allowed, f"the gradient of input {number} is wrong{when}")


def _only(j: int, cotangents: Sequence[Any]) -> list[Any]:
    return [v if i == j else None for i, v in enumerate(cotangents)]


def _patterns(n: int) -> Iterator[tuple[bool, ...]]:
    """Which of n inputs require a gradient: each alone, and for three or more also all but one."""
    for i in range(n):
        yield tuple(j == i for j in range(n))
    for i in range(n if n > 2 else 0):
        yield tuple(j != i for j in range(n))


# --- float32 ----------------------------------------------------------------------------------------------------------

FLOAT32 = float(np.finfo(np.float32).eps)
SENSITIVE = 16          # the allowed error, as a multiple of the effect of rounding the inputs once


def rounds_to_float32(gradient: np.ndarray, noise: float) -> bool:
    """Whether every entry above the noise is representable in float32. A float64 entry is by chance once in 2²⁹."""
    entries = gradient[np.abs(gradient) > noise]
    with np.errstate(over="ignore"):
        return entries.size > 0 and bool((entries == entries.astype(np.float32)).all())


def check_float32(fn: Callable[..., Any], rules: Rules) -> str:
    """Compare values and gradients of fn in float32 with those in float64, which are taken from `rules`.

    Returns the reason if they cannot be compared, otherwise "". Raises GradientError for a difference that rounding
    does not explain.
    """
    graph, cotangent, gradient = rules.graph, rules.cotangent, rules.right
    exact = [*graph.values, *gradient]
    if any(np.abs(a).max(initial=0) > np.finfo(np.float32).max for a in (*graph.point, *exact)):
        return "its numbers are beyond the range of float32"
    with np.errstate(all="ignore"):     # overflow is detected below
        point, v = ([x.astype(np.float32) for x in arrays] for arrays in (graph.point, cotangent))
        try:
            single = Recorded(fn, point)
        except GradientError:
            raise
        except Exception as error:      # a function may refuse float32 with any exception
            return f"for float32 inputs it raises {type(error).__name__}: {error}"
        other = {str(y.dtype) for y in single.outputs} - {"float32"}
        if other:
            return f"for float32 inputs it returns {other.pop()}; a module or an array that it uses may be float64"
        found = [*single.values, *on_host(single.pull_back(v, " in float32"), point, " in float32")]

    names = [*_numbered("output", graph.values), *_numbered("the gradient of input", gradient)]
    largest = max((np.abs(a).max(initial=0) for a in graph.values), default=0.0)
    # 84 roundings of the largest entry, and for gradients the rounding error of a long sum of products v·f that cancel.
    cancelled = 32 * FLOAT32 * largest * max((np.abs(a).max(initial=0) for a in cotangent), default=0.0)
    allowed = [1e-5 * np.abs(a).max(initial=0) for a in exact]
    for i, x in enumerate(graph.point, start=len(graph.values)):
        allowed[i] += cancelled / max(1.0, np.abs(x).max(initial=0))
    if all((np.abs(a - b) <= limit).all() for a, b, limit in zip(found, exact, allowed)):
        return ""
    # The function may be ill-conditioned, or rounding may cross a kink: compare at the inputs as rounded to float32.
    exact, spread = _sensitivity(fn, [x.astype(np.float64) for x in point], [x.astype(np.float64) for x in v])
    for name, a, b, limit, s in zip(names, found, exact, allowed, spread):
        _require_close(a, b, limit + SENSITIVE * s, f"{name} is wrong in float32, beyond rounding")
    return ""


def _sensitivity(fn: Callable[..., Any], point: Arrays, cotangent: Arrays) -> tuple[Arrays, list[float]]:
    """Values and gradients in float64, and how much each changes if the inputs change by a float32 rounding error."""

    def run(point: Arrays, cotangent: Arrays) -> Arrays:
        graph = Recorded(fn, point)
        return [*graph.values, *on_host(graph.pull_back(cotangent), point)]

    rng = np.random.default_rng(0)
    exact = run(point, cotangent)
    spread = [0.0] * len(exact)
    for _ in range(4):
        moved = run(*([x * (1 + FLOAT32 * rng.choice([-1, 1], x.shape)) for x in xs] for xs in (point, cotangent)))
        spread = [max(s, np.abs(a - b).max(initial=0)) for s, a, b in zip(spread, moved, exact)]
    return exact, spread


# --- comparing and reporting ------------------------------------------------------------------------------------------


def _require_close(found: np.ndarray, expected: np.ndarray, allowed: Any, what: str) -> None:
    excess = np.abs(found - expected) - allowed
    if not (excess <= 0).all():
        index = np.unravel_index(int(np.argmax(excess)), excess.shape)
        raise GradientError(f"{what}: {found[index]:.10g} instead of {expected[index]:.10g} at index {plain(index)}")


def _same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.tobytes() == b.tobytes()


def _numbered(what: str, things: Sequence[Any]) -> list[str]:
    return [f"{what} {number}" for number in range(len(things))]


def plain(index: Sequence[Any]) -> str:
    """An index as text, with Python integers."""
    return str(tuple(int(i) for i in index))


def first_non_finite(array: np.ndarray) -> str:
    """The index and value of the first entry that is infinite or NaN, as text."""
    index = tuple(np.argwhere(~np.isfinite(array))[0])
    return f"index {plain(index)}: {array[index]}"
