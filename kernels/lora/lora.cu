// The second product of an adapter of low rank (Hu et al. 2021), added to what is there: a warp for each row, lanes along the rank.
//
// The first product, of few rows, is `matmul`'s. A number's sum has one order for any number of tokens.

#include "formats.cuh"

template <class F> __device__ __forceinline__ void lora_up(const LoraParams &p) {
    constexpr int TOKENS = AIRLLM_LORA_TOKENS;
    const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const u64 row = block_1d() * AIRLLM_LORA_ROWS + warp, token = (u64)blockIdx.y * TOKENS;
    if (row >= p.rows) return;
    const F weights(p.w + row * p.row_bytes, p.cols);
    float sums[TOKENS];
    UNROLL for (int t = 0; t < TOKENS; t++) sums[t] = 0.0f;
    for (u64 c = lane; c < p.cols; c += WARP) {
        const float w = weights.at(c);
        UNROLL for (int t = 0; t < TOKENS; t++) sums[t] = fmaf(w, p.x[min(token + t, p.n - 1) * p.cols + c], sums[t]);
    }
    const float sum = warp_sums<TOKENS>(sums, lane);
    const u64 t = token + summed_by<TOKENS>(lane);
    if (lane >= TOKENS || t >= p.n) return;
    float *y = p.y + t * p.stride + p.first + row;
    *y = fmaf(p.factor, sum, *y);
}

#define LORA(format)                                                                                                   \
    KERNEL(lora_up_##format, LoraParams, AIRLLM_LORA_THREADS) { lora_up<fmt::format>(p); }

LORA(f32)
LORA(f16)
LORA(bf16)
