// Numbers of a row as keys, each different, the better the larger: by value, then by place, the first ones first. Zeros of either sign are
// equal, and NaN counts as minus infinity.
#pragma once

#include "device.cuh"

__device__ __forceinline__ u64 key_of(float x, u64 place) {
    const u32 bits = __float_as_uint(x == x ? x + 0.0f : -INFINITY);
    const u32 ordered = bits >> 31 ? ~bits : bits | 0x80000000u;
    return (u64)ordered << 32 | (u32)~(u32)place;
}

__device__ __forceinline__ u32 place_of(u64 key) { return ~(u32)key; }

// The largest of the lanes' keys, for every lane.
__device__ __forceinline__ u64 warp_best(u64 key) {
    UNROLL for (int offset = 1; offset < WARP; offset *= 2) {
        const u32 high = __shfl_xor_sync(ALL_LANES, (u32)(key >> 32), offset);
        const u32 low = __shfl_xor_sync(ALL_LANES, (u32)key, offset);
        key = max(key, (u64)high << 32 | low);
    }
    return key;
}
