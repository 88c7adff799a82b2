// The threads of a block, as fibers on one thread of the CPU: each has a stack of its own, and a barrier, shuffle or
// vote switches to another one. Blocks run one after the other, and one kernel at a time.
#include <sys/mman.h>
#include <xmmintrin.h>
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <vector>
#include "../kernel_headers/shim_state.h"
#include "interface.h"

ShimState shim_state;

namespace {

ShimState& s = shim_state;
const size_t STACK = 64 << 10, PAGE = 4096;
const uint64_t NO_VALUE = ~0ull; // what a lane gets from one that gives nothing: NaN as a float, -1 as an integer

struct WarpBarrier { // one for each mask that is in use
    unsigned mask, arrived;
    int generation; // how often it has opened
};

struct Fiber {
    void* stack_pointer;
    bool done;
    uint3 thread;
    int block_generation;      // of the block's barrier at which it waits, or -1
    WarpBarrier* warp_barrier; // at which it waits, or null
    int warp_generation;
};

// Of the block that is running.
std::vector<Fiber> fibers;
std::vector<WarpBarrier*> warp_barriers[32];
unsigned alive_lanes[32];
int alive, arrived, generation; // threads that have not ended; those at the block's barrier; how often it has opened
uint64_t slots[1024];           // values that shuffles and votes exchange
void (*entry)(void*);
void* argument;
const char* kernel_name = "";

void* scheduler_stack_pointer;
char* stacks;
size_t number_of_stacks;
char* dynamic_memory;
size_t dynamic_room;

} // namespace

// Save the registers that a callee must preserve on this stack, and go on with another one.
extern "C" void shim_switch(void** save_stack_pointer, void* load_stack_pointer);
asm(R"(
.text
.local shim_switch
shim_switch:
    pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
    ret
)");

extern "C" void fakegpu_describe_thread(char* out, size_t size) {
    snprintf(out, size, "kernel %s, block (%u, %u, %u), thread (%u, %u, %u)", kernel_name, s.block.x, s.block.y,
             s.block.z, s.thread.x, s.thread.y, s.thread.z);
}

namespace {

[[noreturn]] void stop(const char* why) {
    char thread[256];
    fakegpu_describe_thread(thread, sizeof thread);
    fprintf(stderr, "fakegpu: %s: %s\n", thread, why);
    abort();
}

void yield() {
    Fiber& fiber = fibers[s.current];
    shim_switch(&fiber.stack_pointer, scheduler_stack_pointer);
    s.thread = fiber.thread;
}

void check_fibers() {
    if (!s.fibers) stop("a barrier or shuffle in a kernel whose text seemed to have none");
}

void open_if_complete(WarpBarrier* barrier, unsigned alive_now) {
    unsigned expected = barrier->mask & alive_now;
    if (barrier->arrived && (barrier->arrived & expected) == expected) {
        barrier->arrived = 0;
        barrier->generation++;
    }
}

void open_block_barrier() {
    arrived = 0;
    generation++;
}

// Where every fiber begins. A thread that ends no longer keeps others waiting.
void run_thread() {
    s.thread = fibers[s.current].thread;
    entry(argument);
    Fiber& fiber = fibers[s.current];
    int warp = s.current / 32;
    fiber.done = true;
    alive--;
    alive_lanes[warp] &= ~(1u << s.current % 32);
    if (alive && arrived == alive) open_block_barrier();
    for (WarpBarrier* barrier : warp_barriers[warp]) open_if_complete(barrier, alive_lanes[warp]);
    shim_switch(&fiber.stack_pointer, scheduler_stack_pointer);
    abort(); // nobody switches back to it
}

} // namespace

