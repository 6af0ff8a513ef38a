// Copies and fills.

#include "standin.h"

namespace standin {
namespace {

enum class Side { Host, Device, Any };

// One end of a copy, all of which lies in one range or, on the host, in none.
CUresult place(void *at, size_t bytes, Side side, Place &to) {
    to.at = static_cast<uint8_t *>(at);
    if (!at) return CUDA_ERROR_INVALID_VALUE;
    const RangePtr first = find(at), last = find(to.at + bytes - 1);
    // An address at the end of a range is not in it.
    const auto in = [](const RangePtr &range, const uint8_t *at) { return range && at < range->start + range->bytes; };
    const bool starts = in(first, to.at), ends = in(last, to.at + bytes - 1);
    if (!starts && !ends && side != Side::Device) {
        return find_freed(at) ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
    }
    if (!starts || !ends || first != last) return CUDA_ERROR_INVALID_VALUE;
    if (side == Side::Host && first->kind == Range::Kind::Device) return CUDA_ERROR_INVALID_VALUE;
    to.range = first;
    return CUDA_SUCCESS;
}

CUresult copy(CUdeviceptr dst, Side dst_side, CUdeviceptr src, Side src_side, size_t bytes, CUstream in, bool blocks) {
    Stream *stream = stream_of(in);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    if (bytes == 0) return CUDA_SUCCESS;
    if (blocks) {
        if (const CUresult code = forbidden_by_capture()) return code;
    }
    Op op{Op::Kind::Copy};
    op.bytes = bytes;
    if (const CUresult code = place(reinterpret_cast<void *>(dst), bytes, dst_side, op.to)) return code;
    if (const CUresult code = place(reinterpret_cast<void *>(src), bytes, src_side, op.from)) return code;
    if (!op.from.range && !stream->capture) op.staged = std::make_shared<std::vector<uint8_t>>(op.from.at, op.from.at + bytes);
    const bool waits = !op.to.range && !stream->capture;
    if (const CUresult code = submit(*stream, std::move(op))) return code;
    return waits && stream != null_stream() ? run(*stream) : CUDA_SUCCESS;
}

CUresult fill(CUdeviceptr at, uint32_t value, uint32_t value_bytes, size_t count, CUstream in) {
    Stream *stream = stream_of(in);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    if (count == 0) return CUDA_SUCCESS;
    if (count > (size_t{1} << 46) || at % value_bytes != 0) return CUDA_ERROR_INVALID_VALUE;
    Op op{Op::Kind::Fill};
    op.bytes = count * value_bytes, op.value = value, op.value_bytes = value_bytes;
    if (const CUresult code = place(reinterpret_cast<void *>(at), op.bytes, Side::Device, op.to)) return code;
    return submit(*stream, std::move(op));
}

CUdeviceptr address(const void *at) { return reinterpret_cast<CUdeviceptr>(at); }

} // namespace
} // namespace standin

using namespace standin;

API cuMemcpyHtoD_v2(CUdeviceptr dst, const void *src, size_t bytes) {
    ENTER(Context);
    return copy(dst, Side::Device, address(src), Side::Host, bytes, nullptr, true);
}

API cuMemcpyDtoH_v2(void *dst, CUdeviceptr src, size_t bytes) {
    ENTER(Context);
    return copy(address(dst), Side::Host, src, Side::Device, bytes, nullptr, true);
}

API cuMemcpyDtoD_v2(CUdeviceptr dst, CUdeviceptr src, size_t bytes) {
    ENTER(Context);
    return copy(dst, Side::Device, src, Side::Device, bytes, nullptr, true);
}

API cuMemcpy(CUdeviceptr dst, CUdeviceptr src, size_t bytes) {
    ENTER(Context);
    return copy(dst, Side::Any, src, Side::Any, bytes, nullptr, true);
}

API cuMemcpyHtoDAsync_v2(CUdeviceptr dst, const void *src, size_t bytes, CUstream in) {
    ENTER(Context);
    return copy(dst, Side::Device, address(src), Side::Host, bytes, in, false);
}

API cuMemcpyDtoHAsync_v2(void *dst, CUdeviceptr src, size_t bytes, CUstream in) {
    ENTER(Context);
    return copy(address(dst), Side::Host, src, Side::Device, bytes, in, false);
}

API cuMemcpyDtoDAsync_v2(CUdeviceptr dst, CUdeviceptr src, size_t bytes, CUstream in) {
    ENTER(Context);
    return copy(dst, Side::Device, src, Side::Device, bytes, in, false);
}

API cuMemcpyAsync(CUdeviceptr dst, CUdeviceptr src, size_t bytes, CUstream in) {
    ENTER(Context);
    return copy(dst, Side::Any, src, Side::Any, bytes, in, false);
}

API cuMemsetD8_v2(CUdeviceptr at, unsigned char value, size_t count) {
    ENTER(Context);
    return fill(at, value, 1, count, nullptr);
}

API cuMemsetD8Async(CUdeviceptr at, unsigned char value, size_t count, CUstream in) {
    ENTER(Context);
    return fill(at, value, 1, count, in);
}

API cuMemsetD32_v2(CUdeviceptr at, unsigned value, size_t count) {
    ENTER(Context);
    return fill(at, value, 4, count, nullptr);
}

API cuMemsetD32Async(CUdeviceptr at, unsigned value, size_t count, CUstream in) {
    ENTER(Context);
    return fill(at, value, 4, count, in);
}
