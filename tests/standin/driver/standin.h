// A stand-in for the CUDA driver: a `libcuda.so` without a GPU, whose launches run the `.cu` files on the host.
//
// It models what CUDA promises and nothing more, so that code which relies on more gives NaN, or an error, every time:
//
// - Lazy (but see MODE): copies, fills, kernels, host functions, records and waits of events are queued in their stream and run only
//   when the host waits for them (for their stream, an event behind them, the context, by a blocking copy), as late as
//   they can. What one stream does not wait for, by an event, has not run when it runs. A query of an unfinished event or
//   stream answers NOT_READY once, and from the second time on makes it happen, so that loops of queries end.
// - A wait refers to the record that was last made when the wait was queued.
// - Copies from page-locked memory read it when they run; copies from other memory read it at the call, copies to other
//   memory wait. The stream 0 waits for all streams that are not CU_STREAM_NON_BLOCKING and runs at once.
// - New memory of device and host holds NaN (0xff). An address is never used twice. Behind every allocation lies a page
//   that nobody may touch.
// - Addresses of copies lie inside one live allocation, or the call fails. What is freed, or unregistered, while queued
//   work needs it gives ILLEGAL_ADDRESS; so does a kernel that touches what it may not, or is given the address of host
//   memory that is not registered. These errors, and LAUNCH_FAILED, stay: every later call gives them, as with CUDA. A line
//   on stderr says what happened.
// - Modules are not read: every kernel of the repository is in the library.
// - A graph runs its nodes one after the other, in the order of their capture.
//
// Switches, from the environment (AIRLLM_STANDIN_<NAME>) when the library is first called, and whenever a test calls
// `airllm_standin_configure("NAME=value ...")`, which takes all others from the environment again:
//
//   MODE=lazy|eager|early|random:seed
//                          eager runs everything at the call. early runs what copies, fills and frees as soon as no wait
//                          and no kernel before it in its stream holds it back, and kernels late: memory that is filled
//                          anew while kernels still need it shows. random runs some of what could run after every
//                          call. The variable AIRLLM_STANDIN means the same
//   MEMORY=bytes           of the device, 8 GiB
//   CONTEXT=bytes          of device memory taken by each context, 0
//   DEVICES=0|1            1
//   DRIVER=13000           version of the driver
//   COMPUTE=80             compute capability
//   ORDER=forward|reverse|random:seed
//                          of the threads and blocks of kernels, and of the streams when the context is waited for
//   IGNORE_WAITS=0|1       1: cuStreamWaitEvent does nothing
//   FAIL=call:n[:code],..  the n-th call of a function from now on fails, with ILLEGAL_ADDRESS (700) if no code is given
//
// For tests: `airllm_standin_calls(name)`, `airllm_standin_peak()`, `airllm_standin_used()`, `airllm_standin_message()`,
// `airllm_standin_reset()`.
#pragma once

#include "cuda.h"

#include <chrono>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#define EXPORT extern "C" __attribute__((visibility("default")))
#define API EXPORT CUresult

