// Streams and events, and when queued work runs.

#include "standin.h"

#include <algorithm>
#include <cstring>

namespace standin {

Stream *null_stream() {
    static Stream stream{&state().primary, true};
    return &stream;
}

Stream *stream_of(CUstream handle) {
    // 0, and CUDA's names for the stream of the process and that of the thread.
    if (reinterpret_cast<uintptr_t>(handle) <= 2) return null_stream();
    auto *stream = reinterpret_cast<Stream *>(handle);
    const auto &all = state().streams;
    return std::find(all.begin(), all.end(), stream) == all.end() ? nullptr : stream;
}

namespace {

CUresult gone(const char *what, const Range &range) {
    const char *how = range.kind == Range::Kind::HostRegistered ? "unregistered" : "freed";
    return fail_for_good(CUDA_ERROR_ILLEGAL_ADDRESS, std::string(what) + " needs " + std::to_string(range.bytes) +
                                                         " bytes that were " + how + " while it was queued");
}

CUresult perform(const Op &op) {
    using Kind = Op::Kind;
    for (const Place *place : {&op.to, &op.from}) {
        if (op.kind == Kind::Free || !place->range || place->range->live) continue;
        return gone(op.kind == Kind::Fill ? "a memset" : "a copy", *place->range);
    }
    switch (op.kind) {
    case Kind::Copy: std::memmove(op.to.at, op.staged ? op.staged->data() : op.from.at, op.bytes); break;
    case Kind::Fill:
        for (size_t i = 0; i < op.bytes; i += op.value_bytes) std::memcpy(op.to.at + i, &op.value, op.value_bytes);
        break;
    case Kind::Kernel:
        for (const RangePtr &range : op.touched) {
            if (!range->live) return gone(("the kernel " + op.kernel).c_str(), *range);
        }
        return run_kernel(op);
    case Kind::Host:
        in_host_function = true;
        op.call(op.data);
        in_host_function = false;
        break;
    case Kind::Record:
        op.record->time = std::chrono::steady_clock::now();
        op.record->done = true;
        break;
    case Kind::Wait:
        // What it waits for was queued before the wait, so this cannot come back here.
        if (!op.record->done) return run(*op.record->stream, op.record.get());
        break;
    case Kind::Free:
        if (op.to.range->live) release(op.to.range);
        break;
    case Kind::Graph:
        for (const Op &node : op.graph->ops) {
            if (const CUresult code = perform(node)) return code;
        }
        break;
    }
    return CUDA_SUCCESS;
}

bool uses(const Op &op, const Range &range) {
    if (op.kind == Op::Kind::Graph) {
        return std::any_of(op.graph->ops.begin(), op.graph->ops.end(), [&](const Op &node) { return uses(node, range); });
    }
    const auto touches = [&](const RangePtr &touched) { return touched.get() == &range; };
    return touches(op.to.range) || touches(op.from.range) || std::any_of(op.touched.begin(), op.touched.end(), touches);
}

// Numbers of Knuth's MMIX; any will do.
uint64_t draw(uint64_t &state) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return state >> 33;
}

// Runs the next piece of a stream if nothing holds it back; with `kernels` false, a kernel does.
bool advance(Stream &stream, bool kernels) {
    using Kind = Op::Kind;
    if (stream.queue.empty()) return false;
    const Op &next = stream.queue.front();
    if (next.kind == Kind::Wait && !next.record->done) return false;
    const bool computes = next.kind == Kind::Kernel || next.kind == Kind::Host || next.kind == Kind::Graph;
    if (computes && !kernels) return false;
    const Op op = std::move(stream.queue.front());
    stream.queue.pop_front();
    return perform(op) == CUDA_SUCCESS;
}

// What the mode runs after a call.
CUresult move_on(Stream &stream) {
    State &s = state();
    if (s.switches.mode == Mode::Eager) return run(stream);
    if (s.switches.mode == Mode::Early) {
        for (bool moved = true; moved;) {
            moved = false;
            for (Stream *any : s.streams) {
                while (advance(*any, false)) moved = true;
            }
        }
    }
    if (s.switches.mode == Mode::Random) {
        // Nothing, three times of four, so that work piles up.
        const uint64_t steps = draw(s.switches.mode_seed) % 4 ? 0 : 1 + draw(s.switches.mode_seed) % 4;
        for (uint64_t step = 0; step < steps; step++) {
            std::vector<Stream *> busy(s.streams);
            std::erase_if(busy, [](const Stream *any) { return any->queue.empty(); });
            if (!busy.empty()) advance(*busy[draw(s.switches.mode_seed) % busy.size()], true);
        }
    }
    return s.sticky;
}

} // namespace

bool is_queued(const Range &range) {
    for (const Stream *stream : state().streams) {
        for (const Op &op : stream->queue) {
            if (uses(op, range)) return true;
        }
    }
    return false;
}

