// Rung 1: a thread for each query and head, three walks along the cache: the largest score, the sum, the values.
//
// Scores are computed three times, and sums of values live in the result's own memory.

#include "score.cuh"

KERNEL(attend_naive, AttendParams, AIRLLM_FLAT_THREADS) {
    const u64 number = thread_1d();
    if (number >= p.n * p.heads) return;
    const u64 query = number / p.heads, head = number % p.heads, kv = head / (p.heads / p.kv_heads);
    const u64 position = p.start + query, first = oldest(p, position);
    const float *q = p.q + ((p.first + query) * p.heads + head) * p.head_dim;
    float *out = p.out + ((p.first + query) * p.heads + head) * p.value_dim;
    const float tilt = slope(p, head);

    auto scored = [&](u64 j) {
        const float *k = p.k + (j * p.kv_heads + kv) * p.head_dim;
        float product = 0.0f;
        for (u64 d = 0; d < p.head_dim; d++) product = fmaf(q[d], k[d], product);
        return score(p, product, tilt, position - j);
    };
    float largest = -INFINITY, sum = 0.0f;
    for (u64 j = first; j <= position; j++) largest = fmaxf(largest, scored(j));
    for (u64 j = first; j <= position; j++) sum += expf(scored(j) - largest);
    for (u64 d = 0; d < p.value_dim; d++) out[d] = 0.0f;
    for (u64 j = first; j <= position; j++) {
        const float share = expf(scored(j) - largest) / sum;
        const float *v = p.v + (j * p.kv_heads + kv) * p.value_dim;
        for (u64 d = 0; d < p.value_dim; d++) out[d] = fmaf(share, v[d], out[d]);
    }
}
