"""How far apart two results may be: an error bound that is computed, not a number that happened to hold.

Two programs that compute the same function in float32 differ by their roundings: BLAS libraries add the terms of a
product in different orders, and a badly conditioned function magnifies the difference. By how much depends on the
function and on its input. So the bound is measured, by stochastic arithmetic (Parker, "Monte Carlo Arithmetic", 1997):
the computation is repeated in float64, where every operand of every op, forward and backward, is changed by a random
share of at most ε = 2⁻²³, the machine epsilon of float32. How much the result changes is called its noise:

    noise = max |f~(x) - f(x)|      in float64; in f~ every operand is multiplied by 1 + ε u, u uniform in [-1, 1]
    bound = FACTOR · noise          (of an array of few entries, noise is at least 2.5 standard deviations)

An *algorithm* that loses digits is not excused by this: f runs in float64 when the bound is made, so that only the
condition of the function counts. FACTOR covers what the samples do not show: a product of K terms is perturbed once but
rounded K times. Measured in single products of 512 to 4,608 terms, over six of OpenBLAS's kernels, the error was at
most 8.4 times the noise, a third of what is allowed.

    agree(lambda: model(x), expected)                    # compute, bound and compare
    bounds = rounding(lambda: model(x))                  # only the bounds, for instance to compare two devices
    assert_close(found, expected, ulps(expected, 4))     # where no op is involved: count the roundings

What is measured and what is allowed is recorded; `pytest --margins` prints the largest quotients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from scratchvit.backend import asarray, asnumpy, is_array
from scratchvit.recording import replace_ops
from scratchvit.signature import differentiable_parameters, inputs_of, with_inputs
from scratchvit.tensor import Tensor

FACTOR = 24.0
SAMPLES = 3
EPSILON: dict[Any, float] = {dtype: float(np.finfo(dtype).eps) for dtype in (np.float16, np.float32, np.float64)}
EPSILON |= {"bfloat16": 2.0**-7, "float16": EPSILON[np.float16]}        # as `autocast` names them

records: list[tuple[float, str]] = []
"""(measured / allowed, what was compared) of the test that runs; tests/conftest.py collects and clears it."""


def agree(
    compute: Callable[[], Any], expected: Any, what: str = "", *, dtype: Any = np.float32, samples: int = SAMPLES
) -> None:
    """Assert that compute() gives `expected` as far as the rounding of `dtype` allows.

    compute: makes its Tensors from the same arrays at every call, runs ops, and returns an array, a Tensor, or a list,
        tuple or dict of them. It is called `samples` + 2 times, so it must leave no trace: it clears gradients that it
        collects, seeds what it draws, and sets back running statistics.
    expected: the same structure, from another program (arrays, Tensors or PyTorch tensors).
    dtype: what both were computed in. For float64 the bounds of float32 are scaled down.
    """
    assert_all_close(compute(), expected, rounding(compute, dtype=dtype, samples=samples), what)


def rounding(
    compute: Callable[[], Any], *, dtype: Any = np.float32, samples: int = SAMPLES, seed: int = 0,
    factor: float = FACTOR,
) -> dict[str, float]:
    """{name: largest absolute difference that roundings explain}, for every array that compute() returns; see `agree`.

    A list's or tuple's arrays are named "0", "1", …; a single one "". At least a few units in the last place of the
    largest entry are allowed, also where the perturbation happens to change nothing (a copy, a sum of zeros).
    """
    exact = named(_in_float64(compute, None))
    rng = np.random.default_rng(seed)
    perturbed = [named(_in_float64(compute, rng)) for _ in range(samples)]
    scale = factor * EPSILON[dtype] / EPSILON[np.float32]
    return {
        name: scale * max(_noise([sample[name] - array for sample in perturbed]), ulps(array, 0.25))
        for name, array in exact.items()
    }


def _noise(differences: list[np.ndarray]) -> float:
    """The largest difference, but at least 2.5 standard deviations: a few numbers may all happen to be small."""
    deviation = np.sqrt(np.mean([_mean_square(difference) for difference in differences]))
    return max(2.5 * float(deviation), *map(_largest, differences))


def ulps(expected: Any, count: float, dtype: Any = np.float32) -> float:
    """`count` times the machine epsilon of dtype times the largest entry: the bound where roundings can be counted."""
    return count * EPSILON[dtype] * _largest(_array(expected))


def assert_close(found: Any, expected: Any, bound: float, what: str = "") -> None:
    """Assert that shapes are equal and no entry differs by more than `bound`, and record the quotient."""
    ours, theirs = _array(found), _array(expected)
    assert ours.shape == theirs.shape, f"{what}: shape {ours.shape}, expected {theirs.shape}"
    if np.array_equal(ours, theirs, equal_nan=ours.dtype.kind == "f"):
        records.append((0.0, what))
        return
    with np.errstate(invalid="ignore"):                                 # ∞ - ∞, equal and therefore no difference
        differences = np.where(ours == theirs, 0, np.abs(ours.astype(np.float64) - theirs))
    worst = float(differences.max())
    quotient = float(worst / bound) if bound > 0 else float("inf")
    records.append((quotient, what))
    where = tuple(int(i) for i in np.unravel_index(int(np.argmax(differences)), ours.shape))
    assert worst <= bound, (
        f"{what or 'found'}{list(where) if where else ''}: {ours[where]:.9g}, expected {theirs[where]:.9g}; "
        f"they differ by {worst:.2e}, {bound:.2e} is allowed"
    )


def assert_all_close(found: Any, expected: Any, bounds: Mapping[str, float], what: str = "") -> None:
    """`assert_close` for all arrays of two lists, tuples or dicts, with the bounds that `rounding` gives."""
    ours, theirs = named(found), named(expected)
    assert ours.keys() == theirs.keys() == bounds.keys(), f"{what}: {sorted(ours)} against {sorted(theirs)}"
    for name, bound in bounds.items():
        assert_close(ours[name], theirs[name], bound, f"{what} {name}".strip())


def named(result: Any) -> dict[str, np.ndarray]:
    """{name: array on the host} of an array or Tensor, or of a list, tuple or dict of them; None is left out."""
    return {name: _array(value) for name, value in _leaves(result, "") if value is not None}


def _leaves(result: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(result, list | tuple):
        result = {str(number): value for number, value in enumerate(result)}
    if not isinstance(result, Mapping):
        yield name, result
        return
    for key, value in result.items():
        yield from _leaves(value, f"{name}.{key}" if name else str(key))


def _array(x: Any) -> np.ndarray:
    if isinstance(x, Tensor):
        return x.numpy()
    if hasattr(x, "detach"):                                            # PyTorch's
        return np.asarray(x.detach().numpy())
    return asnumpy(x) if is_array(x) else np.asarray(x)


def _largest(array: np.ndarray) -> float:
    return float(np.abs(array).max(initial=0, where=np.isfinite(array)))


def _mean_square(array: np.ndarray) -> float:
    finite = array[np.isfinite(array)]
    return float(np.mean(np.square(finite, dtype=np.float64))) if finite.size else 0.0


# --- stochastic arithmetic ------------------------------------------------------------------------------------------


def _in_float64(compute: Callable[[], Any], rng: np.random.Generator | None) -> Any:
    """compute() with all ops in float64; with a generator, all of their operands perturbed."""

    def call(function: Callable[..., Any], args: list[Any], kwargs: dict[str, Any]) -> Any:
        facts = getattr(function, "facts", None)
        noise = None if facts is not None and facts.exact else rng      # exact: it rounds nothing, there or back

        slots = differentiable_parameters(function)
        dtypes = [getattr(x, "dtype", None) for x in inputs_of(slots, args, kwargs)]
        args, kwargs = with_inputs(slots, args, kwargs, lambda slot, x: _perturbed(x, noise))
        value, backward = function(*args, **kwargs)
        return value, _backward_like(backward, dtypes, noise)

    with replace_ops(call):
        return compute()


def _perturbed(x: Any, rng: np.random.Generator | None) -> Any:
    """A float array in float64, its entries times 1 + ε u; anything else as it is."""
    if not is_array(x) or x.dtype.kind != "f":
        return x
    x = x.astype(np.float64)
    if rng is None or x.size == 0:
        return x
    u = rng.random(x.shape, dtype=np.float32).astype(np.float64)
    factors = 1 + EPSILON[np.float32] * (2 * u - 1)
    return x * (factors if isinstance(x, np.ndarray) else asarray(factors))     # a mask may be on the host


def _backward_like(
    backward: Callable[..., Any] | None, dtypes: list[Any], rng: np.random.Generator | None
) -> Callable[..., Any] | None:
    """The op's backward with a perturbed cotangent. Gradients get their operands' dtypes, as the engine demands."""
    if backward is None:
        return None

    def given(dy: Any) -> Any:
        return tuple(map(given, dy)) if isinstance(dy, tuple) else _perturbed(dy, rng)

    def like_operands(gradients: Any) -> list[Any]:
        gradients = list(gradients) if isinstance(gradients, tuple | list) else [gradients]
        pairs = zip(gradients, dtypes, strict=True)
        return [g if g is None or dtype is None else g.astype(dtype) for g, dtype in pairs]

    if backward.__code__.co_argcount == 2:
        return lambda dy, need: like_operands(backward(given(dy), need))
    return lambda dy: like_operands(backward(given(dy)))
