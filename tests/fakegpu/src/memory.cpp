// Device and pinned memory: allocations, copies, fills, and guards against access beyond their ends.
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include "device.h"

namespace fakegpu {

std::map<char*, Block> blocks;
static size_t in_use = 0;
static const size_t PAGE = 4096, FENCE = 256;
static const unsigned char FENCE_BYTE = 0xA5;
static std::vector<std::pair<char*, size_t>> freed; // pages of the last allocations that were freed; with guard 2

static size_t round_up(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }

const Block* find_block(const void* pointer, size_t size) {
    auto it = blocks.upper_bound((char*)pointer);
    if (it == blocks.begin()) return nullptr;
    --it;
    bool inside = (char*)pointer + size <= it->first + std::max<size_t>(it->second.size, 1);
    return inside ? &it->second : nullptr;
}

static bool is_on_device(const void* pointer, size_t size) {
    const Block* block = find_block(pointer, size);
    return block && block->device;
}

// --- guards ---
// 1: a fence of known bytes before and behind every allocation, which is looked at when it is freed.
// 2: every allocation ends (up to 16 bytes) at a page that must not be touched, so that the faulty access itself stops.

static void check_fences(char* pointer, const Block& block) {
    if (!guard || !block.base) return;
    auto* begin = (unsigned char*)pointer;
    unsigned char* end = begin + block.size;
    size_t behind = guard == 1 ? FENCE : (size_t)(-(intptr_t)end & 15);
    for (size_t i = 0; i < behind; i++)
        if (end[i] != FENCE_BYTE) {
            complain("memory was written out of bounds: byte %zu after the end of %zu bytes", i, block.size);
            abort();
        }
    for (size_t i = 1; guard == 1 && i <= FENCE; i++)
        if (begin[-(ptrdiff_t)i] != FENCE_BYTE) {
            complain("memory was written out of bounds: byte %zu before %zu bytes", i, block.size);
            abort();
        }
}

static struct sigaction previous_handler;

static void on_fault(int signal_number, siginfo_t* info, void*) {
    char thread[256] = "", line[600] = "";
    fakegpu_describe_thread(thread, sizeof thread);
    auto* address = (char*)info->si_addr;
    for (auto& [pointer, block] : blocks)
        if (block.device && address >= block.base && address < block.base + block.mapped)
            snprintf(line, sizeof line, "\nfakegpu: OUT OF BOUNDS in %s: %ld bytes %s an allocation of %zu bytes\n",
                     thread, std::labs(address - pointer), address < pointer ? "before" : "after the beginning of",
                     block.size);
    for (auto& [base, mapped] : freed)
        if (address >= base && address < base + mapped)
            snprintf(line, sizeof line, "\nfakegpu: FREED MEMORY touched in %s\n", thread);
    if (*line && write(2, line, strlen(line)) < 0) abort();
    sigaction(signal_number, &previous_handler, nullptr); // the access is repeated, for Python's faulthandler
}

void watch_faults() {
    if (guard != 2) return;
    static char own_stack[64 << 10];
    stack_t stack{own_stack, 0, sizeof own_stack}, current;
    sigaltstack(nullptr, &current);
    if (current.ss_flags & SS_DISABLE) sigaltstack(&stack, nullptr);
    struct sigaction action{}, before{};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigaction(SIGSEGV, &action, &before);
    if (before.sa_sigaction != on_fault) previous_handler = before;
}

// --- allocations ---

static char* allocate_before_forbidden_page(size_t size, Block& block) {
    size_t room = round_up(size, 16), pages = round_up(room, PAGE);
    block.mapped = pages + 2 * PAGE;
    block.base = (char*)mmap(nullptr, block.mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (block.base == MAP_FAILED) return nullptr;
    mprotect(block.base + PAGE, pages, PROT_READ | PROT_WRITE);
    char* pointer = block.base + PAGE + pages - room;
    memset(pointer + size, FENCE_BYTE, room - size);
    return pointer;
}

static char* allocate(size_t size, bool device) {
    if (device && size > memory_limit - in_use) return nullptr;
    Block block{size, nullptr, 0, device};
    char* pointer;
    if (guard == 2 && device) {
        pointer = allocate_before_forbidden_page(size, block);
        if (!pointer) return nullptr;
    } else { // aligned to 512 bytes, as CUDA's
        bool fenced = guard == 1 && device;
        block.base = (char*)aligned_alloc(512, std::max<size_t>(round_up(size, 512) + (fenced ? 1024 : 0), 512));
        if (!block.base) return nullptr;
        pointer = block.base + (fenced ? 512 : 0);
        if (fenced) {
            memset(pointer - FENCE, FENCE_BYTE, FENCE);
            memset(pointer + size, FENCE_BYTE, FENCE);
        }
    }
    if (poison && device && fakegpu_execute) memset(pointer, 0xFF, size);
    if (device) in_use += size;
    blocks[pointer] = block;
    return pointer;
}

static bool release(void* pointer) {
    auto it = blocks.find((char*)pointer);
    if (it == blocks.end()) return false;
    Block block = it->second;
    if (block.device) {
        check_fences(it->first, block);
        in_use -= block.size;
    }
    blocks.erase(it);
    if (guard == 2 && block.device) { // the addresses stay taken for a while, to see who still uses them
        mprotect(block.base, block.mapped, PROT_NONE);
        madvise(block.base, block.mapped, MADV_DONTNEED);
        freed.push_back({block.base, block.mapped});
        if (freed.size() > 4096) {
            munmap(freed.front().first, freed.front().second);
            freed.erase(freed.begin());
        }
    } else {
        if (poison && block.device && fakegpu_execute) memset(pointer, 0xFF, block.size);
        free(block.base);
    }
    return true;
}

// --- copies ---

static const char* const KINDS[] = {"h2h", "h2d", "d2h", "d2d"};

static void count_copy(cudaMemcpyKind kind, size_t size) {
    if (kind == cudaMemcpyHostToDevice) {
        fakegpu_counts.h2d++;
        fakegpu_counts.h2d_bytes += size;
    } else if (kind == cudaMemcpyDeviceToHost) {
        fakegpu_counts.d2h++;
        fakegpu_counts.d2h_bytes += size;
    } else if (kind == cudaMemcpyDeviceToDevice)
        fakegpu_counts.d2d++;
}

static cudaError_t copy(void* to, const void* from, size_t size, cudaMemcpyKind kind, Stream* stream, bool waits) {
    LOCK;
    bool to_device = is_on_device(to, size), from_device = is_on_device(from, size);
    if (kind == cudaMemcpyDefault) kind = (cudaMemcpyKind)(to_device + 2 * from_device);
    bool needs_to = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    bool needs_from = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    count_copy(kind, size);
    event(waits ? "memcpy" : "memcpyAsync", KINDS[kind], size);
    if (size && ((needs_to && !to_device) || (needs_from && !from_device))) {
        complain("a copy %s of %zu bytes leaves its device memory", KINDS[kind], size);
        return fail(cudaErrorInvalidValue);
    }
    if (waits) {
        TRY(check_unsafe_call("cudaMemcpy"));
        TRY(check_legacy_stream(&legacy, "cudaMemcpy"));
        finish(&legacy);
        if (fakegpu_execute || kind != cudaMemcpyDeviceToDevice) memmove(to, from, size);
        return cudaSuccess;
    }
    bool is_pinned = find_block(needs_to ? from : to, size); // the host's side
    if (stream->capture) {
        event(kind == cudaMemcpyDeviceToDevice ? "copy in capture"
              : is_pinned                      ? "pinned copy in capture"
                                               : "pageable copy in capture",
              KINDS[kind], size);
        return perform(stream, std::string("memcpy ") + KINDS[kind], [=] { memmove(to, from, size); });
    }
    bool also_when_counting = kind != cudaMemcpyDeviceToDevice;
    if (delayed && kind == cudaMemcpyHostToDevice &&
        !is_pinned) { // CUDA has read pageable memory when the call returns
        auto staged = std::make_shared<std::vector<char>>((const char*)from, (const char*)from + size);
        return perform(stream, "memcpy", [=] { memcpy(to, staged->data(), size); }, also_when_counting);
    }
    TRY(perform(stream, "memcpy", [=] { memmove(to, from, size); }, also_when_counting));
    if (kind == cudaMemcpyDeviceToHost && !is_pinned) finish(stream); // CUDA waits for a copy to pageable memory
    return cudaSuccess;
}

static cudaError_t fill(void* pointer, int value, size_t size, Stream* stream) {
    LOCK;
    fakegpu_counts.memsets++;
    event("memset", "", size);
    if (size && !is_on_device(pointer, size)) {
        complain("a memset of %zu bytes leaves its device memory", size);
        return fail(cudaErrorInvalidValue);
    }
    return perform(stream, "memset", [=] { memset(pointer, value, size); });
}

} // namespace fakegpu

using namespace fakegpu;

extern "C" {

cudaError_t cudaMalloc(void** pointer, size_t size) {
    LOCK;
    fakegpu_counts.mallocs++;
    fakegpu_counts.malloc_bytes += size;
    event("malloc", "", size);
    TRY(check_unsafe_call("cudaMalloc"));
    *pointer = size ? allocate(size, true) : nullptr;
    return *pointer || !size ? cudaSuccess : fail(cudaErrorMemoryAllocation);
}

cudaError_t cudaFree(void* pointer) {
    if (!pointer) return cudaSuccess;
    LOCK;
    fakegpu_counts.frees++;
    event("free");
    TRY(check_unsafe_call("cudaFree"));
    finish_all();
    return release(pointer) ? cudaSuccess : fail(cudaErrorInvalidValue);
}

cudaError_t cudaHostAlloc(void** pointer, size_t size, unsigned) {
    LOCK;
    fakegpu_counts.host_allocs++;
    event("host alloc", "", size);
    TRY(check_unsafe_call("cudaHostAlloc"));
    *pointer = allocate(size, false);
    return *pointer ? cudaSuccess : fail(cudaErrorMemoryAllocation);
}

cudaError_t cudaFreeHost(void* pointer) {
    LOCK;
    TRY(check_unsafe_call("cudaFreeHost"));
    finish_all();
    return !pointer || release(pointer) ? cudaSuccess : fail(cudaErrorInvalidValue);
}

cudaError_t cudaHostRegister(void* pointer, size_t size, unsigned) {
    LOCK;
    blocks[(char*)pointer] = {size, nullptr, 0, false};
    return cudaSuccess;
}

cudaError_t cudaHostUnregister(void* pointer) {
    LOCK;
    finish_all();
    blocks.erase((char*)pointer);
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t* available, size_t* total) {
    LOCK;
    *available = memory_limit - in_use;
    *total = memory_limit;
    return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
    LOCK;
    *attributes = {};
    const Block* block = find_block(pointer, 0);
    attributes->type = !block ? cudaMemoryTypeUnregistered : block->device ? cudaMemoryTypeDevice : cudaMemoryTypeHost;
    attributes->device = block ? 0 : cudaInvalidDeviceId;
    if (block) attributes->devicePointer = (void*)pointer;
    if (block && !block->device) attributes->hostPointer = (void*)pointer;
    return cudaSuccess;
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t size, cudaMemcpyKind kind) {
    return copy(to, from, size, kind, &legacy, true);
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t size, cudaMemcpyKind kind, cudaStream_t stream) {
    return copy(to, from, size, kind, stream_of(stream), false);
}

cudaError_t cudaMemset(void* pointer, int value, size_t size) {
    LOCK;
    TRY(check_unsafe_call("cudaMemset"));
    return fill(pointer, value, size, &legacy);
}

cudaError_t cudaMemsetAsync(void* pointer, int value, size_t size, cudaStream_t stream) {
    return fill(pointer, value, size, stream_of(stream));
}

// For Python: fill what CuPy's pool gives out and takes back with NaN. It is not counted, and no part of a graph.
void fakegpu_poison(void* pointer, size_t size, void* handle) {
    LOCK;
    if (fakegpu_execute && captures.empty() && is_on_device(pointer, size))
        perform(stream_of(handle), "poison", [=] { memset(pointer, 0xFF, size); });
}

// For Python, at exit: look at the fences of what was not freed.
void fakegpu_check_fences() {
    LOCK;
    finish_all();
    for (auto& [pointer, block] : blocks)
        if (block.device) check_fences(pointer, block);
}
}
