"""Sums and maxima over a warp or a block. Modules without them have no barriers, and are faster on tests/fakegpu."""

TEXT = r"""
// --- warps.py ---

#define ALL_LANES 0xffffffffu

// The sum over the 32 lanes of a warp, which every lane gets.
template <class S> __device__ inline S warp_sum(S value) {
    for (int apart = 16; apart > 0; apart /= 2) value += __shfl_xor_sync(ALL_LANES, value, apart);
    return value;
}

// The sum over a block of 256 threads, which every thread gets.
__device__ inline A block_sum(A value) {
    __shared__ A sums[8];
    value = warp_sum(value);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = value;
    __syncthreads();
    double sum = 0;
    for (int warp = 0; warp < 8; warp++) sum += sums[warp];
    __syncthreads(); // until all have read, before the next sum is written
    return sum;
}

// The maximum over the 32 lanes of a warp, which every lane gets.
__device__ inline A warp_max(A value) {
    for (int apart = 16; apart > 0; apart /= 2) value = fmax(value, __shfl_xor_sync(ALL_LANES, value, apart));
    return value;
}
"""
