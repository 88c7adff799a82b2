"""Products with a bias, and with the gradient of one, by cublasLt; and linear layers made of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import scratchvit as sv
from scratchvit import Tensor, ops
from scratchvit.backend import array_module, asarray, asnumpy
from scratchvit.kernels.cuda import blas_lt, cublas
from scratchvit.kernels.products import product, product_and_sums
from tests.support import cuda_kernels
from tests.support.product_bounds import exact, within
from tests.support.seeds import seeded

pytestmark = pytest.mark.usefixtures("cuda")

SHAPES = [(5, 7, 3), (1, 7, 3), (5, 7, 1), (5, 1, 3), (1, 1, 1), (300, 33, 65)]         # n, k, m


def random(*shape: int, dtype: Any = np.float32) -> Any:
    return asarray(seeded(sum(shape)).standard_normal(shape).astype(dtype))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("n", "k", "m"), SHAPES)
def test_a_product_with_a_bias(n: int, k: int, m: int, transposed: bool) -> None:
    x, y, bias = random(n, k), random(m, k).T if transposed else random(k, m), random(m)
    expected, bound = exact(asnumpy(x), asnumpy(y))
    for out in (None, random(n, m)):
        found = blas_lt.product_with_bias(x, y, bias, out)
        assert found is not None and (out is None or found is out)
        within(asnumpy(found), expected + asnumpy(bias), 4 * bound + 1e-6)


@pytest.mark.parametrize(("n", "k", "m"), SHAPES)
def test_a_product_with_sums(n: int, k: int, m: int) -> None:
    """As for a linear layer: n outputs, k rows, m inputs."""
    dy, x = random(k, n), random(k, m)
    found = blas_lt.product_and_sums(dy.T, x)
    assert found is not None
    for one, other in zip(found, (asnumpy(x), np.ones((k, 1), np.float32))):
        expected, bound = exact(asnumpy(dy).T, other)
        within(asnumpy(one).reshape(expected.shape), expected, 4 * bound)
    parts = random(n + 3, m)[1:-2], random(n + 3)[1:-2]         # as for a part of the weights
    again = blas_lt.product_and_sums(dy.T, x, out=parts)
    assert again is not None
    for one, other, part in zip(again, found, parts):
        assert one is part
        within(asnumpy(one), asnumpy(other), 4 * exact(asnumpy(dy).T, asnumpy(x))[1].max() + 1e-6)


def test_float16() -> None:
    x, y, bias = (random(*shape, dtype=np.float16) for shape in ((5, 8), (8, 3), (3,)))
    expected = asnumpy(x).astype(np.float32) @ asnumpy(y) + asnumpy(bias)
    np.testing.assert_allclose(asnumpy(product(x, y, bias)), expected, rtol=2e-3, atol=2e-3)
    found = blas_lt.product_and_sums(x.T, random(5, 4, dtype=np.float16), dtype=np.float32)
    assert found is not None and found[0].dtype == found[1].dtype == np.float32
    np.testing.assert_allclose(asnumpy(found[1]), asnumpy(x).astype(np.float64).sum(axis=0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "case", ["rows apart", "float64", "a part of out", "a part of the bias", "no rows", "no columns"]
)
def test_what_cublaslt_does_not_do_is_computed_in_two_steps(case: str) -> None:
    dtype = np.float64 if case == "float64" else np.float32
    n, k = (0 if case == "no rows" else 5), (0 if case == "no columns" else 6)
    x, y, bias, out = random(n, k, dtype=dtype), random(k, 3, dtype=dtype), random(3, dtype=dtype), None
    if case == "rows apart":
        x = random(n, 2 * k)[:, ::2]
    elif case == "a part of out":
        out = random(n, 6)[:, ::2]
    elif case == "a part of the bias":
        bias = random(6)[::2]
    assert blas_lt.product_with_bias(x, y, bias, out) is None
    found = product(x, y, bias, out)
    np.testing.assert_allclose(asnumpy(found), asnumpy(x) @ asnumpy(y) + asnumpy(bias), rtol=1e-5, atol=1e-5)
    parts = random(5, k, dtype=dtype)[1:4], random(5, dtype=dtype)[1:4]
    given = product_and_sums(found, x, (True, True), parts)
    dweight, dbias = product_and_sums(found, x, (True, True))
    for one, part, other in zip(given, parts, (dweight, dbias)):
        assert one is part and np.array_equal(asnumpy(one), asnumpy(other))
    np.testing.assert_allclose(asnumpy(dweight), asnumpy(found).T @ asnumpy(x), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(asnumpy(dbias), asnumpy(found).sum(axis=0), rtol=1e-5, atol=1e-5)


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[None]]:
    """A cublasLt that has no algorithm; the list has an entry for each time that it was asked."""
    asked = []

    def refuse(*arguments: Any) -> None:
        asked.append(None)
        raise cublas.library().Error(cublas.NOT_SUPPORTED)

    cublas.current_handle().prepared.clear()
    monkeypatch.setattr(cublas.library(), "cublasLtMatmulAlgoGetHeuristic", refuse)
    yield asked
    cublas.current_handle().prepared.clear()


def test_without_an_algorithm_it_is_asked_once_and_computed_in_two_steps(refusing: list[None]) -> None:
    x, weight, bias = random(9, 5), random(4, 5), random(4)
    for _ in range(2):
        y = product(x, weight.T, bias)
        np.testing.assert_allclose(asnumpy(y), asnumpy(x) @ asnumpy(weight).T + asnumpy(bias), rtol=1e-5, atol=1e-5)
        dweight, dbias = product_and_sums(y, x, (True, True))
        np.testing.assert_allclose(asnumpy(dweight), asnumpy(y).T @ asnumpy(x), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(asnumpy(dbias), asnumpy(y).sum(axis=0), rtol=1e-5, atol=1e-5)
    assert len(refusing) == 2


def test_another_error_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        raise cublas.library().Error(14)

    monkeypatch.setattr(cublas.library(), "cublasLtMatmulAlgoGetHeuristic", fail)
    with pytest.raises(cublas.library().Error, match="INTERNAL_ERROR"):
        product(random(11, 13), random(13, 17), random(17))


def test_the_number_of_kept_algorithms_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blas_lt, "MOST_PREPARED", 3)
    prepared = cublas.current_handle().prepared
    prepared.clear()
    for n in range(1, 9):
        x, y, bias = random(n, 4), random(4, 3), random(3)
        expected = asnumpy(x) @ asnumpy(y) + asnumpy(bias)
        np.testing.assert_allclose(asnumpy(product(x, y, bias)), expected, rtol=1e-5, atol=1e-5)
        assert len(prepared) <= 3


# --- linear layers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(5, 7), (2, 3, 7), (300, 7), (0, 7), (2, 0, 7), (4, 0)])
def test_linear(shape: tuple[int, ...], dtype: Any) -> None:
    cuda_kernels.check_shapes(ops.linear, [shape, (6, shape[-1]), (6,)], dtype)
    cuda_kernels.check_shapes(ops.linear, [shape, (6, shape[-1])], dtype)


def test_parameters_of_float16_have_gradients_of_float16() -> None:
    tensors = [Tensor(random(*shape, dtype=np.float16), requires_grad=True) for shape in ((20, 6), (4, 6), (4,))]
    ops.linear(*tensors).sum().backward()
    assert [t.grad.dtype for t in tensors if t.grad is not None] == [np.float16] * 3


def test_gradients_that_nobody_wants_are_not_computed() -> None:
    arrays = [random(50, 7), random(6, 7), random(6)]
    every = gradients(arrays, [True] * 3)
    for wanted in ([True, False, False], [False, True, False], [False, False, True], [False, True, True]):
        for found, expected, want in zip(gradients(arrays, wanted), every, wanted):
            assert (found is not None) == want
            if want:
                np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def gradients(arrays: list[Any], wanted: list[bool]) -> list[Any]:
    inputs = [Tensor(array, requires_grad=want) for array, want in zip(arrays, wanted)]
    ops.linear(*inputs).backward(random(50, 6))
    return [None if t.grad is None else asnumpy(t.grad) for t in inputs]


def test_in_tf32_the_gradient_of_a_bias_is_not_rounded() -> None:
    """512 times 1 + 2⁻¹², which is 1 in TF32."""
    dy, x = (asarray(np.full((512, n), 1 + 2**-12, np.float32)) for n in (8, 16))
    sv.set_matmul_precision("tf32")
    try:
        dweight, dbias = product_and_sums(dy, x, (True, True))
    finally:
        sv.set_matmul_precision("float32")
    assert np.array_equal(asnumpy(dbias), np.full(8, 512 + 2**-3, np.float32))
    np.testing.assert_allclose(asnumpy(dweight), 512, rtol=2**-10)
    assert array_module(dbias).all(dbias == product_and_sums(dy, x, (True, True))[1])
