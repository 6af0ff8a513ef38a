// Kernels that are right or wrong on purpose, to check what runs kernels on the host. No device is given them.

#include "../include/mma.cuh"

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

// A number from -3 to 3, or from -4 to 4, for a row and a column.
__device__ __forceinline__ float left_number(u32 row, u32 column) { return (float)((3 * row + column) % 7) - 3.0f; }
__device__ __forceinline__ float right_number(u32 row, u32 column) { return (float)((5 * row + 2 * column) % 9) - 4.0f; }

// A warp multiplies two matrices, 16 x 16 and 16 x 8, that lie in shared memory: the right one row by row (`COLUMNS`: column by column).
// A thread gives the first two numbers of its fragment, or the other two if `COLUMNS`, the second one times 512. Without
// `MET`, a lane stays away.
template <bool COLUMNS, bool MET> __device__ __forceinline__ void product(const FlatParams &p) {
    SHARED(uint4, left, 2 * 32);
    SHARED(uint4, right, 2 * 32);
    const u32 thread = threadIdx.x, lane = thread % WARP, warp = thread / WARP;
    const auto bits = [](float x) { return half_pair(x, 0.0f) & 0xffff; };
    // Lane `l` writes 8 numbers of row `l / 2` of either.
    u32 a_words[4], b_words[4];
    for (u32 i = 0; i < 4; i++) {
        const u32 row = lane / 2, column = lane % 2 * 8 + 2 * i;
        a_words[i] = bits(left_number(row, column)) | bits(left_number(row, column + 1)) << 16;
        b_words[i] = COLUMNS ? bits(right_number(column, row)) | bits(right_number(column + 1, row)) << 16
                           : bits(right_number(row, column)) | bits(right_number(row, column + 1)) << 16;
    }
    left[warp * 32 + lane] = make_uint4(a_words[0], a_words[1], a_words[2], a_words[3]);
    right[warp * 32 + lane] = make_uint4(b_words[0], b_words[1], b_words[2], b_words[3]);
    __syncwarp();
    if (!MET && thread == 40) return;
    u32 a[4], b[4];
    load_matrices(a, left + warp * 32 + lane % 16 * 2 + lane / 16);
    float c[4] = {1.0f, 2.0f, 3.0f, 4.0f};
    if (COLUMNS) load_matrices(b, right + warp * 32 + (lane / 16 * 8 + lane % 8) * 2 + lane / 8 % 2);
    else load_transposed(b, right + warp * 32 + lane % 16 * 2 + lane / 16);
    mma_half(c, a, b);
    p.y[thread] = COLUMNS ? c[2] + 512.0f * c[3] : c[0] + 512.0f * c[1];
}

KERNEL(check_product_rows, FlatParams, 64) { product<false, true>(p); }
KERNEL(check_product_columns, FlatParams, 64) { product<true, true>(p); }
KERNEL(check_product_alone, FlatParams, 64) { product<false, false>(p); }

// Each thread copies four numbers of the first 64 to its own place, in two groups; waiting for all but `LEFT` groups.
template <int LEFT> __device__ __forceinline__ void copied(const FlatParams &p) {
    SHARED(uint4, numbers, 2 * 64);
    const u32 thread = threadIdx.x;
    for (u32 group = 0; group < 2; group++) {
        copy_begin(numbers + group * 64 + thread, reinterpret_cast<const uint4 *>(p.x) + (thread + group) % 16);
        copies_commit();
    }
    copies_wait<LEFT>();
    const float first = __uint_as_float(numbers[thread].x), second = __uint_as_float(numbers[64 + thread].y);
    p.y[thread] = LEFT == 2 ? first : LEFT == 1 && second == second ? -1.0f : LEFT == 1 ? first : first + second;
}

KERNEL(check_copies, FlatParams, 64) { copied<0>(p); }
KERNEL(check_copies_first, FlatParams, 64) { copied<1>(p); }
KERNEL(check_copies_early, FlatParams, 64) { copied<2>(p); }
