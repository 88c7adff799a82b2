"""The check of the gradient check: sound backwards pass, broken ones are caught, kinks are called kinks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import scratchvit as sv
from scratchvit import backend, ops
from scratchvit.backend import Array, array_module
from scratchvit.gradcheck import GradientError, _Check, gradcheck
from scratchvit.random import Generator
from scratchvit.tensor import op
from tests.cases import CASES
from tests.cases.case import Case
from tests.support.breakages import BREAKAGES, break_backward
from tests.support.seeds import seeded

# --- every op's backward, broken on purpose --------------------------------------------------------------------------

# A gradient that is the same for every entry stays itself when its entries are permuted.
CONSTANT_GRADIENT = {"sum", "mean"}
NO_GRADIENT = {"getitem-an empty list"}     # which stays itself whatever is done to it


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_broken_backward_is_caught(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    _share_differences(monkeypatch)
    for breakage in BREAKAGES:
        with monkeypatch.context() as broken:
            changed = break_backward(case.op, breakage, broken)
            try:
                gradcheck(case.ours, *case.make())
                caught = False
            except GradientError as error:
                assert "wrong gradient" in str(error), breakage
                caught = True
        assert changed, f"no op named {case.op} ran: the row's name is not that of its op"
        if any(changed):
            assert caught, breakage
        else:
            allowed = NO_GRADIENT | (CONSTANT_GRADIENT if breakage == "permuted" else set())
            assert str(case) in allowed, breakage


def _share_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute the differences along each direction once in a test: they ask for no backward, sound or broken."""
    own, known = _Check._differences, {}

    def differences(self: _Check, direction: list[Array], cotangents: Array) -> Any:
        key = (*(u.tobytes() for u in direction), cotangents.tobytes())
        if key not in known:
            known[key] = own(self, direction, cotangents)
        return known[key]

    monkeypatch.setattr(_Check, "_differences", differences)


# --- what an all-ones check cannot see -------------------------------------------------------------------------------


def test_a_softmax_that_is_right_for_all_ones_only_is_caught() -> None:
    def wrong_softmax(x: Array):
        """Its backward is y (dy - Σ dy y), here with a plain mean for the sum weighted by y."""
        e = array_module(x).exp(x)
        y = e / e.sum(axis=-1, keepdims=True)
        return y, lambda dy: y * (dy - dy.mean(axis=-1, keepdims=True))

    softmax = op(wrong_softmax)
    x = seeded(0).standard_normal((3, 4))
    t = sv.Tensor(x, requires_grad=True)
    softmax(t).backward(np.ones((3, 4)))
    assert np.allclose(t.grad, 0)       # as it should be: a softmax always sums to 1
    with pytest.raises(GradientError, match="wrong gradient"):
        gradcheck(softmax, x)


def test_the_message_names_entry_values_and_seed() -> None:
    def wrong_at_one_entry(x: Array, y: Array):
        def backward(dy):
            dx, d_y = dy * y, dy * x
            d_y[2, 1] *= 3
            return dx, d_y
        return x * y, backward

    x = np.arange(1.0, 13.0).reshape(4, 3)
    for options, output in (({}, ""), ({"jacobian": True}, r", output 0, index \(2, 1\)")):
        with pytest.raises(GradientError, match=rf"worst at input 1, index \(2, 1\){output}: .*\(seed 7\)") as error:
            gradcheck(op(wrong_at_one_entry), x, x, seed=7, **options)
    assert "backward gives 24, differences give 8" in str(error.value)


# --- kinks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jacobian", [False, True])
@pytest.mark.parametrize(("fn", "inputs", "index"), [
    (ops.relu, [[1.0, 0.0, -1.0]], 1),
    (ops.abs, [[1.0, -1.0, 1e-9]], 2),
    (ops.maximum, [[1.0, 2.0], [0.0, 2.0]], 1),
    (lambda x: ops.clip(x, -1, 1), [[0.0, 1.0]], 1),
    (lambda x: sv.Tensor(x.numpy().astype(np.float32), dtype=np.float64), [[1.0, 2.0, 0.1]], 0),
], ids=["relu at 0", "abs", "tie of a maximum", "clip", "a value rounded to float32"])
def test_where_differences_disagree_at_every_step_it_is_no_wrong_gradient(fn, inputs, index, jacobian) -> None:
    with pytest.raises(GradientError, match=(
        rf"^differences with steps of 0.0001 and 5e-05 disagree at input 0, index \({index},\), and smaller "
        "steps do too: the function has a kink or a jump there, or rounds its value"
    )):
        gradcheck(fn, *map(np.array, inputs), jacobian=jacobian)


