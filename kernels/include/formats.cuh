// Number formats, one weight at a time, from bytes at any address: `at(c)` is column `c` of a row.
//
// Derived from the page on layouts in the crate docs of `airllm-quant`; every format gives the very f32 that
// `unpack_row` there gives. This is what the naive rungs read, and what the other decoders are compared with.
#pragma once

#include "device.cuh"

namespace fmt {

// What a code stands for, in formats with sections.
enum Kind { SIGNED, AFFINE, NORMAL_FLOAT, E4M3, OVER_127 };

// NormalFloat of QLoRA (Dettmers et al. 2023, appendix E), as bitsandbytes has it.
static __device__ const float NF4[16] = {
    -1.0f,        -0.6961928f,  -0.52507305f, -0.3949175f, -0.28444138f, -0.18477343f, -0.091050036f, 0.0f,
    0.0795803f,   0.1609302f,   0.2461123f,   0.33791524f, 0.44070983f,  0.562617f,    0.72295684f,   1.0f,
};

template <int KIND> __device__ __forceinline__ float widened(u32 code, float scale, float zero) {
    if (KIND == SIGNED) return scale * (float)(int8_t)code;
    if (KIND == AFFINE) return scale * ((float)code - zero);
    if (KIND == NORMAL_FLOAT) return NF4[code] * scale;
    if (KIND == E4M3) return scale * from_e4m3(code);
    // The product is rounded, then the quotient.
    return (float)(int8_t)code * scale / 127.0f;
}

// Numbers of `BYTES` bytes, one after the other; two bytes are a half, or, if `BRAIN`, the upper half of an f32.
template <int BYTES, bool BRAIN> struct Plain {
    const u8 *row;
    __device__ __forceinline__ Plain(const u8 *row, u64) : row(row) {}
    __device__ __forceinline__ float at(u64 c) const {
        const u8 *at = row + c * BYTES;
        if (BYTES == 4) return float_at(at);
        return BRAIN ? __uint_as_float(bytes2(at) << 16) : half_at(at);
    }
};

// Codes of `BITS` bits, then scales of `SCALE` bytes, then zero points of `ZERO`; `GROUP` columns share them, all of the
// row where it is 0.
template <int BITS, int SCALE, int ZERO, int GROUP, int KIND> struct Sections {
    const u8 *codes, *scales, *zeros;
    u64 cols;
    __device__ __forceinline__ Sections(const u8 *row, u64 cols) : codes(row), cols(cols) {
        const u64 groups = GROUP ? ceil_div(cols, GROUP ? GROUP : 1) : 1;
        scales = row + (GROUP ? groups * GROUP : round_up(cols, 32)) * BITS / 8;
        zeros = scales + groups * SCALE;
    }
    __device__ __forceinline__ float scale(u64 c) const {
        const u64 group = GROUP ? c / (GROUP ? GROUP : 1) : 0;
        return SCALE == 2 ? half_at(scales + group * 2) : float_at(scales + group * 4);
    }
    __device__ __forceinline__ float zero(u64 c) const {
        const u64 group = GROUP ? c / (GROUP ? GROUP : 1) : 0;
        if (ZERO == 0) return 0.0f;
        return (float)(ZERO == 2 ? bytes2(zeros + group * 2) : zeros[group]);
    }
    __device__ __forceinline__ float at(u64 c) const {
        const u32 code = BITS == 8 ? codes[c] : codes[c / 32 * 16 + c % 16] >> (c % 32 / 16 * 4) & 15;
        return widened<KIND>(code, scale(c), zero(c));
    }
};

// Codes in one or two planes of `LOW` and `HIGH` bits, scales of four bits for 16 columns, a half for 256.
template <int LOW, int HIGH, int ZERO, int BIAS> struct Planes {
    const u8 *low, *high, *scales, *halves;
    __device__ __forceinline__ Planes(const u8 *row, u64 cols) : low(row) {
        const u64 steps = ceil_div(cols, 32);
        high = low + round_up(steps * 4 * LOW, 16);
        scales = high + round_up(steps * 4 * HIGH, 16);
        halves = scales + round_up(steps, 2);
    }
    __device__ __forceinline__ float scale(u64 step, u32 second) const {
        const int small = scales[step] >> (4 * second) & 15;
        return half_at(halves + step / 8 * 2) * (float)(small - BIAS);
    }
    // `two` bits a code: byte `j` has those of columns `j`, `8 + j`, `16 + j` and `24 + j`.
    static __device__ __forceinline__ u32 two(const u8 *step, u32 i) { return step[i % 8] >> (i / 8 * 2) & 3; }
    __device__ __forceinline__ float at(u64 c) const {
        const u64 step = c / 32;
        const u32 i = c % 32;
        int code = LOW == 4 ? low[step * 16 + i % 16] >> (i / 16 * 4) & 15 : two(low + step * 8, i);
        if (HIGH == 2) code |= two(high + step * 8, i) << LOW;
        if (HIGH == 1) code |= (high[step * 4 + i / 8] >> (i % 8) & 1) << LOW;
        return scale(step, i / 16) * (float)(code - ZERO);
    }
};

// GGUF blocks of 32: `d`, the least weight if `MIN`, fifth bits if `BITS` is 5, codes.
template <int BYTES, int BITS, bool MIN, int ZERO> struct Block32 {
    const u8 *row;
    __device__ __forceinline__ Block32(const u8 *row, u64) : row(row) {}
    __device__ __forceinline__ float at(u64 c) const {
        const u8 *block = row + c / 32 * BYTES;
        const u32 i = c % 32;
        const float d = half_at(block);
        const float least = MIN ? half_at(block + 2) : 0.0f;
        block += MIN ? 4 : 2;
        if (BITS == 8) return d * (float)(int8_t)block[i];
        const u32 fifth = BITS == 5 ? bytes4(block) >> i & 1 : 0;
        block += BITS == 5 ? 4 : 0;
        const int code = (block[i % 16] >> (i / 16 * 4) & 15) | fifth << 4;
        return fmaf(d, (float)(code - ZERO), least);
    }
};

// Where codes of two bits lie in blocks of 256.
static __device__ __forceinline__ u32 quarter(const u8 *codes, u32 i) {
    return codes[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
}

struct q6_k {
    const u8 *row;
    __device__ __forceinline__ q6_k(const u8 *row, u64) : row(row) {}
    __device__ __forceinline__ float at(u64 c) const {
        const u8 *block = row + c / 256 * 210;
        const u32 i = c % 256;
        const int low = block[i / 128 * 64 + i % 64] >> (i % 128 / 64 * 4) & 15;
        const int code = low | quarter(block + 128, i) << 4;
        return half_at(block + 208) * (float)(int8_t)block[192 + i / 16] * (float)(code - 32);
    }
};

// `q4_k`, and with fifth bits `q5_k`.
template <bool FIVE> struct Block45 {
    const u8 *row;
    __device__ __forceinline__ Block45(const u8 *row, u64) : row(row) {}
    __device__ __forceinline__ float at(u64 c) const {
        const u8 *block = row + c / 256 * (FIVE ? 176 : 144);
        const u32 i = c % 256, part = i / 32;
        const u8 *six = block + 4;
        const int scale = part < 4 ? six[part] & 63 : (six[part + 4] & 15) | (six[part - 4] >> 6) << 4;
        const int least = part < 4 ? six[part + 4] & 63 : six[part + 4] >> 4 | (six[part] >> 6) << 4;
        const u8 *low = block + (FIVE ? 48 : 16);
        int code = low[i / 64 * 32 + i % 32] >> (i % 64 / 32 * 4) & 15;
        if (FIVE) code |= (block[16 + i % 32] >> part & 1) << 4;
        return half_at(block) * (float)scale * (float)code - half_at(block + 2) * (float)least;
    }
};

struct q3_k {
    const u8 *row;
    __device__ __forceinline__ q3_k(const u8 *row, u64) : row(row) {}
    __device__ __forceinline__ float at(u64 c) const {
        const u8 *block = row + c / 256 * 110;
        const u32 i = c % 256, part = i / 16;
        const int high = block[i % 32] >> (i / 32) & 1;
        const int code = quarter(block + 32, i) | high << 2;
        const int scale = (block[96 + part % 8] >> (part / 8 * 4) & 15) | (block[104 + part % 4] >> (part / 4 * 2) & 3) << 4;
        return half_at(block + 108) * (float)(scale - 32) * (float)(code - 4);
    }
};

struct q2_k {
    const u8 *row;
    __device__ __forceinline__ q2_k(const u8 *row, u64) : row(row) {}
    __device__ __forceinline__ float at(u64 c) const {
        const u8 *block = row + c / 256 * 84;
        const u32 i = c % 256;
        const u32 both = block[i / 16];
        const float code = (float)quarter(block + 16, i);
        return half_at(block + 80) * (float)(both & 15) * code - half_at(block + 82) * (float)(both >> 4);
    }
};

using f32 = Plain<4, false>;
using f16 = Plain<2, false>;
using bf16 = Plain<2, true>;
using q8 = Sections<8, 2, 0, 64, SIGNED>;
using f8 = Sections<8, 4, 0, 128, E4M3>;
using nf4 = Sections<4, 4, 0, 64, NORMAL_FLOAT>;
using q6 = Planes<4, 2, 32, 0>;
using q5 = Planes<4, 1, 16, 0>;
using q4 = Planes<4, 0, 8, 8>;
using q3 = Planes<2, 1, 4, 8>;
using q2 = Planes<2, 0, 2, 8>;

using i8 = Sections<8, 4, 0, 0, OVER_127>;
using a8 = Sections<8, 4, 2, 32, AFFINE>;
using a4 = Sections<4, 4, 1, 32, AFFINE>;
using a4g64 = Sections<4, 4, 1, 64, AFFINE>;
using a4g128 = Sections<4, 4, 1, 128, AFFINE>;
using q8_0 = Block32<34, 8, false, 0>;
using q5_1 = Block32<24, 5, true, 0>;
using q5_0 = Block32<22, 5, false, 16>;
using q4_1 = Block32<20, 4, true, 0>;
using q4_0 = Block32<18, 4, false, 8>;
using q5_k = Block45<true>;
using q4_k = Block45<false>;

} // namespace fmt

// The repository's own formats, and those that checkpoints come in.
#define OWN_FORMATS(X) X(f32) X(f16) X(bf16) X(f8) X(q8) X(q6) X(q5) X(q4) X(q3) X(q2) X(nf4)
#define FOREIGN_FORMATS(X)                                                                                             \
    X(i8) X(a8) X(a4) X(a4g64) X(a4g128) X(q8_0) X(q5_1) X(q5_0) X(q4_1) X(q4_0) X(q6_k) X(q5_k) X(q4_k) X(q3_k) X(q2_k)
