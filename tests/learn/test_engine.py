"""The small engine to learn from gives the numbers of the real one."""

from __future__ import annotations

import gc
import inspect
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import scratchvit as sv
from scratchvit.learn import engine
from scratchvit.learn.engine import Value
from tests.support.seeds import seeded


def real(x: float) -> sv.Tensor:
    return sv.Tensor(x, requires_grad=True, dtype=np.float64)


def small_and_real(compute: Callable[..., Any], numbers: Any) -> tuple[list[float], list[float]]:
    """[value, gradient of each number] of compute(tanh, *numbers), by the small engine and by the real one."""
    found = []
    for make, tanh in ((Value, engine.tanh), (real, sv.ops.tanh)):
        leaves = [make(float(x)) for x in numbers]
        z = compute(tanh, *leaves)
        z.backward()
        found.append([float(z.data), *(float(leaf.grad) for leaf in leaves)])
    return found[0], found[1]


def random_expression(tanh: Any, *leaves: Any, seed: int) -> Any:
    """Thirty ops on random earlier results, so that many are used more than once; every leaf is used."""
    rng = seeded(seed)
    known = list(leaves)
    for _ in range(30):
        i, j = rng.integers(len(known), size=2)
        known.append([lambda x, y: x + y, lambda x, y: tanh(x) * y, lambda x, y: tanh(x + y * 0.5)][rng.integers(3)](
            known[i], known[j]
        ))
    z = known[-1]
    for x in known[:-1]:
        z = z + tanh(x)
    return z


@pytest.mark.parametrize("seed", range(36))
def test_random_expressions(seed: int) -> None:
    numbers = seeded(100 + seed).standard_normal(3)
    small, full = small_and_real(lambda tanh, *xs: random_expression(tanh, *xs, seed=seed), numbers)
    np.testing.assert_allclose(small, full, rtol=1e-12)


def test_a_value_that_is_used_twice_gets_the_sum_of_its_shares() -> None:
    def diamonds(tanh: Any, x: Any, y: Any) -> Any:
        a = x * y
        b = a + a * x               # a is used twice, x by two ops
        return b * b + b            # b, twice by one op

    small, full = small_and_real(diamonds, (2, 3))
    assert small == full == [342, (2 * 18 + 1) * 15, (2 * 18 + 1) * 6]


def test_gradients_of_two_losses_add_up() -> None:
    x = Value(3.0)
    (x * x).backward()
    (x * 2.0).backward()
    assert x.grad == 8
    x.backward()                    # a leaf is its own loss
    assert x.grad == 9


def test_a_small_mlp_trains_to_the_same_numbers() -> None:
    """2 inputs, 4 tanh units, 1 output; 8 examples of a product; 10 steps of gradient descent."""
    rng = seeded(0)
    inputs, start = rng.uniform(-1, 1, (8, 2)).tolist(), rng.standard_normal(17).tolist()

    def loss(parameters: Any, tanh: Any) -> Any:
        hidden, out, bias = [parameters[i : i + 3] for i in (0, 3, 6, 9)], parameters[12:16], parameters[16]
        total = None
        for u, v in inputs:
            units = [tanh(a * u + b * v + c) for a, b, c in hidden]
            y = bias
            for weight, unit in zip(out, units):
                y = y + weight * unit
            error = y + -u * v
            total = error * error if total is None else total + error * error
        return total

    histories = []
    for make, tanh in ((Value, engine.tanh), (real, sv.ops.tanh)):
        numbers, losses = start, []
        for _ in range(10):
            parameters = [make(x) for x in numbers]
            of_step = loss(parameters, tanh)
            of_step.backward()
            losses.append(float(of_step.data))
            numbers = [float(p.data) - 0.02 * float(p.grad) for p in parameters]
        histories.append((losses, numbers))
    (small_losses, small_numbers), (losses, numbers) = histories
    np.testing.assert_allclose(small_losses, losses, rtol=1e-12)
    np.testing.assert_allclose(small_numbers, numbers, rtol=1e-12)
    assert losses[-1] < losses[0] / 2


def test_a_long_chain_needs_no_recursion() -> None:
    x = z = Value(1.0)
    for _ in range(100_000):
        z = z + x
    z.backward()
    assert x.grad == 100_001


def test_dropping_the_loss_frees_the_graph() -> None:
    x = Value(2.0)
    z = x * x + x
    nodes = [weakref.ref(z.node), weakref.ref(z.node.edges[0])]
    gc.disable()                    # by counting references alone: there are no cycles
    try:
        del z
        assert [node() for node in nodes] == [None, None]
    finally:
        gc.enable()


def test_it_is_read_in_one_sitting() -> None:
    assert len(inspect.getsource(engine).splitlines()) < 100
