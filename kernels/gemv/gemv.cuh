// The multiply for up to 16 tokens; see README.md for what it does and why.
#pragma once

#include "steps.cuh"

// Four rows times `N` tokens. Each number of the result is the sum of 128 parts, always the same ones in the same order:
// part `k` is the chain of fmas over steps `k`, `k + 128`, ... of 32 columns, in the order of columns; parts are added
// in pairs of neighbours, sums of pairs in pairs, and so on. `gemm` sums in this order too.
template <class F, int N> __device__ __forceinline__ void gemv(const ProductParams &p) {
    constexpr int ROWS = AIRLLM_GEMV_ROWS, WARPS = AIRLLM_GEMV_THREADS / WARP;
    SHARED(float, parts, WARPS * WARP);
    const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const u64 row = block_1d() * ROWS, token = (u64)blockIdx.y * N;
    const u64 steps = ceil_div(p.cols, 32), slices = ceil_div(p.cols, AIRLLM_SLICE);

    // Beyond the last row and token, the last ones once more: nobody reads what comes out.
    const u8 *rows[ROWS];
    const float4 *x[N];
    UNROLL for (int r = 0; r < ROWS; r++) rows[r] = p.w + min(row + r, p.rows - 1) * p.row_bytes;
    UNROLL for (int t = 0; t < N; t++) {
        x[t] = reinterpret_cast<const float4 *>(p.x + min(token + t, p.n - 1) * slices * AIRLLM_SLICE);
    }

    float sums[ROWS * N];
    UNROLL for (int i = 0; i < ROWS * N; i++) sums[i] = 0.0f;
    for (u64 slice = warp; slice < slices; slice += WARPS) {
        const u64 s = slice * WARP + lane;
        if (s >= steps) break;
        Step<F> step[ROWS];
        UNROLL for (int r = 0; r < ROWS; r++) step[r].load(rows[r], s, p.cols);
        UNROLL_BY(Step<F>::TURNS) for (int q = 0; q < 8; q++) {
            float4 from[N];
            UNROLL for (int t = 0; t < N; t++) from[t] = __ldg(x[t] + (slice * 8 + q) * WARP + lane);
            UNROLL for (int r = 0; r < ROWS; r++) {
                const float4 w = step[r].four(q);
                UNROLL for (int t = 0; t < N; t++) {
                    float sum = sums[r * N + t];
                    sum = fmaf(w.x, from[t].x, sum);
                    sum = fmaf(w.y, from[t].y, sum);
                    sum = fmaf(w.z, from[t].z, sum);
                    sums[r * N + t] = fmaf(w.w, from[t].w, sum);
                }
            }
        }
    }

    const float sum = warp_sums<ROWS * N>(sums, lane);
    if (lane < ROWS * N) parts[warp * WARP + summed_by<ROWS * N>(lane)] = sum;
    __syncthreads();
    const u32 i = threadIdx.x;
    if (i < ROWS * N && row + i / N < p.rows && token + i % N < p.n) {
        const float whole = (parts[i] + parts[WARP + i]) + (parts[2 * WARP + i] + parts[3 * WARP + i]);
        // A sum of nothing but negative zeros is zero.
        p.y[(token + i % N) * p.stride + p.first + row + i / N] = whole + 0.0f;
    }
}

#define GEMV_FOR(format, n)                                                                                            \
    KERNEL(gemv_##format##_x##n, ProductParams, AIRLLM_GEMV_THREADS) { gemv<fmt::format, n>(p); }
#define GEMV(format) GEMV_FOR(format, 1) GEMV_FOR(format, 2) GEMV_FOR(format, 4) GEMV_FOR(format, 8)
