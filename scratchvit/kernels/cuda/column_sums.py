"""Sums of the columns of a matrix: gradients of biases, and of whatever was broadcast over rows.

    plain       y_d = Σ_n x_nd,  x (N, D)
    problem     CuPy's sum over a leading axis starts a block of threads for 32 columns: 6 blocks for the 192 of a bias,
                where a GPU has 132 processors or more. Each thread adds thousands of numbers, one after another
    idea        the rows are divided into parts as well. A first kernel sums each part, a second the parts
    who

        x (N, D)        32 columns
                    ┌────────────┬─ ─ ─
        part 0      │ block 0, 0 │ 1, 0         thread (i, j) of a block adds column i of
                    ├────────────┼─ ─ ─         every eighth row of the part, from row j.
        part 1      │ block 0, 1 │ 1, 1         The eight sums of a column are then added
                    ├────────────┼─ ─ ─         in order, by thread (i, 0)
                    │            │

A thread adds at most 64 numbers in the type A, so the error does not grow with N.
"""

from __future__ import annotations

from scratchvit.backend import Array, array_module
from scratchvit.kernels.cuda.modules import computed_in, divide, launch

COLUMNS, LINES = 32, 8          # of a block of threads
LONGEST = 64                    # rows that a thread adds

TEXT = r"""
// --- column_sums.py ---

// The sum of `value` over the 8 threads of a column, which thread (i, 0) gets. Block (32, 8).
template <class S> __device__ S sum_of_lines(S value, S (*scratch)[33]) {
    scratch[threadIdx.y][threadIdx.x] = value;
    __syncthreads();
    S sum = 0;
    if (threadIdx.y == 0)
        for (int line = 0; line < 8; line++) sum += scratch[line][threadIdx.x];
    return sum;
}

// Of x (N, D), the sums of the columns of part blockIdx.y, of gridDim.y parts: parts (gridDim.y, D).
extern "C" __global__ void sum_columns(const T* x, A* parts, size N, size D) {
    __shared__ A scratch[8][33];
    size column = blockIdx.x * 32 + threadIdx.x, part = blockIdx.y, count = gridDim.y;
    size first = N * part / count, last = N * (part + 1) / count;
    A sum = 0;
    if (column < D)
        for (size row = first + threadIdx.y; row < last; row += 8) sum += (A)x[row * D + column];
    sum = sum_of_lines(sum, scratch);
    if (threadIdx.y == 0 && column < D) parts[part * D + column] = sum;
}

// The sums over the parts of two matrices parts (2, P, D), or of the first of them: first (D,) and second (D,).
extern "C" __global__ void sum_parts(const A* parts, A* first, A* second, size P, size D) {
    __shared__ double scratch[8][33];
    size column = blockIdx.x * 32 + threadIdx.x;
    parts += blockIdx.y * P * D;
    A* out = blockIdx.y == 0 ? first : second;
    double sum = 0;
    if (column < D)
        for (size part = threadIdx.y; part < P; part += 8) sum += parts[part * D + column];
    sum = sum_of_lines(sum, scratch);
    if (threadIdx.y == 0 && column < D && out) out[column] = sum;
}
"""


def sum_columns(x: Array) -> Array:
    """Σ_n x_nd for x (N, D): (D,), in float32 for x of 16 bits."""
    xp = array_module(x)
    x = xp.ascontiguousarray(x)
    N, D = x.shape
    parts = max(1, divide(N, LINES * LONGEST))
    out = xp.empty(D, dtype=computed_in(x))
    sums = out if parts == 1 else xp.empty((parts, D), dtype=out.dtype)
    launch("rows", "sum_columns", x, (divide(D, COLUMNS), parts), (COLUMNS, LINES), x, sums, N, D)
    if parts > 1:
        sum_parts(sums, out, None)
    return out


def sum_parts(parts: Array, first: Array | None, second: Array | None) -> None:
    """Write the sums over the parts of parts (P, D) into first (D,); or of parts (2, P, D) into first and second, of
    which one may be None."""
    P, D = parts.shape[-2:]
    blocks = divide(D, COLUMNS), parts.ndim - 1
    launch("rows", "sum_parts", parts, blocks, (COLUMNS, LINES), parts, first, second, P, D)
