// The state of the one device: what streams.cpp, graphs.cpp, memory.cpp, modules.cpp and runtime.cpp share.
#pragma once
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <chrono>
#include <cstddef>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>
#include "interface.h"

struct FakegpuCounts { // python/fakegpu/device.py names these fields in the same order
    long launches, mallocs, frees, malloc_bytes, h2d, d2h, d2d, memsets, syncs, event_records, event_syncs, gemms,
        module_loads, illegal_in_capture, h2d_bytes, d2h_bytes, host_allocs, graph_launches, errors;
};
extern "C" {
extern FakegpuCounts fakegpu_counts;
extern int fakegpu_execute; // 0: work is counted and not done
}

namespace fakegpu {

// --- settings, errors, tracing (runtime.cpp) ---

extern const int poison;   // FAKEGPU_POISON
extern const int guard;    // FAKEGPU_GUARD
extern const bool delayed; // FAKEGPU_ASYNC
extern const size_t memory_limit;
std::string setting(const char* name, const char* otherwise);

extern std::recursive_mutex state_mutex;
#define LOCK std::lock_guard<std::recursive_mutex> lock_(state_mutex)
#define TRY(call)                                                                                                      \
    do {                                                                                                               \
        if (cudaError_t error_ = (call)) return error_;                                                                \
    } while (0)

cudaError_t fail(cudaError_t error); // remember it for cudaGetLastError
void complain(const char* format, ...) __attribute__((format(printf, 1, 2)));
void event(const char* what, const char* name = "", long a = 0, long b = 0); // tell the tracer

// --- streams and events (streams.cpp) ---

using Work = std::function<void()>;
struct Stream;
struct Capture;

struct Mark { // one recording of an event; done once its stream has come to it
    Stream* stream;
    bool done = false;
    std::chrono::steady_clock::time_point when;
};

struct Event {
    std::shared_ptr<Mark> mark;
    Capture* capture = nullptr; // where it was recorded, if that was in a capture, and
    std::vector<int> frontier;  // after which nodes
    bool timing = true;
};

struct Operation { // work, the recording of an event, or waiting for one
    Work work;
    std::shared_ptr<Mark> record, wait;
};

struct Stream {
    bool blocking; // it and the legacy default stream wait for each other
    int priority = 0;
    Capture* capture = nullptr;
    std::vector<int> frontier;   // nodes of the capture that its next node depends on
    std::deque<Operation> queue; // not done yet; only with FAKEGPU_ASYNC=1
};

extern Stream legacy; // the default stream
Stream* stream_of(const void* handle);
void finish(Stream* stream);
void finish_all();
cudaError_t perform(Stream* stream, const std::string& name, Work work, bool also_when_counting = false);

// --- captures and graphs (graphs.cpp) ---

struct Graph { // nodes in the order of their capture, in which a launch runs them
    struct Node {
        Work work;
        std::string name;
        std::vector<int> after;
    };
    std::vector<Node> nodes;
};

struct Capture {
    Stream* origin;
    cudaStreamCaptureMode mode;
    std::thread::id thread;
    bool invalid = false;
    Graph graph;
    std::set<Stream*> streams;
};

extern std::set<Capture*> captures; // those in progress
cudaError_t invalidate(Capture* capture, const char* what, cudaError_t error);
cudaError_t check_unsafe_call(const char* what);
cudaError_t check_legacy_stream(Stream* stream, const char* what);

// --- memory (memory.cpp) ---

struct Block {
    size_t size;
    char* base; // of what the operating system gave, or null if it belongs to somebody else
    size_t mapped;
    bool device;
};

extern std::map<char*, Block> blocks;
const Block* find_block(const void* pointer, size_t size); // that contains these bytes, or null
void watch_faults();

} // namespace fakegpu
