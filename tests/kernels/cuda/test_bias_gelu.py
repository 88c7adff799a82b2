"""A bias and GELU after a product by one CUDA kernel, and their gradients; and the layer that is made of it."""

import numpy as np
import pytest

import scratchvit as sv
from scratchvit import Tensor, nn, ops
from scratchvit.backend import Array, array_module, asarray, asnumpy
from scratchvit.kernels import products
from scratchvit.kernels.cuda import blas_lt
from scratchvit.kernels.cuda.bias_gelu import bias_gelu
from scratchvit.ops.elementwise import gelu_and_slope
from scratchvit.plain import is_plain
from scratchvit.tensor import op
from tests.support import cuda_kernels
from tests.support.seeds import seeded

pytestmark = pytest.mark.usefixtures("cuda")

SHAPES = [(1, 1), (1, 33), (7, 32), (9, 31), (128, 5), (129, 40), (700, 67), (0, 5), (3, 0)]


@op(takes="floats")
def alone(x: Array, bias: Array):
    """The kernels, or their plain form."""
    if is_plain():
        y, slope = gelu_and_slope(x + bias)
        return y, lambda dy: (dy * slope, (dy * slope).sum(0))
    y, backward = bias_gelu(x, bias)

    def dx_and_dbias(dy):
        dx = array_module(x).empty(x.shape, dtype=x.dtype)
        return dx, backward(dy, dx, True)

    return y, dx_and_dbias


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape, dtype):
    cuda_kernels.check_shapes(alone, [shape, shape[1:]], dtype)


@pytest.mark.parametrize("can_sum", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("N", "k", "m"), [(1, 1, 1), (300, 7, 67), (5, 33, 3), (0, 3, 4), (3, 0, 4)])
def test_a_layer(N, k, m, dtype, can_sum, monkeypatch):
    if not can_sum:
        monkeypatch.setattr(products.blas_lt, "computes_sums", lambda *_: False)
        monkeypatch.setattr(products.blas_lt, "product_and_sums", lambda *_: None)
    cuda_kernels.check_shapes(ops.linear_gelu, [(N, k), (m, k), (m,)], dtype)


def test_arrays_that_are_not_contiguous():
    def layer(x, weight, bias):
        return ops.linear_gelu(x.permute((1, 0)), weight.permute((1, 0)), bias[::2]).permute((1, 0))

    cuda_kernels.check_shapes(layer, [(7, 31), (7, 35), (70,)], np.float32)
    rng = seeded(1)
    x, dy, bias = (asarray(rng.standard_normal(shape).astype(np.float32)) for shape in ((35, 67), (35, 67), (134,)))
    (y, backward), (expected, backward_of_copies) = bias_gelu(x.T, bias[:35]), bias_gelu(x.T.copy(), bias[:35].copy())
    assert asnumpy(y).tobytes() == asnumpy(expected).tobytes()
    dx, other = (array_module(x).empty((67, 35), dtype=x.dtype) for _ in range(2))
    sums, other_sums = backward(dy.T, dx, True), backward_of_copies(dy.T.copy(), other, True)
    assert asnumpy(sums).tobytes() == asnumpy(other_sums).tobytes()
    assert asnumpy(dx).tobytes() == asnumpy(other).tobytes()


@pytest.mark.parametrize("tf32", [False, True])
def test_gradients_that_nobody_wants(tf32):
    rng = seeded(2)
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in ((300, 7), (67, 7), (67,))]
    sv.set_matmul_precision("tf32" if tf32 else "float32")
    try:
        whole = gradients(arrays, (True, True, True))
        for wanted in ((True, False, False), (False, True, False), (False, False, True), (True, False, True)):
            for one, other, is_wanted in zip(gradients(arrays, wanted), whole, wanted):
                assert (one is not None) == is_wanted
                if is_wanted:       # the sums are made in another order if they come with the product
                    np.testing.assert_allclose(asnumpy(one), asnumpy(other), rtol=1e-5, atol=1e-4)
    finally:
        sv.set_matmul_precision("float32")


def gradients(arrays, wanted):
    tensors = [Tensor(asarray(array), requires_grad=need) for array, need in zip(arrays, wanted)]
    ops.linear_gelu(*tensors).sum().backward()
    return [tensor.grad for tensor in tensors]


def test_who_sums(monkeypatch):
    """cublasLt where it can, and this kernel in TF32, where sums of what the product has rounded would be wrong."""
    calls = []
    original = blas_lt.product_and_sums
    monkeypatch.setattr(products.blas_lt, "product_and_sums", lambda *a: calls.append("cublasLt") or original(*a))
    monkeypatch.setattr(products, "total", lambda *a, **_: pytest.fail("summed once more"))
    arrays = [seeded(3).standard_normal(shape).astype(np.float32) for shape in ((40, 7), (9, 7), (9,))]
    expected = asnumpy(gradients(arrays, (True, True, True))[2])
    assert calls == ["cublasLt"]
    sv.set_matmul_precision("tf32")
    try:
        found = asnumpy(gradients(arrays, (True, True, True))[2])
    finally:
        sv.set_matmul_precision("float32")
    assert calls == ["cublasLt"]
    np.testing.assert_allclose(found, expected, rtol=2e-2, atol=2e-2)       # x Wᵀ is of TF32, sums are not


def test_a_long_sum_does_not_lose_digits():
    """2²⁰ times GELU'(0.1): one after another, in float32, the sum would be 1e-3 off."""
    x = asarray(np.full((1 << 20, 2), 0.1, np.float32))
    dx = array_module(x).empty_like(x)
    _, backward = bias_gelu(x, asarray(np.zeros(2, np.float32)))
    sums = asnumpy(backward(array_module(x).ones_like(x), dx, True))
    np.testing.assert_allclose(sums, np.float64(asnumpy(dx)[0]) * 2**20, rtol=16 * 2**-24)


def test_infinities_and_nan_are_those_of_gelu():
    special = np.array([[np.inf, np.nan, 0.0, -0.0, 1e20, -1e20]], np.float32).T
    y, _ = bias_gelu(asarray(special), asarray(np.zeros(1, np.float32)))
    np.testing.assert_array_equal(asnumpy(y), asnumpy(ops.gelu(Tensor(asarray(special))).data))


def test_an_mlp_takes_it_for_gelu_only():
    """A layer of another activation, or one that was replaced, is called as it stands."""
    names = []

    def call(function, args, kwargs):
        names.append(function.__name__)
        return function(*args, **kwargs)

    def of(mlp):
        names.clear()
        with sv.recording.replace_ops(call):
            mlp(Tensor(asarray(np.ones((2, 3), np.float32))))
        return names[:]

    assert of(nn.Mlp(3, 8)) == ["linear_gelu", "linear"]
    assert of(nn.Mlp(3, 8, act=ops.relu)) == ["linear", "relu", "linear"]
    without_bias = nn.Mlp(3, 8)
    without_bias.fc1 = nn.Linear(3, 8, bias=False)
    assert of(without_bias) == ["linear", "gelu", "linear"]


def test_an_mlp_computes_what_it_computes_on_the_cpu():
    mlp, x = nn.Mlp(6, 24), seeded(4).standard_normal((2, 5, 6)).astype(np.float32)
    cuda_kernels.check(lambda x: mlp(x), [x])
