// A stand-in for cub::BlockReduce, as CuPy's reductions use it: the total is right in thread 0 only, and -1 bytes
// elsewhere. The order of the sums is not cub's: each thread's items first, then warps by halves, then the warps in
// turn.
#pragma once
namespace cub {
enum BlockReduceAlgorithm { BLOCK_REDUCE_RAKING_COMMUTATIVE_ONLY, BLOCK_REDUCE_RAKING, BLOCK_REDUCE_WARP_REDUCTIONS };
template <class T, int THREADS, BlockReduceAlgorithm A = BLOCK_REDUCE_WARP_REDUCTIONS> struct BlockReduce {
    struct TempStorage {
        alignas(16) unsigned char bytes[sizeof(T) * THREADS];
    };
    TempStorage& storage;
    explicit BlockReduce(TempStorage& t) : storage(t) {}
    template <class F> T Reduce(T value, F op, int valid = THREADS) {
        int i = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
        T* all = (T*)storage.bytes;
        memcpy((void*)&all[i], (const void*)&value, sizeof(T));
        __syncthreads();
        if (i == 0) {
            for (int w = 0; w < valid; w += 32)
                for (int by = 1; by < 32; by *= 2)
                    for (int l = w; l < w + 32; l += 2 * by)
                        if (l < valid && l + by < valid && l + by < w + 32) all[l] = op(all[l], all[l + by]);
            T total = all[0];
            for (int w = 32; w < valid; w += 32) total = op(total, all[w]);
            return total;
        }
        T nothing;
        memset((void*)&nothing, 0xFF, sizeof(T));
        return nothing;
    }
    template <int ITEMS, class F> T Reduce(T (&items)[ITEMS], F op) {
        T mine = items[0];
        for (int j = 1; j < ITEMS; j++) mine = op(mine, items[j]);
        return Reduce(mine, op);
    }
    T Sum(T value) {
        return Reduce(value, [](const T& a, const T& b) { return T(a + b); });
    }
    T Sum(T value, int valid) {
        return Reduce(value, [](const T& a, const T& b) { return T(a + b); }, valid);
    }
};
} // namespace cub
