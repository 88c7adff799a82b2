// Capturing streams into graphs, and what CUDA forbids in a capture.
// The rules are those of the CUDA Programming Guide, "CUDA Graphs", and of the runtime API's "Stream Management".
#include <algorithm>
#include <cstring>
#include "device.h"

namespace fakegpu {

std::set<Capture*> captures;

// FAKEGPU_CAPTURE. strict: allocations are forbidden in relaxed mode too. hide: CuPy, which refuses its own cuBLAS
// calls in a capture, is not told of the capture.
static const std::string rules = setting("FAKEGPU_CAPTURE", "");

cudaError_t invalidate(Capture* capture, const char* what, cudaError_t error) {
    fakegpu_counts.illegal_in_capture++;
    event("illegal in capture", what, error);
    capture->invalid = true;
    return fail(error);
}

// Calls that CUDA names potentially unsafe, such as cudaMalloc: a capture in global mode forbids them to every thread,
// one in thread-local mode to the thread that captures.
cudaError_t check_unsafe_call(const char* what) {
    for (Capture* c : captures)
        if (c->mode == cudaStreamCaptureModeGlobal || rules == "strict" ||
            (c->mode == cudaStreamCaptureModeThreadLocal && c->thread == std::this_thread::get_id()))
            return invalidate(c, what, cudaErrorStreamCaptureUnsupported);
    if (!captures.empty()) event("unsafe in capture", what);
    return cudaSuccess;
}

// The legacy default stream waits for all blocking streams, so it cannot be used while one of them is captured.
cudaError_t check_legacy_stream(Stream* stream, const char* what) {
    if (stream == &legacy)
        for (Capture* c : captures)
            for (Stream* s : c->streams)
                if (s->blocking) return invalidate(c, what, cudaErrorStreamCaptureImplicit);
    return cudaSuccess;
}

// Whether every node comes before the end of the origin stream, which is to say that every fork was joined.
static bool is_joined(const Graph& graph, std::vector<int> frontier) {
    std::vector<bool> reached(graph.nodes.size());
    while (!frontier.empty()) {
        int node = frontier.back();
        frontier.pop_back();
        if (reached[node]) continue;
        reached[node] = true;
        for (int before : graph.nodes[node].after) frontier.push_back(before);
    }
    return std::find(reached.begin(), reached.end(), false) == reached.end();
}

} // namespace fakegpu

using namespace fakegpu;

extern "C" {

cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode mode) {
    LOCK;
    Stream* stream = stream_of(handle);
    if (stream == &legacy) return fail(cudaErrorStreamCaptureUnsupported);
    if (stream->capture) return fail(cudaErrorIllegalState);
    auto* capture = new Capture{stream, mode, std::this_thread::get_id()};
    capture->streams = {stream};
    stream->capture = capture;
    stream->frontier.clear();
    captures.insert(capture);
    event("begin capture", "", mode);
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t* graph) {
    LOCK;
    Stream* stream = stream_of(handle);
    Capture* capture = stream->capture;
    *graph = nullptr;
    if (!capture) return fail(cudaErrorIllegalState);
    if (capture->origin != stream)
        return invalidate(capture, "cudaStreamEndCapture on a stream that joined", cudaErrorStreamCaptureUnmatched);
    if (capture->mode != cudaStreamCaptureModeRelaxed && capture->thread != std::this_thread::get_id())
        return invalidate(capture, "cudaStreamEndCapture", cudaErrorStreamCaptureWrongThread);
    bool joined = is_joined(capture->graph, stream->frontier);
    for (Stream* s : capture->streams) {
        s->capture = nullptr;
        s->frontier.clear();
    }
    // The capture is not deleted: an event may still point to it, and no later capture may get its address.
    captures.erase(capture);
    event("end capture", capture->invalid ? "invalidated" : joined ? "" : "unjoined", capture->graph.nodes.size());
    if (capture->invalid) return fail(cudaErrorStreamCaptureInvalidated);
    if (!joined) return fail(cudaErrorStreamCaptureUnjoined);
    *graph = (cudaGraph_t) new Graph(std::move(capture->graph));
    return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t handle, cudaStreamCaptureStatus* status) {
    LOCK;
    Stream* stream = stream_of(handle);
    *status = cudaStreamCaptureStatusNone;
    if (stream == &legacy)
        for (Capture* c : captures)
            for (Stream* s : c->streams)
                if (s->blocking) return fail(cudaErrorStreamCaptureImplicit);
    if (stream->capture && rules != "hide")
        *status = stream->capture->invalid ? cudaStreamCaptureStatusInvalidated : cudaStreamCaptureStatusActive;
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
    *executable = (cudaGraphExec_t) new Graph(*(Graph*)graph);
    return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t handle) {
    auto graph = std::make_shared<Graph>(*(Graph*)executable); // which may be destroyed before the work is done
    fakegpu_counts.graph_launches++;
    event("graph launch", "", graph->nodes.size());
    return perform(stream_of(handle), "graph", [=] {
        for (auto& node : graph->nodes) node.work();
    });
}

cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t) { return cudaSuccess; }

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    delete (Graph*)graph;
    return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
    delete (Graph*)executable;
    return cudaSuccess;
}

// For Python: the names of a graph's nodes, a line each.
void fakegpu_graph_nodes(void* graph, char* names, size_t size) {
    std::string all;
    for (auto& node : ((Graph*)graph)->nodes) all += node.name + "\n";
    strncpy(names, all.c_str(), size - 1);
    names[size - 1] = 0;
}
}
