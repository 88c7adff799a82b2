// Streams and events.
// Work is done when it is given to a stream, or with FAKEGPU_ASYNC=1 as late as CUDA may do it: when something waits.
#include <algorithm>
#include <cstring>
#include "device.h"

namespace fakegpu {

Stream legacy{true};
static Stream per_thread{true};
static std::set<Stream*> streams{&legacy, &per_thread};

Stream* stream_of(const void* handle) {
    if (handle == nullptr || handle == cudaStreamLegacy) return &legacy;
    return handle == cudaStreamPerThread ? &per_thread : (Stream*)handle;
}

static void run_until(Stream* stream, const Mark* mark);

static void execute(Operation& operation) {
    if (operation.wait && !operation.wait->done) run_until(operation.wait->stream, operation.wait.get());
    if (operation.work) operation.work();
    if (operation.record) {
        operation.record->done = true;
        operation.record->when = std::chrono::steady_clock::now();
    }
}

static void execute_first(Stream* stream) {
    Operation operation = std::move(stream->queue.front());
    stream->queue.pop_front();
    execute(operation);
}

// Work off a stream's queue up to a mark, or all of it.
static void run_until(Stream* stream, const Mark* mark) {
    while (!stream->queue.empty() && !(mark && mark->done)) execute_first(stream);
}

static void finish_blocking_streams() {
    for (Stream* s : std::vector<Stream*>(streams.begin(), streams.end()))
        if (s->blocking && s != &legacy) run_until(s, nullptr);
}

void finish(Stream* stream) {
    run_until(stream, nullptr);
    if (stream == &legacy) finish_blocking_streams();
}

void finish_all() {
    for (Stream* s : std::vector<Stream*>(streams.begin(), streams.end())) run_until(s, nullptr);
}

static void enqueue(Stream* stream, Operation operation) {
    if (stream == &legacy)
        finish_blocking_streams();
    else if (stream->blocking)
        run_until(&legacy, nullptr);
    if (delayed)
        stream->queue.push_back(std::move(operation));
    else
        execute(operation);
}

cudaError_t perform(Stream* stream, const std::string& name, Work work, bool also_when_counting) {
    LOCK;
    TRY(check_legacy_stream(stream, name.c_str()));
    if (stream->capture) {
        if (stream->capture->invalid) return fail(cudaErrorStreamCaptureInvalidated);
        auto& nodes = stream->capture->graph.nodes;
        nodes.push_back({std::move(work), name, stream->frontier});
        stream->frontier = {(int)nodes.size() - 1};
        return cudaSuccess;
    }
    if (fakegpu_execute || also_when_counting) enqueue(stream, {std::move(work), nullptr, nullptr});
    return cudaSuccess;
}

// The capture that an event was recorded in, if it is still in progress.
static Capture* capture_of(Event* event) {
    if (event->capture && !captures.count(event->capture)) {
        event->capture = nullptr;
        event->mark = nullptr;
    }
    return event->capture;
}

} // namespace fakegpu

using namespace fakegpu;

