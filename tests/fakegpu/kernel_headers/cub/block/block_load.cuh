// A stand-in for cub::BlockLoad, as CuPy's reductions use it: item j of thread t is number t * ITEMS + j.
#pragma once
namespace cub {
enum BlockLoadAlgorithm {
    BLOCK_LOAD_DIRECT,
    BLOCK_LOAD_STRIPED,
    BLOCK_LOAD_VECTORIZE,
    BLOCK_LOAD_TRANSPOSE,
    BLOCK_LOAD_WARP_TRANSPOSE
};
template <class T, int THREADS, int ITEMS, BlockLoadAlgorithm A = BLOCK_LOAD_DIRECT> struct BlockLoad {
    struct TempStorage {
        int unused;
    };
    explicit BlockLoad(TempStorage&) {}
    template <class In> void Load(In from, T (&items)[ITEMS]) {
        for (int j = 0; j < ITEMS; j++) items[j] = from[threadIdx.x * ITEMS + j];
    }
    template <class In> void Load(In from, T (&items)[ITEMS], int valid) {
        for (int j = 0; j < ITEMS; j++)
            if ((int)threadIdx.x * ITEMS + j < valid) items[j] = from[threadIdx.x * ITEMS + j];
    }
    template <class In, class D> void Load(In from, T (&items)[ITEMS], int valid, D otherwise) {
        for (int j = 0; j < ITEMS; j++) {
            if ((int)threadIdx.x * ITEMS + j < valid)
                items[j] = from[threadIdx.x * ITEMS + j];
            else
                items[j] = otherwise;
        }
    }
};
} // namespace cub
