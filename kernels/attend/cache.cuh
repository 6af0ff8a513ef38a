// What a cache holds of a head at a position: numbers in one of three formats, four at a time.
//
// `four(row, d, dim)` are numbers `d ..` of the `dim` of a head that starts at `row`, zeros beyond; `d` is a multiple of 4.
#pragma once

#include "mma.cuh"

namespace cache {

struct f32 {
    // Halves into which a number is split for matrix units.
    static constexpr int PARTS = 2;
    static __device__ __forceinline__ float4 four(const u8 *row, u64 d, u64 dim) {
        const float *at = reinterpret_cast<const float *>(row) + d;
        if (d + 4 <= dim && reinterpret_cast<uintptr_t>(at) % 16 == 0) return __ldg(reinterpret_cast<const float4 *>(at));
        float each[4];
        UNROLL for (int i = 0; i < 4; i++) each[i] = d + i < dim ? __ldg(at + i) : 0.0f;
        return make_float4(each[0], each[1], each[2], each[3]);
    }
};

struct f16 {
    static constexpr int PARTS = 1;
    static __device__ __forceinline__ float4 four(const u8 *row, u64 d, u64 dim) {
        const u8 *at = row + 2 * d;
        if (d + 4 <= dim && reinterpret_cast<uintptr_t>(at) % 8 == 0) {
            const uint2 raw = __ldg(reinterpret_cast<const uint2 *>(at));
            return make_float4(from_half(raw.x & 0xffff), from_half(raw.x >> 16), from_half(raw.y & 0xffff), from_half(raw.y >> 16));
        }
        float each[4];
        UNROLL for (int i = 0; i < 4; i++) each[i] = d + i < dim ? half_at(at + 2 * i) : 0.0f;
        return make_float4(each[0], each[1], each[2], each[3]);
    }
};

// Rows of the weight format of this name: codes of 8 bits, padded to 64, then a half for each 64. They start at multiples of 16.
struct q8 {
    static constexpr int PARTS = 1;
    static __device__ __forceinline__ float4 four(const u8 *row, u64 d, u64 dim) {
        if (d >= dim) return make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        const u32 raw = __ldg(reinterpret_cast<const u32 *>(row + d));
        const float scale = half_at(row + round_up(dim, 64) + d / 64 * 2);
        const auto code = [&](int i) { return scale * (float)(int8_t)(raw >> 8 * i & 255); };
        return make_float4(code(0), code(1), code(2), code(3));
    }
};

} // namespace cache
