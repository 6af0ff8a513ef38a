// The device, contexts, errors' names.

#include "standin.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <dlfcn.h>

namespace standin {
namespace {

// What a context holds goes with it. Its work is done first.
void clear_context(Context *context) {
    State &s = state();
    run_all(context, false);
    for (Stream *stream : std::vector(s.streams)) {
        if (stream->context == context) destroy_stream(stream);
    }
    std::erase_if(s.events, [&](Event *event) { return event->context == context && (delete event, true); });
    for (Module *module : std::set(s.modules)) {
        if (module->context != context) continue;
        std::erase_if(s.functions, [&](const auto &entry) { return entry.second == module; });
        s.modules.erase(module);
        delete module;
    }
    std::vector<RangePtr> held;
    for (const auto &[at, range] : s.ranges) {
        if (range->context == context) held.push_back(range);
    }
    for (const RangePtr &range : held) release(range);
    give_back(context->counted);
    s.contexts.erase(context);
}

CUresult create_context(CUcontext *to, unsigned flags, CUdevice device) {
    if (!to) return CUDA_ERROR_INVALID_VALUE;
    if (device != 0) return CUDA_ERROR_INVALID_DEVICE;
    if (!take(state().switches.context)) return CUDA_ERROR_OUT_OF_MEMORY;
    auto *context = new Context{false, flags, 0, state().switches.context};
    state().contexts.insert(context);
    current_contexts.push_back(context);
    *to = reinterpret_cast<CUcontext>(context);
    return CUDA_SUCCESS;
}

bool is_device(CUdevice device) { return device == 0 && state().switches.devices > 0; }

int attribute(int number) {
    const int compute = state().switches.compute;
    switch (number) {
    case 1: case 2: case 3: return 1024;       // Threads in a block, in its directions.
    case 4: return 64;
    case 5: return 2147483647;                 // Blocks in the directions of a grid.
    case 6: case 7: return 65535;
    case 8: return SHARED_BYTES;
    case 9: return 65536;                      // Constant memory.
    case 10: return 32;                        // Threads in a warp.
    case 11: return 2147483647;                // Pitch.
    case 12: case 82: return 65536;            // Registers of a block, of a multiprocessor.
    case 13: return 1000000;                   // Clock, kHz.
    case 14: return 512;                       // Alignment of textures.
    case 15: case 19: case 31: return 1;       // Overlaps, maps host memory, kernels beside each other.
    case 16: return 4;                         // Multiprocessors.
    case 33: return 1;                         // PCI bus.
    case 36: return 1000000;                   // Clock of memory, kHz.
    case 37: return 256;                       // Width of its bus, bits.
    case 38: return 4 << 20;                   // L2.
    case 39: return 1536;                      // Threads of a multiprocessor.
    case 40: return 2;                         // Copy engines.
    case 41: return 1;                         // Unified addresses.
    case 75: return compute / 10;
    case 76: return compute % 10;
    case 78: case 79: case 80: return 1;       // Priorities of streams, L1.
    case 81: return SHARED_OPT_IN + 1024;      // Shared memory of a multiprocessor.
    case 90: case 91: return 1;                // Preemption, host addresses for registered memory.
    case 97: return SHARED_OPT_IN;
    case 99: return 1;                         // Registers host memory.
    case 106: return 16;                       // Blocks of a multiprocessor.
    case 111: return 1024;                     // Shared memory kept from every block.
    case 115: return 1;                        // Pools.
    default: return 0;                         // What it has not.
    }
}

} // namespace
} // namespace standin

using namespace standin;

API cuInit(unsigned flags) {
    ENTER(Nothing);
    if (flags) return CUDA_ERROR_INVALID_VALUE;
    if (state().switches.devices == 0) return CUDA_ERROR_NO_DEVICE;
    state().initialised = true;
    return CUDA_SUCCESS;
}

API cuDriverGetVersion(int *to) {
    ENTER(Nothing);
    if (!to) return CUDA_ERROR_INVALID_VALUE;
    *to = state().switches.driver;
    return CUDA_SUCCESS;
}

