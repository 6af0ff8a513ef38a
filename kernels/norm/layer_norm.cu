// Layer norm (Ba et al. 2016): a block for each row, in place if `x` is `y`. The mean first, then squares of what differs from it.

#include "sums.cuh"

KERNEL(layer_norm, LayerNormParams, AIRLLM_NORM_THREADS) {
    SHARED(float, first, AIRLLM_NORM_THREADS / WARP);
    SHARED(float, second, AIRLLM_NORM_THREADS / WARP);
    const u32 thread = threadIdx.x;
    const float *x = p.x + block_1d() * p.dim;
    float *y = p.y + block_1d() * p.dim;
    // As in `rms_norm`: squares of numbers up to 2^84 stay finite.
    const float small = 0x1p-20f, share = 1.0f / (float)p.dim;
    float sum = 0.0f;
    for (u64 i = thread; i < p.dim; i += AIRLLM_NORM_THREADS) sum = fmaf(x[i], share, sum);
    const float mean = block_sum(sum, first);
    float squares = 0.0f;
    for (u64 i = thread; i < p.dim; i += AIRLLM_NORM_THREADS) {
        const float scaled = (x[i] - mean) * small;
        squares = fmaf(scaled, scaled * share, squares);
    }
    const float by = small / sqrtf(block_sum(squares, second) + p.eps * (small * small));
    for (u64 i = thread; i < p.dim; i += AIRLLM_NORM_THREADS) {
        const float normal = (x[i] - mean) * by * p.weight[i];
        y[i] = p.bias ? normal + p.bias[i] : normal;
    }
}
