"""No op adds a long row of float32 numbers one after the other: over any axis, in any memory order.

Equal numbers are the hardest: all are rounded the same way. A running sum of a million of 0.1 is 1 % off. PyTorch's own
errors for these shapes are between 6e-8 and 9e-7, unless it is said.
"""

from __future__ import annotations

from itertools import accumulate

import numpy as np
import pytest

from scratchvit import ops
from scratchvit.backend import Array, asarray, asnumpy
from scratchvit.kernels.sums import in_pairs, total
from scratchvit.tensor import Tensor
from tests.support.seeds import seeded

N = 300_000
TENTH = np.float32(0.1)


def leaf(values) -> Tensor:
    return Tensor(np.asarray(values, np.float32), requires_grad=True)


def gradient(t: Tensor) -> np.ndarray:
    assert t.grad is not None
    return asnumpy(t.grad)


def assert_within(found, exact, bound: float = 1e-6) -> None:
    """The largest error, beside the largest number."""
    found, exact = np.asarray(found, np.float64), np.asarray(exact, np.float64)
    assert np.abs(found - exact).max() <= bound * np.abs(exact).max()


LAYOUTS = {
    "C": lambda x: x,
    "Fortran": np.asfortranarray,
    "every second column": lambda x: np.repeat(x, 2, axis=-1)[..., ::2],
    "half of each row": lambda x: np.concatenate([x, x], axis=-1)[..., : x.shape[-1]],
    "reversed": lambda x: x[::-1, ..., ::-1],
    "broadcast": lambda x: np.broadcast_to(x[:1], x.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(1_000_000, 3), (3, 1_000_000), (2, N, 3), (N, 3, 2)], ids=str)
def test_in_every_memory_order(shape, layout) -> None:
    """Within what NumPy's own pairwise sum of 4,096 numbers may be off, 24 · 2⁻²⁴: 128 of them are added by eights and
    then in pairs, 16 + 3 roundings, and the sums of these in pairs, 5 more."""
    pairwise = 24 * 2.0**-24
    x = LAYOUTS[layout](np.full(shape, TENTH))
    for axes in [*((axis,) for axis in range(x.ndim)), tuple(range(x.ndim)), tuple(range(1, x.ndim))]:
        for keepdim in (False, True):
            found, exact = ops.sum(x, axes, keepdim).numpy(), x.sum(axis=axes, keepdims=keepdim, dtype=np.float64)
            assert found.shape == exact.shape
            assert_within(found, exact, pairwise)
    assert_within(ops.mean(x.T, -1).numpy(), np.full(x.shape[1:][::-1], TENTH), pairwise)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("shape", "axes"), [
    ((1024, 7), (0,)), ((1025, 7), (0,)), ((16, 67, 3, 5), (0, 1)), ((3, 1000, 2), (1, 0)), ((2047, 1), (0,)),
    ((1500, 5000), (0,)), ((4, 1100, 3), (1,)), ((1023, 3), (0,)), ((2000, 0), (0,)),
], ids=str)
def test_columns_of_many_rows(shape, axes, dtype, device) -> None:
    """On a GPU, by a kernel: with rows that are left over, over several axes, and where it is left to CuPy."""
    x = seeded(0).standard_normal(shape).astype(dtype)
    on_device = asarray(x)
    for keepdims in (False, True):
        found, exact = total(on_device, axes, keepdims), x.sum(axis=axes, keepdims=keepdims, dtype=np.float64)
        assert found.shape == exact.shape and found.dtype == dtype
        np.testing.assert_allclose(asnumpy(found), exact, rtol=0, atol=2e-6 * np.abs(x).sum(axis=axes).max(initial=0))


def test_a_variance_of_a_transposed_array() -> None:
    x = (1e4 + seeded(0).standard_normal((N, 3))).astype(np.float32)
    assert_within(ops.var(x.T, -1).numpy(), x.astype(np.float64).var(axis=0, ddof=1))


