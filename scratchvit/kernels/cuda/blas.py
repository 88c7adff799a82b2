"""Matrix products by cuBLAS: of arrays with any strides, and in a CUDA graph too.

    plain       out = alpha x @ y + beta out,  x (..., n, k), y (..., k, m), out (..., n, m)
    problem     of arrays with three or more axes, CuPy first copies what is not contiguous, such as every transposed
                matrix, and copies the result into an `out` that is not. It refuses to multiply while a stream is
                captured into a CUDA graph
    idea        cuBLAS itself reads transposed matrices, rows with gaps between them and stacks with a stride. So views
                are described to it (blas_plan.py) and not copied
    who         a stack of products is

        one product                 if y is the same for all: (B, N, k) @ (k, m)
        one call with strides       if its axes can be passed as one: (B, H, N, d) @ (B, H, d, M), both contiguous
        one call with a table       of addresses (addresses.py), if they are two: with q, a view of qkv (B, N, 3, H, d)
        a loop                      over the shortest axis, if they are more

Products of float32 are computed in float32, or in TF32 after `set_matmul_precision`. Those of float16 and bfloat16 (of
ml_dtypes) are summed in float32, and can be stored in float32.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any, TypeAlias

import numpy as np

from scratchvit.backend import Array, array_module, backend_of
from scratchvit.kernels.cuda.addresses import ADDRESS_BYTES, NO_ADDRESSES, Addresses, write_addresses
from scratchvit.kernels.cuda.blas_plan import Plan, Stack, plan
from scratchvit.kernels.cuda.cublas import IN_FLOAT64, REAL_TYPES, current_handle, library
from scratchvit.plain import is_plain
from scratchvit.precision import matmul_precision

STACK = 65_535                  # products of a call that every GPU takes: CUDA's largest gridDim.y and gridDim.z
ALIGNED = 16                    # bytes of which addresses in a table must be multiples, for TF32 and 16-bit numbers
DEFAULT_ALGORITHM = -1          # CUBLAS_GEMM_DEFAULT

Places: TypeAlias = tuple[int, ...]         # the addresses of A, B and C


def takes(*arrays: Array) -> bool:
    """Whether `matmul` computes on CuPy arrays of one dtype: float32, float64, float16 or bfloat16; no plain forms."""
    char = arrays[0].dtype.char
    return char in REAL_TYPES and not is_plain() and all(
        backend_of(a).has_cuda and a.dtype.char == char for a in arrays
    )


def matmul(
    x: Array, y: Array, out: Array | None = None, alpha: float = 1.0, beta: float = 0.0, dtype: Any = None,
    addresses: Addresses = NO_ADDRESSES,
) -> Array:
    """alpha x @ y + beta out, written to `out`; without it, a new contiguous array.

    x (..., n, k), y (..., k, m), with leading axes that broadcast, both of one dtype (`takes`); vectors (k,) as in
    `numpy.matmul`. out (..., n, m), of any strides. dtype: of the new array; that of x if not given. 16-bit numbers may
    have a product in float32. addresses: a table of these and other arrays, which several products share.

    One operation of the device if in every matrix rows or columns are contiguous, and the leading axes can be passed
    as one; a second one, for a table, if they are two and the arrays are not in `addresses`. Other matrices are copied.

    Raises ValueError if the shapes do not fit together, CuPy's CUBLASError if cuBLAS fails.
    """
    if x.ndim < 2 or y.ndim < 2:
        return _with_vectors(x, y, out, alpha, beta, dtype)
    if out is None:
        dtype, given = x.dtype if dtype is None else np.dtype(dtype), None
    else:
        dtype, given = out.dtype, (out.shape, out.strides)
    how = plan(x.shape, x.strides, y.shape, y.strides, given, x.dtype.char, dtype.char, matmul_precision() == "tf32")
    out = array_module(x).empty(how.shape, dtype=dtype) if out is None else out
    if how.copies:
        return _with_copies(x, y, out, alpha, beta, how.copies)
    if how.operations:
        a, b = (x, y) if how.is_swapped else (y, x)
        factors = factor(alpha, how.compute), factor(beta, how.compute)
        _multiply(how, how.stack, (a.data.ptr, b.data.ptr, out.data.ptr), factors, addresses)
    elif out.size:                      # nothing to add up
        out[...] = beta * out if beta else 0
    return out


@functools.lru_cache(maxsize=1024)
def factor(value: float, compute: int) -> Any:
    """alpha or beta, as a pointer to a number of the type that the product is computed in."""
    return ctypes.byref((ctypes.c_double if compute == IN_FLOAT64 else ctypes.c_float)(value))


def _multiply(
    how: Plan, stack: Stack, places: Places, factors: tuple[Any, Any], addresses: Addresses = NO_ADDRESSES
) -> None:
    """C = alpha A B + beta C for stacks of matrices, of which the first are at these places."""
    if len(stack) > 2 or (len(stack) == 2 and not _can_be_a_table(how, stack, places)):
        shortest = min(stack)
        rest = tuple(axis for axis in stack if axis is not shortest)
        for number in range(shortest[0]):
            _multiply(how, rest, _moved(how, places, shortest, number), factors)
        return
    handle, (alpha, beta) = current_handle(), factors
    begin, end = (handle.pointer, *how.operations, alpha), (how.compute, DEFAULT_ALGORITHM)
    if not stack:
        a, b, c = places
        library().cublasGemmEx(*begin, a, *how.a, b, *how.b, beta, c, *how.c, *end)
    elif len(stack) == 1:
        count, step_a, step_b, step_c = stack[0]
        for first, some in _parts(count):
            a, b, c = _moved(how, places, stack[0], first)
            library().cublasGemmStridedBatchedEx(
                *begin, a, *how.a, step_a, b, *how.b, step_b, beta, c, *how.c, step_c, some, *end
            )
    else:
        lengths, stacks = _in_bytes(how, stack, places)
        if not addresses.have(lengths, stacks):
            addresses = write_addresses(lengths, stacks)
        for first, some in _parts(lengths[0] * lengths[1]):
            a, b, c = (addresses.rows[array] + ADDRESS_BYTES * first for array in stacks)
            library().cublasGemmBatchedEx(*begin, a, *how.a, b, *how.b, beta, c, *how.c, some, *end)


def _parts(count: int) -> list[tuple[int, int]]:
    """(first, number) of the parts of a stack, of at most STACK matrices each."""
    return [(first, min(STACK, count - first)) for first in range(0, count, STACK)]


def _moved(how: Plan, places: Places, axis: tuple[int, ...], number: int) -> Places:
    """The places of the matrices with this number along an axis of the stack."""
    return tuple(place + number * step * item for place, step, item in zip(places, axis[1:], how.item_bytes))


def _can_be_a_table(how: Plan, stack: Stack, places: Places) -> bool:
    """Whether cuBLAS takes the addresses of these matrices: for TF32 and 16-bit numbers, they must be aligned."""
    steps = (step * item for axis in stack for step, item in zip(axis[1:], how.item_bytes))
    return not how.needs_aligned or not any(number % ALIGNED for number in (*places, *steps))


def _in_bytes(how: Plan, stack: Stack, places: Places) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """The lengths of the two axes of a stack; the place of A and its steps along the two in bytes, then of B and C."""
    outer, inner = stack
    steps = zip(outer[1:], inner[1:], how.item_bytes)
    return (outer[0], inner[0]), [
        (place, outer_step * item, inner_step * item) for place, (outer_step, inner_step, item) in zip(places, steps)
    ]


# --- what cuBLAS does not take --------------------------------------------------------------------------------------


def _with_copies(x: Array, y: Array, out: Array, alpha: float, beta: float, copied: tuple[str, ...]) -> Array:
    """`matmul` where the strides or the dtype of the arrays named in `copied` are none of cuBLAS's."""
    contiguous = array_module(x).ascontiguousarray
    x, y = contiguous(x) if "x" in copied else x, contiguous(y) if "y" in copied else y
    if "out" not in copied:
        return matmul(x, y, out, alpha, beta)
    found = matmul(x, y, None, alpha)
    out[...] = found + beta * out if beta else found
    return out


def _with_vectors(x: Array, y: Array, out: Array | None, alpha: float, beta: float, dtype: Any) -> Array:
    """`matmul` of a vector x as a row, or of a vector y as a column."""
    if not x.ndim or not y.ndim:
        raise ValueError("matmul: a number is no matrix")
    row, column = x.ndim == 1, y.ndim == 1
    x, y = x[None] if row else x, y[:, None] if column else y
    whole = out
    if whole is not None:
        whole = whole[..., None] if column else whole
        whole = whole[..., None, :] if row else whole
    found = matmul(x, y, whole, alpha, beta, dtype)
    found = found[..., 0, :] if row else found
    return out if out is not None else found[..., 0] if column else found
