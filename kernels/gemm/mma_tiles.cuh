// The multiply for the tokens of a prompt, on matrix units; see README.md.
#pragma once

#include "mma.cuh"
#include "steps.cuh"

// Whether a format is one that weights are rounded to here, by more than halves round: one half a weight, and a token's number, is then
// enough. What a checkpoint comes in is taken as it is, so that its weights, and its tokens' numbers, come in two halves each.
template <class F> struct Rounding {
    static constexpr bool ENOUGH = false;
};
template <> struct Rounding<fmt::q8> {
    static constexpr bool ENOUGH = true;
};
template <int LOW, int HIGH, int ZERO, int BIAS> struct Rounding<fmt::Planes<LOW, HIGH, ZERO, BIAS>> {
    static constexpr bool ENOUGH = true;
};

// A step of 32 columns of a row as halves: 4 chunks of 16 bytes, and `apart` chunks further, if weights come in two parts, as many of what
// the first ones lack. `PARTS` are those of weights and of tokens. Weights are multiplied by `FACTOR`, so that small ones keep their digits.
template <class F> struct Packed {
    static constexpr int WEIGHT_PARTS = Rounding<F>::ENOUGH ? 1 : 2, PARTS = WEIGHT_PARTS;
    static constexpr float FACTOR = 16.0f;
    Step<F> step;
    bool any;
    __device__ __forceinline__ void load(const u8 *row, u64 s, u64 cols) {
        any = s * 32 < cols;
        if (any) step.load(row, s, cols);
    }
    __device__ __forceinline__ void store(uint4 *row, u32 first, u32 turn, u32 apart) const {
        if (!any) {
            for (u32 chunk = 0; chunk < 4; chunk++) {
                const u32 to = (first + chunk) ^ turn;
                row[to] = make_uint4(0, 0, 0, 0);
                if (WEIGHT_PARTS > 1) row[apart + to] = make_uint4(0, 0, 0, 0);
            }
            return;
        }
        UNROLL_BY(Step<F>::TURNS) for (int chunk = 0; chunk < 4; chunk++) {
            const float4 a = step.four(2 * chunk), b = step.four(2 * chunk + 1);
            const float eight[8] = {a.x * FACTOR, a.y * FACTOR, a.z * FACTOR, a.w * FACTOR,
                                    b.x * FACTOR, b.y * FACTOR, b.z * FACTOR, b.w * FACTOR};
            u32 whole[4], rest[4];
            UNROLL for (int i = 0; i < 4; i++) {
                whole[i] = half_pair(eight[2 * i], eight[2 * i + 1]);
                if (WEIGHT_PARTS > 1) rest[i] = half_rest(whole[i], eight[2 * i], eight[2 * i + 1]);
            }
            const u32 to = (first + chunk) ^ turn;
            row[to] = make_uint4(whole[0], whole[1], whole[2], whole[3]);
            if (WEIGHT_PARTS > 1) row[apart + to] = make_uint4(rest[0], rest[1], rest[2], rest[3]);
        }
    }
};

