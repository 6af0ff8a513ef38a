// Attention of generated tokens, split over the context: a block for each chunk of 256 positions and each head of the cache, for up
// to 8 heads of queries that share it; then a block for each query and head, which joins chunks in their order.
//
// Chunk `c` is positions `256 c ..`, whatever the query's window: what a query gets depends on its own position, not on
// the queries of the call, on how many heads share a block or on the chunks that run beside.

#include "cache.cuh"
#include "score.cuh"

// Sums of weighted values over the chunk, and largest score and sum of weights, for heads `head ..` of a query. Warps take rows of the
// cache in turns, a lane four columns.
template <class C, int HEADS> __device__ __forceinline__ void chunk(const CachedParams &p) {
    constexpr int CHUNK = AIRLLM_ATTEND_CHUNK, WARPS = AIRLLM_ATTEND_THREADS / WARP, COLS = AIRLLM_ATTEND_COLS;
    constexpr int ROWS = HEADS == 1 ? 8 : 4;
    SHARED(float, scores, HEADS * CHUNK);
    SHARED(float, parts, WARPS * HEADS * COLS);
    // Queries, padded with zeros to a multiple of COLS.
    DYN_SMEM(float, queries);
    const u32 thread = threadIdx.x, lane = thread % WARP, warp = thread / WARP;
    const u64 query = block_1d() / p.chunks, number = block_1d() % p.chunks, base = (p.chunk + number) * CHUNK;
    const u64 position = p.start + query, first = oldest(p, position);
    // In the chunk: the first row that is seen, and the one behind the last.
    const u64 from = base < first ? first - base : 0;
    const u64 end = position < base ? 0 : position - base < CHUNK ? position - base + 1 : CHUNK;
    if (from >= end) return;
    const u64 group = p.heads / p.kv_heads, tiles = ceil_div(group, HEADS);
    const u64 kv = blockIdx.y / tiles, in_group = blockIdx.y % tiles * HEADS, head = kv * group + in_group;
    const u32 count = group - in_group < HEADS ? (u32)(group - in_group) : HEADS;
    const u64 padded = round_up(p.head_dim, COLS);

    const float *q = p.q + ((p.first + query) * p.heads + head) * p.head_dim;
    for (u32 h = 0; h < HEADS; h++) {
        for (u64 d = thread; d < padded; d += AIRLLM_ATTEND_THREADS) {
            queries[h * padded + d] = h < count && d < p.head_dim ? q[h * p.head_dim + d] : 0.0f;
        }
    }
    __syncthreads();

    const u8 *keys = p.k + base * p.k_row + kv * p.k_head;
    for (u64 j = warp * ROWS; j < CHUNK; j += WARPS * ROWS) {
        float sums[ROWS * HEADS];
        UNROLL for (int i = 0; i < ROWS * HEADS; i++) sums[i] = 0.0f;
        if (j < end && j + ROWS > from) {
            for (u64 d = lane * 4; d < padded; d += COLS) {
                float4 k[ROWS];
                // Of rows that are not seen, one that is.
                UNROLL for (int r = 0; r < ROWS; r++) k[r] = C::four(keys + min(max(j + r, from), end - 1) * p.k_row, d, p.head_dim);
                UNROLL for (int h = 0; h < HEADS; h++) {
                    const float4 x = *reinterpret_cast<const float4 *>(queries + h * padded + d);
                    UNROLL for (int r = 0; r < ROWS; r++) {
                        float sum = sums[r * HEADS + h];
                        sum = fmaf(k[r].x, x.x, sum);
                        sum = fmaf(k[r].y, x.y, sum);
                        sum = fmaf(k[r].z, x.z, sum);
                        sums[r * HEADS + h] = fmaf(k[r].w, x.w, sum);
                    }
                }
            }
        }
        const float product = warp_sums<ROWS * HEADS>(sums, lane);
        if (lane < ROWS * HEADS) {
            const u32 i = summed_by<ROWS * HEADS>(lane), h = i % HEADS;
            const u64 row = j + i / HEADS;
            const bool seen = row >= from && row < end && h < count;
            const float tilt = p.alibi ? slope(p, head + h) : 0.0f;
            scores[h * CHUNK + row] = seen ? score(p, product, tilt, position - base - row) : -INFINITY;
        }
    }
    __syncthreads();

    // A warp turns the scores of a head into weights.
    for (u32 h = warp; h < count; h += WARPS) {
        float *const mine = scores + h * CHUNK;
        float largest = -INFINITY, sum = 0.0f;
        UNROLL for (int i = 0; i < CHUNK / WARP; i++) largest = fmaxf(largest, mine[i * WARP + lane]);
        largest = warp_max(largest);
        // Where all scores are minus infinity, nothing may become infinity minus infinity.
        const float zero = largest == -INFINITY ? 0.0f : largest;
        UNROLL for (int i = 0; i < CHUNK / WARP; i++) {
            const float weight = expf(mine[i * WARP + lane] - zero);
            mine[i * WARP + lane] = weight;
            sum += weight;
        }
        sum = warp_sum(sum);
        float *const ends = p.ends + ((query * p.heads + head + h) * p.chunks + number) * 2;
        if (lane == 0) ends[0] = largest, ends[1] = sum;
    }
    __syncthreads();

    const u8 *values = p.v + base * p.v_row + kv * p.v_head;
    for (u64 part = 0; part < p.value_dim; part += COLS) {
        float sums[HEADS][4];
        UNROLL for (int h = 0; h < HEADS; h++) {
            UNROLL for (int e = 0; e < 4; e++) sums[h][e] = 0.0f;
        }
        // Warp `w` has rows `w`, `w + 4`, ...; those before the window would add nothing.
        UNROLL_BY(4) for (u64 j = from + (warp + WARPS - from % WARPS) % WARPS; j < end; j += WARPS) {
            const float4 v = C::four(values + j * p.v_row, part + lane * 4, p.value_dim);
            UNROLL for (int h = 0; h < HEADS; h++) {
                const float weight = scores[h * CHUNK + j];
                sums[h][0] = fmaf(weight, v.x, sums[h][0]);
                sums[h][1] = fmaf(weight, v.y, sums[h][1]);
                sums[h][2] = fmaf(weight, v.z, sums[h][2]);
                sums[h][3] = fmaf(weight, v.w, sums[h][3]);
            }
        }
        UNROLL for (int h = 0; h < HEADS; h++) {
            UNROLL for (int e = 0; e < 4; e++) parts[(warp * HEADS + h) * COLS + lane * 4 + e] = sums[h][e];
        }
        __syncthreads();
        if (part + thread < p.value_dim) {
            for (u32 h = 0; h < count; h++) {
                float sum = parts[h * COLS + thread];
                UNROLL for (int w = 1; w < WARPS; w++) sum += parts[(w * HEADS + h) * COLS + thread];
                p.sums[((query * p.heads + head + h) * p.chunks + number) * p.value_dim + part + thread] = sum;
            }
        }
        __syncthreads();
    }
}

