"""Sums of rows by an index: one launch if the index is short, otherwise a sort and one launch.

    plain       out_j = Σ_i values_i over all i with index_i = j;  index (N,), values (N, D), out (size, D)
    problem     by a sort and CuPy's sums of segments: 32 operations, for the bias table of every block of Swin
    idea        a block computes 32 columns of one row of `out`. It reads the whole index, and adds the rows where it
                finds its own number. N · size comparisons are quick while the index is in the cache; beyond LARGEST
                of them, the index is sorted first, and the block finds its rows by bisection
    who

        index   3 1 1 0 2 1 …           block (j, c): out_j, columns 32 c … 32 c + 31. Warp w of 8 looks at the
        i       0 1 2 3 4 5 …           positions 32 w … 32 w + 31 of every 256: a lane at each. All lanes then add
                                        values_i for each i that one has found: lane l column 32 c + l.
                                        The sums of the eight warps are added in order

The order of the additions depends on the index alone. They are made in float64, since an index may select one entry any
number of times.
"""

from __future__ import annotations

import numpy as np

from scratchvit.backend import Array, array_module
from scratchvit.kernels.cuda.modules import divide, launch

COLUMNS, WARPS = 32, 8          # of a block
LARGEST = 1 << 26               # comparisons without a sort

TEXT = r"""
// --- index_sums.py ---

// out_j for row j = blockIdx.x of out (rows, D): the sum of the values_i with index_i = j, or j - rows. values_i begin
// at i * next_row, and are next_column apart. index: integers of 4 or 8 bytes.
extern "C" __global__ void sum_by_index(const void* index, size index_bytes, const T* values, size next_row,
                                        size next_column, T* out, size N, size D, size rows) {
    __shared__ double scratch[8][33];
    size row = blockIdx.x, column = blockIdx.y * 32 + threadIdx.x;
    double sum = 0;
    for (size first = threadIdx.y * 32; first < N; first += 256) {
        size i = first + threadIdx.x, found = rows;
        if (i < N) found = index_bytes == 4 ? ((const int*)index)[i] : ((const size*)index)[i];
        unsigned int lanes = __ballot_sync(ALL_LANES, found == row || found == row - rows);
        for (; lanes; lanes &= lanes - 1) // the lowest bit is done
            if (column < D) sum += (A)values[(first + __ffs(lanes) - 1) * next_row + column * next_column];
    }
    sum = sum_of_lines(sum, scratch);
    if (threadIdx.y == 0 && column < D) out[row * D + column] = (A)sum;
}

// The first position of sorted (N,) whose number is at least `number`.
__device__ inline size bisect(const size* sorted, size N, size number) {
    size first = 0, last = N;
    while (first < last) {
        size middle = (first + last) / 2;
        if (sorted[middle] < number) first = middle + 1;
        else last = middle;
    }
    return first;
}

// The same for an index that is sorted: sorted_i = index[order_i].
extern "C" __global__ void sum_by_sorted_index(const size* sorted, const size* order, const T* values, size next_row,
                                               size next_column, T* out, size N, size D, size rows) {
    __shared__ double scratch[8][33];
    size row = blockIdx.x, column = blockIdx.y * 32 + threadIdx.x;
    double sum = 0;
    for (size number = row - rows; number <= row; number += rows) {
        size last = bisect(sorted, N, number + 1);
        for (size i = bisect(sorted, N, number) + threadIdx.y; i < last; i += 8)
            if (column < D) sum += (A)values[order[i] * next_row + column * next_column];
    }
    sum = sum_of_lines(sum, scratch);
    if (threadIdx.y == 0 && column < D) out[row * D + column] = (A)sum;
}
"""


def sum_by_index(index: Array, values: Array, size: int) -> Array:
    """out[j] = Σ values[i] over all i with index[i] = j: see kernels/index_sums.py. values of any strides."""
    xp = array_module(values)
    out = xp.empty((size, *values.shape[1:]), dtype=values.dtype)
    N, D = len(index), out.size // max(1, size)
    steps = [stride // values.itemsize for stride in values.strides]
    given = values, steps[0], steps[1] if values.ndim > 1 else 0, out, N, D, size
    blocks, threads = (size, divide(D, COLUMNS)), (COLUMNS, WARPS)
    if N * size * blocks[1] <= LARGEST:
        if index.dtype.char != "i":
            index = index.astype(np.int64, copy=False)
        index = xp.ascontiguousarray(index)
        launch("rows", "sum_by_index", values, blocks, threads, index, index.itemsize, *given)
    else:
        index = index.astype(np.int64, copy=False)
        order = xp.argsort(index, kind="stable")
        launch("rows", "sum_by_sorted_index", values, blocks, threads, index[order], order, *given)
    return out
