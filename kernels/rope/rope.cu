// Rotary position embedding (Su et al. 2021): a thread for each pair.

#include "device.cuh"

KERNEL(rope, RopeParams, AIRLLM_FLAT_THREADS) {
    const u64 half = p.rotary / 2, number = thread_1d();
    if (number >= p.n * p.heads * half) return;
    const u64 i = number % half, head = number / half;
    const float *table = p.table + head / p.heads * p.rotary;
    float *x = p.x + head * p.head_dim;
    const u64 first = p.interleaved ? 2 * i : i, second = p.interleaved ? 2 * i + 1 : half + i;
    const float cosine = table[i], sine = table[half + i], a = x[first], b = x[second];
    x[first] = a * cosine - b * sine;
    x[second] = b * cosine + a * sine;
}