// Halves stay what they are, and brain floats become halves, all of whose digits they have room for; tokens come in two parts.
template <bool BRAIN> struct Packed<fmt::Plain<2, BRAIN>> {
    static constexpr int WEIGHT_PARTS = 1, PARTS = 2;
    static constexpr float FACTOR = BRAIN ? 16.0f : 1.0f;
    uint4 raw[4];
    __device__ __forceinline__ void load(const u8 *row, u64 s, u64 cols) {
        const u8 *at = row + s * 64;
        const u32 left = s * 32 >= cols ? 0 : cols - s * 32 < 32 ? (u32)(cols - s * 32) : 32;
        const u32 shift = (u32)reinterpret_cast<uintptr_t>(at);
        if (left == 32 && shift % 16 == 0) {
            UNROLL for (int chunk = 0; chunk < 4; chunk++) raw[chunk] = __ldg(reinterpret_cast<const uint4 *>(at) + chunk);
            return;
        }
        const bool whole = left == 32 && shift % 4 == 0;
        UNROLL for (int chunk = 0; chunk < 4; chunk++) {
            u32 words[4];
            UNROLL for (int i = 0; i < 4; i++) {
                const u32 c = 8 * chunk + 2 * i;
                if (whole) words[i] = __ldg(reinterpret_cast<const u32 *>(at) + c / 2);
                else words[i] = (c < left ? bytes2(at + 2 * c) : 0) | (c + 1 < left ? bytes2(at + 2 * c + 2) << 16 : 0);
            }
            raw[chunk] = make_uint4(words[0], words[1], words[2], words[3]);
        }
    }
    __device__ __forceinline__ void store(uint4 *row, u32 first, u32 turn, u32) const {
        const auto pair = [](u32 word) {
            return half_pair(__uint_as_float(word << 16) * FACTOR, __uint_as_float(word & 0xffff0000u) * FACTOR);
        };
        UNROLL for (u32 chunk = 0; chunk < 4; chunk++) {
            const uint4 as = raw[chunk];
            row[(first + chunk) ^ turn] = BRAIN ? make_uint4(pair(as.x), pair(as.y), pair(as.z), pair(as.w)) : as;
        }
    }
};

