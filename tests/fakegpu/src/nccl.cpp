// NCCL between processes of one machine: libnccl.so.2, which cupy.cuda.nccl loads.
//
// The ranks of a communicator share a file in /dev/shm, whose name is in the unique id: two counters that make a
// barrier, and a buffer for each rank. A collective goes through its arrays buffer by buffer: each rank writes, all
// wait, each reads what it needs, all wait. It is work of its stream, so that what is wrong in the order of streams
// shows as it would on a device. Sums are in the order of ranks.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include "interface.h"

namespace {

enum Status { success = 0, unhandled_cuda_error = 1, system_error = 2, invalid_argument = 4, invalid_usage = 5 };
enum Type { int8, uint8, int32, uint32, int64, uint64, float16, float32, float64 };
const size_t widths[] = {1, 1, 4, 4, 8, 8, 2, 4, 8};
const int SUM = 0;
const size_t BUFFER = 1 << 18; // bytes of a rank
const int MOST = 64;           // ranks

struct Shared { // zeros in a new file
    std::atomic<int> arrived, round;
    char buffers[MOST][BUFFER];
};

struct UniqueId {
    char name[128];
};

enum Kind { all_reduce, reduce_scatter, all_gather, broadcast };

} // namespace

struct ncclComm {
    int rank, size;
    Shared* shared;
    std::string path;

    void barrier() {
        int round = shared->round.load();
        if (shared->arrived.fetch_add(1) + 1 == size) {
            shared->arrived.store(0);
            shared->round.fetch_add(1);
        } else {
            while (shared->round.load() == round) usleep(20);
        }
    }
};

namespace {

struct Arguments { // count: of numbers that a rank sends (of a reduce-scatter: that it receives)
    ncclComm* comm;
    Kind kind;
    const char* send;
    char* receive;
    size_t count;
    int type, root;
};

template <typename T>
void add_ranks(const Shared& shared, int size, size_t bytes, char* out) {
    T* total = (T*)out;
    for (size_t i = 0; i < bytes / sizeof(T); i++) {
        T sum = ((const T*)shared.buffers[0])[i];
        for (int rank = 1; rank < size; rank++) sum += ((const T*)shared.buffers[rank])[i];
        total[i] = sum;
    }
}

void add(const Shared& shared, int size, int type, size_t bytes, char* out) {
    switch (type) {
    case int32: return add_ranks<int32_t>(shared, size, bytes, out);
    case int64: return add_ranks<int64_t>(shared, size, bytes, out);
    case float32: return add_ranks<float>(shared, size, bytes, out);
    case float64: return add_ranks<double>(shared, size, bytes, out);
    }
}

// Bytes [start, start + bytes) of what every rank sends; read(rank's bytes) between two barriers.
void run(void* pointer) {
    const auto& a = *(Arguments*)pointer;
    ncclComm& comm = *a.comm;
    const size_t each = a.count * widths[a.type];
    const size_t all = a.kind == reduce_scatter ? each * comm.size : each;
    for (size_t start = 0; start < all; start += BUFFER) {
        size_t bytes = std::min(BUFFER, all - start);
        if (a.kind != broadcast || comm.rank == a.root) memcpy(comm.shared->buffers[comm.rank], a.send + start, bytes);
        comm.barrier();
        if (a.kind == all_reduce) {
            add(*comm.shared, comm.size, a.type, bytes, a.receive + start);
        } else if (a.kind == broadcast) {
            memcpy(a.receive + start, comm.shared->buffers[a.root], bytes);
        } else if (a.kind == all_gather) {
            for (int rank = 0; rank < comm.size; rank++)
                memcpy(a.receive + rank * each + start, comm.shared->buffers[rank], bytes);
        } else { // what this buffer has of the rank's own part
            static thread_local char sums[BUFFER];
            add(*comm.shared, comm.size, a.type, bytes, sums);
            size_t begin = std::max(start, comm.rank * each), end = std::min(start + bytes, (comm.rank + 1) * each);
            if (begin < end) memcpy(a.receive + (begin - comm.rank * each), sums + (begin - start), end - begin);
        }
        comm.barrier();
    }
}

int perform(Arguments arguments, int op, void* stream) {
    int type = arguments.type;
    bool adds = arguments.kind == all_reduce || arguments.kind == reduce_scatter;
    if (type < 0 || type > float64) return invalid_argument;
    if (adds && (op != SUM || (type != int32 && type != int64 && type != float32 && type != float64))) {
        fakegpu_missing("NCCL's reductions but sums of int32, int64, float32 and float64");
        return invalid_argument;
    }
    return fakegpu_perform(stream, "launch", "nccl", 0, 0, run, &arguments, sizeof arguments) ? unhandled_cuda_error
                                                                                              : success;
}

} // namespace

