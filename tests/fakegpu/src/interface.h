// What the parts of the stand-in ask of each other; these functions are in libcuda.so.1.
#pragma once
#include <cstddef>
#include <cstdint>

extern "C" {
// Do run(a copy of arguments) on a stream, in the order of its work: now, later (FAKEGPU_ASYNC=1), or as a node of the
// graph that is being captured. kind: "launch" or "gemm", for the counters. Returns a cudaError_t.
int fakegpu_perform(void* stream, const char* kind, const char* name, long a, long b, void (*run)(void*),
                    const void* arguments, size_t size);

// Say on stderr that the stand-in does not have this function.
void fakegpu_missing(const char* name);

// Write which kernel, block and thread is running.
void fakegpu_describe_thread(char* out, size_t size);
}