extern "C" {

void shim_block_barrier() {
    check_fibers();
    int mine = generation;
    if (++arrived == alive) return open_block_barrier();
    fibers[s.current].block_generation = mine;
    while (generation == mine) yield();
    fibers[s.current].block_generation = -1;
}

void shim_warp_barrier(unsigned mask) {
    check_fibers();
    int warp = s.current / 32;
    unsigned bit = 1u << s.current % 32;
    if (!(mask & bit)) stop("it is not in the mask of its own warp's barrier, shuffle or vote");
    WarpBarrier* barrier = nullptr;
    for (WarpBarrier* b : warp_barriers[warp])
        if (b->mask == mask) barrier = b;
    if (!barrier) warp_barriers[warp].push_back(barrier = new WarpBarrier{mask, 0, 0});
    int mine = barrier->generation;
    barrier->arrived |= bit;
    open_if_complete(barrier, alive_lanes[warp]);
    if (barrier->generation != mine) return;
    fibers[s.current].warp_barrier = barrier;
    fibers[s.current].warp_generation = mine;
    while (barrier->generation == mine) yield();
    fibers[s.current].warp_barrier = nullptr;
}

uint64_t shim_exchange(unsigned mask, uint64_t value, int from) {
    from &= 31;
    unsigned source = (s.current & ~31) + from;
    slots[s.current] = value;
    shim_warp_barrier(mask);
    bool gives = (mask >> from & 1) && source < fibers.size() && !fibers[source].done;
    uint64_t got = gives ? slots[source] : NO_VALUE;
    shim_warp_barrier(mask); // before anyone writes the next value
    return got;
}

unsigned shim_ballot(unsigned mask, int predicate) {
    unsigned first = s.current & ~31, votes = 0;
    slots[s.current] = predicate != 0;
    shim_warp_barrier(mask);
    for (unsigned i = 0; i < 32 && first + i < fibers.size(); i++)
        if ((mask >> i & 1) && slots[first + i] && !fibers[first + i].done) votes |= 1u << i;
    shim_warp_barrier(mask);
    return votes;
}

unsigned shim_active() { return s.fibers ? alive_lanes[s.current / 32] : 1u << s.current % 32; }

int shim_block_count(int predicate) {
    slots[s.current] = predicate != 0;
    shim_block_barrier();
    int count = 0;
    for (size_t i = 0; i < fibers.size(); i++)
        if (!fibers[i].done) count += (int)slots[i];
    shim_block_barrier();
    return count;
}
}