void abandon() {
    for (Stream *stream : state().streams) {
        for (const Op &op : stream->queue) {
            if (op.kind == Op::Kind::Record) op.record->done = true;
        }
        stream->queue.clear();
    }
}

CUresult run(Stream &stream, const Record *until) {
    while (!stream.queue.empty()) {
        Op op = std::move(stream.queue.front());
        stream.queue.pop_front();
        if (const CUresult code = perform(op)) return code;
        if (until && op.kind == Op::Kind::Record && op.record.get() == until) break;
    }
    return state().sticky;
}

CUresult run_all(Context *context, bool only_blocking) {
    State &s = state();
    std::vector<Stream *> all;
    for (Stream *stream : s.streams) {
        if ((!context || stream->context == context) && (stream->blocking || !only_blocking)) all.push_back(stream);
    }
    if (s.switches.order == 1) std::reverse(all.begin(), all.end());
    if (s.switches.order == 2) {
        uint64_t random = s.switches.seed;
        for (size_t i = all.size(); i > 1; i--) std::swap(all[i - 1], all[draw(random) % i]);
    }
    for (Stream *stream : all) {
        if (const CUresult code = run(*stream)) return code;
    }
    return s.sticky;
}

CUresult submit(Stream &stream, Op op) {
    if (&stream == null_stream()) {
        for (Stream *other : state().streams) {
            if (!other->capture || !other->blocking) continue;
            other->capture->invalid = true;
            return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
        }
        if (const CUresult code = run_all(nullptr, true)) return code;
        return perform(op);
    }
    if (stream.capture) {
        stream.captured++;
        stream.capture->graph.ops.push_back(std::move(op));
        return CUDA_SUCCESS;
    }
    stream.queued++;
    stream.queue.push_back(std::move(op));
    return move_on(stream);
}

void destroy_stream(Stream *stream) {
    State &s = state();
    run(*stream);
    s.streams.erase(std::find(s.streams.begin(), s.streams.end(), stream));
    delete stream;
}

namespace {

Event *event_of(CUevent handle) {
    auto *event = reinterpret_cast<Event *>(handle);
    return state().events.contains(event) ? event : nullptr;
}

CUresult create_stream(CUstream *to, unsigned flags, int priority) {
    if (!to || flags > CU_STREAM_NON_BLOCKING) return CUDA_ERROR_INVALID_VALUE;
    auto *stream = new Stream{current(), !(flags & CU_STREAM_NON_BLOCKING), flags, priority};
    state().streams.push_back(stream);
    *to = reinterpret_cast<CUstream>(stream);
    return CUDA_SUCCESS;
}

CUresult captured(Stream &stream) {
    stream.capture->invalid = true;
    return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
}

CUresult elapsed(float *to, CUevent from, CUevent until) {
    const Event *first = event_of(from), *last = event_of(until);
    if (!to) return CUDA_ERROR_INVALID_VALUE;
    if (!first || !last || !first->last || !last->last) return CUDA_ERROR_INVALID_HANDLE;
    if ((first->flags | last->flags) & CU_EVENT_DISABLE_TIMING) return CUDA_ERROR_INVALID_HANDLE;
    if (!first->last->done || !last->last->done) return CUDA_ERROR_NOT_READY;
    *to = std::chrono::duration<float, std::milli>(last->last->time - first->last->time).count();
    return CUDA_SUCCESS;
}

// The wait of a stream for a record of a capture, which takes the stream into it.
CUresult join(Stream &stream, const Record &record) {
    const auto &capture = record.capture;
    if (stream.capture && stream.capture != capture) return CUDA_ERROR_STREAM_CAPTURE_MERGE;
    if (capture->ended) return CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
    if (!stream.capture) {
        stream.capture = capture;
        stream.captured = 1, stream.joined_to = 0;
        capture->joined.insert(&stream);
    }
    record.stream->joined_to = std::max(record.stream->joined_to, record.position);
    return CUDA_SUCCESS;
}

} // namespace
} // namespace standin

using namespace standin;

API cuStreamCreate(CUstream *to, unsigned flags) {
    ENTER(Context);
    return create_stream(to, flags, 0);
}

API cuStreamCreateWithPriority(CUstream *to, unsigned flags, int priority) {
    ENTER(Context);
    return create_stream(to, flags, std::clamp(priority, -5, 0));
}

API cuStreamDestroy_v2(CUstream handle) {
    ENTER(Release);
    Stream *stream = stream_of(handle);
    if (!stream || stream == null_stream()) return CUDA_ERROR_INVALID_HANDLE;
    if (stream->capture) return captured(*stream);
    destroy_stream(stream);
    return state().sticky;
}

