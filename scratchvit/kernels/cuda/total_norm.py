"""The norm of all gradients together, and the factor that clips it.

    plain       √Σ x² over all entries of all arrays; min(1, max_norm / (norm + 1e-6))
    problem     a product and a sum for each of hundreds of arrays, and eight operations on single numbers
    idea        a first kernel sums the squares of 4,096 entries of an array, for 64 arrays at once (array_lists.py). A
                second adds these parts, for which one block is enough
    who

        arrays          4,096 entries   4,096   …               thread i of a block adds the squares of the
                        ┌─────────────┬───────┬──               entries i, i + 256, …: at most 16. The 256
        parts           Σ by block 0    1       …               sums are added in pairs: thread i adds that
                        └─────────────┴───────┴──               of i + 128, then that of i + 64, …
        norm            √Σ by one block, in float64

In float32 the norm is infinite if the sum of the squares is too large for float32, as it is on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence

from scratchvit.backend import Array, array_module
from scratchvit.kernels.cuda.array_lists import THREADS, tables
from scratchvit.kernels.cuda.modules import launch

TEXT = r"""
// --- total_norm.py ---

// The sum of `value` over the 256 threads of a block, which thread 0 gets.
template <class S> __device__ S sum_of_block(S value, S* scratch) {
    scratch[threadIdx.x] = value;
    for (int apart = 128; apart > 0; apart /= 2) {
        __syncthreads();
        if (threadIdx.x < apart) scratch[threadIdx.x] += scratch[threadIdx.x + apart];
    }
    return scratch[0];
}

// The sum of squares of each block's entries of rows (x): parts[0], …, parts[gridDim.x - 1].
extern "C" __global__ void sum_squares(Rows rows, A* parts) {
    __shared__ A scratch[256];
    Piece piece = own_piece(rows);
    const A* x = rows.at[0][piece.row];
    A sum = 0;
    for (size i = piece.first + threadIdx.x; i < piece.last; i += 256) sum += (A)x[i] * (A)x[i];
    sum = sum_of_block(sum, scratch);
    if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

// The square root of the sum of parts (P,), by one block.
extern "C" __global__ void root_of_sum(const A* parts, T* norm, size P) {
    __shared__ double scratch[256];
    double sum = 0;
    for (size i = threadIdx.x; i < P; i += 256) sum += parts[i];
    sum = sum_of_block(sum, scratch);
    if (threadIdx.x == 0) *norm = sqrt((A)sum);
}

// min(1, max_norm / (norm + 1e-6)), which is NaN if the norm is. One thread.
extern "C" __global__ void clip_factor(const T* norm, T* factor, double max_norm) {
    A quotient = (A)max_norm / ((A)*norm + (A)1e-6);
    *factor = quotient > 1 ? (A)1 : quotient;
}
"""


def total_norm(rows: Sequence[Sequence[Array]]) -> Array:
    """√Σ x² over rows (x,): a 0-d array."""
    like = rows[0][0]
    xp = array_module(like)
    listed = list(tables(rows))
    P = sum(table.blocks for table in listed)
    parts, norm = xp.empty(P, dtype=like.dtype), xp.empty((), dtype=like.dtype)
    start = 0
    for table in listed:
        launch("norms", "sum_squares", like, (table.blocks,), (THREADS,), table.rows, parts[start:])
        start += table.blocks
    launch("norms", "root_of_sum", like, (1,), (THREADS,), parts, norm, P)
    return norm


def clip_factor(norm: Array, max_norm: float) -> Array:
    """min(1, max_norm / (norm + 1e-6)) for a 0-d norm: a 0-d array."""
    factor = array_module(norm).empty_like(norm)
    launch("norms", "clip_factor", norm, (1,), (1,), norm, factor, float(max_norm))
    return factor
