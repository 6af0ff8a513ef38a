// Which experts a token goes through: what `route` in `airllm-model` does, a warp for each token. Sums are taken in the same order.

#include "keys.cuh"

// The best of `count` numbers whose keys are below `below`.
__device__ __forceinline__ u64 best_below(const float *numbers, u64 count, u64 below) {
    u64 best = 0;
    for (u64 i = threadIdx.x; i < count; i += WARP) {
        const u64 key = key_of(numbers[i], i);
        if (key < below) best = max(best, key);
    }
    return warp_best(best);
}

KERNEL(route, RouteParams, AIRLLM_ROUTE_THREADS) {
    // Four arrays of a number for each expert: shares, ranks; of groups: sums, and whether they stay open.
    DYN_SMEM(float, dynamic);
    float *const shares = dynamic, *const ranks = shares + p.experts, *const sums = ranks + p.experts;
    float *const open = sums + p.experts;
    const u32 lane = threadIdx.x;
    const u64 token = block_1d();
    const float *scores = p.scores + token * p.experts;

    float largest = -INFINITY;
    for (u64 i = lane; i < p.experts; i += WARP) largest = fmaxf(largest, scores[i]);
    largest = warp_max(largest);
    for (u64 i = lane; i < p.experts; i += WARP) {
        shares[i] = p.sigmoid ? 1.0f / (1.0f + expf(-scores[i])) : expf(scores[i] - largest);
    }
    __syncwarp();
    if (!p.sigmoid) {
        float total = 0.0f;
        for (u64 i = 0; i < p.experts; i++) total += shares[i];
        __syncwarp();
        for (u64 i = lane; i < p.experts; i += WARP) shares[i] /= total;
    }
    for (u64 i = lane; i < p.experts; i += WARP) ranks[i] = p.bias ? shares[i] + p.bias[i] : shares[i];
    __syncwarp();

    if (p.kept < p.groups) {
        const u64 size = p.experts / p.groups;
        for (u64 group = lane; group < p.groups; group += WARP) {
            // A group counts as much as its best two.
            const float *own = ranks + group * size;
            u64 first = 0, second = 0;
            for (u64 i = 0; i < size; i++) {
                const u64 key = key_of(own[i], i);
                if (key > first) second = first, first = key;
                else if (key > second) second = key;
            }
            sums[group] = size > 1 ? own[place_of(first)] + own[place_of(second)] : own[place_of(first)];
            open[group] = 0.0f;
        }
        __syncwarp();
        u64 last = ~0ull;
        for (u64 i = 0; i < p.kept; i++) {
            last = best_below(sums, p.groups, last);
            if (lane == 0) open[place_of(last)] = 1.0f;
        }
        __syncwarp();
        for (u64 i = lane; i < p.experts; i += WARP) {
            if (open[i / size] == 0.0f) ranks[i] = -INFINITY;
        }
        __syncwarp();
    }

    float total = 0.0f;
    u64 last = ~0ull;
    for (u64 i = 0; i < p.top_k; i++) {
        last = best_below(ranks, p.experts, last);
        total += shares[place_of(last)];
        if (lane == 0) p.chosen[token * p.top_k + i] = place_of(last);
    }
    // Sigmoids may all be 0.
    if (p.sigmoid) total += 1e-20f;
    const float factor = p.normalise ? p.scale / total : p.scale;
    last = ~0ull;
    for (u64 i = 0; i < p.top_k; i++) {
        last = best_below(ranks, p.experts, last);
        if (lane == 0) p.weights[token * p.top_k + i] = shares[place_of(last)] * factor;
    }
}
