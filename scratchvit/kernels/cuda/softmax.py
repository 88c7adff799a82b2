"""Softmax of rows and its logarithm: one launch forward, one backward.

    plain       p_i = e^(x_i - m) / Σ e^(x_j - m),  m = max x,  dx = p (dy - Σ p dy)
                log p_i = x_i - m - log Σ e^(x_j - m),          dx = dy - p Σ dy
    problem     five operations forward and four backward, each of which reads and writes whole arrays
    idea        the threads of a row keep its numbers in registers between the maximum, the sum and the division
    who

        x (R, M)                                      A thread has at most EACH numbers of a row. So 32 threads do for
        row 0   threads 0 … 31                        a row of up to 256, and a block has four rows; a row of 512 has
        row 1   threads 0 … 31    columns t,          64 threads, and one of 4,096 has 512, a block to itself
        row 2   threads 0 … 31    t + threads,
        row 3   threads 0 … 31    t + 2 threads, …
"""

from __future__ import annotations

from scratchvit.backend import Array, array_module
from scratchvit.kernels import cuda
from scratchvit.kernels.cuda.modules import divide, launch

EACH = 8                        # numbers of a thread
MOST_THREADS = 512              # of a block
ROWS = 4                        # of a block whose rows have a warp each

TEXT = r"""
// --- softmax.py ---

#define EACH 8

__device__ inline size own_row() { return blockIdx.x * (size)blockDim.y + threadIdx.y; }

// The j-th column of this thread.
__device__ inline size own_column(int j) { return threadIdx.x + j * (size)blockDim.x; }

// Replace x, this thread's numbers of a row, by exp(x - m), where m is the largest number of the row, but at least
// `lowest`. Returns m and, in sum, the sum over the row.
__device__ inline A exponentials(A* x, A lowest, A* sum) {
    __shared__ A maxima[16], sums[16];
    A m = lowest, own_sum = 0;
    for (int j = 0; j < EACH; j++) m = fmax(m, x[j]);
    m = row_max(m, maxima);
    for (int j = 0; j < EACH; j++) own_sum += x[j] = exp(x[j] - m);
    *sum = row_sum(own_sum, sums);
    return m;
}

// y = softmax(x) of the rows of x (R, M) or, if logarithm is not 0, log softmax(x).
extern "C" __global__ void __launch_bounds__(512) softmax(const T* x, T* y, size R, size M, size logarithm) {
    size row = own_row();
    if (row >= R) return;
    x += row * M;
    y += row * M;
    A e[EACH], sum;
    for (int j = 0; j < EACH; j++) e[j] = own_column(j) < M ? (A)x[own_column(j)] : -INFINITY;
    A m = exponentials(e, -INFINITY, &sum), r = 1 / sum, log_sum = log(sum);
    for (int j = 0; j < EACH; j++) {
        size i = own_column(j);
        if (i < M) y[i] = logarithm ? (A)x[i] - m - log_sum : e[j] * r;
    }
}

// dx, for y as that kernel wrote it.
extern "C" __global__ void __launch_bounds__(512) softmax_backward(const T* y, const T* dy, T* dx, size R, size M,
                                                                    size logarithm) {
    __shared__ A sums[16];
    size row = own_row();
    if (row >= R) return;
    y += row * M;
    dy += row * M;
    A p[EACH], given[EACH], own_sum = 0;
    for (int j = 0; j < EACH; j++) {
        size i = own_column(j);
        p[j] = given[j] = 0;
        if (i >= M) continue;
        p[j] = logarithm ? exp((A)y[i]) : (A)y[i];
        given[j] = (A)dy[i];
        own_sum += logarithm ? given[j] : p[j] * given[j];
    }
    A sum = row_sum(own_sum, sums);
    for (int j = 0; j < EACH; j++) {
        size i = own_column(j);
        if (i < M) dx[row * M + i] = logarithm ? given[j] - p[j] * sum : p[j] * (given[j] - sum);
    }
}
"""


def fits(M: int) -> bool:
    """Whether the threads of a block can keep a row of M numbers in registers: up to 4,096."""
    return M <= EACH * MOST_THREADS


def takes(x: Array, dim: int) -> bool:
    """Whether `softmax` computes that of x along the axis dim."""
    return cuda.takes(x) and dim == x.ndim - 1 and fits(x.shape[dim])


def softmax(x: Array, logarithm: bool):
    """Value and backward of softmax, or of its logarithm, over the last axis of x: see ops/attention.py."""
    xp, (M,) = array_module(x), x.shape[-1:]
    R = x.size // M
    x = xp.ascontiguousarray(x)
    y = xp.empty_like(x)
    launch("rows", "softmax", x, *blocks_of_rows(R, M), x, y, R, M, int(logarithm))

    def backward(dy: Array) -> Array:
        dy = xp.ascontiguousarray(dy)
        dx = xp.empty_like(dy)
        launch("rows", "softmax_backward", y, *blocks_of_rows(R, M), y, dy, dx, R, M, int(logarithm))
        return dx

    return y, backward


def blocks_of_rows(R: int, M: int) -> tuple[tuple[int], tuple[int, int]]:
    """The grid and the shape of a block for R rows of M numbers, of which a thread has at most EACH."""
    threads = 32
    while threads * EACH < M:
        threads *= 2
    rows = ROWS if threads == 32 else 1
    return (divide(R, rows),), (threads, rows)