API cuGetErrorName(CUresult error, const char **to) {
    if (!to) return CUDA_ERROR_INVALID_VALUE;
    switch (static_cast<unsigned>(error)) {
    case 0: *to = "CUDA_SUCCESS"; return CUDA_SUCCESS;
#define STANDIN_ERROR(code, name, text)                                                                                \
    case code: *to = "CUDA_ERROR_" #name; return CUDA_SUCCESS;
        STANDIN_ERRORS(STANDIN_ERROR)
#undef STANDIN_ERROR
    }
    *to = nullptr;
    return CUDA_ERROR_INVALID_VALUE;
}

API cuGetErrorString(CUresult error, const char **to) {
    if (!to) return CUDA_ERROR_INVALID_VALUE;
    switch (static_cast<unsigned>(error)) {
    case 0: *to = "no error"; return CUDA_SUCCESS;
#define STANDIN_ERROR(code, name, text)                                                                                \
    case code: *to = text; return CUDA_SUCCESS;
        STANDIN_ERRORS(STANDIN_ERROR)
#undef STANDIN_ERROR
    }
    *to = nullptr;
    return CUDA_ERROR_INVALID_VALUE;
}

// A function by its name without a version: the newest that is here.
API cuGetProcAddress_v2(const char *name, void **to, int, uint64_t, int *found) {
    ENTER(Nothing);
    if (!name || !to) return CUDA_ERROR_INVALID_VALUE;
    *to = nullptr;
    Dl_info self{};
    void *library = nullptr;
    if (dladdr(reinterpret_cast<void *>(&cuInit), &self)) library = dlopen(self.dli_fname, RTLD_NOLOAD | RTLD_LAZY);
    for (const char *suffix : {"_v4", "_v3", "_v2", ""}) {
        if (library && !*to) *to = dlsym(library, (std::string(name) + suffix).c_str());
    }
    if (library) dlclose(library);
    if (found) *found = *to ? 0 : 1;
    return *to ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}

API cuDeviceGetCount(int *to) {
    ENTER(Init);
    if (!to) return CUDA_ERROR_INVALID_VALUE;
    *to = state().switches.devices;
    return CUDA_SUCCESS;
}

API cuDeviceGet(CUdevice *to, int ordinal) {
    ENTER(Init);
    if (!to) return CUDA_ERROR_INVALID_VALUE;
    if (!is_device(ordinal)) return CUDA_ERROR_INVALID_DEVICE;
    *to = ordinal;
    return CUDA_SUCCESS;
}

