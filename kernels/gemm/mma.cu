// The multiply for prompts: the repository's own formats, but for f32, which keeps to the plain path.

#include "mma_tiles.cuh"

GEMM_MMA(f16)
GEMM_MMA(bf16)
GEMM_MMA_EXACT(f8)
GEMM_MMA(q8)
GEMM_MMA(q6)
GEMM_MMA(q5)
GEMM_MMA(q4)
GEMM_MMA(q3)
GEMM_MMA(q2)
GEMM_MMA_EXACT(nf4)

// A block for each token.
KERNEL(gemm_prepare, PrepareParams, AIRLLM_PREPARE_THREADS) {
    constexpr int WARPS = AIRLLM_PREPARE_THREADS / WARP;
    SHARED(float, most, WARPS);
    const u32 thread = threadIdx.x;
    const u64 token = block_1d();
    const float *x = p.x + token * p.cols;
    float largest = 0.0f;
    for (u64 c = thread; c < p.cols; c += AIRLLM_PREPARE_THREADS) largest = fmaxf(largest, fabsf(x[c]));
    largest = warp_max(largest);
    if (thread % WARP == 0) most[thread / WARP] = largest;
    __syncthreads();
    UNROLL for (int warp = 0; warp < WARPS; warp++) largest = fmaxf(largest, most[warp]);
    // The largest number becomes one from 2^14 on, unless it is tiny or infinite.
    const u32 exponent = __float_as_uint(largest) >> 23;
    const u32 up = exponent == 255 ? 127 : exponent < 18 ? 250 : 268 - exponent;
    const float factor = __uint_as_float(up << 23);
    if (thread == 0) p.factors[token] = __uint_as_float((254 - up) << 23);

    u32 *to = reinterpret_cast<u32 *>(p.to) + token * (p.padded / 2);
    const u64 part = p.n * (p.padded / 2);
    for (u64 i = thread; i < p.padded / 2; i += AIRLLM_PREPARE_THREADS) {
        const float low = 2 * i < p.cols ? x[2 * i] * factor : 0.0f;
        const float high = 2 * i + 1 < p.cols ? x[2 * i + 1] * factor : 0.0f;
        const u32 rounded = half_pair(low, high);
        to[i] = rounded;
        if (p.parts > 1) to[part + i] = half_rest(rounded, low, high);
    }
}