namespace standin {

// What a block can have of shared memory: without asking, and at most (as sm_86, the least of sm_80 and later).
constexpr size_t SHARED_BYTES = 48 << 10, SHARED_OPT_IN = 99 << 10;

enum class Mode { Lazy, Eager, Early, Random };

struct Switches {
    Mode mode = Mode::Lazy;
    uint64_t mode_seed = 0;
    bool ignore_waits = false;
    size_t memory = size_t{8} << 30, context = 0;
    int devices = 1, driver = 13000, compute = 80;
    uint32_t order = 0;
    uint64_t seed = 0;
    struct Failure {
        uint64_t call;
        CUresult code;
    };
    std::multimap<std::string, Failure> failures;
};

struct Context {
    bool primary = false;
    unsigned flags = 0;
    // How often a primary context is retained.
    size_t retained = 0;
    // Device memory that it takes itself.
    size_t counted = 0;
};

// Memory of the device, or of the host and known to the device.
struct Range {
    enum class Kind { Device, HostOwned, HostRegistered } kind;
    uint8_t *start;
    size_t bytes;
    Context *context;
    // Counted as taken from the device.
    size_t counted = 0;
    bool of_pool = false;
    bool live = true;
    // What was mapped for it, guard page included; nothing if registered.
    uint8_t *mapping = nullptr;
    size_t mapped = 0;
};
using RangePtr = std::shared_ptr<Range>;

// One end of a copy; `range` is null for memory that the device does not know.
struct Place {
    uint8_t *at = nullptr;
    RangePtr range;
};

struct Stream;

// An event, recorded once.
struct Record {
    Stream *stream;
    bool done = false, asked = false;
    std::chrono::steady_clock::time_point time{};
    // In a capture, and how much of its stream the capture had then.
    std::shared_ptr<struct Capture> capture;
    uint64_t position = 0;
};

struct Event {
    Context *context;
    unsigned flags;
    std::shared_ptr<Record> last;
};

struct Function {
    std::string name;
    size_t params;
    uint32_t threads;
    // Dynamic shared memory that launches may ask for.
    size_t dynamic = SHARED_BYTES;
};

struct Module {
    Context *context;
    std::map<std::string, std::unique_ptr<Function>> functions;
};

struct Op;

struct Graph {
    std::vector<Op> ops;
};

// One queued piece of work.
struct Op {
    enum class Kind { Copy, Fill, Kernel, Host, Record, Wait, Free, Graph } kind;
    // Copy, Fill (of `bytes`), Free.
    Place to, from;
    size_t bytes = 0;
    // Bytes that were read at the call.
    std::shared_ptr<std::vector<uint8_t>> staged;
    uint32_t value = 0, value_bytes = 1;
    // Kernel: its structure, and the memory that its pointers lead to.
    std::string kernel;
    std::shared_ptr<std::vector<uint64_t>> params;
    size_t params_bytes = 0, dynamic = 0;
    std::vector<RangePtr> touched;
    std::string wrong;
    uint32_t grid[3] = {1, 1, 1}, threads = 0;
    CUhostFn call = nullptr;
    void *data = nullptr;
    std::shared_ptr<Record> record;
    std::shared_ptr<const Graph> graph;
};

struct Capture {
    Stream *origin;
    unsigned mode;
    std::thread::id thread;
    bool invalid = false, ended = false;
    std::set<Stream *> joined;
    Graph graph;
};

struct Stream {
    Context *context;
    bool blocking;
    unsigned flags = 0;
    int priority = 0;
    std::deque<Op> queue;
    // How much was ever queued, and how much when a query last found work.
    uint64_t queued = 0, asked = 0;
    std::shared_ptr<Capture> capture;
    // Captured work, in number, and how much of it others of the capture wait for.
    uint64_t captured = 0, joined_to = 0;
};

struct State {
    std::recursive_mutex mutex;
    bool configured = false, initialised = false;
    Switches switches;
    CUresult sticky = CUDA_SUCCESS;
    std::string message;
    std::map<std::string, uint64_t> calls, since_configured;

    Context primary{true};
    std::set<Context *> contexts;
    std::vector<Stream *> streams;
    std::set<Event *> events;
    std::set<Module *> modules;
    std::map<Function *, Module *> functions;
    std::set<Graph *> graphs;
    std::map<CUgraphExec, std::shared_ptr<const Graph>> executables;

    // By their starts: what is live, and addresses that were freed.
    std::map<uintptr_t, RangePtr> ranges;
    std::map<uintptr_t, RangePtr> freed;
    std::deque<RangePtr> freed_order;
    size_t freed_bytes = 0;
    size_t used = 0, peak = 0, pool_used = 0, pool_peak = 0;
    uint64_t pool_threshold = 0;
};

State &state();
// Contexts of this thread, the current one last.
extern thread_local std::vector<Context *> current_contexts;
// Whether this thread is in a host function of a stream, which may not call CUDA.
extern thread_local bool in_host_function;

inline Context *current() { return current_contexts.empty() ? nullptr : current_contexts.back(); }

// What a call needs: nothing, cuInit, a current context and no error that stays. A release is done in spite of such an
// error, and gives it.
enum class Needs { Nothing, Init, Context, Release };

// Stands at the start of every call: takes the lock, counts, and says whether the call fails before it begins.
struct Call {
    std::unique_lock<std::recursive_mutex> lock;
    CUresult refused = CUDA_SUCCESS;
    Call(const char *name, Needs needs);
};
#define ENTER(needs)                                                                                                   \
    const Call call(__func__, Needs::needs);                                                                           \
    if (call.refused) return call.refused

// Sets the error that stays, and says why; the first one counts.
CUresult fail_for_good(CUresult code, const std::string &why);

// queue.cpp
Stream *null_stream();
// The stream of a handle, or null if there is none.
Stream *stream_of(CUstream handle);
// Queues work, or runs it at once, or puts it into the capture of the stream.
CUresult submit(Stream &stream, Op op);
// Runs what is queued, up to and with this record, or all of it.
CUresult run(Stream &stream, const Record *until = nullptr);
CUresult run_all(Context *context, bool only_blocking);
// Gives up what is queued anywhere.
void abandon();
bool is_queued(const Range &range);
void destroy_stream(Stream *stream);

// kernel.cpp
CUresult run_kernel(const Op &op);

// graph.cpp
CUresult forbidden_by_capture();

// memory.cpp
// The live range in which, or at whose end, an address lies, or null.
RangePtr find(const void *at);
// The same among those that were freed.
RangePtr find_freed(const void *at);
// Whether memory is mapped at an address.
bool is_mapped(const void *at);
void release(const RangePtr &range);
// Counts bytes of the device as taken, if there are as many.
bool take(size_t bytes);
void give_back(size_t bytes);

// switches.cpp
bool configure(const char *text);
void configure_once();

} // namespace standin
