// Keys and values into a cache of fewer bits; `copy` stores f32.

#include "mma.cuh"

// A thread for each number.
KERNEL(store_f16, StoreParams, AIRLLM_FLAT_THREADS) {
    const u64 number = thread_1d(), each = p.heads * p.dim;
    if (number >= p.n * each) return;
    const u64 t = number / each, head = number % each / p.dim, d = number % p.dim;
    const u32 bits = half_pair(p.x[number], 0.0f);
    *reinterpret_cast<uint16_t *>(p.to + t * p.row + head * p.head + 2 * d) = (uint16_t)bits;
}

// A warp for each 64 numbers: what `pack_row` of `airllm-quant` makes of them, bit for bit. A number that is infinite or none makes
// all 64 of them NaN.
KERNEL(store_q8, StoreParams, AIRLLM_FLAT_THREADS) {
    const u64 groups = ceil_div(p.dim, 64), number = thread_1d() / WARP;
    if (number >= p.n * p.heads * groups) return;
    const u32 lane = threadIdx.x % WARP;
    const u64 head = number / groups, group = number % groups;
    const float *x = p.x + head * p.dim;
    u8 *const row = p.to + head / p.heads * p.row + head % p.heads * p.head;
    float own[2], largest = 0.0f;
    bool strange = false;
    UNROLL for (int i = 0; i < 2; i++) {
        const u64 d = group * 64 + 2 * lane + i;
        own[i] = d < p.dim ? x[d] : 0.0f;
        largest = fmaxf(largest, fabsf(own[i]));
        strange |= !(fabsf(own[i]) <= 3.4028234e38f);
    }
    largest = warp_max(largest);
    strange = __any_sync(ALL_LANES, strange);
    // Rounded down, the scale may leave the largest number outside the codes: the next one then.
    u32 scale = half_pair(largest / 127.0f, 0.0f) & 0xffff;
    if (largest > 0.0f && (scale == 0 || largest / from_half(scale) >= 127.5f)) scale++;
    if (strange) scale = 0x7e00;
    const float divisor = from_half(scale);
    u32 codes[2] = {0, 0};
    if (largest > 0.0f && !strange) {
        UNROLL for (int i = 0; i < 2; i++) codes[i] = (u32)(int)rintf(own[i] / divisor) & 255;
    }
    reinterpret_cast<uint16_t *>(row + group * 64)[lane] = (uint16_t)(codes[0] | codes[1] << 8);
    if (lane == 0) reinterpret_cast<uint16_t *>(row + groups * 64)[group] = (uint16_t)scale;
}
