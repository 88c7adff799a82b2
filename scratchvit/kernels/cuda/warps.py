"""What the threads of a warp, or all that share a row, find together: sums and maxima.

    plain       Σ_i x_i and max_i x_i, where every thread has an x
    problem     a thread does not see the registers of others, and to write them to shared memory takes a barrier
    idea        threads of a warp exchange registers (`__shfl_xor_sync`) with those 16, 8, 4, 2 and 1 lanes apart. Then
                all 32 have the sum. The warps of a row exchange theirs by shared memory

Threads share a row if they differ in threadIdx.x only. If they are one warp, blockDim.x = 32, they need no shared
memory, and a block can have several rows. With more threads to a row, a block has one.

A module whose text has no barriers and exchanges runs faster on tests/fakegpu, so this text is not in all of them.
"""

TEXT = r"""
// --- warps.py ---

#define ALL_LANES 0xffffffffu

// The sum over the 32 lanes of a warp, which every lane gets.
template <class S> __device__ inline S warp_sum(S value) {
    for (int apart = 16; apart > 0; apart /= 2) value += __shfl_xor_sync(ALL_LANES, value, apart);
    return value;
}

// The largest of the values of a warp, which every lane gets.
__device__ inline A warp_max(A value) {
    for (int apart = 16; apart > 0; apart /= 2) value = fmax(value, __shfl_xor_sync(ALL_LANES, value, apart));
    return value;
}

// The sum over the threads of a row, which all of them get. of_warps: shared memory that nothing else is written to.
__device__ inline A row_sum(A value, A* of_warps) {
    value = warp_sum(value);
    if (blockDim.x == 32) return value;
    if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = value;
    __syncthreads();
    double sum = 0;
    for (int warp = 0; warp < blockDim.x / 32; warp++) sum += of_warps[warp];
    return sum;
}

// The largest of the values of a row, as row_sum.
__device__ inline A row_max(A value, A* of_warps) {
    value = warp_max(value);
    if (blockDim.x == 32) return value;
    if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = value;
    __syncthreads();
    for (int warp = 0; warp < blockDim.x / 32; warp++) value = fmax(value, of_warps[warp]);
    return value;
}

// The sum over a block of at most 256 threads, which every thread gets; it may be called again.
__device__ inline A block_sum(A value) {
    __shared__ A of_warps[8];
    value = row_sum(value, of_warps);
    __syncthreads(); // until all have read, before the next sums are written
    return value;
}
"""
