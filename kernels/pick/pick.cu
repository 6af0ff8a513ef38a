// The largest numbers of rows of logits: a block for each row.

#include "keys.cuh"

// The largest of all threads' keys, for every thread; `parts` is shared memory for a key a warp.
__device__ __forceinline__ u64 block_best(u64 key, u64 *parts) {
    key = warp_best(key);
    __syncthreads();
    if (threadIdx.x % WARP == 0) parts[threadIdx.x / WARP] = key;
    __syncthreads();
    UNROLL for (int warp = 0; warp < AIRLLM_PICK_THREADS / WARP; warp++) key = max(key, parts[warp]);
    return key;
}

// This thread's best of the keys below `below`; 0 where it has none. `strange` is set if it meets a NaN.
__device__ __forceinline__ u64 own_best(const float *x, u64 cols, u64 below, u32 *strange) {
    u64 best = 0;
    for (u64 c = threadIdx.x; c < cols; c += AIRLLM_PICK_THREADS) {
        const u64 key = key_of(x[c], c);
        if (x[c] != x[c]) *strange = 1;
        if (key < below) best = max(best, key);
    }
    return best;
}

KERNEL(argmax, PickParams, AIRLLM_PICK_THREADS) {
    SHARED(u64, parts, AIRLLM_PICK_THREADS / WARP);
    SHARED(u32, strange, 1);
    const u64 row = block_1d();
    const float *x = p.x + row * p.stride;
    if (threadIdx.x == 0) strange[0] = 0;
    __syncthreads();
    const u64 best = block_best(own_best(x, p.cols, ~0ull, strange), parts);
    if (threadIdx.x == 0) {
        p.indices[row] = place_of(best);
        p.values[row] = x[place_of(best)];
        p.strange[row] = strange[0];
    }
}

// Threads' best numbers give a bound that `k` numbers reach. In logits few more do: those are gathered, and each finds its place by
// counting. Where too many do, the best are found one after the other.
KERNEL(topk, PickParams, AIRLLM_PICK_THREADS) {
    constexpr u32 THREADS = AIRLLM_PICK_THREADS, ROOM = 1024;
    SHARED(u64, bests, THREADS);
    SHARED(u64, found, ROOM);
    SHARED(u64, parts, THREADS / WARP);
    SHARED(u64, bound, 1);
    SHARED(u32, count, 1);
    SHARED(u32, strange, 1);
    const u32 thread = threadIdx.x;
    const u64 row = block_1d();
    const float *x = p.x + row * p.stride;
    const auto put = [&](u64 rank, u64 key) {
        p.indices[row * p.k + rank] = place_of(key);
        p.values[row * p.k + rank] = x[place_of(key)];
    };

    if (thread == 0) count[0] = strange[0] = 0;
    __syncthreads();
    const u64 mine = own_best(x, p.cols, ~0ull, strange);
    bests[thread] = mine;
    __syncthreads();
    if (thread == 0) p.strange[row] = strange[0];
    u32 rank = 0;
    for (u32 i = 0; i < THREADS; i++) rank += bests[i] > mine;
    // Threads without a number, all of them last, have no rank of their own; `k` others have.
    if (mine != 0 && rank == p.k - 1) bound[0] = mine;
    __syncthreads();
    const u64 least = bound[0];
    for (u64 c = thread; c < p.cols; c += THREADS) {
        const u64 key = key_of(x[c], c);
        if (key < least) continue;
        const u32 at = atomicAdd(count, 1);
        if (at < ROOM) found[at] = key;
    }
    __syncthreads();
    const u32 total = count[0];
    if (total <= ROOM) {
        for (u32 i = thread; i < total; i += THREADS) {
            u32 larger = 0;
            for (u32 j = 0; j < total; j++) larger += found[j] > found[i];
            if (larger < p.k) put(larger, found[i]);
        }
        return;
    }
    u64 last = ~0ull;
    for (u64 i = 0; i < p.k; i++) {
        last = block_best(own_best(x, p.cols, last, strange), parts);
        if (thread == 0) put(i, last);
    }
}
