// Root mean square norm (Zhang and Sennrich 2019): a block for each row, in place if `x` is `y`.

#include "sums.cuh"

// What the numbers of a row are multiplied by; `sum` is a thread's sum of squares, made by `add_square`.
constexpr float SMALL = 0x1p-20f;

// Squares of numbers up to 2^84 stay finite, those of numbers from 2^-43 on normal.
__device__ __forceinline__ float add_square(float sum, float x, float share) {
    const float scaled = x * SMALL;
    return fmaf(scaled, scaled * share, sum);
}

__device__ __forceinline__ float factor(float sum, float *parts, float eps) {
    const float mean = block_sum(sum, parts);
    return SMALL / sqrtf(mean + eps * (SMALL * SMALL));
}

KERNEL(rms_norm, NormParams, AIRLLM_NORM_THREADS) {
    SHARED(float, parts, AIRLLM_NORM_THREADS / WARP);
    const u32 thread = threadIdx.x;
    const float *x = p.x + block_1d() * p.dim;
    float *y = p.y + block_1d() * p.dim;
    const float share = 1.0f / (float)p.dim;
    float sum = 0.0f;
    for (u64 i = thread; i < p.dim; i += AIRLLM_NORM_THREADS) sum = add_square(sum, x[i], share);
    const float by = factor(sum, parts, p.eps);
    for (u64 i = thread; i < p.dim; i += AIRLLM_NORM_THREADS) y[i] = x[i] * by * p.weight[i];
}

// The residual first: the bits of `add`, then `rms_norm`, with one reading and one launch less.
KERNEL(rms_norm_add, NormAddParams, AIRLLM_NORM_THREADS) {
    SHARED(float, parts, AIRLLM_NORM_THREADS / WARP);
    const u32 thread = threadIdx.x;
    float *x = p.x + block_1d() * p.dim;
    const float *h = p.h + block_1d() * p.dim;
    float *y = p.y + block_1d() * p.dim;
    const float share = 1.0f / (float)p.dim;
    float sum = 0.0f;
    for (u64 i = thread; i < p.dim; i += AIRLLM_NORM_THREADS) {
        const float whole = x[i] + h[i];
        x[i] = whole;
        sum = add_square(sum, whole, share);
    }
    const float by = factor(sum, parts, p.eps);
    // A thread reads what it wrote itself.
    for (u64 i = thread; i < p.dim; i += AIRLLM_NORM_THREADS) y[i] = x[i] * by * p.weight[i];
}