extern "C" {
int ncclGetVersion(int* version) {
    *version = 22304;
    return success;
}

const char* ncclGetErrorString(int status) {
    switch (status) {
    case success: return "no error";
    case unhandled_cuda_error: return "unhandled cuda error";
    case system_error: return "unhandled system error";
    case invalid_argument: return "invalid argument";
    default: return "invalid usage";
    }
}

int ncclGetUniqueId(UniqueId* id) {
    *id = {};
    char path[] = "/dev/shm/fakegpu-nccl-XXXXXX";
    int file = mkstemp(path);
    if (file < 0 || ftruncate(file, sizeof(Shared))) return system_error;
    close(file);
    strcpy(id->name, path);
    return success;
}

int ncclCommInitRankConfig(ncclComm** comm, int size, UniqueId id, int rank, void*) {
    if (size < 1 || size > MOST || rank < 0 || rank >= size) return invalid_argument;
    int file = open(id.name, O_RDWR);
    if (file < 0) return system_error;
    void* shared = mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (shared == MAP_FAILED) return system_error;
    *comm = new ncclComm{rank, size, (Shared*)shared, id.name};
    (*comm)->barrier();
    if (rank == 0) unlink(id.name); // all have opened it
    return success;
}

int ncclCommInitRank(ncclComm** comm, int size, UniqueId id, int rank) {
    return ncclCommInitRankConfig(comm, size, id, rank, nullptr);
}

int ncclCommDestroy(ncclComm* comm) {
    if (comm) munmap(comm->shared, sizeof(Shared));
    delete comm;
    return success;
}

int ncclCommAbort(ncclComm* comm) { return ncclCommDestroy(comm); }

int ncclCommGetAsyncError(ncclComm*, int* error) {
    *error = success;
    return success;
}

int ncclCommCount(const ncclComm* comm, int* size) {
    *size = comm->size;
    return success;
}

int ncclCommUserRank(const ncclComm* comm, int* rank) {
    *rank = comm->rank;
    return success;
}

// Each call is work of its stream at once, so there is nothing to do at the end of a group.
int ncclGroupStart() { return success; }
int ncclGroupEnd() { return success; }

int ncclAllReduce(const void* send, void* receive, size_t count, int type, int op, ncclComm* comm, void* stream) {
    return perform({comm, all_reduce, (const char*)send, (char*)receive, count, type, 0}, op, stream);
}

int ncclReduceScatter(const void* send, void* receive, size_t count, int type, int op, ncclComm* comm, void* stream) {
    return perform({comm, reduce_scatter, (const char*)send, (char*)receive, count, type, 0}, op, stream);
}

int ncclAllGather(const void* send, void* receive, size_t count, int type, ncclComm* comm, void* stream) {
    return perform({comm, all_gather, (const char*)send, (char*)receive, count, type, 0}, SUM, stream);
}

int ncclBroadcast(const void* send, void* receive, size_t count, int type, int root, ncclComm* comm, void* stream) {
    return perform({comm, broadcast, (const char*)send, (char*)receive, count, type, root}, SUM, stream);
}

int ncclBcast(void* buffer, size_t count, int type, int root, ncclComm* comm, void* stream) {
    return ncclBroadcast(buffer, buffer, count, type, root, comm, stream);
}
}
