// Kernels on the host: what CUDA has and C++20 has not, so that the unmodified `.cu` files compile with g++.
//
// `kernels/emu/runtime.cpp` holds what is behind it. Only what the kernels use is here; names follow CUDA's.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#define __global__
#define __device__
#define __forceinline__ inline
#define UNROLL
#define UNROLL_BY(times)

struct alignas(8) uint2 {
    uint32_t x, y;
};
struct alignas(16) uint4 {
    uint32_t x, y, z, w;
};
struct alignas(16) float4 {
    float x, y, z, w;
};

inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }

namespace emu {

struct Dim {
    uint32_t x, y, z;
};

// A kernel that can be launched by its name. Objects of this type are static, and find each other at start.
struct Entry {
    const char *name;
    void (*call)(const void *params);
    size_t params;
    uint32_t threads;
    Entry *next;
    Entry(const char *name, void (*call)(const void *), size_t params, uint32_t threads);
};

// Indices of the running thread and sizes of the running launch.
struct Indices {
    Dim thread, block, threads, blocks;
};
const Indices &indices();

enum class Op : uint8_t { Sync, Shuffle, ShuffleXor, ShuffleUp, ShuffleDown, Ballot, Any, All, Multiply, LoadMatrices };

// What lanes of a warp do together: waits until every lane of `mask` has come to the same operation with the same mask,
// then gives each its result.
uint64_t collective(Op op, uint32_t mask, uint64_t value, uint32_t argument, const char *file, int line);
// What all lanes of a warp do together with more than 8 bytes each: every lane gives the address of its part, and once all
// have come, `all` is called for the 32 of them.
void together(Op op, void *mine, void (*all)(void *const (&lanes)[32]), const char *file, int line);
// Copies of 16 bytes that are under way: their targets hold NaN until this thread waits for their group.
void copy_begin(void *to, const void *from);
void copies_commit();
void copies_wait(uint32_t but);
// Waits until every thread of the block has come to the same line.
void barrier(const char *file, int line);
// Memory of the block, the same for every thread that names the same site; filled with NaN when first asked for.
void *shared(const char *site, size_t bytes);
// The memory whose size was given at launch.
void *dynamic_shared();

template <class T> T shuffle(Op op, uint32_t mask, T value, uint32_t argument, const char *file, int line) {
    static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 8);
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof(T));
    bits = collective(op, mask, bits, argument, file, line);
    std::memcpy(&value, &bits, sizeof(T));
    return value;
}

// Numbers of a lane, and how far away that lane is, as bits of its own number, which it exchanges them with.
struct Exchange {
    float *x;
    uint32_t count, bits;
};

inline void exchange(void *const (&lanes)[32]) {
    for (uint32_t lane = 0; lane < 32; lane++) {
        const Exchange &mine = *static_cast<const Exchange *>(lanes[lane]);
        const uint32_t other = lane ^ mine.bits;
        if (lane > other) continue;
        std::swap_ranges(mine.x, mine.x + mine.count, static_cast<const Exchange *>(lanes[other])->x);
    }
}

} // namespace emu

// What `count` times `__shfl_xor_sync` of all lanes does; they meet once.
template <int COUNT> inline void exchange(float (&x)[COUNT], uint32_t bits) {
    emu::Exchange mine{x, COUNT, bits};
    emu::together(emu::Op::ShuffleXor, &mine, emu::exchange, __FILE__, __LINE__);
}

#define threadIdx (emu::indices().thread)
#define blockIdx (emu::indices().block)
#define blockDim (emu::indices().threads)
#define gridDim (emu::indices().blocks)

#define __syncthreads() emu::barrier(__FILE__, __LINE__)
#define EMU_ALL 0xffffffffu
#define EMU_SYNCWARP(mask, ...) emu::collective(emu::Op::Sync, mask, 0, 0, __FILE__, __LINE__)
#define __syncwarp(...) ((void)EMU_SYNCWARP(__VA_ARGS__ __VA_OPT__(,) EMU_ALL))
#define __shfl_sync(mask, value, lane) emu::shuffle(emu::Op::Shuffle, mask, value, lane, __FILE__, __LINE__)
#define __shfl_xor_sync(mask, value, bits) emu::shuffle(emu::Op::ShuffleXor, mask, value, bits, __FILE__, __LINE__)
#define __shfl_up_sync(mask, value, by) emu::shuffle(emu::Op::ShuffleUp, mask, value, by, __FILE__, __LINE__)
#define __shfl_down_sync(mask, value, by) emu::shuffle(emu::Op::ShuffleDown, mask, value, by, __FILE__, __LINE__)
#define __ballot_sync(mask, yes)                                                                                       \
    ((uint32_t)emu::collective(emu::Op::Ballot, mask, (yes) ? 1 : 0, 0, __FILE__, __LINE__))
#define __any_sync(mask, yes) ((int)emu::collective(emu::Op::Any, mask, (yes) ? 1 : 0, 0, __FILE__, __LINE__))
#define __all_sync(mask, yes) ((int)emu::collective(emu::Op::All, mask, (yes) ? 1 : 0, 0, __FILE__, __LINE__))

// The name of a place in the source: one site of shared memory.
#define EMU_TEXT_OF(x) #x
#define EMU_TEXT(x) EMU_TEXT_OF(x)
#define SHARED(T, name, count)                                                                                         \
    T *const name = static_cast<T *>(emu::shared(__FILE__ ":" EMU_TEXT(__LINE__) ":" #name, sizeof(T) * (count)))
#define DYN_SMEM(T, name) T *const name = static_cast<T *>(emu::dynamic_shared())

#define KERNEL(name, Params, threads)                                                                                  \
    static void name##_body(const Params p);                                                                           \
    static void name##_call(const void *params) { name##_body(*static_cast<const Params *>(params)); }                 \
    static emu::Entry name##_entry(#name, name##_call, sizeof(Params), threads);                                       \
    static void name##_body(const Params p)

// An object file is linked for the sake of this function, and its kernels come with it.
#ifdef EMU_UNIT
#define EMU_JOIN_OF(a, b) a##b
#define EMU_JOIN(a, b) EMU_JOIN_OF(a, b)
extern "C" void EMU_JOIN(airllm_emu_unit_, EMU_UNIT)() {}
#endif

template <class T> inline T __ldg(const T *at) { return *at; }

// Threads of a block take turns, blocks follow each other: nothing comes between.
inline uint32_t atomicAdd(uint32_t *at, uint32_t by) {
    const uint32_t was = *at;
    *at = was + by;
    return was;
}

inline int __popc(uint32_t bits) { return std::popcount(bits); }

inline float __uint_as_float(uint32_t bits) { return std::bit_cast<float>(bits); }
inline uint32_t __float_as_uint(float x) { return std::bit_cast<uint32_t>(x); }

// Binary16 to binary32, exact.
inline float from_half(uint32_t bits) {
    return static_cast<float>(std::bit_cast<_Float16>(static_cast<uint16_t>(bits)));
}

using std::max;
using std::min;