extern "C" {

int fakegpu_perform(void* handle, const char* kind, const char* name, long a, long b, void (*run)(void*),
                    const void* arguments, size_t size) {
    (strcmp(kind, "gemm") ? fakegpu_counts.launches : fakegpu_counts.gemms)++;
    event(kind, name, a, b);
    auto copy = std::make_shared<std::vector<char>>((const char*)arguments, (const char*)arguments + size);
    return perform(stream_of(handle), name, [=] { run(copy->data()); });
}

// For Python: whether what is given to the stream now is kept, in its queue or in a graph.
int fakegpu_does_work_later(void* handle) { return delayed || stream_of(handle)->capture; }

// For Python: before work that Python does itself and that waits for the stream, as Thrust's sorts do.
int fakegpu_wait_for_host_work(void* handle, const char* name) {
    LOCK;
    Stream* stream = stream_of(handle);
    event("launch", name, 1, 1);
    fakegpu_counts.launches++;
    if (stream->capture) return invalidate(stream->capture, name, cudaErrorStreamCaptureUnsupported);
    finish(stream);
    return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize() {
    LOCK;
    fakegpu_counts.syncs++;
    event("sync", "device");
    if (!captures.empty())
        return invalidate(*captures.begin(), "cudaDeviceSynchronize", cudaErrorStreamCaptureUnsupported);
    finish_all();
    return cudaSuccess;
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* handle, unsigned flags, int priority) {
    LOCK;
    auto* stream = new Stream{flags == cudaStreamDefault, priority};
    streams.insert(stream);
    *handle = (cudaStream_t)stream;
    return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* handle, unsigned flags) {
    return cudaStreamCreateWithPriority(handle, flags, 0);
}

cudaError_t cudaStreamCreate(cudaStream_t* handle) {
    return cudaStreamCreateWithPriority(handle, cudaStreamDefault, 0);
}

cudaError_t cudaStreamDestroy(cudaStream_t handle) {
    LOCK;
    Stream* stream = stream_of(handle);
    run_until(stream, nullptr);
    streams.erase(stream); // not deleted: events point to it
    return cudaSuccess;
}

cudaError_t cudaStreamGetFlags(cudaStream_t handle, unsigned* flags) {
    *flags = stream_of(handle)->blocking ? cudaStreamDefault : cudaStreamNonBlocking;
    return cudaSuccess;
}

cudaError_t cudaStreamGetPriority(cudaStream_t handle, int* priority) {
    *priority = stream_of(handle)->priority;
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
    LOCK;
    Stream* stream = stream_of(handle);
    fakegpu_counts.syncs++;
    event("sync", "stream");
    if (stream->capture) return invalidate(stream->capture, "cudaStreamSynchronize", cudaErrorStreamCaptureUnsupported);
    TRY(check_legacy_stream(stream, "cudaStreamSynchronize"));
    finish(stream);
    return cudaSuccess;
}

cudaError_t cudaStreamQuery(cudaStream_t handle) {
    LOCK;
    Stream* stream = stream_of(handle);
    if (stream->capture) return invalidate(stream->capture, "cudaStreamQuery", cudaErrorStreamCaptureUnsupported);
    TRY(check_legacy_stream(stream, "cudaStreamQuery"));
    if (stream->queue.empty()) return cudaSuccess;
    execute_first(stream); // so that a loop of queries comes to an end
    return cudaErrorNotReady;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* handle, unsigned flags) {
    auto* event = new Event;
    event->timing = !(flags & cudaEventDisableTiming);
    *handle = (cudaEvent_t)event;
    return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t* handle) { return cudaEventCreateWithFlags(handle, cudaEventDefault); }

cudaError_t cudaEventDestroy(cudaEvent_t handle) {
    LOCK;
    delete (Event*)handle;
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event_handle, cudaStream_t handle) {
    LOCK;
    fakegpu_counts.event_records++;
    auto* event = (Event*)event_handle;
    Stream* stream = stream_of(handle);
    TRY(check_legacy_stream(stream, "cudaEventRecord"));
    if (stream->capture) {
        if (stream->capture->invalid) return fail(cudaErrorStreamCaptureInvalidated);
        event->capture = stream->capture;
        event->frontier = stream->frontier;
        event->mark = nullptr;
        return cudaSuccess;
    }
    event->capture = nullptr;
    event->mark = std::make_shared<Mark>();
    event->mark->stream = stream;
    enqueue(stream, {nullptr, event->mark, nullptr});
    return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t event_handle, unsigned) {
    LOCK;
    Stream* stream = stream_of(handle);
    auto* event = (Event*)event_handle;
    Capture* capture = capture_of(event);
    if ((stream->capture && stream->capture->invalid) || (capture && capture->invalid))
        return fail(cudaErrorStreamCaptureInvalidated);
    if (!capture && stream->capture)
        return invalidate(stream->capture, "cudaStreamWaitEvent on an event from outside",
                          cudaErrorStreamCaptureIsolation);
    if (!capture) {
        if (event->mark) enqueue(stream, {nullptr, nullptr, event->mark});
        return cudaSuccess;
    }
    if (stream->capture && stream->capture != capture) {
        capture->invalid = true;
        return invalidate(stream->capture, "cudaStreamWaitEvent on another capture's event",
                          cudaErrorStreamCaptureMerge);
    }
    if (stream == &legacy)
        return invalidate(capture, "cudaStreamWaitEvent by the default stream", cudaErrorStreamCaptureImplicit);
    stream->capture = capture; // a fork, or a join of two branches
    capture->streams.insert(stream);
    auto& frontier = stream->frontier;
    for (int node : event->frontier)
        if (std::find(frontier.begin(), frontier.end(), node) == frontier.end()) frontier.push_back(node);
    return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t handle) {
    LOCK;
    auto* e = (Event*)handle;
    fakegpu_counts.event_syncs++;
    event("sync", "event");
    if (Capture* capture = capture_of(e)) return invalidate(capture, "cudaEventSynchronize", cudaErrorCapturedEvent);
    if (e->mark && !e->mark->done) run_until(e->mark->stream, e->mark.get());
    return cudaSuccess;
}

cudaError_t cudaEventQuery(cudaEvent_t handle) {
    LOCK;
    auto* e = (Event*)handle;
    if (Capture* capture = capture_of(e)) return invalidate(capture, "cudaEventQuery", cudaErrorCapturedEvent);
    TRY(check_unsafe_call("cudaEventQuery"));
    if (!e->mark || e->mark->done) return cudaSuccess;
    execute_first(e->mark->stream);
    return cudaErrorNotReady;
}

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t from, cudaEvent_t to) {
    LOCK;
    auto *begin = (Event*)from, *end = (Event*)to;
    if (capture_of(begin) || capture_of(end)) return fail(cudaErrorCapturedEvent);
    if (!begin->mark || !end->mark || !begin->timing || !end->timing) return fail(cudaErrorInvalidResourceHandle);
    if (!begin->mark->done || !end->mark->done) return cudaErrorNotReady;
    *milliseconds = std::chrono::duration<float, std::milli>(end->mark->when - begin->mark->when).count();
    return cudaSuccess;
}

// Host functions run on the thread that issues or waits, not on a thread of the driver's.
cudaError_t cudaLaunchHostFunc(cudaStream_t handle, cudaHostFn_t function, void* data) {
    return perform(stream_of(handle), "host function", [=] { function(data); }, true);
}

cudaError_t cudaStreamAddCallback(cudaStream_t handle, cudaStreamCallback_t function, void* data, unsigned) {
    LOCK;
    Stream* stream = stream_of(handle);
    if (stream->capture) return invalidate(stream->capture, "cudaStreamAddCallback", cudaErrorStreamCaptureUnsupported);
    return perform(stream, "callback", [=] { function(handle, cudaSuccess, data); }, true);
}
}