namespace {

// Stacks for n threads, kept for later blocks. The page below each must not be touched.
void make_stacks(unsigned n) {
    if (number_of_stacks >= n) return;
    if (stacks) munmap(stacks, (STACK + PAGE) * number_of_stacks);
    stacks = (char*)mmap(nullptr, (STACK + PAGE) * n, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stacks == MAP_FAILED) stop("no memory for the stacks of its block's threads");
    number_of_stacks = n;
    for (unsigned i = 0; i < n; i++) mprotect(stacks + (STACK + PAGE) * i, PAGE, PROT_NONE);
}

void begin_block(unsigned n) {
    make_stacks(n);
    fibers.resize(n);
    alive = n;
    arrived = 0;
    generation = 0;
    for (unsigned w = 0; w < (n + 31) / 32; w++) {
        alive_lanes[w] = n - 32 * w >= 32 ? ~0u : (1u << (n - 32 * w)) - 1;
        for (WarpBarrier* barrier : warp_barriers[w]) barrier->arrived = 0;
    }
    for (unsigned i = 0; i < n; i++) {
        void** top = (void**)(stacks + (STACK + PAGE) * (i + 1));
        *--top = nullptr; // so that the stack is aligned at run_thread's entry as it is after a call
        *--top = (void*)&run_thread;
        for (int r = 0; r < 6; r++) *--top = nullptr; // the registers that shim_switch restores
        uint3 thread{i % s.block_dim.x, i / s.block_dim.x % s.block_dim.y, i / (s.block_dim.x * s.block_dim.y)};
        fibers[i] = {top, false, thread, -1, nullptr, 0};
    }
}

// Run the threads of a warp until all of them wait for the rest of the block or have ended.
bool run_warp(unsigned first, unsigned last, bool backwards) {
    bool any = false;
    for (bool progress = true; progress;) {
        progress = false;
        for (unsigned j = first; j < last; j++) {
            unsigned i = backwards ? first + last - 1 - j : j;
            Fiber& fiber = fibers[i];
            if (fiber.done || fiber.block_generation == generation ||
                (fiber.warp_barrier && fiber.warp_barrier->generation == fiber.warp_generation))
                continue;
            s.current = i;
            progress = any = true;
            shim_switch(&scheduler_stack_pointer, fiber.stack_pointer);
        }
    }
    return any;
}

// A warp goes on as far as it can before another one begins, so that what should have been waited for is not there yet.
// FAKEGPU_ORDER: 0 the first warp comes first, 1 the last one, other numbers a random order; odd numbers run the lanes
// of a warp backwards.
void run_block() {
    static const int order = getenv("FAKEGPU_ORDER") ? atoi(getenv("FAKEGPU_ORDER")) : 0;
    static unsigned long long random = 88172645463325252ull + order; // Marsaglia's xorshift
    unsigned n = s.block_dim.x * s.block_dim.y * s.block_dim.z, warps = (n + 31) / 32;
    begin_block(n);
    unsigned turn[32];
    for (unsigned w = 0; w < warps; w++) turn[w] = order == 1 ? warps - 1 - w : w;
    while (alive) {
        for (unsigned w = warps - 1; order > 1 && w > 0; w--) {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            std::swap(turn[w], turn[random % (w + 1)]);
        }
        bool any = false;
        for (unsigned w = 0; w < warps; w++) any |= run_warp(32 * turn[w], std::min(n, 32 * turn[w] + 32), order % 2);
        if (!any) stop("DEADLOCK: the threads of its block wait at different barriers");
    }
}

void run_serially() {
    s.current = 0;
    for (s.thread.z = 0; s.thread.z < s.block_dim.z; s.thread.z++)
        for (s.thread.y = 0; s.thread.y < s.block_dim.y; s.thread.y++)
            for (s.thread.x = 0; s.thread.x < s.block_dim.x; s.thread.x++) {
                entry(argument);
                s.current++;
            }
}

} // namespace

extern "C" void shim_run(const char* name, void (*kernel)(void*), void* kernel_argument, int mode, dim3 grid,
                         dim3 block, unsigned shared, char* shared_begin, char* shared_end) {
    static std::mutex one_at_a_time;
    std::lock_guard<std::mutex> lock(one_at_a_time);
    unsigned control = _mm_getcsr();
    _mm_setcsr(control | 0x8040); // denormals are zero, in and out: CuPy compiles with -ftz=true
    kernel_name = name;
    if (mode == SHIM_ONE_THREAD) grid = block = {1, 1, 1};
    s.fibers = mode == SHIM_FIBERS;
    s.grid_dim = grid;
    s.block_dim = block;
    entry = kernel;
    argument = kernel_argument;
    if (dynamic_room < shared) {
        free(dynamic_memory);
        dynamic_room = (shared + 255) / 256 * 256;
        dynamic_memory = (char*)aligned_alloc(256, dynamic_room);
    }
    s.dynamic_shared = dynamic_memory;
    for (unsigned z = 0; z < grid.z; z++)
        for (unsigned y = 0; y < grid.y; y++)
            for (unsigned x = 0; x < grid.x; x++) {
                s.block = {x, y, z};
                if (shared) memset(dynamic_memory, 0xFF, shared); // NaN: what is read must have been written
                if (shared_begin) memset(shared_begin, 0xFF, shared_end - shared_begin);
                if (mode == SHIM_FIBERS)
                    run_block();
                else
                    run_serially();
            }
    _mm_setcsr(control);
    kernel_name = "";
}
