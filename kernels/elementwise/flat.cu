// Verbs that treat each number by itself, a thread each. They move bytes and little else.

#include "device.cuh"

KERNEL(add, FlatParams, AIRLLM_FLAT_THREADS) {
    const u64 i = thread_1d();
    if (i < p.len) p.y[i] += p.x[i];
}

KERNEL(copy, FlatParams, AIRLLM_FLAT_THREADS) {
    const u64 i = thread_1d();
    if (i < p.len) p.y[i] = p.x[i];
}

// x / (1 + e^-x), or x/2 * (1 + tanh(u)) with u = sqrt(2/pi) * (x + 0.044715 x^3). The latter is x / (1 + e^-2u), which loses
// nothing where tanh is near -1.
KERNEL(gated, GatedParams, AIRLLM_FLAT_THREADS) {
    const u64 i = thread_1d();
    if (i >= p.len) return;
    const float x = p.gate[i];
    const float inner = p.gelu ? 1.5957691216f * fmaf(0.044715f * x * x, x, x) : x;
    p.gate[i] = x / (1.0f + expf(-inner)) * p.up[i];
}

KERNEL(add_bias, RowsParams, AIRLLM_FLAT_THREADS) {
    const u64 i = thread_1d();
    if (i < p.n * p.dim) p.y[i] += p.by[i % p.dim];
}

KERNEL(scale_rows, RowsParams, AIRLLM_FLAT_THREADS) {
    const u64 i = thread_1d();
    if (i < p.n * p.dim) p.y[i] *= p.by[i / p.dim];
}