API cuDeviceGetName(char *to, int bytes, CUdevice device) {
    ENTER(Init);
    if (!to || bytes <= 0) return CUDA_ERROR_INVALID_VALUE;
    if (!is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
    std::snprintf(to, bytes, "AirLLM stand-in");
    return CUDA_SUCCESS;
}

API cuDeviceTotalMem_v2(size_t *to, CUdevice device) {
    ENTER(Init);
    if (!to) return CUDA_ERROR_INVALID_VALUE;
    if (!is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
    *to = state().switches.memory;
    return CUDA_SUCCESS;
}

API cuDeviceGetAttribute(int *to, int number, CUdevice device) {
    ENTER(Init);
    if (!to || number < 1 || number >= 144) return CUDA_ERROR_INVALID_VALUE;
    if (!is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
    *to = attribute(number);
    return CUDA_SUCCESS;
}

API cuDeviceGetUuid_v2(CUuuid *to, CUdevice device) {
    ENTER(Init);
    if (!to) return CUDA_ERROR_INVALID_VALUE;
    if (!is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
    std::memcpy(to->bytes, "AirLLM stand-in", 16);
    return CUDA_SUCCESS;
}

API cuDeviceGetPCIBusId(char *to, int bytes, CUdevice device) {
    ENTER(Init);
    if (!to || bytes < 13) return CUDA_ERROR_INVALID_VALUE;
    if (!is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
    std::snprintf(to, bytes, "0000:01:00.0");
    return CUDA_SUCCESS;
}

API cuDevicePrimaryCtxRetain(CUcontext *to, CUdevice device) {
    ENTER(Init);
    State &s = state();
    if (!to) return CUDA_ERROR_INVALID_VALUE;
    if (!is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
    if (s.primary.retained == 0) {
        if (!take(s.switches.context)) return CUDA_ERROR_OUT_OF_MEMORY;
        s.primary.counted = s.switches.context;
        s.contexts.insert(&s.primary);
    }
    s.primary.retained++;
    *to = reinterpret_cast<CUcontext>(&s.primary);
    return CUDA_SUCCESS;
}

API cuDevicePrimaryCtxRelease_v2(CUdevice device) {
    ENTER(Init);
    State &s = state();
    if (!is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
    if (s.primary.retained == 0) return CUDA_ERROR_INVALID_CONTEXT;
    if (--s.primary.retained == 0) clear_context(&s.primary);
    return CUDA_SUCCESS;
}

API cuDevicePrimaryCtxReset_v2(CUdevice device) {
    ENTER(Init);
    State &s = state();
    if (!is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
    if (!s.contexts.contains(&s.primary)) return CUDA_SUCCESS;
    clear_context(&s.primary);
    s.primary.retained = 0;
    return CUDA_SUCCESS;
}

API cuDevicePrimaryCtxSetFlags_v2(CUdevice device, unsigned flags) {
    ENTER(Init);
    if (!is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
    state().primary.flags = flags;
    return CUDA_SUCCESS;
}

API cuDevicePrimaryCtxGetState(CUdevice device, unsigned *flags, int *active) {
    ENTER(Init);
    if (!is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
    if (!flags || !active) return CUDA_ERROR_INVALID_VALUE;
    *flags = state().primary.flags;
    *active = state().contexts.contains(&state().primary);
    return CUDA_SUCCESS;
}

API cuCtxCreate_v2(CUcontext *to, unsigned flags, CUdevice device) {
    ENTER(Init);
    return create_context(to, flags, device);
}

API cuCtxCreate_v4(CUcontext *to, void *, unsigned flags, CUdevice device) {
    ENTER(Init);
    return create_context(to, flags, device);
}

API cuCtxDestroy_v2(CUcontext handle) {
    ENTER(Init);
    auto *context = reinterpret_cast<Context *>(handle);
    if (!state().contexts.contains(context) || context->primary) return CUDA_ERROR_INVALID_CONTEXT;
    clear_context(context);
    if (current() == context) current_contexts.pop_back();
    delete context;
    return CUDA_SUCCESS;
}

API cuCtxSetCurrent(CUcontext handle) {
    ENTER(Init);
    auto *context = reinterpret_cast<Context *>(handle);
    if (context && !state().contexts.contains(context)) return CUDA_ERROR_INVALID_CONTEXT;
    if (!current_contexts.empty()) current_contexts.pop_back();
    if (context) current_contexts.push_back(context);
    return CUDA_SUCCESS;
}

API cuCtxGetCurrent(CUcontext *to) {
    ENTER(Init);
    if (!to) return CUDA_ERROR_INVALID_VALUE;
    *to = reinterpret_cast<CUcontext>(current());
    return CUDA_SUCCESS;
}

API cuCtxPushCurrent_v2(CUcontext handle) {
    ENTER(Init);
    auto *context = reinterpret_cast<Context *>(handle);
    if (!state().contexts.contains(context)) return CUDA_ERROR_INVALID_CONTEXT;
    current_contexts.push_back(context);
    return CUDA_SUCCESS;
}

API cuCtxPopCurrent_v2(CUcontext *to) {
    ENTER(Init);
    if (!current()) return CUDA_ERROR_INVALID_CONTEXT;
    if (to) *to = reinterpret_cast<CUcontext>(current());
    current_contexts.pop_back();
    return CUDA_SUCCESS;
}

API cuCtxGetDevice(CUdevice *to) {
    ENTER(Context);
    if (!to) return CUDA_ERROR_INVALID_VALUE;
    *to = 0;
    return CUDA_SUCCESS;
}

API cuCtxGetStreamPriorityRange(int *least, int *greatest) {
    ENTER(Context);
    if (least) *least = 0;
    if (greatest) *greatest = -5;
    return CUDA_SUCCESS;
}

API cuCtxSynchronize() {
    ENTER(Context);
    if (const CUresult code = forbidden_by_capture()) return code;
    return run_all(current(), false);
}
