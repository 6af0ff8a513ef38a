// Causal grouped-query attention with an online softmax (Milakov and Gimelshein 2018), for prefill and decode alike: a
// block for each query and head, whose four warps share the cache in tiles of 32 positions.
//
// Tile `t`, of positions `32 t ..`, is warp `t % 4`'s, whatever the query's first position: what a query gets depends on
// its own position and nothing else in the call.

#include "score.cuh"

KERNEL(attend, AttendParams, AIRLLM_ATTEND_THREADS) {
    constexpr int WARPS = AIRLLM_ATTEND_THREADS / WARP, PITCH = WARP + 1;
    SHARED(float, keys, WARPS * WARP * PITCH);
    SHARED(float, shares, WARPS * WARP);
    SHARED(float, ends, WARPS * 2);
    // The query, then what each warp has summed of the values.
    DYN_SMEM(float, dynamic);
    const u32 thread = threadIdx.x, lane = thread % WARP, warp = thread / WARP;
    const u64 query = block_1d(), head = blockIdx.y, kv = head / (p.heads / p.kv_heads);
    const u64 position = p.start + query, first = oldest(p, position);
    const u64 row = (p.first + query) * p.heads + head;
    float *const q = dynamic, *const sums = dynamic + p.head_dim, *const mine = sums + warp * p.value_dim;
    float *const tile = keys + warp * WARP * PITCH, *const share = shares + warp * WARP;

    for (u64 d = thread; d < p.head_dim; d += AIRLLM_ATTEND_THREADS) q[d] = p.q[row * p.head_dim + d];
    for (u64 d = lane; d < p.value_dim; d += WARP) mine[d] = 0.0f;
    __syncthreads();

    const float tilt = slope(p, head);
    float largest = -INFINITY, sum = 0.0f;
    // The first tile of this warp that is not wholly before the window.
    const u64 old = first / WARP;
    for (u64 t = old + (warp + WARPS - old % WARPS) % WARPS; t * WARP <= position; t += WARPS) {
        const u64 base = t * WARP, from = base < first ? first - base : 0;
        const u64 end = position - base < WARP - 1 ? position - base + 1 : WARP;
        // Lane `l` has position `base + l`. Keys come through shared memory, 32 columns at a time, so that reads of the
        // cache are coalesced.
        float product = 0.0f;
        for (u64 part = 0; part < p.head_dim; part += WARP) {
            const u64 d = part + lane, width = p.head_dim - part < WARP ? p.head_dim - part : WARP;
            if (lane < width) {
                for (u64 j = from; j < end; j++) {
                    tile[j * PITCH + lane] = p.k[((base + j) * p.kv_heads + kv) * p.head_dim + d];
                }
            }
            __syncwarp();
            if (lane >= from && lane < end) {
                for (u64 i = 0; i < width; i++) product = fmaf(q[part + i], tile[lane * PITCH + i], product);
            }
            __syncwarp();
        }
        const bool seen = lane >= from && lane < end;
        const float scored = seen ? score(p, product, tilt, position - base - lane) : -INFINITY;
        const float larger = fmaxf(largest, warp_max(scored));
        // Where all scores are minus infinity so far, nothing may become infinity minus infinity.
        const float zero = larger == -INFINITY ? 0.0f : larger;
        const float weight = seen ? expf(scored - zero) : 0.0f;
        const float shrink = expf(largest - zero);
        sum = fmaf(sum, shrink, warp_sum(weight));
        largest = larger;
        share[lane] = weight;
        __syncwarp();
        for (u64 d = lane; d < p.value_dim; d += WARP) {
            float value = mine[d] * shrink;
            for (u64 j = from; j < end; j++) {
                value = fmaf(share[j], p.v[((base + j) * p.kv_heads + kv) * p.value_dim + d], value);
            }
            mine[d] = value;
        }
        __syncwarp();
    }

    if (lane == 0) ends[warp] = largest, ends[WARPS + warp] = sum;
    __syncthreads();
    float top = ends[0];
    for (int w = 1; w < WARPS; w++) top = fmaxf(top, ends[w]);
    if (top == -INFINITY) top = 0.0f;
    float factors[WARPS], total = 0.0f;
    UNROLL for (int w = 0; w < WARPS; w++) {
        factors[w] = expf(ends[w] - top);
        total = fmaf(ends[WARPS + w], factors[w], total);
    }
    for (u64 d = thread; d < p.value_dim; d += AIRLLM_ATTEND_THREADS) {
        float value = 0.0f;
        UNROLL for (int w = 0; w < WARPS; w++) value = fmaf(sums[w * p.value_dim + d], factors[w], value);
        p.out[row * p.value_dim + d] = value / total;
    }
}
