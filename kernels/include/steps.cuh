// Number formats, a step of 32 columns at a time: loads of up to 16 bytes into registers, then four columns a turn.
//
// `Step<F>::load` takes what step `s` of a row has; `four(q)` are columns `4q ..` of it, zeros beyond the row. `q` is a
// constant once the loop around it is unrolled `TURNS` times. Rows of sections and planes start at multiples of 16 bytes, which
// the host sees to; others may start anywhere.
#pragma once

#include "formats.cuh"

// Formats without a faster way: column by column. Their rows are whole steps, or padded to them.
template <class F> struct Step {
    static constexpr int TURNS = 1;
    const u8 *row;
    u64 first, cols;
    __device__ __forceinline__ void load(const u8 *from, u64 s, u64 all) { row = from, first = s * 32, cols = all; }
    __device__ __forceinline__ float4 four(int q) const {
        const F format(row, cols);
        const u64 c = first + 4 * q;
        return make_float4(format.at(c), format.at(c + 1), format.at(c + 2), format.at(c + 3));
    }
};

// Plain numbers: nothing is kept, each turn loads its own.
template <int BYTES, bool BRAIN> struct Step<fmt::Plain<BYTES, BRAIN>> {
    static constexpr int TURNS = 2;
    const u8 *at;
    u32 left;
    bool fast;
    __device__ __forceinline__ void load(const u8 *row, u64 s, u64 cols) {
        const u64 rest = cols - s * 32;
        at = row + s * 32 * BYTES;
        left = rest < 32 ? (u32)rest : 32;
        fast = left == 32 && reinterpret_cast<uintptr_t>(at) % (4 * BYTES) == 0;
    }
    static __device__ __forceinline__ float wide(u32 bits) {
        return BRAIN ? __uint_as_float(bits << 16) : from_half(bits);
    }
    __device__ __forceinline__ float single(u32 i) const {
        const fmt::Plain<BYTES, BRAIN> format(at, 0);
        return i < left ? format.at(i) : 0.0f;
    }
    __device__ __forceinline__ float4 four(int q) const {
        if (!fast) return make_float4(single(4 * q), single(4 * q + 1), single(4 * q + 2), single(4 * q + 3));
        if (BYTES == 4) return __ldg(reinterpret_cast<const float4 *>(at) + q);
        const uint2 raw = __ldg(reinterpret_cast<const uint2 *>(at) + q);
        return make_float4(wide(raw.x & 0xffff), wide(raw.x >> 16), wide(raw.y & 0xffff), wide(raw.y >> 16));
    }
};

// 16 bytes, 8 bytes or 4 as words.
__device__ __forceinline__ void words(u32 (&to)[4], const u8 *from) {
    const uint4 raw = __ldg(reinterpret_cast<const uint4 *>(from));
    to[0] = raw.x, to[1] = raw.y, to[2] = raw.z, to[3] = raw.w;
}
__device__ __forceinline__ void words(u32 (&to)[2], const u8 *from) {
    const uint2 raw = __ldg(reinterpret_cast<const uint2 *>(from));
    to[0] = raw.x, to[1] = raw.y;
}
__device__ __forceinline__ void words(u32 (&to)[1], const u8 *from) {
    to[0] = __ldg(reinterpret_cast<const u32 *>(from));
}

// Codes of four bits: byte `j` has column `j` in its low and column `16 + j` in its high half.
__device__ __forceinline__ u32 nibble(const u32 (&raw)[4], int i) {
    return raw[i % 16 / 4] >> (i % 4 * 8 + i / 16 * 4) & 15;
}

// Codes of two bits: byte `j` has columns `j`, `8 + j`, `16 + j`, `24 + j`.
__device__ __forceinline__ u32 pair(const u32 (&raw)[2], int i) { return raw[i % 8 / 4] >> (i % 4 * 8 + i / 8 * 2) & 3; }

template <int BITS, int SCALE, int ZERO, int GROUP, int KIND> struct Step<fmt::Sections<BITS, SCALE, ZERO, GROUP, KIND>> {
    static constexpr int TURNS = 8;
    u32 raw[BITS];
    float scale, zero;
    __device__ __forceinline__ void load(const u8 *row, u64 s, u64 cols) {
        const fmt::Sections<BITS, SCALE, ZERO, GROUP, KIND> format(row, cols);
        const u8 *codes = format.codes + s * 4 * BITS;
        UNROLL for (int part = 0; part < BITS / 4; part++) {
            u32 four[4];
            words(four, codes + 16 * part);
            UNROLL for (int i = 0; i < 4; i++) raw[4 * part + i] = four[i];
        }
        scale = format.scale(s * 32);
        zero = format.zero(s * 32);
        // A code of float8 beyond the row may be a NaN; those of other formats are harmless.
        if (KIND == fmt::E4M3 && cols - s * 32 < 32) {
            const int left = (int)(cols - s * 32);
            UNROLL for (int word = 0; word < BITS; word++) {
                const int keep = left - 4 * word;
                if (keep <= 0) raw[word] = 0;
                else if (keep < 4) raw[word] &= (1u << 8 * keep) - 1;
            }
        }
    }
    __device__ __forceinline__ float one(int i) const {
        const u32 code = BITS == 8 ? raw[i / 4] >> (i % 4 * 8) & 255 : nibble(reinterpret_cast<const u32(&)[4]>(raw), i);
        return fmt::widened<KIND>(code, scale, zero);
    }
    __device__ __forceinline__ float4 four(int q) const {
        return make_float4(one(4 * q), one(4 * q + 1), one(4 * q + 2), one(4 * q + 3));
    }
};

// The words of the second plane, if there is one.
template <int HIGH> struct HighPlane {
    u32 raw[HIGH];
    __device__ __forceinline__ void load(const u8 *plane, u64 s) { words(raw, plane + s * 4 * HIGH); }
    __device__ __forceinline__ u32 bits(int i) const {
        if constexpr (HIGH == 2) return pair(raw, i);
        else return raw[0] >> i & 1;
    }
};
template <> struct HighPlane<0> {
    __device__ __forceinline__ void load(const u8 *, u64) {}
    __device__ __forceinline__ u32 bits(int) const { return 0; }
};

template <int LOW, int HIGH, int ZERO, int BIAS> struct Step<fmt::Planes<LOW, HIGH, ZERO, BIAS>> {
    static constexpr int TURNS = 8;
    u32 raw[LOW];
    HighPlane<HIGH> high;
    float scales[2];
    __device__ __forceinline__ void load(const u8 *row, u64 s, u64 cols) {
        const fmt::Planes<LOW, HIGH, ZERO, BIAS> format(row, cols);
        words(raw, format.low + s * 4 * LOW);
        high.load(format.high, s);
        const u32 small = format.scales[s];
        const u32 half = __ldg(reinterpret_cast<const uint16_t *>(format.halves) + s / 8);
        const float d = from_half(half);
        scales[0] = d * (float)((int)(small & 15) - BIAS);
        scales[1] = d * (float)((int)(small >> 4) - BIAS);
    }
    __device__ __forceinline__ float one(int i) const {
        u32 code;
        if constexpr (LOW == 4) code = nibble(raw, i);
        else code = pair(raw, i);
        code |= high.bits(i) << LOW;
        return scales[i / 16] * (float)((int)code - ZERO);
    }
    __device__ __forceinline__ float4 four(int q) const {
        return make_float4(one(4 * q), one(4 * q + 1), one(4 * q + 2), one(4 * q + 3));
    }
};
