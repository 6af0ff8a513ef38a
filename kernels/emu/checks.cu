// Kernels that are right or wrong on purpose, to check what runs kernels on the host. No device is given them.

#include "../include/device.cuh"

// Every thread gives its neighbour a number; without the barrier, who comes first reads a NaN.
template <bool BARRIER> __device__ __forceinline__ void neighbours(const FlatParams &p) {
    SHARED(float, numbers, 64);
    const u32 thread = threadIdx.x;
    numbers[thread] = p.x[thread];
    if (BARRIER) __syncthreads();
    p.y[thread] = numbers[(thread + 1) % 64];
}

KERNEL(check_neighbours, FlatParams, 64) { neighbours<true>(p); }
KERNEL(check_no_barrier, FlatParams, 64) { neighbours<false>(p); }

// Odd and even lanes go different ways, with masks of their own.
KERNEL(check_divergent, FlatParams, 64) {
    const u32 thread = threadIdx.x, lane = thread % WARP;
    float x = p.x[thread];
    if (lane % 2) {
        for (int offset = 2; offset < WARP; offset *= 2) x += __shfl_xor_sync(0xaaaaaaaau, x, offset);
    } else {
        x = __shfl_down_sync(0x55555555u, x, 2) + (float)__popc(__ballot_sync(0x55555555u, lane < 8));
        x += __any_sync(0x55555555u, lane == 4) ? 100.0f : 0.0f;
        x += __all_sync(0x55555555u, lane == 4) ? 1000.0f : 0.0f;
    }
    __syncwarp();
    p.y[thread] = x;
}

// Half of the block never comes to the barrier.
KERNEL(check_deadlock, FlatParams, 64) {
    if (threadIdx.x < 32) return;
    __syncthreads();
    p.y[threadIdx.x] = 0.0f;
}

// Lane 3 never comes to the sum.
KERNEL(check_lost_lane, FlatParams, 64) {
    if (threadIdx.x == 3) return;
    p.y[threadIdx.x] = warp_sum(p.x[threadIdx.x]);
}

// Two barriers where one is meant.
KERNEL(check_two_barriers, FlatParams, 64) {
    if (threadIdx.x < 32) {
        __syncthreads();
    } else {
        __syncthreads();
    }
    p.y[threadIdx.x] = 0.0f;
}

KERNEL(check_shared, FlatParams, 64) {
    SHARED(float, numbers, 13000);
    p.y[threadIdx.x] = numbers[threadIdx.x];
}
