// Runs kernels on the host: a fiber for each thread of a block, one block after the other, on the caller's thread.
//
// A thread runs until it waits for others or ends; then the next that can run does. The order in which threads, and
// blocks, take turns is chosen at launch: a result that depends on it betrays a missing barrier. Where nobody can run and
// not all have ended, the launch fails and says who waits for what.

#include "../include/emu.h"
#include "fiber.h"

#include <cstdio>
#include <memory>
#include <string>
#include <vector>

namespace emu {
namespace {

enum class Order : uint32_t { Forward, Reverse, Random };

enum class State : uint8_t { Ready, Waiting, Done };

// A copy of 16 bytes that was begun, and the number of its group.
struct Copy {
    void *to;
    const void *from;
    uint32_t group;
};

struct Thread {
    Fiber fiber;
    Dim index;
    State state;
    // What it waits for, if it waits.
    Op op;
    bool at_barrier;
    uint32_t mask;
    const char *file;
    int line;
    // What a collective gave it.
    uint64_t result;
    std::vector<Copy> copies;
    // Groups of copies that are complete.
    uint32_t groups;
};

// Lanes that have come to a collective and wait for the rest.
struct Pending {
    Op op;
    uint32_t mask, arrived;
    uint64_t values[32];
    uint32_t arguments[32];
};

struct Site {
    const char *name;
    size_t at, bytes;
};

// SplitMix64 (Steele et al. 2014).
struct Random {
    uint64_t state;
    uint64_t next() {
        state += 0x9e3779b97f4a7c15u;
        uint64_t z = (state ^ state >> 30) * 0xbf58476d1ce4e5b9u;
        z = (z ^ z >> 27) * 0x94d049bb133111ebu;
        return z ^ z >> 31;
    }
    // Puts numbers in any order.
    template <class T> void shuffle(std::vector<T> &numbers) {
        for (size_t i = numbers.size(); i > 1; i--) std::swap(numbers[i - 1], numbers[next() % i]);
    }
};

// Shared memory of a block: what kernels declare, which is never more; and with what a launch asks for, as much as
// sm_86 and sm_89 give, the least of sm_80 and later.
constexpr size_t STATIC_BYTES = 48 << 10, SHARED_BYTES = 99 << 10;

struct Machine {
    const Entry *kernel = nullptr;
    const void *params = nullptr;
    Indices indices{};
    Fiber home;
    // Stacks are kept from launch to launch; the first `count` threads are those of the block.
    std::vector<Thread> threads;
    size_t count = 0;
    Order order = Order::Forward;
    Random random{};
    // Numbers of threads in the order of their turns, and whose turn it is.
    std::vector<uint32_t> turns;
    size_t turn = 0;
    Thread *now = nullptr;
    size_t at_barrier = 0, done = 0;
    std::vector<std::vector<Pending>> pending;
    alignas(64) unsigned char memory[SHARED_BYTES];
    std::vector<Site> sites;
    size_t dynamic = 0, used = 0;
    std::string failure;

