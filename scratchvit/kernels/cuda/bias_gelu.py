"""A bias and GELU after a product: one launch forward; its gradient and that of the bias in one pass.

    plain       y = GELU(x + bias),  x (N, D), bias (D,);  dx = dy GELU'(x + bias),  dbias = Σ_n dx_n
    problem     the first layer of an MLP is followed by its bias, GELU and, for the backward pass, GELU's derivative: a
                kernel that writes both reads one array and writes two, each of them four times as wide as the tokens
    idea        the product stays as it is, without the bias, and is kept for the backward pass instead of the
                derivative, which is computed from it again: erfc and exp take less time than writing an array. What
                a thread adds to its column is in a register while it walks down the rows; so is what it sums
    who

        x (N, D)        32 columns
                    ┌────────────┬─ ─ ─
        part 0      │ block 0, 0 │ 0, 1         thread (i, j) of a block computes column i of every eighth
                    ├────────────┼─ ─ ─         row of the part, from row j; in backward it adds up
                    │ block 1, 0 │ 1, 1         what it writes. The eight sums of a column are then
                    ├────────────┼─ ─ ─         added in order, by thread (i, 0) (column_sums.py)

How many arrays (N, D) are read or written, and how many operations that is, without the two products that read dx:

                                                                        forward             backward
    the bias by an epilogue (blas_lt.py); GELU and its derivative       1 + 3 in 2          3 in 1
    the bias by a kernel; GELU and its derivative                       1 + 2 + 3 in 3      3 in 1
    this file                                                           1 + 2 in 2          3 in 1
      where the product for dW cannot add up dbias, apart                                   3 + 1 in 3
      and so                                                                                3 in 2

Product and kernel write a quarter less than a product with an epilogue and GELU with its derivative, in as many
operations, and need nothing of cublasLt, which refuses some shapes in 16 bits. (Its epilogue that computes GELU is
the tanh form, another function.) In backward, cublasLt adds up dbias while it computes dW, from what it reads anyway:
then this kernel does not. In TF32, where those numbers are rounded, in float64 and where cublasLt refuses, it does.
"""

from __future__ import annotations

from collections.abc import Callable

from scratchvit.backend import Array, array_module
from scratchvit.kernels.cuda.column_sums import COLUMNS, LINES, sum_parts
from scratchvit.kernels.cuda.modules import computed_in, divide, launch

ROWS = 16                       # of a thread

TEXT = r"""
// --- bias_gelu.py ---

// The rows of part blockIdx.x, of gridDim.x parts of N rows: this thread's first, and the end.
__device__ inline size first_row(size N) { return N * blockIdx.x / gridDim.x + threadIdx.y; }
__device__ inline size last_row(size N) { return N * (blockIdx.x + 1) / gridDim.x; }

// y = GELU(x + bias). Block (32, 8), grid (parts, columns / 32).
extern "C" __global__ void bias_gelu(const T* x, const T* bias, T* y, size N, size D) {
    size column = blockIdx.y * 32 + threadIdx.x;
    if (column >= D) return;
    A added = (A)bias[column];
    for (size row = first_row(N); row < last_row(N); row += 8) {
        size i = row * D + column;
        y[i] = gelu_of((A)x[i] + added).value;
    }
}

// dx = dy GELU'(x + bias), and unless parts is null, its sums over the rows of each part: parts (gridDim.x, D).
extern "C" __global__ void bias_gelu_backward(const T* x, const T* bias, const T* dy, T* dx, A* parts, size N, size D) {
    __shared__ A scratch[8][33];
    size column = blockIdx.y * 32 + threadIdx.x;
    A sum = 0;
    if (column < D) {
        A added = (A)bias[column];
        for (size row = first_row(N); row < last_row(N); row += 8) {
            size i = row * D + column;
            A gradient = (A)dy[i] * gelu_of((A)x[i] + added).slope;
            dx[i] = gradient;
            sum += gradient;
        }
    }
    if (!parts) return;
    sum = sum_of_lines(sum, scratch);
    if (threadIdx.y == 0 && column < D) parts[blockIdx.x * D + column] = sum;
}
"""


def bias_gelu(x: Array, bias: Array) -> tuple[Array, Callable[[Array, Array, bool], Array | None]]:
    """GELU(x + bias) for x (N, D) and bias (D,) of one dtype, and its backward.

    The backward is called with dy (N, D), a contiguous array for dx, and whether it shall return dbias (D,), which is
    of float32 for 16 bits; otherwise it returns None.
    """
    xp = array_module(x)
    x, bias = xp.ascontiguousarray(x), xp.ascontiguousarray(bias)
    N, D = x.shape
    parts = divide(N, LINES * ROWS)
    blocks = parts, divide(D, COLUMNS)
    y = xp.empty((N, D), dtype=x.dtype)
    launch("maps", "bias_gelu", x, blocks, (COLUMNS, LINES), x, bias, y, N, D)

    def backward(dy: Array, dx: Array, sums: bool) -> Array | None:
        dbias = xp.empty(D, dtype=computed_in(x)) if sums else None
        of_parts = xp.empty((parts, D), dtype=computed_in(x)) if sums else None
        dy = xp.ascontiguousarray(dy)
        launch("maps", "bias_gelu_backward", x, blocks, (COLUMNS, LINES), x, bias, dy, dx, of_parts, N, D)
        if of_parts is not None:
            sum_parts(of_parts, dbias, None)
        return dbias

    return y, backward
