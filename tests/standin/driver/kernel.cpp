// Modules and launches.

#include "standin.h"

#include <algorithm>
#include <csetjmp>
#include <csignal>
#include <cstdio>
#include <cstring>

// kernels/emu/runtime.cpp
extern "C" int airllm_emu_kernel(const char *name, size_t *params, uint32_t *threads);
extern "C" int airllm_emu_launch(const char *name, const void *params, size_t bytes, const uint32_t *grid,
                                 uint32_t threads, size_t dynamic, uint32_t order, uint64_t seed, char *error,
                                 size_t error_bytes);

namespace standin {
namespace {

// Where a kernel goes that touches what it may not.
thread_local sigjmp_buf way_out;
thread_local volatile bool in_kernel = false;
thread_local void *volatile touched = nullptr;
struct sigaction before[2];

#ifndef __SANITIZE_ADDRESS__
void on_fault(int signal, siginfo_t *info, void *) {
    if (!in_kernel) {
        // Not ours: it happens again, to whom it belongs.
        sigaction(signal, &before[signal == SIGBUS], nullptr);
        return;
    }
    touched = info->si_addr;
    siglongjmp(way_out, 1);
}
#endif

// Faults of this thread lead out of its kernel, as long as this lives.
class Guarded {
  public:
    Guarded() {
        in_kernel = true;
#ifndef __SANITIZE_ADDRESS__
        struct sigaction action {};
        action.sa_sigaction = on_fault;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
        sigaction(SIGSEGV, &action, &before[0]);
        sigaction(SIGBUS, &action, &before[1]);
#endif
    }
    ~Guarded() {
        in_kernel = false;
#ifndef __SANITIZE_ADDRESS__
        sigaction(SIGSEGV, &before[0], nullptr);
        sigaction(SIGBUS, &before[1], nullptr);
#endif
    }
};

// What lies near an address.
std::string whereabouts(const void *at) {
    char text[200];
    const auto address = static_cast<const uint8_t *>(at);
    for (const RangePtr &range : {find(at), find_freed(at)}) {
        if (!range) continue;
        std::snprintf(text, sizeof text, "byte %td of %zu bytes that were %s", address - range->start, range->bytes,
                      range->live ? "allocated" : "freed");
        return text;
    }
    const State &s = state();
    const auto after = s.ranges.upper_bound(reinterpret_cast<uintptr_t>(at));
    if (after != s.ranges.begin()) {
        const Range &range = *std::prev(after)->second;
        if (range.mapping && address < range.mapping + range.mapped) {
            std::snprintf(text, sizeof text, "%td bytes behind an allocation of %zu bytes",
                          address - range.start - (ptrdiff_t)range.bytes, range.bytes);
            return text;
        }
    }
    std::snprintf(text, sizeof text, "%p, where nothing was allocated", at);
    return text;
}

// The memory that a structure of parameters leads to. Whatever in it looks like an address is taken for one.
void find_touched(Op &op) {
    for (size_t i = 0; i + 8 <= op.params_bytes; i += 8) {
        const auto *at = reinterpret_cast<const void *>((*op.params)[i / 8]);
        // Sizes are smaller, pairs of numbers larger or unmapped.
        if (reinterpret_cast<uintptr_t>(at) < (uintptr_t{1} << 32)) continue;
        if (const RangePtr range = find(at)) {
            op.touched.push_back(range);
        } else if (find_freed(at)) {
            op.wrong = "was given, at byte " + std::to_string(i) + " of its parameters, " + whereabouts(at);
        } else if (reinterpret_cast<uintptr_t>(at) < (uintptr_t{1} << 47) && is_mapped(at)) {
            op.wrong = "was given, at byte " + std::to_string(i) +
                       " of its parameters, an address of host memory that is not registered";
        }
    }
}

Function *function_of(CUfunction handle) {
    auto *function = reinterpret_cast<Function *>(handle);
    return state().functions.contains(function) ? function : nullptr;
}

// What CUDA takes for a module: a fat binary, an ELF file, PTX, or the mark that is embedded for the stand-in.
bool is_image(const void *image) {
    constexpr uint32_t FAT = 0xba55ed50, WRAPPED_FAT = 0x466243b1;
    uint32_t magic;
    std::memcpy(&magic, image, 4);
    const auto *text = static_cast<const char *>(image);
    return magic == FAT || magic == WRAPPED_FAT || std::strncmp(text, "\177ELF", 4) == 0 ||
           std::strncmp(text, "airllm", 6) == 0 || std::strstr(text, ".version") != nullptr;
}

CUresult load(CUmodule *to, const void *image) {
    if (!to || !image) return CUDA_ERROR_INVALID_VALUE;
    if (!is_image(image)) return CUDA_ERROR_INVALID_IMAGE;
    auto *module = new Module{current(), {}};
    state().modules.insert(module);
    *to = reinterpret_cast<CUmodule>(module);
    return CUDA_SUCCESS;
}

} // namespace

CUresult run_kernel(const Op &op) {
    if (!op.wrong.empty()) {
        return fail_for_good(CUDA_ERROR_ILLEGAL_ADDRESS, "the kernel " + op.kernel + " " + op.wrong);
    }
    const Switches &switches = state().switches;
    char error[1024] = "";
    int code = 0;
    bool fault = false;
    {
        const Guarded guarded;
        // Leaves behind what the launch had allocated; nothing else is lost.
        if (sigsetjmp(way_out, 1) == 0) {
            code = airllm_emu_launch(op.kernel.c_str(), op.params->data(), op.params_bytes, op.grid, op.threads, op.dynamic,
                                     switches.order, switches.seed, error, sizeof error);
        } else {
            fault = true;
        }
    }
    if (fault) {
        return fail_for_good(CUDA_ERROR_ILLEGAL_ADDRESS, "the kernel " + op.kernel + " touched " + whereabouts(touched));
    }
    if (code == 0) return CUDA_SUCCESS;
    return fail_for_good(CUDA_ERROR_LAUNCH_FAILED, "the kernel " + op.kernel + ": " + error);
}

} // namespace standin

