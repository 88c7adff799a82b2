"""Products of matrices with a bias, or with the gradient of one, in one operation of the device: by cublasLt.

    plain       x @ y + bias, x (n, k), y (k, m), bias (m,);  x @ y and Σ_k x_nk
    problem     adding the bias reads and writes the whole result once more, and the sums read x once more: for a linear
                layer y = x Wᵀ + b that is 5 operations for a forward and a backward with the sums in two launches
    idea        an epilogue: cuBLAS adds the bias to a result that it is about to write, and adds up the numbers of x
                that it has just read. A linear layer then is one product forward, two backward
    who

        dW (out, in) = dyᵀ (out, N) x (N, in)                 db (out,) = Σ_N dyᵀ

                     N                     in                in
               ┌────────────┐          ┌────────┐        ┌────────┐
           out │ dyᵀ ░░░░░░░│──┐     N │ x      │    out │ dW     │       the sum of a row of dyᵀ belongs to the
               └────────────┘  │       │        │        └────────┘       same numbers as the row of dW
                     db  ◄─────┘       └────────┘

        cuBLAS computes dWᵀ = xᵀ dy (blas_plan.py), so dy is its B, and the epilogue is BGRADB.

cublasLt is asked once for each combination of shapes, strides and alignments whether it can do this, and how. Where it
cannot, as in float64, kernels/products.py computes the product and the rest one after the other. NVIDIA does not say
whether BGRADB adds up numbers that were rounded to TF32. So in TF32, too, sums are computed apart, in float32.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from typing import Any

from scratchvit.backend import Array, array_module
from scratchvit.kernels.cuda import blas, cublas
from scratchvit.kernels.cuda.blas_plan import Plan, plan
from scratchvit.kernels.cuda.cublas import library
from scratchvit.precision import matmul_precision

ADD_BIAS, SUM_B = 4, 512                                        # CUBLASLT_EPILOGUE_BIAS, …_BGRADB
TRANSPOSE_A, TRANSPOSE_B, EPILOGUE, BIAS_POINTER = 3, 4, 7, 8   # cublasLtMatmulDescAttributes_t
MOST_WORKSPACE, ALIGNMENTS = 1, (5, 6, 7, 8)                    # cublasLtMatmulPreferenceAttributes_t; of A, B, C, D
MOST_ALIGNED = 256                                              # bytes, beyond which alignment makes no difference
MOST_PREPARED = 4096                                            # products whose algorithms are kept


class _Algorithm(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t, which begins with the algorithm."""

    _fields_ = [
        ("algorithm", ctypes.c_uint64 * 8), ("workspace_bytes", ctypes.c_size_t), ("status", ctypes.c_int),
        ("waves", ctypes.c_float), ("reserved", ctypes.c_int * 4),
    ]


def product_with_bias(x: Array, y: Array, bias: Array, out: Array | None = None) -> Array | None:
    """x @ y + bias for x (n, k), y (k, m) and bias (m,), of one dtype that `blas.takes`; None if cublasLt cannot.

    out: a contiguous array; a new one if not given.
    """
    if out is None:
        out = array_module(x).empty((x.shape[0], y.shape[1]), dtype=x.dtype)
    if bias.dtype != out.dtype or not (out.flags.c_contiguous and bias.flags.c_contiguous):
        return None
    return out if _multiply(x, y, out, ADD_BIAS, bias) else None


def product_and_sums(
    x: Array, y: Array, dtype: Any = None, out: Sequence[Array | None] = (None, None)
) -> tuple[Array, Array] | None:
    """x @ y and Σ_k x_nk, for x (n, k) and y (k, m): (n, m) and (n,); None if cublasLt cannot.

    dtype: of both results, that of x if not given; float32 for 16-bit numbers.
    out: contiguous arrays to write them to, of that dtype; new ones for None.
    """
    if _rounds_sums(x):
        return None
    xp, dtype, shapes = array_module(x), x.dtype if dtype is None else dtype, ((x.shape[0], y.shape[1]), x.shape[:1])
    products, sums = (xp.empty(shape, dtype=dtype) if a is None else a for a, shape in zip(out, shapes))
    return (products, sums) if _multiply(x, y, products, SUM_B, sums) else None


def computes_sums(x: Array, y: Array, dtype: Any) -> bool:
    """Whether `product_and_sums` of these arrays can; nothing is computed."""
    if _rounds_sums(x):
        return False
    xp = array_module(x)
    products, sums = (xp.empty(shape, dtype=dtype) for shape in ((x.shape[0], y.shape[1]), x.shape[:1]))
    return _find(cublas.current_handle(), x, y, products, SUM_B, sums) is not None


def _rounds_sums(x: Array) -> bool:
    """Whether sums that cublasLt makes during a product may be of numbers that were rounded to TF32."""
    return x.dtype.char == "f" and matmul_precision() == "tf32"


def _multiply(x: Array, y: Array, out: Array, epilogue: int, bias: Array) -> bool:
    """Write x @ y to out, with an epilogue that reads or writes `bias`. Returns whether cublasLt can do it."""
    handle = cublas.current_handle()
    prepared = _find(handle, x, y, out, epilogue, bias)
    if prepared is None:
        return False
    prepared.compute(handle, (y.data.ptr, x.data.ptr, out.data.ptr), bias)
    return True