API cuStreamSynchronize(CUstream handle) {
    ENTER(Context);
    Stream *stream = stream_of(handle);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    if (stream->capture) return captured(*stream);
    return stream == null_stream() ? run_all(nullptr, true) : run(*stream);
}

API cuStreamQuery(CUstream handle) {
    ENTER(Context);
    Stream *stream = stream_of(handle);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    if (stream->capture) return captured(*stream);
    if (stream == null_stream()) return run_all(nullptr, true);
    if (stream->queue.empty()) return CUDA_SUCCESS;
    if (stream->asked == stream->queued) return run(*stream);
    stream->asked = stream->queued;
    return CUDA_ERROR_NOT_READY;
}

API cuStreamGetPriority(CUstream handle, int *to) {
    ENTER(Context);
    const Stream *stream = stream_of(handle);
    if (!stream || !to) return stream ? CUDA_ERROR_INVALID_VALUE : CUDA_ERROR_INVALID_HANDLE;
    *to = stream->priority;
    return CUDA_SUCCESS;
}

API cuStreamGetFlags(CUstream handle, unsigned *to) {
    ENTER(Context);
    const Stream *stream = stream_of(handle);
    if (!stream || !to) return stream ? CUDA_ERROR_INVALID_VALUE : CUDA_ERROR_INVALID_HANDLE;
    *to = stream->flags;
    return CUDA_SUCCESS;
}

API cuStreamWaitEvent(CUstream handle, CUevent of, unsigned flags) {
    ENTER(Context);
    Stream *stream = stream_of(handle);
    const Event *event = event_of(of);
    if (!stream || !event) return CUDA_ERROR_INVALID_HANDLE;
    // CU_EVENT_WAIT_EXTERNAL would make a node of its own.
    if (flags) return CUDA_ERROR_NOT_SUPPORTED;
    if (!event->last || state().switches.ignore_waits) return CUDA_SUCCESS;
    if (event->last->capture) return join(*stream, *event->last);
    if (stream->capture) {
        stream->capture->invalid = true;
        return CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
    }
    Op op{Op::Kind::Wait};
    op.record = event->last;
    return submit(*stream, std::move(op));
}

API cuLaunchHostFunc(CUstream handle, CUhostFn call_it, void *data) {
    ENTER(Context);
    Stream *stream = stream_of(handle);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    if (!call_it) return CUDA_ERROR_INVALID_VALUE;
    Op op{Op::Kind::Host};
    op.call = call_it, op.data = data;
    return submit(*stream, std::move(op));
}

API cuEventCreate(CUevent *to, unsigned flags) {
    ENTER(Context);
    // CU_EVENT_INTERPROCESS is for other processes.
    if (!to || flags > 3) return CUDA_ERROR_INVALID_VALUE;
    auto *event = new Event{current(), flags, nullptr};
    state().events.insert(event);
    *to = reinterpret_cast<CUevent>(event);
    return CUDA_SUCCESS;
}

API cuEventDestroy_v2(CUevent handle) {
    ENTER(Release);
    Event *event = event_of(handle);
    if (!event) return CUDA_ERROR_INVALID_HANDLE;
    state().events.erase(event);
    delete event;
    return state().sticky;
}

API cuEventRecord(CUevent handle, CUstream in) {
    ENTER(Context);
    Event *event = event_of(handle);
    Stream *stream = stream_of(in);
    if (!event || !stream) return CUDA_ERROR_INVALID_HANDLE;
    event->last = std::make_shared<Record>(Record{stream});
    if (stream->capture) {
        event->last->capture = stream->capture;
        event->last->position = stream->captured;
        return CUDA_SUCCESS;
    }
    Op op{Op::Kind::Record};
    op.record = event->last;
    return submit(*stream, std::move(op));
}

API cuEventSynchronize(CUevent handle) {
    ENTER(Context);
    const Event *event = event_of(handle);
    if (!event) return CUDA_ERROR_INVALID_HANDLE;
    if (!event->last || event->last->done) return CUDA_SUCCESS;
    if (event->last->capture) return CUDA_ERROR_CAPTURED_EVENT;
    return run(*event->last->stream, event->last.get());
}

API cuEventQuery(CUevent handle) {
    ENTER(Context);
    const Event *event = event_of(handle);
    if (!event) return CUDA_ERROR_INVALID_HANDLE;
    if (!event->last || event->last->done) return CUDA_SUCCESS;
    if (event->last->capture) return CUDA_ERROR_CAPTURED_EVENT;
    if (event->last->asked) return run(*event->last->stream, event->last.get());
    event->last->asked = true;
    return CUDA_ERROR_NOT_READY;
}

API cuEventElapsedTime(float *to, CUevent from, CUevent until) {
    ENTER(Context);
    return elapsed(to, from, until);
}

API cuEventElapsedTime_v2(float *to, CUevent from, CUevent until) {
    ENTER(Context);
    return elapsed(to, from, until);
}
