// The multiply for up to 16 tokens: the repository's own formats.

#include "gemv.cuh"

OWN_FORMATS(GEMV)

// Puts activations in the order in which lanes read them: float4 number `(slice * 8 + q) * 32 + lane` of a token holds
// columns `1024 slice + 32 lane + 4 q ..`, zeros beyond the last column.
KERNEL(gemv_spread, SpreadParams, AIRLLM_FLAT_THREADS) {
    const u64 slices = ceil_div(p.cols, AIRLLM_SLICE), each = slices * (AIRLLM_SLICE / 4);
    const u64 number = thread_1d();
    if (number >= p.n * each) return;
    const u64 t = number / each, at = number % each;
    const u64 lane = at % WARP, q = at / WARP % 8, slice = at / (WARP * 8);
    const u64 c = slice * AIRLLM_SLICE + lane * 32 + q * 4;
    const float *x = p.x + t * p.cols;
    float four[4];
    UNROLL for (int i = 0; i < 4; i++) four[i] = c + i < p.cols ? x[c + i] : 0.0f;
    reinterpret_cast<float4 *>(p.to)[number] = make_float4(four[0], four[1], four[2], four[3]);
}