def _find(handle: cublas.Handle, x: Array, y: Array, out: Array, epilogue: int, bias: Array) -> _Prepared | None:
    """What cublasLt needs for x @ y with an epilogue, found once for such arrays; None if it cannot do it."""
    how = plan(
        x.shape, x.strides, y.shape, y.strides, (out.shape, out.strides), x.dtype.char, out.dtype.char,
        matmul_precision() == "tf32",
    )
    if how.copies or not how.operations or how.compute == cublas.IN_FLOAT64:
        return None
    addresses = y.data.ptr, x.data.ptr, out.data.ptr
    key = how, epilogue, *(min(address & -address, MOST_ALIGNED) for address in addresses)
    try:
        return handle.prepared[key]
    except KeyError:
        if len(handle.prepared) == MOST_PREPARED:
            handle.prepared.clear()
        prepared = handle.prepared[key] = _prepared(handle, bias, *key)
        return prepared


def _prepared(handle: cublas.Handle, bias: Array, how: Plan, epilogue: int, *aligned: int) -> _Prepared | None:
    """What cublasLt needs for these products; None if it has no algorithm for them."""
    prepared = _Prepared(how, epilogue)
    prepared.set_bias(bias)
    try:
        prepared.find_algorithm(handle, aligned)
    except library().Error as error:
        if error.status != cublas.NOT_SUPPORTED:
            raise
        return None
    return prepared


class _Prepared:
    """The descriptors of a product with an epilogue, and its algorithm. They are freed with this object."""

    def __init__(self, how: Plan, epilogue: int):
        self.description, *self.layouts = (cublas.POINTER() for _ in range(4))
        self.one, self.zero = blas.factor(1.0, how.compute), blas.factor(0.0, how.compute)
        self.found = _Algorithm()
        blas_lt = library()
        blas_lt.cublasLtMatmulDescCreate(ctypes.byref(self.description), how.compute, cublas.REAL_TYPES["f"])
        transpose_a, transpose_b, m, n, k = how.operations
        for attribute, value in ((TRANSPOSE_A, transpose_a), (TRANSPOSE_B, transpose_b), (EPILOGUE, epilogue)):
            self.set(attribute, ctypes.c_int(value))
        sizes = (k, m) if transpose_a else (m, k), (n, k) if transpose_b else (k, n), (m, n)
        for layout, (number_type, leading), size in zip(self.layouts, (how.a, how.b, how.c), sizes):
            blas_lt.cublasLtMatrixLayoutCreate(ctypes.byref(layout), number_type, *size, leading)
        weakref.finalize(self, _free, self.description, self.layouts)

    def set(self, attribute: int, value: Any) -> None:
        library().cublasLtMatmulDescSetAttribute(
            self.description, attribute, ctypes.byref(value), ctypes.sizeof(value)
        )

    def set_bias(self, bias: Array) -> None:
        self.set(BIAS_POINTER, ctypes.c_uint64(bias.data.ptr))

    def find_algorithm(self, handle: cublas.Handle, aligned: tuple[int, ...]) -> None:
        """Ask cublasLt for the best algorithm. Raises CUBLASError if it has none."""
        blas_lt, preference, number = library(), cublas.POINTER(), ctypes.c_int()
        of_a, of_b, of_c = self.layouts
        blas_lt.cublasLtMatmulPreferenceCreate(ctypes.byref(preference))
        try:
            values: list[tuple[int, Any]] = [(MOST_WORKSPACE, ctypes.c_uint64(cublas.WORKSPACE_BYTES))]
            values += [(attribute, ctypes.c_uint32(n)) for attribute, n in zip(ALIGNMENTS, (*aligned, aligned[2]))]
            for attribute, value in values:
                blas_lt.cublasLtMatmulPreferenceSetAttribute(
                    preference, attribute, ctypes.byref(value), ctypes.sizeof(value)
                )
            blas_lt.cublasLtMatmulAlgoGetHeuristic(
                handle.pointer, self.description, of_a, of_b, of_c, of_c, preference, 1, ctypes.byref(self.found),
                ctypes.byref(number),
            )
        finally:
            blas_lt.cublasLtMatmulPreferenceDestroy(preference)
        if not number.value or self.found.status:
            raise blas_lt.Error(cublas.NOT_SUPPORTED)

    def compute(self, handle: cublas.Handle, addresses: tuple[int, ...], bias: Array) -> None:
        """C = A B at these addresses, with the bias in its epilogue."""
        (a, b, c), (of_a, of_b, of_c) = addresses, self.layouts
        self.set_bias(bias)
        library().cublasLtMatmul(
            handle.pointer, self.description, self.one, a, of_a, b, of_b, self.zero, c, of_c, c, of_c,
            ctypes.byref(self.found), handle.workspace(), cublas.WORKSPACE_BYTES, handle.stream,
        )


def _free(description: Any, layouts: list[Any]) -> None:
    for layout in layouts:
        library().cublasLtMatrixLayoutDestroy(layout)
    library().cublasLtMatmulDescDestroy(description)