#define CHUNK_FOR(format, heads)                                                                                       \
    KERNEL(attend_chunk_##format##_x##heads, CachedParams, AIRLLM_ATTEND_THREADS) { chunk<cache::format, heads>(p); }
#define CHUNK(format) CHUNK_FOR(format, 1) CHUNK_FOR(format, 4) CHUNK_FOR(format, 8)

CHUNK(f32)
CHUNK(f16)
CHUNK(q8)

KERNEL(attend_join, CachedParams, AIRLLM_ATTEND_THREADS) {
    const u64 query = block_1d(), head = blockIdx.y, position = p.start + query;
    // The chunks that this query sees.
    const u64 old = oldest(p, position) / AIRLLM_ATTEND_CHUNK - p.chunk, last = position / AIRLLM_ATTEND_CHUNK - p.chunk;
    const float *ends = p.ends + (query * p.heads + head) * p.chunks * 2;
    const float *sums = p.sums + (query * p.heads + head) * p.chunks * p.value_dim;
    float top = -INFINITY;
    for (u64 c = old; c <= last; c++) top = fmaxf(top, ends[2 * c]);
    if (top == -INFINITY) top = 0.0f;
    for (u64 d = threadIdx.x; d < p.value_dim; d += AIRLLM_ATTEND_THREADS) {
        float value = 0.0f, total = 0.0f;
        UNROLL_BY(4) for (u64 c = old; c <= last; c++) {
            const float factor = expf(ends[2 * c] - top);
            total = fmaf(ends[2 * c + 1], factor, total);
            value = fmaf(sums[c * p.value_dim + d], factor, value);
        }
        p.out[((p.first + query) * p.heads + head) * p.value_dim + d] = value / total;
    }
}
