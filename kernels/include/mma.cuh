// Matrix units and copies that go on beside the computing: what sm_80 has, with a way for sm_75 and one for the host.
//
// A fragment is what a lane holds of a matrix, pairs of 16-bit numbers in words, as PTX lays them out. With `g` = lane / 4 and
// `t` = lane % 4: of A, 16 x 16, `a[0]` has row g, columns 2t and 2t + 1; `a[1]` row g + 8; `a[2]` and `a[3]` the same rows, columns
// 8 further. Of B, 16 x 8, `b[0]` has rows 2t and 2t + 1 of column g, `b[1]` rows 8 further. Of C, 16 x 8 of f32, `c[0]` and
// `c[1]` are row g, columns 2t and 2t + 1, `c[2]` and `c[3]` row g + 8.
//
// On the host all lanes of a warp meet (`emu::together`), and the last one computes for all: products are exact, and added to
// `c` one by one in the order of k, each sum rounded to f32. Matrix units add several products at once and round otherwise (Fasi
// et al. 2021): host and device agree within a bound of f32 arithmetic, not to the bit. On either, a number of the result
// depends on its row, its column and its `c` alone.
#pragma once

#include "device.cuh"

// Two numbers as halves in a word, the first one below.
__device__ __forceinline__ u32 half_pair(float low, float high);
// What two numbers have beyond these halves of them, as halves; NaN where those are infinite.
__device__ __forceinline__ u32 half_rest(u32 halves, float low, float high);
// c += A B, numbers of A and B being halves.
__device__ __forceinline__ void mma_half(float (&c)[4], const u32 (&a)[4], const u32 *b);
// The same of `M` tiles of A and `N` of B, which lie two in four words: c[i][j] += A[i] B[j].
template <int M, int N> __device__ __forceinline__ void mma_tiles(float (&c)[M][N][4], const u32 (&a)[M][4], const u32 (&b)[N / 2][4]);
// The same of one tile of A, with `N` of C from `c` on.
template <int N> __device__ __forceinline__ void mma_row(float (*c)[4], const u32 (&a)[4], const u32 (*b)[4]);
// Four matrices of 8 x 8 halves from shared memory. Lane `8 i + r` gives the address of row `r` of matrix `i`, a multiple of 16; every lane
// gets of matrix `i` in `to[i]` row g, columns 2t and 2t + 1: of B, stored a column after the other, or of A.
__device__ __forceinline__ void load_matrices(u32 (&to)[4], const uint4 *row);
// `COUNT` times four matrices, whose rows lie `apart` chunks of 16 bytes from those of the four before.
template <int COUNT> __device__ __forceinline__ void load_tiles(u32 (&to)[COUNT][4], const uint4 *row, u32 apart);
// The same of the transposed matrices: rows 2t and 2t + 1 of column g.
__device__ __forceinline__ void load_transposed(u32 (&to)[4], const uint4 *row);
template <int COUNT> __device__ __forceinline__ void load_transposed_tiles(u32 (&to)[COUNT][4], const uint4 *row, u32 apart);
// Begins to copy 16 bytes into shared memory. What was begun since the last `copies_commit` is a group; after `copies_wait<N>`
// all groups of this thread but the last `N` have arrived.
__device__ __forceinline__ void copy_begin(uint4 *to, const uint4 *from);
__device__ __forceinline__ void copies_commit();
template <int N> __device__ __forceinline__ void copies_wait();

// Whether one of the two halves is infinite or not a number.
__device__ __forceinline__ bool not_finite(u32 halves) {
    return (halves & 0x7c00u) == 0x7c00u || (halves & 0x7c000000u) == 0x7c000000u;
}

__device__ __forceinline__ u32 half_rest(u32 halves, float low, float high) {
    return half_pair(low - from_half(halves & 0xffff), high - from_half(halves >> 16));
}

#ifdef __CUDACC__