    void run_block();
    void fill_turns();
    [[noreturn]] void fail(std::string what);
    void wait();
    void next(bool ended);
    std::string who_waits() const;
};

// That of this thread, made when it first launches a kernel. Threads of kernels ask for it all the time: it is found without a call, which
// takes that all variables of threads are small.
__attribute__((tls_model("initial-exec"))) constinit thread_local Machine *running = nullptr;

Machine &own_machine() {
    thread_local std::unique_ptr<Machine> own;
    if (!own) own = std::make_unique<Machine>();
    return *(running = own.get());
}

const Entry *&first_entry() {
    static const Entry *first = nullptr;
    return first;
}

const Entry *find(const char *name) {
    const Entry *kernel = first_entry();
    while (kernel && std::strcmp(kernel->name, name) != 0) kernel = kernel->next;
    return kernel;
}

const char *name_of(Op op) {
    constexpr const char *NAMES[] = {"__syncwarp",       "__shfl_sync",   "__shfl_xor_sync", "__shfl_up_sync",
                                     "__shfl_down_sync", "__ballot_sync", "__any_sync",      "__all_sync",
                                     "mma.sync",         "ldmatrix"};
    return NAMES[static_cast<int>(op)];
}

std::string text(const char *format, auto... values) {
    char buffer[400];
    std::snprintf(buffer, sizeof buffer, format, values...);
    return buffer;
}

// What a fiber runs: the kernel once, as one thread.
void thread_main() {
    Machine &m = *running;
    m.kernel->call(m.params);
    m.now->state = State::Done;
    m.done++;
    m.next(true);
}

void Machine::fill_turns() {
    turns.resize(count);
    for (size_t i = 0; i < count; i++) turns[i] = order == Order::Reverse ? count - 1 - i : i;
    if (order == Order::Random) random.shuffle(turns);
}

void Machine::run_block() {
    at_barrier = done = turn = used = 0;
    sites.clear();
    std::memset(memory, 0xff, dynamic);
    used = (dynamic + 15) / 16 * 16;
    for (auto &warp : pending) warp.clear();
    fill_turns();
    for (size_t i = 0; i < count; i++) {
        threads[i].state = State::Ready;
        threads[i].copies.clear();
        threads[i].groups = 0;
        threads[i].fiber.start(thread_main);
    }
    now = &threads[turns[0]];
    indices.thread = now->index;
    home.switch_to(now->fiber, false);
}

// Ends the launch from within a thread. The other threads are left where they are; nothing in them needs to be undone.
void Machine::fail(std::string what) {
    failure = std::move(what);
    now->fiber.switch_to(home, true);
    __builtin_unreachable();
}

// Lets others run until this thread may.
void Machine::wait() {
    now->state = State::Waiting;
    next(false);
}

// The next thread that can run.
void Machine::next(bool ended) {
    Thread *last = now;
    if (order == Order::Random) turn = random.next() % count;
    for (size_t i = 1; i <= count; i++) {
        const size_t at = turn + i < count ? turn + i : turn + i - count;
        Thread &thread = threads[turns[at]];
        if (thread.state != State::Ready) continue;
        turn = at;
        if (&thread == last) return;
        now = &thread;
        indices.thread = thread.index;
        last->fiber.switch_to(thread.fiber, ended);
        return;
    }
    if (done == count) last->fiber.switch_to(home, true);
    fail(who_waits());
}

// Threads that wait, those at the same place together.
std::string Machine::who_waits() const {
    std::string found = text("%zu of %zu threads have ended, the others wait for each other:", done, count);
    std::vector<bool> named(count);
    for (size_t i = 0; i < count; i++) {
        const Thread &thread = threads[i];
        if (thread.state != State::Waiting || named[i]) continue;
        std::string who;
        size_t same_place = 0;
        for (size_t j = i; j < count; j++) {
            const Thread &other = threads[j];
            const bool same = other.state == State::Waiting && other.line == thread.line && other.file == thread.file &&
                              (thread.at_barrier || (other.mask == thread.mask && j / 32 == i / 32));
            if (!same) continue;
            named[j] = true;
            if (same_place++ < 8) who += (same_place > 1 ? ", " : "") + std::to_string(j);
        }
        if (same_place > 8) who += ", ...";
        const std::string what = thread.at_barrier ? "__syncthreads" : text("%s of mask %08x", name_of(thread.op), thread.mask);
        found += text(" %zu threads (%s) in %s at %s:%d;", same_place, who.c_str(), what.c_str(), thread.file, thread.line);
    }
    found.pop_back();
    return found;
}

uint64_t result_of(const Pending &all, uint32_t lane) {
    uint32_t ballot = 0;
    if (all.op >= Op::Ballot && all.op <= Op::All) {
        for (uint32_t i = 0; i < 32; i++) ballot |= (all.mask >> i & 1 && all.values[i]) ? 1u << i : 0;
    }
    const uint32_t argument = all.arguments[lane];
    uint32_t from = lane;
    switch (all.op) {
    case Op::Sync:
    case Op::Multiply:
    case Op::LoadMatrices: return 0;
    case Op::Ballot: return ballot;
    case Op::Any: return ballot != 0;
    case Op::All: return ballot == all.mask;
    case Op::Shuffle: from = argument % 32; break;
    case Op::ShuffleXor: from = lane ^ argument % 32; break;
    case Op::ShuffleUp: from = argument > lane ? lane : lane - argument; break;
    case Op::ShuffleDown: from = lane + argument > 31 ? lane : lane + argument; break;
    }
    // What a lane that takes no part would give is undefined: a NaN.
    return all.mask >> from & 1 ? all.values[from] : ~0ull;
}

bool launch(const Entry &kernel, const void *params, const Indices &sizes, size_t dynamic, Order order, uint64_t seed) {
    Machine &m = own_machine();
    const uint64_t count = (uint64_t)sizes.threads.x * sizes.threads.y * sizes.threads.z;
    m.failure.clear();
    if (count == 0 || count > kernel.threads) {
        m.failure = text("%llu threads in a block, the kernel allows %u", (unsigned long long)count, kernel.threads);
        return false;
    }
    if (dynamic > SHARED_BYTES) {
        m.failure = text("%zu bytes of shared memory, a block has %zu", dynamic, SHARED_BYTES);
        return false;
    }
    m.kernel = &kernel, m.params = params, m.indices = sizes, m.order = order, m.dynamic = dynamic;
    m.random.state = seed;
    m.count = count;
    while (m.threads.size() < count) {
        m.threads.emplace_back();
        if (!m.threads.back().fiber.allocate(m.threads.size())) {
            m.threads.pop_back();
            m.failure = "no memory for the stacks of a block";
            return false;
        }
    }
    const Dim size = sizes.threads;
    for (uint32_t i = 0; i < count; i++) m.threads[i].index = {i % size.x, i / size.x % size.y, i / size.x / size.y};
    m.pending.resize((count + 31) / 32);

    const Dim grid = sizes.blocks;
    std::vector<uint64_t> blocks((uint64_t)grid.x * grid.y * grid.z);
    for (uint64_t i = 0; i < blocks.size(); i++) blocks[i] = order == Order::Reverse ? blocks.size() - 1 - i : i;
    if (order == Order::Random) m.random.shuffle(blocks);
    for (const uint64_t block : blocks) {
        m.indices.block = {(uint32_t)(block % grid.x), (uint32_t)(block / grid.x % grid.y), (uint32_t)(block / grid.x / grid.y)};
        m.run_block();
        if (m.failure.empty()) continue;
        const Dim at = m.indices.block;
        m.failure = text("block (%u, %u, %u): ", at.x, at.y, at.z) + m.failure;
        return false;
    }
    return true;
}

} // namespace

Entry::Entry(const char *name, void (*call)(const void *), size_t params, uint32_t threads)
    : name(name), call(call), params(params), threads(threads), next(const_cast<Entry *>(first_entry())) {
    first_entry() = this;
}

const Indices &indices() { return running->indices; }

__attribute__((noinline)) static void for_all(const Pending &met, void (*all)(void *const (&lanes)[32])) {
    void *lanes[32];
    for (uint32_t i = 0; i < 32; i++) lanes[i] = reinterpret_cast<void *>(met.values[i]);
    all(lanes);
}

// `all` is what the last lane to come does for all of them, whose values are addresses, if it is not null.
static uint64_t meet(Op op, uint32_t mask, uint64_t value, uint32_t argument, void (*all)(void *const (&lanes)[32]),
                     const char *file, int line) {
    Machine &m = *running;
    Thread &self = *m.now;
    const uint32_t number = &self - m.threads.data(), lane = number % 32;
    if (!(mask >> lane & 1)) {
        m.fail(text("thread %u is not in the mask %08x of its own %s at %s:%d", number, mask, name_of(op), file, line));
    }
    auto &warp = m.pending[number / 32];
    Pending *mine = nullptr;
    for (auto &pending : warp) {
        if (pending.op == op && pending.mask == mask && !(pending.arrived >> lane & 1)) mine = &pending;
    }
    if (!mine) {
        warp.emplace_back();
        mine = &warp.back();
        mine->op = op, mine->mask = mask, mine->arrived = 0;
    }
    mine->values[lane] = value, mine->arguments[lane] = argument;
    mine->arrived |= 1u << lane;
    if (mine->arrived != mask) {
        self.op = op, self.mask = mask, self.file = file, self.line = line, self.at_barrier = false;
        m.wait();
        return self.result;
    }
    if (all) for_all(*mine, all);
    const uint32_t base = number / 32 * 32;
    for (uint32_t i = 0; i < 32; i++) {
        if (!(mask >> i & 1)) continue;
        Thread &thread = m.threads[base + i];
        thread.result = result_of(*mine, i);
        thread.state = State::Ready;
    }
    if (mine != &warp.back()) *mine = warp.back();
    warp.pop_back();
    return self.result;
}

uint64_t collective(Op op, uint32_t mask, uint64_t value, uint32_t argument, const char *file, int line) {
    return meet(op, mask, value, argument, nullptr, file, line);
}

void together(Op op, void *mine, void (*all)(void *const (&lanes)[32]), const char *file, int line) {
    meet(op, 0xffffffffu, reinterpret_cast<uintptr_t>(mine), 0, all, file, line);
}

void copy_begin(void *to, const void *from) {
    Machine &m = *running;
    const auto *target = static_cast<unsigned char *>(to);
    const bool aligned = (reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from)) % 16 == 0;
    if (!aligned || target < m.memory || target + 16 > m.memory + SHARED_BYTES) {
        m.fail("a copy of 16 bytes into shared memory has an end that is not there, or not at a multiple of 16");
    }
    std::memset(to, 0xff, 16);
    m.now->copies.push_back({to, from, m.now->groups});
}

