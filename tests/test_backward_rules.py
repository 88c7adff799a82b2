"""The rules of a backward: each broken one is named, sound ones pass, and docs/gradcheck.md says what is so."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import numpy as np
import pytest

import scratchvit as sv
from scratchvit import ops
from scratchvit.backend import Array
from tests.support.backwards import BROKEN, CAUGHT, MISSED, SOUND, UNSEEN, WARNED, WARNS, Backward, verdict
from tests.support.backwards import verdict_of_torch as theirs
from tests.support.seeds import seeded

PAGE = Path(__file__).resolve().parent.parent / "docs" / "gradcheck.md"
EXPECTED = {WARNED: WARNS, UNSEEN: MISSED}      # every other kind is caught
NUMPY_ONLY = {"raises for a cotangent that is read-only"}


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.asarray(seeded(seed).standard_normal(shape))


# --- the table --------------------------------------------------------------------------------------------------------


def test_there_are_enough_and_each_has_a_name_of_its_own() -> None:
    names = [row.name for row in (*BROKEN, *SOUND)]
    assert len(names) == len(set(names)) and len(BROKEN) >= 30


@pytest.mark.parametrize("row", BROKEN, ids=str)
def test_a_broken_backward_is_named(row: Backward, device: str) -> None:
    if device != "cpu" and row.name in NUMPY_ONLY:
        pytest.skip("CuPy has no read-only arrays")
    for seed in range(5):
        found, words = verdict(row, seed)
        assert found == EXPECTED.get(row.kind, CAUGHT), words
        assert re.search(row.says, words), words


@pytest.mark.parametrize("row", SOUND, ids=str)
def test_a_sound_backward_passes(row: Backward, device: str) -> None:
    for seed in range(200 if device == "cpu" else 10):
        found, words = verdict(row, seed)
        assert found == MISSED, f"seed {seed}: {words}"


@pytest.mark.parametrize(("part_of_name", "options"), [
    ("seen with jacobian=True", {"jacobian": True}),
    ("seen with tolerance=1e-8", {"tolerance": 1e-8}),
])
def test_options_see_what_the_table_says_that_they_see(part_of_name: str, options: dict) -> None:
    """Along some of the random directions, small errors of many entries cancel."""
    (row,) = [row for row in BROKEN if part_of_name in row.name]
    verdicts = [verdict(row, seed, **options) for seed in range(40)]
    caught = [words for found, words in verdicts if found == CAUGHT]
    assert len(caught) >= 20 and all("wrong gradient" in words for words in caught)


def rows_of_the_page() -> dict[str, list[str]]:
    known = {CAUGHT, WARNS, MISSED}
    rows = [line.strip("| \n").split(" | ") for line in PAGE.read_text(encoding="utf-8").splitlines()]
    return {name: verdicts for name, *verdicts in rows if len(verdicts) == 3 and known.issuperset(verdicts)}


def test_the_page_says_what_gradcheck_sees() -> None:
    assert {name: v[0] for name, v in rows_of_the_page().items()} == {row.name: verdict(row)[0] for row in BROKEN}


@pytest.mark.slow
@pytest.mark.parity
def test_the_page_says_what_pytorch_sees() -> None:
    torch = pytest.importorskip("torch")
    expected = {row.name: [theirs(torch, row), theirs(torch, row, fast_mode=True)] for row in BROKEN}
    assert {name: v[1:] for name, v in rows_of_the_page().items()} == expected
    assert all(theirs(torch, row) == MISSED for row in SOUND)      # so that the wrapping is not what PyTorch sees


# --- float32, where the function has none -----------------------------------------------------------------------------


@pytest.mark.parametrize(("fn", "x", "reason"), [
    (lambda x: x * sv.Tensor(np.ones(4), dtype=np.float64), normal(3, 4), "for float32 inputs it returns float64; a m"),
    (lambda x: ops.exp(x) * (1 if x.dtype == np.float64 else None), normal(3, 4), "for float32 inputs it raises"),
    (lambda x: ops.exp(x * 100), np.array([-1.0, 2.0]), "its numbers are beyond the range of float32"),
], ids=["float64 inside", "refuses", "too large"])
def test_that_float32_was_left_out_is_said(fn, x: Array, reason: str, device: str) -> None:
    sentence = f"(?s)^gradcheck: float32 was not checked: {reason}.*Pass float32=False"
    with pytest.warns(sv.GradcheckWarning, match=sentence) as said:
        sv.gradcheck(fn, x, step=1e-6)
    assert said[0].filename == __file__ and len(said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sv.gradcheck(fn, x, step=1e-6, float32=False)


def test_float32_false_leaves_it_out() -> None:
    for row in BROKEN:
        if row.says == "is wrong in float32":
            assert verdict(row, float32=False)[0] == MISSED


def test_an_ill_conditioned_function_is_not_wrong_in_float32() -> None:
    """The difference of two numbers of 10,000 has lost its last digits in any float32."""
    x = 1e4 * np.array([[1.0], [-1.0], [1.0]]) + normal(3, 4)
    sv.gradcheck(lambda x: ops.exp(x - x[:, :1]), x)


def test_a_corner_that_rounding_crosses_is_not_wrong_in_float32() -> None:
    sv.gradcheck(lambda x: ops.relu(x - 50_000) + x, np.array([50_000.001, -1, 3, 70_000]))


# --- points -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fn", "arrays"), [
    (ops.exp, [normal(3, 4)]),
    (ops.exp, [normal(4)]),
    (ops.exp, [normal(1, 1)]),
    (ops.exp, [normal(3, 3, 2)]),
    (ops.mul, [normal(3, 4), normal(4, seed=1)]),
    (ops.mul, [normal(3, 4), normal(1, 1, seed=1)]),
    (ops.log, [np.exp(normal(3, 4))]),                      # takes no others
    (ops.softmax, [np.array([[0.3, 0.1, 0.2]])]),           # three positive entries, which chance may give
    (lambda x, y: ops.softmax(x) @ ops.transpose(y, 0, 1), [normal(3, 4), normal(3, 4, seed=1)]),  # no broadcasting
])
def test_good_points_draw_no_warning(fn, arrays: list[np.ndarray]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sv.gradcheck(fn, *arrays)


def test_every_weak_spot_of_a_point_is_named() -> None:
    x = np.array([[1.0, 2.0], [2.0, 3.0]])
    with pytest.warns(sv.GradcheckWarning) as said:
        sv.gradcheck(ops.mul, x, x + 1)
    assert [re.search("length 2|symmetric|broadcasts|negative", str(w.message))[0] for w in said] == [
        "length 2", "symmetric", "broadcasts", "negative",
    ]


# --- what it leaves behind --------------------------------------------------------------------------------------------


def test_the_arrays_given_stay_as_they_are_and_may_lie_in_any_order() -> None:
    x = normal(4, 3).T[:, ::-1]
    before = x.copy()
    x.flags.writeable = False
    sv.gradcheck(ops.tanh, x)
    assert np.array_equal(x, before)


def test_functions_of_several_ops_modules_and_recomputed_ones_pass(device: str) -> None:
    layer = sv.nn.Linear(4, 3)
    for parameter in layer.parameters():
        parameter.data = parameter.data.astype(np.float64)
    for fn in (
        lambda x: ops.tanh(layer(x)) @ x,
        lambda x: sv.checkpoint(lambda x: ops.exp(ops.dropout(layer(x), 0.5, generator=sv.random.Generator(0))), x),
        lambda x: (x, x * 2, x.reshape(-1), layer(x).sum()),
    ):
        sv.gradcheck(fn, normal(3, 4), float32=False)