// `ROWS` rows times `INPUTS` rows of tokens: as many tokens, or half as many in two parts. Warps have half of the rows and 32 rows of
// tokens. Columns come 64 a turn, in their order, and a number's sum is one chain of them, whoever shares the block: it depends on
// neither `n` nor the grid nor the size of blocks.
template <class F, int ROWS, int INPUTS, int THREADS>
__device__ __forceinline__ void gemm_mma(const PromptProductParams &p) {
    using Weights = Packed<F>;
    constexpr int PARTS = Weights::PARTS, WEIGHT_PARTS = Weights::WEIGHT_PARTS, TOKENS = INPUTS / PARTS, CHUNKS = AIRLLM_MMA_COLS / 8, EACH = INPUTS * CHUNKS;
    constexpr int GROUPS = THREADS / WARP / 2, OWN = TOKENS / GROUPS, TALL = ROWS / 32, BAND = 8, APART = ROWS * CHUNKS;
    static_assert(THREADS == 2 * ROWS && EACH % THREADS == 0 && OWN % 16 == 0, "two threads decode a row, warps multiply in pairs of 8");
    // Rows of 8 chunks, chunk `c` of row `r` in place `c ^ r % 8`: neither rows nor chunks beside each other share a bank.
    SHARED(uint4, weights, WEIGHT_PARTS * APART);
    SHARED(uint4, inputs, 2 * EACH);
    const u32 thread = threadIdx.x, lane = thread % WARP, warp = thread / WARP;
    // Blocks go through the tokens in bands of eight tiles of rows, so that those which run together share both.
    const u64 across = ceil_div(p.n, TOKENS), down = ceil_div(p.rows, ROWS);
    const u64 band = block_1d() / (BAND * across), in_band = block_1d() % (BAND * across);
    const u64 high = min((u64)BAND, down - band * BAND);
    const u64 row = (band * BAND + in_band % high) * ROWS, token = in_band / high * TOKENS;
    const u64 turns = p.padded / AIRLLM_MMA_COLS;

    // Two threads decode a row, a step of 32 columns each.
    const u32 decoded = thread / 2, step = thread % 2;
    const u8 *from = p.w + min(row + decoded, p.rows - 1) * p.row_bytes;
    Weights own;

    const auto fetch = [&](u64 turn) {
        UNROLL for (int i = 0; i < EACH / THREADS; i++) {
            const u32 c = thread + i * THREADS, at = c / CHUNKS, chunk = c % CHUNKS;
            const u64 t = at / TOKENS * p.n + min(token + at % TOKENS, p.n - 1);
            const u8 *x = p.x + (t * p.padded + turn * AIRLLM_MMA_COLS + chunk * 8) * 2;
            copy_begin(inputs + turn % 2 * EACH + at * CHUNKS + (chunk ^ at % 8), reinterpret_cast<const uint4 *>(x));
        }
        copies_commit();
    };

    const u32 mine_r = warp % 2 * (ROWS / 2), mine_t = warp / 2 * OWN;
    const bool busy = token + mine_t < p.n;
    float sums[TALL][OWN / 8][4];
    UNROLL for (int i = 0; i < TALL; i++) {
        UNROLL for (int j = 0; j < OWN / 8; j++) {
            UNROLL for (int e = 0; e < 4; e++) sums[i][j][e] = 0.0f;
        }
    }
    fetch(0);
    own.load(from, step, p.cols);
    for (u64 turn = 0; turn < turns; turn++) {
        copies_wait<0>();
        // Nobody needs the last turn's weights and tokens any more, and this turn's tokens are there for all.
        __syncthreads();
        own.store(weights + decoded * CHUNKS, step * 4, decoded % 8, APART);
        if (turn + 1 < turns) {
            fetch(turn + 1);
            own.load(from, (turn + 1) * 2 + step, p.cols);
        }
        __syncthreads();
        if (!busy) continue;
        const uint4 *tokens = inputs + turn % 2 * EACH;
        UNROLL for (int k = 0; k < AIRLLM_MMA_COLS / 16; k++) {
            u32 a[WEIGHT_PARTS][TALL][4], b[PARTS][OWN / 16][4];
            UNROLL for (int part = 0; part < WEIGHT_PARTS; part++) {
                const u32 r = mine_r + lane % 16;
                load_tiles(a[part], weights + part * APART + r * CHUNKS + ((k * 2 + lane / 16) ^ r % 8), 16 * CHUNKS);
            }
            UNROLL for (int part = 0; part < PARTS; part++) {
                const u32 t = part * TOKENS + mine_t + lane / 16 * 8 + lane % 8;
                load_tiles(b[part], tokens + t * CHUNKS + ((k * 2 + lane / 8 % 2) ^ t % 8), 16 * CHUNKS);
            }
            // The smaller products first; the smallest are none.
            UNROLL for (int part = PARTS - 1; part >= 0; part--) {
                if (part == 0 && WEIGHT_PARTS > 1) mma_tiles(sums, a[WEIGHT_PARTS - 1], b[0]);
                mma_tiles(sums, a[0], b[part]);
            }
        }
    }

    if (!busy) return;
    UNROLL for (int j = 0; j < OWN / 8; j++) {
        UNROLL for (int e = 0; e < 2; e++) {
            const u64 t = token + mine_t + j * 8 + lane % 4 * 2 + e;
            if (t >= p.n) continue;
            const float factor = p.factors[t] * (1.0f / Weights::FACTOR);
            UNROLL for (int i = 0; i < 2 * TALL; i++) {
                const u64 r = row + mine_r + i * 8 + lane / 4;
                if (r < p.rows) p.y[t * p.stride + p.first + r] = sums[i / 2][j][i % 2 * 2 + e] * factor;
            }
        }
    }
}

#define GEMM_MMA(format)                                                                                               \
    KERNEL(gemm_mma_##format, PromptProductParams, AIRLLM_MMA_THREADS) {                                               \
        gemm_mma<fmt::format, AIRLLM_MMA_ROWS, AIRLLM_MMA_TOKENS, AIRLLM_MMA_THREADS>(p);                              \
    }                                                                                                                  \
    KERNEL(gemm_mma_small_##format, PromptProductParams, AIRLLM_MMA_SMALL_THREADS) {                                   \
        gemm_mma<fmt::format, AIRLLM_MMA_SMALL_ROWS, AIRLLM_MMA_SMALL_TOKENS, AIRLLM_MMA_SMALL_THREADS>(p);            \
    }

// Weights in two parts take twice the shared memory a row: one size of blocks.
#define GEMM_MMA_EXACT(format)                                                                                         \
    KERNEL(gemm_mma_##format, PromptProductParams, AIRLLM_MMA_EXACT_THREADS) {                                         \
        gemm_mma<fmt::format, AIRLLM_MMA_EXACT_ROWS, AIRLLM_MMA_EXACT_TOKENS, AIRLLM_MMA_EXACT_THREADS>(p);            \
    }
