"""Layer norm by its CUDA kernels: odd shapes, missing arrays, and rows that one computation would spoil."""

import numpy as np
import pytest

from scratchvit import Tensor, ops
from scratchvit.backend import asarray, asnumpy
from scratchvit.kernels.layer_norm import normalise_sum
from scratchvit.random import Generator
from tests.support import cuda_kernels
from tests.support.margins import agree
from tests.support.one_op import run
from tests.support.seeds import moved, seeded

pytestmark = pytest.mark.usefixtures("cuda")


# The last has rows whose sums do not fit into shared memory.
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("N", "D"), [(1, 1), (5, 31), (130, 33), (1200, 65), (9, 1537), (3, 6144), (0, 7), (3, 6145)])
def test_shapes(N, D, dtype):
    cuda_kernels.check_shapes(lambda x, w, b: ops.layer_norm(x, D, w, b), [(N, D), (D,), (D,)], dtype)


@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("N", "D"), [(1, 1), (5, 31), (130, 33), (1200, 65), (3, 6144), (0, 7), (3, 6145)])
def test_the_norm_of_a_sum(N, D, dtype, p):
    cuda_kernels.check_shapes(
        lambda x, y, w, b: ops.add_layer_norm(x, y, D, w, b, p=p, generator=Generator(moved(7))),
        [(N, D), (N, D), (D,), (D,)], dtype,
    )


@pytest.mark.parametrize("dtypes", [("f", "e"), ("e", "f"), ("f", "d"), ("d", "f")], ids="".join)
def test_a_sum_of_arrays_of_two_dtypes(dtypes):
    """16 bits beside float32, as of a DETR's first queries inside autocast, and float32 beside float64."""
    rng = seeded(0)
    x, added = (asarray(rng.standard_normal((5, 9)).astype(char)) for char in dtypes)
    y, backward = normalise_sum(x, added, None, None, None, 1e-5)
    dtype = np.dtype(next((char for char in dtypes if char != "f"), "f"))
    same, backward_of_same = normalise_sum(x.astype(dtype), added.astype(dtype), None, None, None, 1e-5)
    assert y.dtype == dtype and asnumpy(y).tobytes() == asnumpy(same).tobytes()
    need = [True, True, False, False]
    for gradient, expected in zip(backward(y, need), backward_of_same(y, need)):
        assert (gradient is None) == (expected is None)
        assert gradient is None or asnumpy(gradient).tobytes() == asnumpy(expected).tobytes()


def test_a_sum_of_arrays_that_are_not_contiguous():
    """Dropout's mask is that of the shape, whatever the memory order of either."""
    cuda_kernels.check_shapes(
        lambda x, y: ops.add_layer_norm(x, y.permute((1, 0)), 35, p=0.5, generator=Generator(moved(7))),
        [(67, 35), (35, 67)], np.float32,
    )


@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("wanted", [
    (True, False, False, False), (False, True, False, False), (False, True, True, False), (False, False, False, True),
])
def test_gradients_of_a_sum_that_nobody_wants(wanted, p):
    rng = seeded(0)
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in ((67, 35), (67, 35), (35,), (35,))]

    def gradients(wanted):
        call = lambda *a: ops.add_layer_norm(a[0], a[1], 35, *a[2:], p=p, generator=Generator(moved(7)))  # noqa: E731
        return run(call, arrays, list(wanted))["gradient"]

    for found, expected, want in zip(gradients(wanted), gradients([True] * 4), wanted):
        assert (found.tobytes() == expected.tobytes()) if want else found is None


@pytest.mark.parametrize("function", [
    lambda x, w: ops.layer_norm(x, 35), lambda x, w: ops.layer_norm(x, 35, w),
    lambda x, w: ops.layer_norm(x, 35, None, w),
], ids=["neither", "weight", "bias"])
def test_without_weight_or_bias(function):
    cuda_kernels.check_shapes(function, [(67, 35), (35,)], np.float32)


def test_an_array_that_is_not_contiguous():
    cuda_kernels.check_shapes(lambda x: ops.layer_norm(x.permute((1, 0)), 129), [(129, 35)], np.float32)


def test_constant_weights_and_a_constant_input():
    """Only what is wanted is computed: dx alone, and dweight and dbias alone."""
    rng = seeded(0)
    x, w, b, dy = (rng.standard_normal(shape).astype(np.float32) for shape in ((67, 35), (35,), (35,), (67, 35)))

    def gradients(wanted):
        inputs = [Tensor(asarray(a), requires_grad=want) for a, want in zip((x, w, b), wanted)]
        ops.layer_norm(inputs[0], 35, *inputs[1:]).backward(asarray(dy))
        return [None if t.grad is None else t.grad for t in inputs]

    every = [g.tobytes() for g in gradients([True] * 3)]
    for wanted in ([True, False, False], [False, True, True], [False, True, False], [False, False, True]):
        found = [None if g is None else g.tobytes() for g in gradients(wanted)]
        assert found == [g if want else None for g, want in zip(every, wanted)]


def test_rows_far_from_zero():
    """E x² - (E x)² would have no digit left here."""
    x = 1e4 + seeded(0).standard_normal((5, 64))
    expected = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    agree(lambda: ops.layer_norm(Tensor(asarray(x.astype(np.float32))), 64), expected)


def test_a_row_whose_variance_overflows_is_not_a_row_of_zeros():
    x = np.ones((2, 40), np.float32)
    x[1, ::2] = 1e20
    y = ops.layer_norm(Tensor(asarray(x)), 40).numpy()
    assert np.isfinite(y[0]).all() and np.isnan(y[1]).all()