using namespace standin;

API cuModuleLoadData(CUmodule *to, const void *image) {
    ENTER(Context);
    return load(to, image);
}

API cuModuleLoadDataEx(CUmodule *to, const void *image, unsigned, void *, void **) {
    ENTER(Context);
    return load(to, image);
}

API cuModuleUnload(CUmodule handle) {
    ENTER(Release);
    auto *module = reinterpret_cast<Module *>(handle);
    if (state().modules.erase(module) == 0) return CUDA_ERROR_INVALID_HANDLE;
    std::erase_if(state().functions, [&](const auto &entry) { return entry.second == module; });
    delete module;
    return state().sticky;
}

API cuModuleGetFunction(CUfunction *to, CUmodule handle, const char *name) {
    ENTER(Context);
    auto *module = reinterpret_cast<Module *>(handle);
    if (!to || !name) return CUDA_ERROR_INVALID_VALUE;
    if (!state().modules.contains(module)) return CUDA_ERROR_INVALID_HANDLE;
    auto &function = module->functions[name];
    if (!function) {
        Function found{name, 0, 0};
        if (airllm_emu_kernel(name, &found.params, &found.threads) != 0) {
            module->functions.erase(name);
            return CUDA_ERROR_NOT_FOUND;
        }
        function = std::make_unique<Function>(found);
        state().functions[function.get()] = module;
    }
    *to = reinterpret_cast<CUfunction>(function.get());
    return CUDA_SUCCESS;
}

