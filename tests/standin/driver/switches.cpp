// What tests set and ask: switches, counts of calls, errors that stay.

#include "standin.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sstream>

namespace standin {

State &state() {
    // Never destroyed: other threads may call until the process ends.
    static State &all = *new State;
    return all;
}

thread_local std::vector<Context *> current_contexts;
thread_local bool in_host_function = false;

namespace {

bool number(const std::string &text, uint64_t &to) {
    char *end = nullptr;
    to = std::strtoull(text.c_str(), &end, 10);
    return !text.empty() && text[0] != '-' && *end == 0;
}

template <class T> bool set(const std::string &text, T &to, uint64_t most = ~0ull) {
    uint64_t value;
    if (!number(text, value) || value > most) return false;
    to = static_cast<T>(value);
    return true;
}

// "call:n[:code],..."
bool set_failures(const std::string &text, std::multimap<std::string, Switches::Failure> &to) {
    std::istringstream all(text);
    for (std::string one; std::getline(all, one, ',');) {
        std::istringstream parts(one);
        std::string name, call, code;
        std::getline(parts, name, ':') && std::getline(parts, call, ':') && std::getline(parts, code, ':');
        uint64_t n, error = CUDA_ERROR_ILLEGAL_ADDRESS;
        if (name.empty() || !number(call, n) || (!code.empty() && !number(code, error))) return false;
        to.insert({name, {n, static_cast<CUresult>(error)}});
    }
    return true;
}

bool set_order(const std::string &text, Switches &to) {
    to.seed = 0;
    if (text == "forward" || text == "reverse") return to.order = text == "reverse", true;
    to.order = 2;
    return text.starts_with("random:") && set(text.substr(7), to.seed);
}

bool set_mode(const std::string &text, Switches &to) {
    to.mode = text == "eager" ? Mode::Eager : text == "early" ? Mode::Early : Mode::Lazy;
    if (text == "lazy" || to.mode != Mode::Lazy) return true;
    to.mode = Mode::Random;
    return text.starts_with("random:") && set(text.substr(7), to.mode_seed);
}

bool set_switch(Switches &to, const std::string &name, const std::string &value) {
    if (name == "MODE") return set_mode(value, to);
    if (name == "MEMORY") return set(value, to.memory);
    if (name == "CONTEXT") return set(value, to.context);
    if (name == "DEVICES") return set(value, to.devices, 1);
    if (name == "DRIVER") return set(value, to.driver, 99999);
    if (name == "COMPUTE") return set(value, to.compute, 999);
    if (name == "ORDER") return set_order(value, to);
    if (name == "IGNORE_WAITS") return set(value, to.ignore_waits, 1);
    if (name == "FAIL") return to.failures.clear(), set_failures(value, to.failures);
    return false;
}

bool refuse(const std::string &name, const std::string &value) {
    std::fprintf(stderr, "airllm stand-in: the switch %s cannot be '%s'\n", name.c_str(), value.c_str());
    return false;
}

} // namespace

bool configure(const char *text) {
    Switches found;
    bool good = true;
    if (const char *mode = std::getenv("AIRLLM_STANDIN"); mode && !set_switch(found, "MODE", mode)) {
        good = refuse("AIRLLM_STANDIN", mode);
    }
    for (const char *name : {"MODE", "MEMORY", "CONTEXT", "DEVICES", "DRIVER", "COMPUTE", "ORDER", "IGNORE_WAITS", "FAIL"}) {
        const std::string variable = std::string("AIRLLM_STANDIN_") + name;
        const char *value = std::getenv(variable.c_str());
        if (value && !set_switch(found, name, value)) good = refuse(variable, value);
    }
    std::istringstream words(text);
    for (std::string word; words >> word;) {
        const size_t equals = std::min(word.find('='), word.size());
        const std::string name = word.substr(0, equals), value = word.substr(std::min(equals + 1, word.size()));
        if (!set_switch(found, name, value)) good = refuse(name, value);
    }
    if (!good) return false;
    state().switches = found;
    state().since_configured.clear();
    state().configured = true;
    return true;
}

void configure_once() {
    // A switch that is wrong must not be overlooked.
    if (!state().configured && !configure("")) std::abort();
}

CUresult fail_for_good(CUresult code, const std::string &why) {
    State &s = state();
    if (s.sticky) return s.sticky;
    std::fprintf(stderr, "airllm stand-in: %s\n", why.c_str());
    s.message = why;
    s.sticky = code;
    abandon();
    return code;
}

Call::Call(const char *name, Needs needs) : lock(state().mutex) {
    State &s = state();
    configure_once();
    s.calls[name]++;
    const uint64_t count = ++s.since_configured[name];
    const auto [first, last] = s.switches.failures.equal_range(name);
    for (auto at = first; at != last; ++at) {
        if (at->second.call != count) continue;
        refused = at->second.code;
        // What CUDA lets nobody recover from.
        const bool stays = refused >= 700 && refused < 800;
        if (stays) fail_for_good(refused, std::string(name) + " fails, as the switch FAIL has it");
        return;
    }
    if (needs == Needs::Nothing) return;
    if (in_host_function) {
        refused = CUDA_ERROR_NOT_PERMITTED;
    } else if (!s.initialised) {
        refused = CUDA_ERROR_NOT_INITIALIZED;
    } else if (needs != Needs::Init && !(current() && s.contexts.contains(current()))) {
        refused = CUDA_ERROR_INVALID_CONTEXT;
    } else if (needs == Needs::Context) {
        refused = s.sticky;
    }
}

} // namespace standin

using namespace standin;

// Switches as the environment has them, then as the text has them; 0, or 1 if one cannot be.
EXPORT int airllm_standin_configure(const char *text) {
    const std::lock_guard lock(state().mutex);
    return configure(text) ? 0 : 1;
}

// Forgets errors, counts of calls, and the peak; gives up what is queued.
EXPORT void airllm_standin_reset() {
    State &s = state();
    const std::lock_guard lock(s.mutex);
    abandon();
    s.sticky = CUDA_SUCCESS;
    s.message.clear();
    s.calls.clear();
    s.peak = s.used, s.pool_peak = s.pool_used;
}

// Calls of a function since the last reset.
EXPORT uint64_t airllm_standin_calls(const char *name) {
    const std::lock_guard lock(state().mutex);
    const auto found = state().calls.find(name);
    return found == state().calls.end() ? 0 : found->second;
}

// Most bytes of device memory that were taken at a time since the last reset.
EXPORT uint64_t airllm_standin_peak() {
    const std::lock_guard lock(state().mutex);
    return state().peak;
}

// Bytes of device memory that are taken.
EXPORT uint64_t airllm_standin_used() {
    const std::lock_guard lock(state().mutex);
    return state().used;
}

// Why there is an error that stays: up to `bytes` characters, the last of them 0.
EXPORT void airllm_standin_message(char *to, size_t bytes) {
    const std::lock_guard lock(state().mutex);
    if (bytes > 0) std::snprintf(to, bytes, "%s", state().message.c_str());
}
