"""The error bound itself: what is right is well within it, what is wrong is beyond it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from scratchvit import ops, tensor
from scratchvit.backend import Array
from scratchvit.tensor import Tensor
from tests import conftest
from tests.cases import CASES
from tests.cases.case import Case
from tests.support import margins
from tests.support.breakages import BREAKAGES, break_backward
from tests.support.margins import EPSILON, agree, assert_close, named, rounding, ulps
from tests.support.one_op import run
from tests.support.seeds import seeded


def quotients(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], bounds: dict[str, float]) -> list[float]:
    """measured / allowed of every array; 0 where both are all zeros, which allows nothing and needs nothing."""
    errors = {name: float(np.abs(found[name] - expected[name]).max(initial=0)) for name in expected}
    return [0.0 if error == 0 else error / bounds[name] if bounds[name] else np.inf for name, error in errors.items()]


@contextlib.contextmanager
def refused(says: str = ".") -> Iterator[None]:
    """What is wrong on purpose is not to be printed as a margin."""
    before = len(margins.records)
    with pytest.raises(AssertionError, match=says):
        yield
    del margins.records[before:]


@pytest.fixture(scope="module")
def rows() -> list[tuple[Case, dict[str, np.ndarray], dict[str, float]]]:
    """Every row of the op table, its results in float64 for inputs in float32, and their bounds."""
    return [(case, *exact_and_bounds(case)) for case in CASES]


def exact_and_bounds(case: Case, seed: int = 0) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    arrays = case.make(np.float32, seed)
    exact = named(run(case.ours, [array.astype(np.float64) for array in arrays]))
    return exact, rounding(lambda: run(case.ours, arrays))


def test_float32_takes_less_than_half_of_what_is_allowed(rows: Any) -> None:
    shares = {str(case): max(quotients(named(run(case.ours, case.make(np.float32))), exact, bounds))
              for case, exact, bounds in rows}
    assert {name: share for name, share in shares.items() if share >= 0.5} == {}
    assert max(shares.values()) > 0.02         # no bound so wide that nothing could come near it


def test_a_ten_thousandth_too_much_is_beyond_every_bound(rows: Any) -> None:
    """Of every value and every gradient of every op. A sum that is one number may happen to be almost 0, where a ten
    thousandth of it is little beside the rounding of its terms: it must be seen with other numbers."""

    def unseen(exact: dict[str, np.ndarray], bounds: dict[str, float]) -> set[str]:
        return {
            name for name, array in exact.items() if array.any() and np.abs(1e-4 * array).max() <= bounds[name]
        }

    missed = []
    for case, exact, bounds in rows:
        names = unseen(exact, bounds)
        for seed in (1, 2, 3):
            if any(exact[name].size == 1 for name in names):
                names -= {name for name in names if exact[name].size == 1} - unseen(*exact_and_bounds(case, seed))
        missed += [f"{case} {name}" for name in sorted(names)]
    assert missed == []


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_a_broken_backward_is_beyond_the_bound(rows: Any, breakage: str) -> None:
    broken, missed = 0, []
    for case, exact, bounds in rows:
        with pytest.MonkeyPatch.context() as patch:
            changed = break_backward(case.op, breakage, patch)
            found = named(run(case.ours, case.make(np.float32)))
        broken += any(changed)
        if any(changed) and max(quotients(found, exact, bounds)) <= 1:
            missed.append(str(case))
    assert missed == [] and broken > 0.95 * len(rows)       # permuted, a sum's gradient stays itself


# --- condition and algorithm -----------------------------------------------------------------------------------------


def variance_by_squares(x: Array) -> Any:
    """E[x²] - E[x]², which cancels where the mean is far above the deviation."""
    return (x * x).mean() - x.mean() ** 2, lambda dy: dy * 2 / x.size * (x - x.mean())


def test_what_is_badly_conditioned_gets_a_wider_bound_and_what_loses_digits_does_not() -> None:
    """The variance of numbers around 1000: their own rounding changes it, but not as much as a bad formula does."""
    by_squares = tensor.op(variance_by_squares)
    near = seeded(0).standard_normal(1000).astype(np.float32)
    far = near + np.float32(1000)
    exact = far.astype(np.float64).var()

    def var(x: np.ndarray) -> Tensor:
        return ops.var(Tensor(x), correction=0)

    assert rounding(lambda: var(far))[""] > 30 * rounding(lambda: var(near))[""]
    agree(lambda: var(far), exact)
    with refused("is allowed"):
        agree(lambda: by_squares(Tensor(far)), exact)
    agree(lambda: by_squares(Tensor(near)), near.astype(np.float64).var())


# --- what is compared and recorded -----------------------------------------------------------------------------------


def test_what_is_measured_and_allowed_is_recorded() -> None:
    expected = np.array([1.0, -2.0], np.float32)
    eps = EPSILON[np.float32]
    assert_close(expected * np.float32(1 + eps), expected, ulps(expected, 4), "a step")
    assert_close(expected, expected, 0.0, "itself")
    assert margins.records == [(0.25, "a step"), (0.0, "itself")]
    with refused(r"twice\[1\]: -4, expected -2; they differ by 2\.00e\+00, 4\.77e-07 is "):
        assert_close(2 * expected, expected, ulps(expected, 2), "twice")


@pytest.mark.parametrize("found", [[1.0, np.nan], [1.0, np.inf], [1.0]], ids=["nan", "infinite", "shape"])
def test_what_no_bound_covers_is_refused(found: list[float]) -> None:
    with refused():
        assert_close(np.array(found), np.ones(2), 1e9)


def test_infinities_in_the_same_places_are_equal() -> None:
    expected = np.array([np.inf, -np.inf, 1.0])
    assert_close(expected, expected, 0.0)
    assert_close(np.array([np.inf, -np.inf, 1 + 1e-9]), expected, 1e-8)


def test_the_parts_of_a_result_must_have_the_same_names() -> None:
    x = Tensor(np.ones(2, np.float32))
    with refused(r"\['a'\] against \['a', 'b'\]"):
        agree(lambda: {"a": x * 2}, {"a": np.full(2, 2.0), "b": np.zeros(2)})


def test_the_option_prints_the_largest(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(conftest, "_margins", [])
    for when, quotient in (("teardown", 0.1), ("call", 0.9), ("teardown", 0.3), ("teardown", 0.2)):
        report = SimpleNamespace(when=when, nodeid="a test", user_properties=[("margin", (quotient, "y", 5))])
        conftest.pytest_runtest_logreport(report)       # type: ignore[arg-type]
    for wanted in (False, True):
        config = SimpleNamespace(getoption={"--margins": wanted}.get)
        conftest.pytest_terminal_summary(SimpleNamespace(config=config, section=lines.append, line=lines.append))
    assert lines == [
        "measured / allowed in 15 comparisons of 3 tests",
        " 0.300  a test  y", " 0.200  a test  y", " 0.100  a test  y",
    ]