def test_sums_in_pairs() -> None:
    parts = [np.full(2, TENTH) for _ in range(4097)]
    assert_within(in_pairs(parts), np.full(2, 4097 * np.float64(TENTH)), 1e-7)
    running = list(accumulate(parts))[-1]
    assert np.abs(running / (4097 * np.float64(TENTH)) - 1).max() > 1e-6
    assert in_pairs(parts[:1])[0] == TENTH


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
@pytest.mark.parametrize(("shape", "dim"), [((1000, 64), 0), ((100_000, 4), 0), ((4, 1000, 6, 6), 1)], ids=str)
def test_softmax_over_an_axis_that_is_not_the_last(name, shape, dim) -> None:
    """As exact as over the last: PyTorch's is off by up to 5e-6 in the value and 8e-6 in the gradient."""
    rng = seeded(1)
    x, dy = (0.01 * rng.standard_normal(shape)).astype(np.float32), rng.random(shape, dtype=np.float32)
    results = []
    for dtype in (np.float32, np.float64):
        t = Tensor(x.astype(dtype), requires_grad=True)
        y = getattr(ops, name)(t, dim)
        y.backward(dy.astype(dtype))
        results.append((y.numpy(), gradient(t)))
    (value, slope), (exact_value, exact_slope) = results
    assert_within(value, exact_value, 4e-7)
    # The slope is a difference: what cancels in it is as large as the largest of dy beside its mean, here 2 to 1.
    assert_within(slope, exact_slope, 2e-6 if name == "log_softmax" else 1e-6)


@pytest.mark.parametrize(("soft", "smoothing"), [(False, 0.0), (False, 0.1), (True, 0.0)])
def test_cross_entropy_of_many_classes_at_every_pixel(soft, smoothing) -> None:
    rng = seeded(2)
    x = rng.standard_normal((1, 10_000, 4, 4)).astype(np.float32)
    target: Array = rng.integers(0, 10_000, (1, 4, 4))
    if soft:
        target = rng.random(x.shape, dtype=np.float32)
        target /= target.sum(axis=1, keepdims=True, dtype=np.float64).astype(np.float32)
    results = []
    for dtype in (np.float32, np.float64):
        t = Tensor(x.astype(dtype), requires_grad=True)
        y = ops.cross_entropy(t, target.astype(dtype) if soft else target, label_smoothing=smoothing, reduction="none")
        y.sum().backward()
        results.append((y.numpy(), gradient(t)))
    (value, slope), (exact_value, exact_slope) = results
    assert_within(value, exact_value, 4e-7)
    assert_within(slope, exact_slope, 4e-7)


def test_what_one_operand_of_einsum_alone_sums() -> None:
    x = np.full((N, 3), TENTH)
    assert_within(ops.einsum("ni->i", x).numpy(), x.sum(axis=0, dtype=np.float64))
    assert_within(ops.einsum("ni,j->j", x, np.ones(2, np.float32)).numpy(), np.full(2, x.sum(dtype=np.float64)))
    row = leaf(np.ones(2))
    ops.einsum("ni,j->j", x, row).backward(np.ones(2, np.float32))
    assert_within(gradient(row), np.full(2, x.sum(dtype=np.float64)))
    with pytest.raises(ValueError, match=r"einsum: 'i\$->i' does not fit"):
        ops.einsum("i$->i", x)


def test_the_gradient_of_a_border_row_that_was_repeated() -> None:
    x, dy = leaf(np.ones((1, 2, 3))), np.full((1, N + 2, 3), TENTH)
    ops.pad(x, (0, 0, N, 0), mode="replicate").backward(dy)
    assert_within(gradient(x)[0, 0], dy[0, : N + 1].sum(axis=0, dtype=np.float64))


def test_the_bias_of_a_layer_norm_of_many_rows() -> None:
    """Of many blocks of rows, each with a sum of its own. PyTorch's is off by 5e-4."""
    x = seeded(3).standard_normal((400_000, 16)).astype(np.float32)
    weight, bias, dy = leaf(np.ones(16)), leaf(np.zeros(16)), np.full(x.shape, TENTH)
    ops.layer_norm(x, 16, weight, bias).backward(dy)
    assert_within(gradient(bias), dy.sum(axis=0, dtype=np.float64), 1e-5)