__device__ __forceinline__ u32 half_pair(float low, float high) {
    u32 pair;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
#else
    asm("{ .reg .b16 l, h; cvt.rn.f16.f32 l, %1; cvt.rn.f16.f32 h, %2; mov.b32 %0, {l, h}; }"
        : "=r"(pair)
        : "f"(low), "f"(high));
#endif
    return pair;
}

__device__ __forceinline__ void mma_half(float (&c)[4], const u32 (&a)[4], const u32 *b) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    // Turing's are half as deep; fragments lie alike.
    UNROLL for (int half = 0; half < 2; half++) {
        asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                     : "r"(a[2 * half]), "r"(a[2 * half + 1]), "r"(b[half]));
    }
#endif
}

template <int M, int N> __device__ __forceinline__ void mma_tiles(float (&c)[M][N][4], const u32 (&a)[M][4], const u32 (&b)[N / 2][4]) {
    UNROLL for (int j = 0; j < N; j++) {
        UNROLL for (int i = 0; i < M; i++) mma_half(c[i][j], a[i], b[j / 2] + j % 2 * 2);
    }
}

template <int N> __device__ __forceinline__ void mma_row(float (*c)[4], const u32 (&a)[4], const u32 (*b)[4]) {
    UNROLL for (int j = 0; j < N; j++) mma_half(c[j], a, b[j / 2] + j % 2 * 2);
}

__device__ __forceinline__ u32 shared_address(const void *at) { return (u32)__cvta_generic_to_shared(at); }

__device__ __forceinline__ void load_matrices(u32 (&to)[4], const uint4 *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(row))
                 : "memory");
}

template <int COUNT> __device__ __forceinline__ void load_tiles(u32 (&to)[COUNT][4], const uint4 *row, u32 apart) {
    UNROLL for (int i = 0; i < COUNT; i++) load_matrices(to[i], row + i * apart);
}

__device__ __forceinline__ void load_transposed(u32 (&to)[4], const uint4 *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(row))
                 : "memory");
}

template <int COUNT> __device__ __forceinline__ void load_transposed_tiles(u32 (&to)[COUNT][4], const uint4 *row, u32 apart) {
    UNROLL for (int i = 0; i < COUNT; i++) load_transposed(to[i], row + i * apart);
}

__device__ __forceinline__ void copy_begin(uint4 *to, const uint4 *from) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from) : "memory");
#else
    *to = *from;
#endif
}

__device__ __forceinline__ void copies_commit() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

template <int N> __device__ __forceinline__ void copies_wait() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#endif
}

#else

inline u32 half_pair(float low, float high) {
    const auto bits = [](float x) { return (u32)std::bit_cast<uint16_t>(static_cast<_Float16>(x)); };
    return bits(low) | bits(high) << 16;
}