void copies_commit() { running->now->groups++; }

void copies_wait(uint32_t but) {
    Thread &self = *running->now;
    std::erase_if(self.copies, [&](const Copy &copy) {
        if (copy.group + but >= self.groups) return false;
        std::memcpy(copy.to, copy.from, 16);
        return true;
    });
}

void barrier(const char *file, int line) {
    Machine &m = *running;
    Thread &self = *m.now;
    self.at_barrier = true, self.file = file, self.line = line;
    if (++m.at_barrier < m.count) return m.wait();
    m.at_barrier = 0;
    for (size_t i = 0; i < m.count; i++) {
        Thread &thread = m.threads[i];
        if (thread.line != line || thread.file != file) {
            const size_t number = &self - m.threads.data();
            m.fail(text("thread %zu is in __syncthreads at %s:%d, thread %zu in that at %s:%d", i, thread.file,
                        thread.line, number, file, line));
        }
        thread.state = State::Ready;
    }
}

void *shared(const char *name, size_t bytes) {
    Machine &m = *running;
    for (const auto &site : m.sites) {
        if (site.name == name && site.bytes == bytes) return m.memory + site.at;
    }
    const size_t at = m.used, first = (m.dynamic + 15) / 16 * 16;
    const size_t room = std::min(SHARED_BYTES, first + STATIC_BYTES);
    if (bytes > room - std::min(at, room)) {
        m.fail(text("%zu bytes of shared memory for %s, %zu of %zu are taken", bytes, name, at, room));
    }
    std::memset(m.memory + at, 0xff, bytes);
    m.used = at + (bytes + 15) / 16 * 16;
    m.sites.push_back({name, at, bytes});
    return m.memory + at;
}