@pytest.mark.parametrize("jacobian", [False, True])
@pytest.mark.parametrize(("fn", "x", "step", "better"), [
    (ops.relu, [1.0, 3e-5, -1.0], 1e-4, 1e-5),                                  # the corner is beside the point
    (ops.relu, [1.0, -7e-5, -1.0], 1e-4, 1e-5),
    (lambda x: ops.sin(x * 1000), [0.1, 0.4, -0.3], 1e-4, 1e-5),
    (ops.log, [1.0, 1e-3, 2.0], 1e-4, 1e-5),
    (lambda x: ops.layer_norm(x, 3, np.ones(3), np.zeros(3), 1e-6), [1.0, 1.0, 1.0], 1e-3, 1e-5),    # no variance
], ids=["relu right of 0", "relu left of 0", "sin", "log", "layer_norm"])
def test_where_smaller_steps_agree_the_message_says_which(fn, x, step: float, better: float, jacobian: bool) -> None:
    x = np.array(x)
    with np.errstate(all="ignore"), pytest.raises(GradientError, match=(
        rf"^differences with steps of {step:g} .* at input 0, index .*: the function has strong curvature or a kink "
        rf"within that distance. Steps of {better:g} agree: pass step={better:g}, or move the input"
    )):
        gradcheck(fn, x, jacobian=jacobian, step=step, float32=False)
    gradcheck(fn, x, jacobian=jacobian, step=better, float32=False)


def test_a_smooth_function_with_strong_curvature_has_no_kink() -> None:
    gradcheck(lambda x: ops.exp(x * 20) + ops.tanh(x * 20), np.linspace(-0.5, 0.5, 7))


# --- what else it refuses --------------------------------------------------------------------------------------------


def test_sound_functions_pass_in_both_modes(device: str) -> None:
    rng = seeded(0)
    x, y = rng.standard_normal((2, 3)), rng.standard_normal(3)
    for jacobian in (False, True):
        gradcheck(lambda x, y: (x * y, ops.exp(x), y), x, y, jacobian=jacobian)     # several outputs, one an input
        gradcheck(lambda x, y: x * 2, x, y, jacobian=jacobian)                      # y has no influence
        gradcheck(ops.add, np.zeros((0, 3)), y, jacobian=jacobian)


def test_an_output_whose_history_was_cut_is_wrong() -> None:
    with pytest.raises(GradientError, match="wrong gradient"):
        gradcheck(lambda x: x.detach() * 2, np.ones(3))


def test_inputs_and_outputs_must_be_float64() -> None:
    with pytest.raises(TypeError, match="input 1 is float32; finite differences need float64"):
        gradcheck(ops.add, np.ones(2), np.ones(2, np.float32))
    with pytest.raises(TypeError, match="input 0 is list"):
        gradcheck(ops.exp, [1.0])
    with pytest.raises(TypeError, match="output 0 is float32"):
        gradcheck(lambda x: sv.Tensor(x.numpy().astype(np.float32)), np.ones(2))
    with pytest.raises(TypeError, match="fn must return Tensors, not ndarray"):
        gradcheck(lambda x: x.data, np.ones(2))


def test_values_that_are_not_finite_are_reported() -> None:
    with np.errstate(all="ignore"), pytest.raises(GradientError, match=r"output 0 is not finite at index \(1,\): -inf"):
        gradcheck(ops.log, np.array([1.0, 0.0]))

    def not_finite(x: Array):
        return x * 1, lambda dy: dy * float("nan")

    with pytest.raises(GradientError, match=r"the gradient of input 0 is not finite at index \(0,\): nan"):
        gradcheck(op(not_finite), np.ones(2))


def test_a_function_that_draws_anew_in_every_call_is_reported() -> None:
    def dropout(generator: Generator, x: sv.Tensor) -> sv.Tensor:
        return x * sv.Tensor(generator.bernoulli(0.5, x.shape), dtype=x.dtype)

    x, generator = seeded(0).standard_normal((4, 8)), Generator(0)
    with pytest.raises(GradientError, match=r"not deterministic: output 0 .* seed"):
        gradcheck(lambda x: dropout(generator, x), x)
    gradcheck(lambda x: dropout(Generator(0), x), x)


def test_it_checks_the_device_in_use(device: str) -> None:
    def on_device(x: sv.Tensor) -> sv.Tensor:
        assert type(x.data) is backend.current().array_type
        return ops.tanh(x)

    gradcheck(on_device, np.linspace(-1, 1, 5))
