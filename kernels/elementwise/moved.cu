// Verbs that put rows and columns elsewhere, a thread for each number written.

#include "device.cuh"

KERNEL(gather, GatherParams, AIRLLM_FLAT_THREADS) {
    const u64 i = thread_1d();
    if (i < p.count * p.dim) p.y[i] = p.x[p.rows[i / p.dim] * p.dim + i % p.dim];
}

// A thread for each column, so that rows that meet in one are added in their order.
KERNEL(scatter_add, ScatterParams, AIRLLM_FLAT_THREADS) {
    const u64 c = thread_1d();
    if (c >= p.dim) return;
    for (u64 i = 0; i < p.count; i++) {
        float *y = p.y + p.rows[i] * p.dim + c;
        *y = fmaf(p.factors[i], p.x[i * p.dim + c], *y);
    }
}

// What is no column of a row reads the first.
KERNEL(reorder, ReorderParams, AIRLLM_FLAT_THREADS) {
    const u64 i = thread_1d();
    if (i >= p.n * p.dim) return;
    const u64 t = i / p.dim;
    const float place = p.order[i % p.dim];
    const u64 c = place >= 0.0f && place < (float)p.dim ? (u64)place : 0;
    p.y[i] = p.x[t * p.dim + min(c, p.dim - 1)];
}

KERNEL(place, PlaceParams, AIRLLM_FLAT_THREADS) {
    const u64 i = thread_1d();
    if (i >= p.rows * p.width) return;
    const u64 r = i / p.width, c = i % p.width;
    p.y[r * p.to_stride + p.to_first + c] = p.x[r / p.repeat * p.from_stride + p.from_first + c];
}