namespace emu {

// `m` tiles of A, `n` of B.
struct Product {
    float (*c)[4];
    const u32 (*a)[4];
    const u32 *b;
    u32 m, n;
};

inline float number_of(const u32 *pairs, u32 which) {
    return from_half(pairs[which / 2] >> (which % 2 * 16) & 0xffff);
}

// Eight columns of a row at once, each the chain of its own products.
typedef float Columns __attribute__((vector_size(32)));

inline void multiply(void *const (&lanes)[32]) {
    const Product &first = *static_cast<const Product *>(lanes[0]);
    for (u32 j = 0; j < first.n; j++) {
        Columns b[16];
        for (u32 lane = 0; lane < 32; lane++) {
            const u32 *mine = static_cast<const Product *>(lanes[lane])->b + 2 * j;
            for (u32 i = 0; i < 4; i++) b[2 * (lane % 4) + i % 2 + i / 2 * 8][lane / 4] = number_of(mine, i);
        }
        for (u32 i = 0; i < first.m; i++) {
            for (u32 g = 0; g < 8; g++) {
                // Rows g and g + 8, of which four lanes have four columns of A and two of C.
                float a[2][16];
                Columns c[2];
                for (u32 t = 0; t < 4; t++) {
                    const auto &mine = *static_cast<const Product *>(lanes[g * 4 + t]);
                    for (u32 e = 0; e < 8; e++) a[e / 2 % 2][2 * t + e % 2 + e / 4 * 8] = number_of(mine.a[i], e);
                    for (u32 e = 0; e < 4; e++) c[e / 2][2 * t + e % 2] = mine.c[i * first.n + j][e];
                }
                for (u32 k = 0; k < 16; k++) {
                    for (u32 e = 0; e < 2; e++) c[e] += a[e][k] * b[k];
                }
                for (u32 t = 0; t < 4; t++) {
                    const auto &mine = *static_cast<const Product *>(lanes[g * 4 + t]);
                    for (u32 e = 0; e < 4; e++) mine.c[i * first.n + j][e] = c[e / 2][2 * t + e % 2];
                }
            }
        }
    }
}

struct Matrices {
    u32 (*to)[4];
    const uint4 *row;
    u32 count, apart;
};

template <bool TRANSPOSED> void load(void *const (&lanes)[32]) {
    const Matrices &first = *static_cast<const Matrices *>(lanes[0]);
    for (u32 number = 0; number < first.count; number++) {
        for (u32 i = 0; i < 4; i++) {
            uint16_t matrix[8][8];
            for (u32 r = 0; r < 8; r++) {
                std::memcpy(matrix[r], static_cast<const Matrices *>(lanes[8 * i + r])->row + number * first.apart, 16);
            }
            for (u32 lane = 0; lane < 32; lane++) {
                const u32 g = lane / 4, t = 2 * (lane % 4);
                const u32 low = TRANSPOSED ? matrix[t][g] : matrix[g][t];
                const u32 high = TRANSPOSED ? matrix[t + 1][g] : matrix[g][t + 1];
                static_cast<const Matrices *>(lanes[lane])->to[number][i] = low | high << 16;
            }
        }
    }
}

} // namespace emu

inline void mma_half(float (&c)[4], const u32 (&a)[4], const u32 *b) {
    emu::Product mine{&c, &a, b, 1, 1};
    emu::together(emu::Op::Multiply, &mine, emu::multiply, __FILE__, __LINE__);
}

template <int M, int N> inline void mma_tiles(float (&c)[M][N][4], const u32 (&a)[M][4], const u32 (&b)[N / 2][4]) {
    emu::Product mine{c[0], a, b[0], M, N};
    emu::together(emu::Op::Multiply, &mine, emu::multiply, __FILE__, __LINE__);
}

template <int N> inline void mma_row(float (*c)[4], const u32 (&a)[4], const u32 (*b)[4]) {
    emu::Product mine{c, &a, b[0], 1, N};
    emu::together(emu::Op::Multiply, &mine, emu::multiply, __FILE__, __LINE__);
}

inline void load_matrices(u32 (&to)[4], const uint4 *row) {
    emu::Matrices mine{&to, row, 1, 0};
    emu::together(emu::Op::LoadMatrices, &mine, emu::load<false>, __FILE__, __LINE__);
}

template <int COUNT> inline void load_tiles(u32 (&to)[COUNT][4], const uint4 *row, u32 apart) {
    emu::Matrices mine{to, row, COUNT, apart};
    emu::together(emu::Op::LoadMatrices, &mine, emu::load<false>, __FILE__, __LINE__);
}

inline void load_transposed(u32 (&to)[4], const uint4 *row) {
    emu::Matrices mine{&to, row, 1, 0};
    emu::together(emu::Op::LoadMatrices, &mine, emu::load<true>, __FILE__, __LINE__);
}

template <int COUNT> inline void load_transposed_tiles(u32 (&to)[COUNT][4], const uint4 *row, u32 apart) {
    emu::Matrices mine{to, row, COUNT, apart};
    emu::together(emu::Op::LoadMatrices, &mine, emu::load<true>, __FILE__, __LINE__);
}

inline void copy_begin(uint4 *to, const uint4 *from) { emu::copy_begin(to, from); }
inline void copies_commit() { emu::copies_commit(); }
template <int N> inline void copies_wait() { emu::copies_wait(N); }

#endif
