// What every kernel uses: names, loads, conversions, sums over a warp.
//
// Valid for nvcc (C++17) and, behind `emu.h`, for g++. Kernels are compiled without contraction of a*b + c (`-fmad=false`,
// `-ffp-contract=off`): where an fma is wanted, it is written. So host and device round alike, but for the functions
// of the maths library.
#pragma once

#include "abi.h"

typedef uint8_t u8;
typedef uint32_t u32;
typedef uint64_t u64;

#define WARP 32
#define ALL_LANES 0xffffffffu

#ifdef __CUDACC__

#include <math_constants.h>

// A kernel: one structure of parameters by value, at most `threads` threads in a block.
#define KERNEL(name, Params, threads) extern "C" __global__ void __launch_bounds__(threads) name(const Params p)
// Shared memory of a size known here, one name for the whole block.
#define SHARED(T, name, count) __shared__ T name[count]
// Shared memory of the size given at launch.
#define DYN_SMEM(T, name) DYN_SMEM_NUMBERED(T, name, __COUNTER__)
// A name of its own each time: nvcc sees all files as one, in which templates and kernels may not declare the same one.
#define DYN_SMEM_NUMBERED(T, name, number) DYN_SMEM_NAMED(T, name, number)
#define DYN_SMEM_NAMED(T, name, number)                                                                                \
    extern __shared__ __align__(16) unsigned char dynamic_shared_memory_##number[];                                    \
    T *const name = reinterpret_cast<T *>(dynamic_shared_memory_##number)
#define UNROLL _Pragma("unroll")
#define PRAGMA(text) _Pragma(#text)
#define UNROLL_BY(times) PRAGMA(unroll (times))

__device__ __forceinline__ float from_half(u32 bits) {
    float wide;
    asm("{ .reg .b16 h; cvt.u16.u32 h, %1; cvt.f32.f16 %0, h; }" : "=f"(wide) : "r"(bits));
    return wide;
}

// Gives numbers to the lane whose number differs in `bits`, and takes its own.
template <int COUNT> __device__ __forceinline__ void exchange(float (&x)[COUNT], u32 bits) {
    UNROLL for (int i = 0; i < COUNT; i++) x[i] = __shfl_xor_sync(ALL_LANES, x[i], bits);
}

#else

#include "emu.h"

#endif

__device__ __forceinline__ u64 block_1d() { return blockIdx.x; }

// Number of this thread in a grid of one dimension.
__device__ __forceinline__ u64 thread_1d() { return (u64)blockIdx.x * blockDim.x + threadIdx.x; }

__device__ __forceinline__ u64 ceil_div(u64 a, u64 b) { return (a + b - 1) / b; }

__device__ __forceinline__ u64 round_up(u64 a, u64 to) { return (a + to - 1) / to * to; }

// Little-endian numbers at any address.
__device__ __forceinline__ u32 bytes2(const u8 *at) { return at[0] | (u32)at[1] << 8; }
__device__ __forceinline__ u32 bytes4(const u8 *at) { return bytes2(at) | bytes2(at + 2) << 16; }
__device__ __forceinline__ float half_at(const u8 *at) { return from_half(bytes2(at)); }
__device__ __forceinline__ float float_at(const u8 *at) { return __uint_as_float(bytes4(at)); }

// float8 e4m3fn. Put a little lower, its bits are those of a half that is 256 times smaller.
__device__ __forceinline__ float from_e4m3(u32 bits) {
    const u32 magnitude = bits & 0x7f;
    const float wide = from_half((bits & 0x80) << 8 | magnitude << 7) * 256.0f;
    return magnitude == 0x7f ? __uint_as_float(0x7fc00000u) : wide;
}

// Sum over the lanes of a warp, for every lane: neighbours first, then pairs of them, and so on.
__device__ __forceinline__ float warp_sum(float x) {
    UNROLL for (int offset = 1; offset < WARP; offset *= 2) x += __shfl_xor_sync(ALL_LANES, x, offset);
    return x;
}

__device__ __forceinline__ float warp_max(float x) {
    UNROLL for (int offset = 1; offset < WARP; offset *= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, offset));
    return x;
}

// One round of `warp_sums`: a lane keeps `HALF` of its sums and gives as many to its partner, `OFFSET` away.
template <int HALF, int OFFSET, int COUNT> __device__ __forceinline__ void halve(float (&x)[COUNT], u32 lane) {
    if constexpr (HALF > 0) {
        const bool upper = (lane & OFFSET) != 0;
        float given[HALF];
        UNROLL for (int i = 0; i < HALF; i++) {
            given[i] = upper ? x[i] : x[i + HALF];
            x[i] = upper ? x[i + HALF] : x[i];
        }
        exchange(given, OFFSET);
        UNROLL for (int i = 0; i < HALF; i++) x[i] += given[i];
        halve<HALF / 2, OFFSET * 2>(x, lane);
    }
}

// `COUNT` sums at once, a power of two up to 32: the sums of `warp_sum`, bit for bit, with about one shuffle each
// instead of five. Lane `l` gets the sum number `summed_by<COUNT>(l)`.
template <int COUNT> __device__ __forceinline__ float warp_sums(float (&x)[COUNT], u32 lane) {
    halve<COUNT / 2, 1>(x, lane);
    float sum = x[0];
    UNROLL for (int offset = COUNT; offset < WARP; offset *= 2) sum += __shfl_xor_sync(ALL_LANES, sum, offset);
    return sum;
}

template <int COUNT> __device__ __forceinline__ u32 summed_by(u32 lane) {
    u32 number = 0;
    UNROLL for (int half = COUNT / 2, bit = 0; half > 0; half /= 2, bit++) number |= (lane >> bit & 1) * half;
    return number;
}
