// Capture of streams, and graphs.

#include "standin.h"

#include <algorithm>

namespace standin {

// Calls that must not be made while a stream is captured, by any thread or by this one.
CUresult forbidden_by_capture() {
    for (Stream *stream : state().streams) {
        if (!stream->capture) continue;
        constexpr unsigned THREAD_LOCAL = 1, RELAXED = 2;
        Capture &capture = *stream->capture;
        const bool same = capture.thread == std::this_thread::get_id();
        if (capture.mode == RELAXED || (capture.mode == THREAD_LOCAL && !same)) continue;
        capture.invalid = true;
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    return CUDA_SUCCESS;
}

namespace {

Graph *graph_of(CUgraph handle) {
    auto *graph = reinterpret_cast<Graph *>(handle);
    return state().graphs.contains(graph) ? graph : nullptr;
}

CUresult instantiate(CUgraphExec *to, CUgraph handle) {
    const Graph *graph = graph_of(handle);
    if (!to || !graph) return CUDA_ERROR_INVALID_VALUE;
    auto copy = std::make_shared<const Graph>(*graph);
    *to = reinterpret_cast<CUgraphExec>(const_cast<Graph *>(copy.get()));
    state().executables[*to] = std::move(copy);
    return CUDA_SUCCESS;
}

// Takes all streams out of a capture; whether each of them had led back into the first one.
bool release_streams(Capture &capture) {
    bool all_joined = true;
    for (Stream *stream : capture.joined) {
        all_joined &= stream->joined_to == stream->captured;
        stream->capture.reset();
    }
    return all_joined;
}

} // namespace
} // namespace standin

using namespace standin;

API cuStreamBeginCapture_v2(CUstream handle, unsigned mode) {
    ENTER(Context);
    Stream *stream = stream_of(handle);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    if (mode > 2) return CUDA_ERROR_INVALID_VALUE;
    if (stream == null_stream()) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    if (stream->capture) return CUDA_ERROR_ILLEGAL_STATE;
    stream->capture = std::make_shared<Capture>(Capture{stream, mode, std::this_thread::get_id()});
    stream->captured = stream->joined_to = 0;
    return CUDA_SUCCESS;
}

API cuStreamIsCapturing(CUstream handle, unsigned *to) {
    ENTER(Context);
    const Stream *stream = stream_of(handle);
    if (!stream || !to) return stream ? CUDA_ERROR_INVALID_VALUE : CUDA_ERROR_INVALID_HANDLE;
    *to = !stream->capture ? 0 : stream->capture->invalid ? 2 : 1;
    return CUDA_SUCCESS;
}

API cuStreamEndCapture(CUstream handle, CUgraph *to) {
    ENTER(Context);
    Stream *stream = stream_of(handle);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    if (!to) return CUDA_ERROR_INVALID_VALUE;
    *to = nullptr;
    if (!stream->capture) return CUDA_ERROR_ILLEGAL_STATE;
    if (stream->capture->origin != stream) return CUDA_ERROR_STREAM_CAPTURE_UNMATCHED;
    const std::shared_ptr<Capture> capture = std::move(stream->capture);
    stream->capture.reset();
    capture->ended = true;
    const bool all_joined = release_streams(*capture);
    if (capture->invalid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    if (!all_joined) return CUDA_ERROR_STREAM_CAPTURE_UNJOINED;
    auto *graph = new Graph(std::move(capture->graph));
    state().graphs.insert(graph);
    *to = reinterpret_cast<CUgraph>(graph);
    return CUDA_SUCCESS;
}

API cuGraphInstantiateWithFlags(CUgraphExec *to, CUgraph graph, unsigned long long) {
    ENTER(Context);
    return instantiate(to, graph);
}

API cuGraphInstantiate_v2(CUgraphExec *to, CUgraph graph, CUgraphNode *, char *, size_t) {
    ENTER(Context);
    return instantiate(to, graph);
}

API cuGraphGetNodes(CUgraph handle, CUgraphNode *nodes, size_t *count) {
    ENTER(Context);
    const Graph *graph = graph_of(handle);
    if (!graph || !count) return CUDA_ERROR_INVALID_VALUE;
    // Nodes have no handles here.
    if (nodes) return CUDA_ERROR_NOT_SUPPORTED;
    *count = graph->ops.size();
    return CUDA_SUCCESS;
}

API cuGraphUpload(CUgraphExec handle, CUstream in) {
    ENTER(Context);
    if (!state().executables.contains(handle) || !stream_of(in)) return CUDA_ERROR_INVALID_HANDLE;
    return CUDA_SUCCESS;
}

API cuGraphLaunch(CUgraphExec handle, CUstream in) {
    ENTER(Context);
    const auto found = state().executables.find(handle);
    Stream *stream = stream_of(in);
    if (found == state().executables.end() || !stream) return CUDA_ERROR_INVALID_HANDLE;
    Op op{Op::Kind::Graph};
    op.graph = found->second;
    return submit(*stream, std::move(op));
}

API cuGraphExecUpdate_v2(CUgraphExec, CUgraph, void *) {
    ENTER(Context);
    return CUDA_ERROR_NOT_SUPPORTED;
}

API cuGraphExecDestroy(CUgraphExec handle) {
    ENTER(Release);
    // What is queued keeps its nodes.
    if (state().executables.erase(handle) == 0) return CUDA_ERROR_INVALID_HANDLE;
    return state().sticky;
}

API cuGraphDestroy(CUgraph handle) {
    ENTER(Release);
    Graph *graph = graph_of(handle);
    if (!graph) return CUDA_ERROR_INVALID_HANDLE;
    state().graphs.erase(graph);
    delete graph;
    return state().sticky;
}
