"""CuPy's own kernels: element-wise, reductions, fusion, indexing, sorting, scattering, half precision."""

import cupy
import cupyx
import numpy as np
import pytest

from tests.fakegpu.helpers import agree, start
from tests.support.seeds import seeded


@pytest.fixture
def x():
    return seeded(0).standard_normal((300, 140), dtype=np.float32)


@pytest.fixture
def y():
    return seeded(1).standard_normal((300, 140), dtype=np.float32)


def test_elementwise_kernels(x, y):
    axpy = cupy.ElementwiseKernel("T x, T y, float32 a", "T z", "z = a * x + y", "axpy")
    agree(axpy(cupy.asarray(x), cupy.asarray(y), np.float32(2)), 2 * x + y)
    turn = cupy.ElementwiseKernel("raw T x, int32 n", "T z", "z = x[n - 1 - i]", "turn")
    agree(turn(cupy.asarray(x), np.int32(x.size), size=x.size), x.ravel()[::-1])


def test_a_reduction_kernel(x):
    norm = cupy.ReductionKernel("T x", "T y", "x * x", "a + b", "y = sqrt(a)", "0", "norm")
    agree(norm(cupy.asarray(x), axis=1), np.sqrt((x * x).sum(1)), 1e-4)


def test_fused_functions(x, y):
    @cupy.fuse(kernel_name="fused")
    def fused(a, b):
        return cupy.exp(a) * b + cupy.tanh(b)

    agree(fused(cupy.asarray(x), cupy.asarray(y)), np.exp(x) * y + np.tanh(y), 1e-4)


@pytest.mark.parametrize("axis", [None, 0, 1, -1, (0, 1)])
@pytest.mark.parametrize("name", ["sum", "max", "min", "mean", "prod"])
def test_reductions(name, axis, x):
    agree(getattr(cupy.asarray(x), name)(axis=axis), getattr(x, name)(axis=axis), 1e-3)


def test_other_reductions(x):
    X = cupy.asarray(x)
    agree(X.var(axis=1), x.var(axis=1), 1e-4)
    agree(X[::2, 3:].T.sum(axis=0), x[::2, 3:].T.sum(axis=0), 1e-3)
    for axis in (None, 0, 1):
        agree((X > 0).any(axis=axis), (x > 0).any(axis=axis))
        agree(X.argmax(axis=axis), x.argmax(axis=axis))
        agree(X.argmin(axis=axis), x.argmin(axis=axis))
        agree(cupy.cumsum(X, axis=axis), np.cumsum(x, axis=axis), 1e-3)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (2, 0, 3)])
def test_reductions_of_empty_arrays(shape):
    agree(cupy.zeros(shape, np.float32).sum(axis=-1), np.zeros(shape, np.float32).sum(axis=-1))
    if shape[-1]:
        agree(cupy.zeros(shape, np.float32).max(axis=-1), np.zeros(shape, np.float32).max(axis=-1))
    with pytest.raises(ValueError, match="zero-size array"):
        cupy.zeros(shape, np.float32).max()


def test_indexing(x):
    X = cupy.asarray(x)
    agree(X[X > 0.5], x[x > 0.5])
    agree(X[cupy.asarray([3, 1, 3]), :5], x[[3, 1, 3], :5])
    agree(cupy.nonzero(X[0] > 0)[0], np.nonzero(x[0] > 0)[0])


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_sorting(axis, x):
    agree(cupy.sort(cupy.asarray(x), axis=axis), np.sort(x, axis=axis))
    agree(cupy.argsort(cupy.asarray(x), axis=axis), np.argsort(x, axis=axis))


def test_what_is_built_on_sorting(x):
    agree(cupy.lexsort(cupy.asarray(x[:2])), np.lexsort(x[:2]))
    agree(cupy.unique(cupy.asarray([3, 1, 3, 2])), np.array([1, 2, 3]))
    agree(cupy.bincount(cupy.asarray([0, 3, 3, 1])), np.array([1, 1, 0, 2]))


