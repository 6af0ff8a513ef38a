// Root mean square norm (Zhang and Sennrich 2019): a block for each row, in place if `x` is `y`.

#include "device.cuh"

KERNEL(rms_norm, NormParams, AIRLLM_NORM_THREADS) {
    constexpr int WARPS = AIRLLM_NORM_THREADS / WARP;
    SHARED(float, parts, WARPS);
    const u32 thread = threadIdx.x;
    const float *x = p.x + block_1d() * p.dim;
    float *y = p.y + block_1d() * p.dim;
    // Squares of numbers up to 2^84 stay finite, those of numbers from 2^-43 on normal.
    const float small = 0x1p-20f, share = 1.0f / (float)p.dim;
    float sum = 0.0f;
    for (u64 i = thread; i < p.dim; i += AIRLLM_NORM_THREADS) {
        const float scaled = x[i] * small;
        sum = fmaf(scaled, scaled * share, sum);
    }
    sum = warp_sum(sum);
    if (thread % WARP == 0) parts[thread / WARP] = sum;
    __syncthreads();
    float mean = 0.0f;
    UNROLL for (int warp = 0; warp < WARPS; warp++) mean += parts[warp];
    const float factor = small / sqrtf(mean + p.eps * (small * small));
    for (u64 i = thread; i < p.dim; i += AIRLLM_NORM_THREADS) y[i] = x[i] * factor * p.weight[i];
}
