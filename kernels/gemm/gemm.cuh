// The multiply for many tokens, without tensor cores; see README.md.
#pragma once

#include "steps.cuh"

// 64 rows times 32 tokens, 4 x 4 numbers a thread. A step of 32 columns is decoded into shared memory, then
// multiplied. Steps come in the order of the parts that `gemv` adds up, and finished parts are added like digits of a
// binary counter: the same sums in the same order, bit for bit, as with few tokens.
template <class F> __device__ __forceinline__ void gemm(const ProductParams &p) {
    constexpr int ROWS = AIRLLM_GEMM_ROWS, TOKENS = AIRLLM_GEMM_TOKENS, LEVELS = 8;
    constexpr u32 PARTS = 1u << (LEVELS - 1);
    SHARED(float, weights, 32 * (ROWS + 4));
    SHARED(float, inputs, 32 * (TOKENS + 4));
    const u32 thread = threadIdx.x;
    const u64 row = block_1d() * ROWS, token = (u64)blockIdx.y * TOKENS;
    const u64 steps = ceil_div(p.cols, 32);
    const u32 mine_r = thread / 8 * 4, mine_t = thread % 8 * 4;

    // Two threads decode a row's step, one half each; the threads of a warp do the same half.
    const u32 decoded = thread % ROWS, half = thread / ROWS;
    const u8 *from = p.w + min(row + decoded, p.rows - 1) * p.row_bytes;
    const float *x = p.x + min(token + thread / 4, p.n - 1) * p.cols;

    // Level `l` holds the sum of 2^l parts that wait for their neighbours.
    float waiting[LEVELS][16];
    u32 done = 0;
    for (; done < PARTS && done < steps; done++) {
        float sums[16];
        UNROLL for (int i = 0; i < 16; i++) sums[i] = 0.0f;
        for (u64 s = done; s < steps; s += PARTS) {
            __syncthreads();
            Step<F> step;
            step.load(from, s, p.cols);
            UNROLL_BY(Step<F>::TURNS) for (int q = 0; q < 8; q++) {
                if (q / 4 != (int)half) continue;
                const float4 w = step.four(q);
                const float four[4] = {w.x, w.y, w.z, w.w};
                UNROLL for (int i = 0; i < 4; i++) weights[(4 * q + i) * (ROWS + 4) + decoded] = four[i];
            }
            UNROLL for (int i = 0; i < 8; i++) {
                const u32 k = thread % 4 * 8 + i;
                const u64 c = s * 32 + k;
                inputs[k * (TOKENS + 4) + thread / 4] = c < p.cols ? x[c] : 0.0f;
            }
            __syncthreads();
            for (int k = 0; k < 32; k++) {
                const float4 w4 = *reinterpret_cast<const float4 *>(&weights[k * (ROWS + 4) + mine_r]);
                const float4 x4 = *reinterpret_cast<const float4 *>(&inputs[k * (TOKENS + 4) + mine_t]);
                const float w[4] = {w4.x, w4.y, w4.z, w4.w}, t[4] = {x4.x, x4.y, x4.z, x4.w};
                UNROLL for (int i = 0; i < 16; i++) sums[i] = fmaf(w[i / 4], t[i % 4], sums[i]);
            }
        }
        int level = 0;
        for (u32 bits = done; bits & 1; bits >>= 1, level++) {
            UNROLL for (int i = 0; i < 16; i++) sums[i] = waiting[level][i] + sums[i];
        }
        UNROLL for (int i = 0; i < 16; i++) waiting[level][i] = sums[i];
    }

    // What waits is added from the right, as if empty parts followed.
    float sums[16];
    UNROLL for (int i = 0; i < 16; i++) sums[i] = 0.0f;
    for (int level = 0; level < LEVELS; level++) {
        if (!(done >> level & 1)) continue;
        UNROLL for (int i = 0; i < 16; i++) sums[i] = waiting[level][i] + sums[i];
    }
    UNROLL for (int i = 0; i < 16; i++) {
        const u64 r = row + mine_r + i / 4, t = token + mine_t + i % 4;
        if (r < p.rows && t < p.n) p.y[t * p.stride + p.first + r] = sums[i];
    }
}

#define GEMM(format)                                                                                                   \
    KERNEL(gemm_##format, ProductParams, AIRLLM_GEMM_THREADS) { gemm<fmt::format>(p); }