def test_scattering(x):
    i = seeded(2).integers(5, size=300)
    total, expected = cupy.zeros((5, 140), np.float32), np.zeros((5, 140), np.float32)
    cupyx.scatter_add(total, cupy.asarray(i), cupy.asarray(x))
    np.add.at(expected, i, x)
    agree(total, expected, 1e-4)
    cupy.add.at(total, cupy.asarray(i), cupy.asarray(x))
    agree(total, 2 * expected, 1e-4)


def test_half_precision(x):
    h = x.astype(np.float16)
    H = cupy.asarray(h)
    agree(H + 1, h + np.float16(1))
    agree(cupy.maximum(H, 0), np.maximum(h, 0))
    agree(H.astype(np.float32), h.astype(np.float32))
    agree(H.sum(axis=1), h.astype(np.float32).sum(1).astype(np.float16), 2e-2)
    agree(cupy.exp(H), np.exp(h), 2e-3)
    text = """
    #include <cuda_fp16.h>
    extern "C" __global__ void square_plus_one(const __half* x, __half* y) {
        y[threadIdx.x] = __hfma(x[threadIdx.x], x[threadIdx.x], __float2half(1.f));
    }
    """
    found = cupy.empty(32, np.float16)
    cupy.RawKernel(text, "square_plus_one")((1,), (32,), (H.ravel(), found))
    agree(found, (h.ravel()[:32].astype(np.float32) ** 2 + 1).astype(np.float16), 1e-3)


TOLERANCES = {np.float32: 1e-4, np.float64: 1e-10, np.float16: 3e-2}


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_products_of_every_layout(dtype):
    rng, tolerance = seeded(3), TOLERANCES[dtype]
    a, b = rng.standard_normal((5, 7, 9)).astype(dtype), rng.standard_normal((5, 9, 4)).astype(dtype)
    A, B = cupy.asarray(a), cupy.asarray(b)
    for found, expected in (
        (A @ B, a @ b),
        (A[0] @ B[0], a[0] @ b[0]),
        (cupy.asfortranarray(A[0]) @ B[0], a[0] @ b[0]),
        (A[0] @ cupy.asfortranarray(B[0]), a[0] @ b[0]),
        (B.swapaxes(1, 2) @ A.swapaxes(1, 2), b.swapaxes(1, 2) @ a.swapaxes(1, 2)),
        (A[::2, ::2, ::3] @ B[::2, ::3, 1:], a[::2, ::2, ::3] @ b[::2, ::3, 1:]),
        (A @ B[0], a @ b[0]),
        (A[:, None] @ B, a[:, None] @ b),
        (A[0] @ B[0, :, 0], a[0] @ b[0, :, 0]),
        (cupy.matmul(A, B, out=cupy.empty((5, 7, 4), dtype)), a @ b),
    ):
        agree(found, expected, tolerance)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_is_built_on_products(dtype):
    rng = seeded(4)
    a, b = rng.standard_normal((5, 7, 9)).astype(dtype), rng.standard_normal((5, 9, 4)).astype(dtype)
    A, B = cupy.asarray(a), cupy.asarray(b)
    agree(cupy.tensordot(A, B, axes=([2], [1])), np.tensordot(a, b, axes=([2], [1])), 1e-4)
    agree(cupy.einsum("bij,bjk->bik", A, B), np.einsum("bij,bjk->bik", a, b), 1e-4)
    agree(cupy.dot(A[0, 0], A[0, 1]), np.asarray(a[0, 0] @ a[0, 1]), 1e-4)


@pytest.mark.parametrize(("tf32", "expected"), [("0", 1 + 2**-12), ("1", 1)])
def test_tf32_rounds_the_inputs_of_a_product_to_10_bits(tf32, expected):
    code = "import cupy; print(float((cupy.full((2, 2), 1 + 2**-12, 'f') @ cupy.eye(2, dtype='f'))[0, 0]))"
    assert float(start("-c", code, CUPY_TF32=tf32).stdout) == expected
