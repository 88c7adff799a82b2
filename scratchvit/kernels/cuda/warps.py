"""Sum and maximum over a warp. Modules without them have no barriers: tests/fakegpu runs these much faster."""

TEXT = r"""
// --- warps.py ---

#define ALL_LANES 0xffffffffu

// The sum over the 32 lanes of a warp, which every lane gets.
__device__ inline A warp_sum(A value) {
    for (int apart = 16; apart > 0; apart /= 2) value += __shfl_xor_sync(ALL_LANES, value, apart);
    return value;
}

// The maximum over the 32 lanes of a warp, which every lane gets.
__device__ inline A warp_max(A value) {
    for (int apart = 16; apart > 0; apart /= 2) value = fmax(value, __shfl_xor_sync(ALL_LANES, value, apart));
    return value;
}
"""
