// Sums over a block of AIRLLM_NORM_THREADS threads.
#pragma once

#include "device.cuh"

// The sum of all threads' `x`, for every thread: over lanes, then over warps in their order. `parts` is shared memory for a number
// a warp, used by no other sum.
__device__ __forceinline__ float block_sum(float x, float *parts) {
    x = warp_sum(x);
    if (threadIdx.x % WARP == 0) parts[threadIdx.x / WARP] = x;
    __syncthreads();
    float sum = 0.0f;
    UNROLL for (int warp = 0; warp < AIRLLM_NORM_THREADS / WARP; warp++) sum += parts[warp];
    return sum;
}
