"""cublasLt through ctypes: a product with a bias and GELU as its epilogue, also in a capture."""

import ctypes

import cupy
import numpy as np
import pytest

from tests.fakegpu.helpers import agree
from tests.support.seeds import seeded

COMPUTE_32F, R_32F = 68, 0
EPILOGUE, BIAS_POINTER = 7, 8               # attributes
GELU_BIAS = 32 | 4
ROWS, COLUMNS, INNER = 6, 5, 7


def check(status):
    assert status == 0


@pytest.fixture
def product():
    """(a function of a stream that computes y = gelu(x @ w + bias), y, the expected values)."""
    rng, library = seeded(0), ctypes.CDLL("libcublasLt.so.12")
    x, w = rng.standard_normal((ROWS, INNER), dtype=np.float32), rng.standard_normal((INNER, COLUMNS), dtype=np.float32)
    bias = rng.standard_normal(COLUMNS, dtype=np.float32)
    X, W, B, Y = cupy.asarray(x), cupy.asarray(w), cupy.asarray(bias), cupy.zeros((ROWS, COLUMNS), np.float32)

    handle, description, of_x, of_w, of_y, preference = (ctypes.c_void_p() for _ in range(6))
    check(library.cublasLtCreate(ctypes.byref(handle)))
    check(library.cublasLtMatmulDescCreate(ctypes.byref(description), COMPUTE_32F, R_32F))
    for attribute, value in ((EPILOGUE, ctypes.c_int(GELU_BIAS)), (BIAS_POINTER, ctypes.c_uint64(B.data.ptr))):
        value_at, size = ctypes.byref(value), ctypes.sizeof(value)
        check(library.cublasLtMatmulDescSetAttribute(description, attribute, value_at, size))
    # cuBLAS is column-major, so it sees the transposed matrices: yᵀ = wᵀ xᵀ.
    for layout, rows, columns in ((of_w, COLUMNS, INNER), (of_x, INNER, ROWS), (of_y, COLUMNS, ROWS)):
        sizes = ctypes.c_uint64(rows), ctypes.c_uint64(columns), ctypes.c_int64(rows)
        check(library.cublasLtMatrixLayoutCreate(ctypes.byref(layout), R_32F, *sizes))
    check(library.cublasLtMatmulPreferenceCreate(ctypes.byref(preference)))
    heuristic, found = ctypes.create_string_buffer(96), ctypes.c_int()
    check(library.cublasLtMatmulAlgoGetHeuristic(
        handle, description, of_w, of_x, of_y, of_y, preference, 1, heuristic, ctypes.byref(found)
    ))
    assert found.value == 1
    one, zero = ctypes.c_float(1), ctypes.c_float(0)

    def compute(stream):
        # The bias is read too: if nothing referred to it, its memory would be given to others.
        w_at, x_at, y_at, _ = (ctypes.c_void_p(array.data.ptr) for array in (W, X, Y, B))
        check(library.cublasLtMatmul(
            handle, description, ctypes.byref(one), w_at, of_w, x_at, of_x, ctypes.byref(zero), y_at, of_y, y_at, of_y,
            heuristic, None, ctypes.c_size_t(0), ctypes.c_void_p(stream.ptr),
        ))

    u = x @ w + bias
    return compute, Y, (0.5 * u * (1 + np.tanh(0.7978845608 * (u + 0.044715 * u**3)))).astype(np.float32)


def test_bias_and_gelu_in_the_epilogue(product):
    compute, y, expected = product
    compute(cupy.cuda.get_current_stream())
    agree(y, expected, 1e-4)


def test_in_a_capture_which_forbids_cupys_own_products(product):
    compute, y, expected = product
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        compute(stream)
        graph = stream.end_capture()
    assert not y.any()
    graph.launch(stream)
    stream.synchronize()
    agree(y, expected, 1e-4)