void *dynamic_shared() { return running->memory; }

} // namespace emu

// What a kernel takes: 0, or 1 if there is no such kernel.
extern "C" int airllm_emu_kernel(const char *name, size_t *params, uint32_t *threads) {
    const emu::Entry *kernel = emu::find(name);
    if (!kernel) return 1;
    *params = kernel->params, *threads = kernel->threads;
    return 0;
}

// Launches a kernel by its name; 0, or 1 and why not in `error`. Every pointer in `params` must hold for the launch.
extern "C" int airllm_emu_launch(const char *name, const void *params, size_t bytes, const uint32_t *grid,
                                 uint32_t threads, size_t dynamic, uint32_t order, uint64_t seed, char *error,
                                 size_t error_bytes) {
    const emu::Entry *kernel = emu::find(name);
    std::string failure;
    if (!kernel) {
        failure = "there is no such kernel";
    } else if (kernel->params != bytes) {
        failure = emu::text("takes %zu bytes of parameters, not %zu", kernel->params, bytes);
    } else {
        const emu::Indices sizes{{}, {}, {threads, 1, 1}, {grid[0], grid[1], grid[2]}};
        if (emu::launch(*kernel, params, sizes, dynamic, static_cast<emu::Order>(order), seed)) return 0;
        failure = emu::running->failure;
    }
    std::snprintf(error, error_bytes, "%s", failure.c_str());
    return 1;
}
