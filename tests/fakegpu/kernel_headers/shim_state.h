// What kernels (shim.h) and the code that runs their threads (src/fibers.cpp) share.
#pragma once
#include <cstddef>
#include <cstdint>

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x, y, z;
};

struct ShimState {
    uint3 thread, block; // threadIdx, blockIdx
    dim3 block_dim, grid_dim;
    int current; // number of the thread in its block
    bool fibers;
    char* dynamic_shared;
};

// How the threads of a kernel run.
enum ShimMode {
    SHIM_ONE_THREAD, // one thread does the work of all: CuPy's CUPY_FOR visits every index
    SHIM_SERIAL,     // one after the other; the kernel has no barriers
    SHIM_FIBERS,     // as fibers, which barriers and shuffles switch
};

extern "C" {
extern ShimState shim_state;
void shim_block_barrier();
void shim_warp_barrier(unsigned mask);
uint64_t shim_exchange(unsigned mask, uint64_t value, int from);
unsigned shim_ballot(unsigned mask, int predicate);
unsigned shim_active();
int shim_block_count(int predicate);
void shim_run(const char* name, void (*entry)(void*), void* argument, int mode, dim3 grid, dim3 block, unsigned shared,
              char* shared_begin, char* shared_end);
}
