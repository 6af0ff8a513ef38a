// Memory of the device, and memory of the host that the device knows.

#include "standin.h"

#include <algorithm>
#include <cstring>
#include <sys/mman.h>
#include <unistd.h>

namespace standin {
namespace {

constexpr size_t PAGE = 4096;
// What CUDA promises of an address.
constexpr size_t ALIGN = 256;
// Device memory is given in pieces of this.
constexpr size_t PIECE = 512;
// Freed addresses that are kept from being used again.
constexpr size_t FREED_BYTES = size_t{1} << 38;
// Larger memory starts as many views of one file, which takes no memory before it is written.
constexpr size_t VIEW = 16 << 20;

size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

// A file of `VIEW` bytes of 0xff, or -1.
int file_of_nan() {
    static const int file = [] {
        const int made = memfd_create("airllm-standin", MFD_CLOEXEC);
        if (made < 0 || ftruncate(made, VIEW) != 0) return -1;
        void *bytes = mmap(nullptr, VIEW, PROT_READ | PROT_WRITE, MAP_SHARED, made, 0);
        if (bytes == MAP_FAILED) return -1;
        std::memset(bytes, 0xff, VIEW);
        munmap(bytes, VIEW);
        return made;
    }();
    return file;
}

// `bytes` of NaN, whole pages, followed by a page that nobody may touch.
uint8_t *map_nan(size_t bytes) {
    void *all = mmap(nullptr, bytes + PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (all == MAP_FAILED) return nullptr;
    auto *start = static_cast<uint8_t *>(all);
    size_t viewed = 0;
    while (file_of_nan() >= 0 && bytes - viewed >= VIEW) {
        const int how = MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE;
        void *view = mmap(start + viewed, VIEW, PROT_READ | PROT_WRITE, how, file_of_nan(), 0);
        if (view == MAP_FAILED) break;
        viewed += VIEW;
    }
    if (viewed < bytes) {
        if (mprotect(start + viewed, bytes - viewed, PROT_READ | PROT_WRITE) != 0) {
            munmap(all, bytes + PAGE);
            return nullptr;
        }
        std::memset(start + viewed, 0xff, bytes - viewed);
    }
    return start;
}

CUresult allocate(Range::Kind kind, size_t bytes, bool of_pool, RangePtr &to) {
    State &s = state();
    if (bytes == 0) return CUDA_ERROR_INVALID_VALUE;
    if (bytes > size_t{1} << 46) return CUDA_ERROR_OUT_OF_MEMORY;
    const size_t counted = kind == Range::Kind::Device ? round_up(bytes, PIECE) : 0;
    if (!take(counted)) return CUDA_ERROR_OUT_OF_MEMORY;
    // The memory ends where its last page does, but for the alignment.
    const size_t pages = round_up(bytes, PAGE);
    uint8_t *mapping = map_nan(pages);
    if (!mapping) {
        give_back(counted);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    to = std::make_shared<Range>(Range{kind, mapping + pages - round_up(bytes, ALIGN), bytes, current()});
    to->counted = counted, to->of_pool = of_pool, to->mapping = mapping, to->mapped = pages + PAGE;
    s.ranges[reinterpret_cast<uintptr_t>(to->start)] = to;
    if (of_pool) s.pool_used += counted, s.pool_peak = std::max(s.pool_peak, s.pool_used);
    return CUDA_SUCCESS;
}

RangePtr find_in(const std::map<uintptr_t, RangePtr> &ranges, const void *at) {
    const auto address = reinterpret_cast<uintptr_t>(at);
    auto after = ranges.upper_bound(address);
    if (after == ranges.begin()) return nullptr;
    const RangePtr &range = std::prev(after)->second;
    return address - reinterpret_cast<uintptr_t>(range->start) <= range->bytes ? range : nullptr;
}

} // namespace

bool take(size_t bytes) {
    State &s = state();
    if (s.used > s.switches.memory || bytes > s.switches.memory - s.used) return false;
    s.used += bytes;
    s.peak = std::max(s.peak, s.used);
    return true;
}

void give_back(size_t bytes) { state().used -= std::min(bytes, state().used); }

RangePtr find(const void *at) { return find_in(state().ranges, at); }
RangePtr find_freed(const void *at) { return find_in(state().freed, at); }

bool is_mapped(const void *at) {
    unsigned char resident;
    return mincore(reinterpret_cast<void *>(reinterpret_cast<uintptr_t>(at) / PAGE * PAGE), 1, &resident) == 0;
}

void release(const RangePtr &range) {
    State &s = state();
    range->live = false;
    s.ranges.erase(reinterpret_cast<uintptr_t>(range->start));
    give_back(range->counted);
    if (range->of_pool) s.pool_used -= range->counted;
    if (!range->mapping) return;
    // Nobody gets these addresses again, until there are very many of them.
    const int how = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
    mmap(range->mapping, range->mapped, PROT_NONE, how, -1, 0);
    s.freed[reinterpret_cast<uintptr_t>(range->start)] = range;
    s.freed_order.push_back(range);
    s.freed_bytes += range->mapped;
    while (s.freed_bytes > FREED_BYTES) {
        const RangePtr oldest = s.freed_order.front();
        s.freed_order.pop_front();
        s.freed.erase(reinterpret_cast<uintptr_t>(oldest->start));
        s.freed_bytes -= oldest->mapped;
        munmap(oldest->mapping, oldest->mapped);
    }
}

} // namespace standin

using namespace standin;

namespace {

CUresult free_device(CUdeviceptr at, RangePtr &range) {
    range = find(reinterpret_cast<void *>(at));
    const bool found = range && range->kind == Range::Kind::Device && reinterpret_cast<CUdeviceptr>(range->start) == at;
    return found ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

// The device must not lose memory of the host that queued work needs.
CUresult forget_host(void *at, Range::Kind kind, CUresult unknown) {
    State &s = state();
    const RangePtr range = find(at);
    if (!range || range->kind != kind || range->start != at) return unknown;
    const bool queued = is_queued(*range);
    release(range);
    if (!queued) return s.sticky;
    const char *how = kind == Range::Kind::HostOwned ? "freed" : "unregistered";
    return fail_for_good(CUDA_ERROR_ILLEGAL_ADDRESS, std::to_string(range->bytes) + " bytes of host memory were " + how +
                                                         " while queued work needs them");
}

CUresult allocate_host(void **to, size_t bytes) {
    if (!to) return CUDA_ERROR_INVALID_VALUE;
    RangePtr range;
    if (const CUresult code = allocate(Range::Kind::HostOwned, bytes, false, range)) return code;
    *to = range->start;
    return CUDA_SUCCESS;
}

CUresult allocate_ordered(CUdeviceptr *to, size_t bytes, CUstream in) {
    Stream *stream = stream_of(in);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    if (!to) return CUDA_ERROR_INVALID_VALUE;
    // Nodes that allocate are not modelled.
    if (stream->capture) return CUDA_ERROR_NOT_SUPPORTED;
    RangePtr range;
    CUresult code = allocate(Range::Kind::Device, bytes, true, range);
    if (code == CUDA_ERROR_OUT_OF_MEMORY) {
        // What the stream frees before this point, it may use.
        if (const CUresult failed = run(*stream)) return failed;
        code = allocate(Range::Kind::Device, bytes, true, range);
    }
    if (code) return code;
    *to = reinterpret_cast<CUdeviceptr>(range->start);
    return CUDA_SUCCESS;
}

// There is one pool, that of the device.
bool is_pool(CUmemoryPool pool) { return pool == reinterpret_cast<CUmemoryPool>(&state().pool_threshold); }

} // namespace

API cuMemGetInfo_v2(size_t *free, size_t *total) {
    ENTER(Context);
    if (!free || !total) return CUDA_ERROR_INVALID_VALUE;
    const State &s = state();
    *total = s.switches.memory;
    *free = *total - std::min(*total, s.used);
    return CUDA_SUCCESS;
}

API cuMemAlloc_v2(CUdeviceptr *to, size_t bytes) {
    ENTER(Context);
    if (!to) return CUDA_ERROR_INVALID_VALUE;
    if (const CUresult code = forbidden_by_capture()) return code;
    RangePtr range;
    if (const CUresult code = allocate(Range::Kind::Device, bytes, false, range)) return code;
    *to = reinterpret_cast<CUdeviceptr>(range->start);
    return CUDA_SUCCESS;
}

API cuMemFree_v2(CUdeviceptr at) {
    ENTER(Release);
    if (at == 0) return state().sticky;
    RangePtr range;
    if (const CUresult code = free_device(at, range)) return code;
    release(range);
    return state().sticky;
}

API cuMemAllocAsync(CUdeviceptr *to, size_t bytes, CUstream in) {
    ENTER(Context);
    return allocate_ordered(to, bytes, in);
}

API cuMemAllocFromPoolAsync(CUdeviceptr *to, size_t bytes, CUmemoryPool pool, CUstream in) {
    ENTER(Context);
    return is_pool(pool) ? allocate_ordered(to, bytes, in) : CUDA_ERROR_INVALID_VALUE;
}

API cuMemFreeAsync(CUdeviceptr at, CUstream in) {
    ENTER(Release);
    Stream *stream = stream_of(in);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    RangePtr range;
    if (const CUresult code = free_device(at, range)) return code;
    if (state().sticky) {
        release(range);
        return state().sticky;
    }
    Op op{Op::Kind::Free};
    op.to = {range->start, range};
    return submit(*stream, std::move(op));
}

API cuDeviceGetDefaultMemPool(CUmemoryPool *to, CUdevice device) {
    ENTER(Init);
    if (!to || device != 0) return to ? CUDA_ERROR_INVALID_DEVICE : CUDA_ERROR_INVALID_VALUE;
    *to = reinterpret_cast<CUmemoryPool>(&state().pool_threshold);
    return CUDA_SUCCESS;
}

API cuDeviceGetMemPool(CUmemoryPool *to, CUdevice device) {
    ENTER(Init);
    if (!to || device != 0) return to ? CUDA_ERROR_INVALID_DEVICE : CUDA_ERROR_INVALID_VALUE;
    *to = reinterpret_cast<CUmemoryPool>(&state().pool_threshold);
    return CUDA_SUCCESS;
}

API cuMemPoolSetAttribute(CUmemoryPool pool, unsigned attribute, void *value) {
    ENTER(Init);
    if (!is_pool(pool) || !value) return CUDA_ERROR_INVALID_VALUE;
    uint64_t wide;
    switch (attribute) {
    case 1: case 2: case 3: return CUDA_SUCCESS; // Which freed memory may be used again: none is here.
    case CU_MEMPOOL_ATTR_RELEASE_THRESHOLD: std::memcpy(&state().pool_threshold, value, 8); return CUDA_SUCCESS;
    case CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH:
    case CU_MEMPOOL_ATTR_USED_MEM_HIGH:
        std::memcpy(&wide, value, 8);
        if (wide != 0) return CUDA_ERROR_INVALID_VALUE;
        state().pool_peak = state().pool_used;
        return CUDA_SUCCESS;
    default: return CUDA_ERROR_INVALID_VALUE;
    }
}

API cuMemPoolGetAttribute(CUmemoryPool pool, unsigned attribute, void *value) {
    ENTER(Init);
    if (!is_pool(pool) || !value) return CUDA_ERROR_INVALID_VALUE;
    uint64_t wide;
    switch (attribute) {
    case 1: case 2: case 3: *static_cast<int *>(value) = 1; return CUDA_SUCCESS;
    case CU_MEMPOOL_ATTR_RELEASE_THRESHOLD: wide = state().pool_threshold; break;
    // The pool keeps nothing that is freed.
    case CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT:
    case CU_MEMPOOL_ATTR_USED_MEM_CURRENT: wide = state().pool_used; break;
    case CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH:
    case CU_MEMPOOL_ATTR_USED_MEM_HIGH: wide = state().pool_peak; break;
    default: return CUDA_ERROR_INVALID_VALUE;
    }
    std::memcpy(value, &wide, 8);
    return CUDA_SUCCESS;
}

API cuMemPoolTrimTo(CUmemoryPool pool, size_t) {
    ENTER(Init);
    return is_pool(pool) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

API cuMemHostAlloc(void **to, size_t bytes, unsigned flags) {
    ENTER(Context);
    return flags > 7 ? CUDA_ERROR_INVALID_VALUE : allocate_host(to, bytes);
}

API cuMemAllocHost_v2(void **to, size_t bytes) {
    ENTER(Context);
    return allocate_host(to, bytes);
}

API cuMemFreeHost(void *at) {
    ENTER(Release);
    return forget_host(at, Range::Kind::HostOwned, CUDA_ERROR_INVALID_VALUE);
}

API cuMemHostRegister_v2(void *at, size_t bytes, unsigned flags) {
    ENTER(Context);
    auto *start = static_cast<uint8_t *>(at);
    if (!at || bytes == 0 || flags > 15) return CUDA_ERROR_INVALID_VALUE;
    const auto first = reinterpret_cast<uintptr_t>(at);
    // Ranges are pages to CUDA: two in one page cannot both be registered.
    const uintptr_t low = first / PAGE * PAGE, high = (first + bytes + PAGE - 1) / PAGE * PAGE;
    for (const auto &[other, range] : state().ranges) {
        if (other < high && other + range->bytes > low) return CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED;
    }
    if (!is_mapped(start) || !is_mapped(start + bytes - 1)) return CUDA_ERROR_INVALID_VALUE;
    auto range = std::make_shared<Range>(Range{Range::Kind::HostRegistered, start, bytes, current()});
    state().ranges[first] = std::move(range);
    return CUDA_SUCCESS;
}

API cuMemHostUnregister(void *at) {
    ENTER(Release);
    return forget_host(at, Range::Kind::HostRegistered, CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED);
}

API cuMemHostGetDevicePointer_v2(CUdeviceptr *to, void *at, unsigned flags) {
    ENTER(Context);
    const RangePtr range = find(at);
    if (!to || flags || !range || range->kind == Range::Kind::Device) return CUDA_ERROR_INVALID_VALUE;
    *to = reinterpret_cast<CUdeviceptr>(at);
    return CUDA_SUCCESS;
}

API cuPointerGetAttribute(void *to, unsigned attribute, CUdeviceptr at) {
    ENTER(Context);
    const RangePtr range = find(reinterpret_cast<void *>(at));
    if (!to || !range) return CUDA_ERROR_INVALID_VALUE;
    const bool device = range->kind == Range::Kind::Device;
    const auto give = [to](auto value) { return std::memcpy(to, &value, sizeof value), CUDA_SUCCESS; };
    switch (attribute) {
    case CU_POINTER_ATTRIBUTE_CONTEXT: return give(range->context);
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE: return give(device ? 2u : 1u);
    case CU_POINTER_ATTRIBUTE_DEVICE_POINTER: return give(at);
    case CU_POINTER_ATTRIBUTE_HOST_POINTER: return device ? CUDA_ERROR_INVALID_VALUE : give(at);
    case CU_POINTER_ATTRIBUTE_IS_MANAGED: return give(0u);
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL: return give(0);
    case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR: return give(range->start);
    case CU_POINTER_ATTRIBUTE_RANGE_SIZE: return give(range->bytes);
    case CU_POINTER_ATTRIBUTE_MAPPED: return give(1u);
    default: return CUDA_ERROR_NOT_SUPPORTED;
    }
}