API cuFuncGetAttribute(int *to, unsigned attribute, CUfunction handle) {
    ENTER(Context);
    const Function *function = function_of(handle);
    if (!to || !function) return function ? CUDA_ERROR_INVALID_VALUE : CUDA_ERROR_INVALID_HANDLE;
    if (attribute > 15) return CUDA_ERROR_INVALID_VALUE;
    switch (attribute) {
    case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *to = function->threads; break;
    case CU_FUNC_ATTRIBUTE_NUM_REGS: *to = 32; break;
    case CU_FUNC_ATTRIBUTE_PTX_VERSION:
    case CU_FUNC_ATTRIBUTE_BINARY_VERSION: *to = state().switches.compute; break;
    case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES: *to = function->dynamic; break;
    // Static shared memory is known when a kernel asks for it.
    default: *to = 0;
    }
    return CUDA_SUCCESS;
}

// Kernels take one parameter.
API cuFuncGetParamInfo(CUfunction handle, size_t index, size_t *offset, size_t *bytes) {
    ENTER(Context);
    const Function *function = function_of(handle);
    if (!function) return CUDA_ERROR_INVALID_HANDLE;
    if (!offset || index != 0) return CUDA_ERROR_INVALID_VALUE;
    *offset = 0;
    if (bytes) *bytes = function->params;
    return CUDA_SUCCESS;
}

API cuFuncSetAttribute(CUfunction handle, unsigned attribute, int value) {
    ENTER(Context);
    Function *function = function_of(handle);
    if (!function) return CUDA_ERROR_INVALID_HANDLE;
    if (attribute == CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT) return CUDA_SUCCESS;
    if (attribute != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES || value < 0) return CUDA_ERROR_INVALID_VALUE;
    if (static_cast<size_t>(value) > SHARED_OPT_IN) return CUDA_ERROR_INVALID_VALUE;
    function->dynamic = value;
    return CUDA_SUCCESS;
}

API cuFuncSetCacheConfig(CUfunction handle, unsigned) {
    ENTER(Context);
    return function_of(handle) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

API cuOccupancyMaxActiveBlocksPerMultiprocessor(int *to, CUfunction handle, int threads, size_t dynamic) {
    ENTER(Context);
    const Function *function = function_of(handle);
    if (!function) return CUDA_ERROR_INVALID_HANDLE;
    if (!to || threads <= 0) return CUDA_ERROR_INVALID_VALUE;
    const size_t by_threads = 1536 / ((threads + 31) / 32 * 32), by_shared = (SHARED_OPT_IN + 1024) / (dynamic + 1024);
    const bool runs = static_cast<uint32_t>(threads) <= function->threads;
    *to = runs ? static_cast<int>(std::min({by_threads, by_shared, size_t{16}})) : 0;
    return CUDA_SUCCESS;
}

API cuLaunchKernel(CUfunction handle, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                   unsigned block_y, unsigned block_z, unsigned dynamic, CUstream in, void **params, void **extra) {
    ENTER(Context);
    const Function *function = function_of(handle);
    Stream *stream = stream_of(in);
    if (!function || !stream) return CUDA_ERROR_INVALID_HANDLE;
    // Every kernel takes one structure, in blocks of one dimension.
    if (!params || !params[0] || extra || block_y != 1 || block_z != 1) return CUDA_ERROR_INVALID_VALUE;
    if (grid_x == 0 || grid_y == 0 || grid_z == 0 || block_x == 0) return CUDA_ERROR_INVALID_VALUE;
    if (grid_x > 2147483647 || grid_y > 65535 || grid_z > 65535 || block_x > 1024) return CUDA_ERROR_INVALID_VALUE;
    if (block_x > function->threads || dynamic > function->dynamic) return CUDA_ERROR_INVALID_VALUE;
    Op op{Op::Kind::Kernel};
    op.kernel = function->name;
    op.params_bytes = function->params;
    op.params = std::make_shared<std::vector<uint64_t>>((function->params + 7) / 8);
    std::memcpy(op.params->data(), params[0], function->params);
    op.grid[0] = grid_x, op.grid[1] = grid_y, op.grid[2] = grid_z;
    op.threads = block_x, op.dynamic = dynamic;
    find_touched(op);
    return submit(*stream, std::move(op));
}
