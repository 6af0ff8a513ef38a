// Attention of the tokens of a prompt, on matrix units: a block for 64 queries of a head, a warp for 16 of them, over tiles of 32
// positions with an online softmax (Dao 2023, without its memory of more than 48 KiB).
//
// Tile `t` is positions `32 t ..`, and to a query that sees none of a tile it changes nothing: what a query gets depends on its
// own position, not on how the prompt was cut into calls.

#include "cache.cuh"
#include "score.cuh"

// Numbers of 32 bits are split into two halves, and products taken of three of the four pairs: what is lost is that of f32.
__device__ __forceinline__ void split(float low, float high, u32 &whole, u32 &rest) {
    whole = half_pair(low, high);
    rest = half_rest(whole, low, high);
}

template <class C, int WIDTH> __device__ __forceinline__ void prompt(const CachedParams &p) {
    constexpr int TILE = WARP, QUERIES = AIRLLM_ATTEND_QUERIES, THREADS = AIRLLM_ATTEND_THREADS, PARTS = C::PARTS;
    constexpr int STEPS = WIDTH / 16, CHUNKS = WIDTH / 8, EACH = TILE * CHUNKS;
    // Wide heads: keys and values come one after the other into the same memory, and queries are not kept in registers.
    constexpr bool WIDE = WIDTH > 128;
    // Rows of `CHUNKS` chunks of 16 bytes, chunk `c` of row `r` in place `c ^ r % 8`; keys, then values, of either the rounded
    // numbers and then what they lack.
    SHARED(uint4, tiles, (WIDE ? 1 : 2) * PARTS * EACH);
    // Positions of a tile with numbers that are no halves; one tile's are cleared while the other's are in use.
    SHARED(u32, bad, 2 * TILE);
    uint4 *const keys = tiles, *const values = tiles + (WIDE ? 0 : PARTS * EACH);
    const u32 thread = threadIdx.x, lane = thread % WARP, warp = thread / WARP, g = lane / 4, t2 = lane % 4 * 2;
    // Blocks with the longest way begin first.
    const u64 block = (u64)gridDim.x - 1 - block_1d(), head = blockIdx.y, kv = head / (p.heads / p.kv_heads);
    const u64 mine = block * QUERIES + warp * 16;
    // The lane's two queries; beyond the last one, that once more.
    u64 query[2], position[2], first[2];
    UNROLL for (int h = 0; h < 2; h++) {
        query[h] = min(mine + g + 8 * h, p.n - 1);
        position[h] = p.start + query[h];
        first[h] = oldest(p, position[h]);
    }
    const float tilt = slope(p, head);

    // Columns `16 s ..` of the queries, as halves and what they lack.
    const auto fetch = [&](int s, u32(&whole)[4], u32(&rest)[4]) {
        UNROLL for (int i = 0; i < 4; i++) {
            const float *q = p.q + ((p.first + query[i % 2]) * p.heads + head) * p.head_dim;
            const u64 d = 16 * s + i / 2 * 8 + t2;
            split(d < p.head_dim ? __ldg(q + d) : 0.0f, d + 1 < p.head_dim ? __ldg(q + d + 1) : 0.0f, whole[i], rest[i]);
        }
    };
    constexpr int KEPT = WIDE ? 1 : STEPS;
    u32 q_whole[KEPT][4], q_rest[KEPT][4];
    if (!WIDE) {
        UNROLL for (int s = 0; s < KEPT; s++) fetch(s, q_whole[s], q_rest[s]);
    }

    const u64 rows_end = p.start + p.n;
    const auto load = [&](uint4 *to, const u8 *from, u64 row_bytes, u64 dim, u64 base, u32 *flags) {
        UNROLL_BY(2) for (int i = 0; i < EACH / THREADS; i++) {
            const u32 c = thread + i * THREADS, j = c / CHUNKS, chunk = c % CHUNKS;
            float x[8];
            UNROLL for (int e = 0; e < 8; e++) x[e] = 0.0f;
            // Nothing is known of rows behind the last query's.
            if (base + j < rows_end) {
                UNROLL for (int h = 0; h < 2; h++) {
                    const float4 four = C::four(from + (base + j) * row_bytes, chunk * 8 + h * 4, dim);
                    x[4 * h] = four.x, x[4 * h + 1] = four.y, x[4 * h + 2] = four.z, x[4 * h + 3] = four.w;
                }
            }
            u32 whole[4], rest[4];
            bool strange = false;
            UNROLL for (int e = 0; e < 4; e++) {
                split(x[2 * e], x[2 * e + 1], whole[e], rest[e]);
                strange |= not_finite(whole[e]);
            }
            // Zero times a NaN would reach queries that do not see it: those that do learn of it from the flag.
            if (strange) {
                flags[j] = 1;
                UNROLL for (int e = 0; e < 4; e++) whole[e] = rest[e] = 0;
            }
            uint4 *const at = to + j * CHUNKS + (chunk ^ j % 8);
            *at = make_uint4(whole[0], whole[1], whole[2], whole[3]);
            if (PARTS > 1) at[EACH] = make_uint4(rest[0], rest[1], rest[2], rest[3]);
        }
    };

    float out[WIDTH / 8][4], largest[2] = {-INFINITY, -INFINITY}, sum[2] = {0.0f, 0.0f};
    UNROLL for (int d = 0; d < WIDTH / 8; d++) {
        UNROLL for (int e = 0; e < 4; e++) out[d][e] = 0.0f;
    }
    // What the block, and what the warp, sees of the cache.
    const u64 block_end = p.start + min(block * QUERIES + QUERIES, p.n);
    const u64 old = oldest(p, p.start + block * QUERIES) / TILE;
    const u64 warp_old = oldest(p, p.start + min(mine, p.n - 1)), warp_end = p.start + min(mine + 16, p.n);
    const bool working = mine < p.n;
    if (thread < 2 * TILE) bad[thread] = 0;
    __syncthreads();
    for (u64 tile = old; tile * TILE < block_end; tile++) {
        const u64 base = tile * TILE;
        u32 *const flags = bad + tile % 2 * TILE;
        const bool busy = working && base < warp_end && base + TILE > warp_old;
        load(keys, p.k + kv * p.k_head, p.k_row, p.head_dim, base, flags);
        if (!WIDE) load(values, p.v + kv * p.v_head, p.v_row, p.value_dim, base, flags);
        __syncthreads();
        if (thread < TILE) bad[(tile + 1) % 2 * TILE + thread] = 0;

        float scores[TILE / 8][4];
        UNROLL for (int n = 0; n < TILE / 8; n++) {
            UNROLL for (int e = 0; e < 4; e++) scores[n][e] = 0.0f;
        }
        if (busy) {
            UNROLL for (int s = 0; s < STEPS; s++) {
                if (16 * s >= p.head_dim) continue;
                if (WIDE) fetch(s, q_whole[0], q_rest[0]);
                const u32(&whole)[4] = q_whole[WIDE ? 0 : s], (&rest)[4] = q_rest[WIDE ? 0 : s];
                u32 k[TILE / 16][4], k_rest[TILE / 16][4];
                const u32 j = lane / 16 * 8 + lane % 8;
                const uint4 *const at = keys + j * CHUNKS + ((2 * s + lane / 8 % 2) ^ j % 8);
                load_tiles(k, at, 16 * CHUNKS);
                mma_row<TILE / 8>(scores, rest, k);
                if (PARTS > 1) {
                    load_tiles(k_rest, at + EACH, 16 * CHUNKS);
                    mma_row<TILE / 8>(scores, whole, k_rest);
                }
                mma_row<TILE / 8>(scores, whole, k);
            }
        }
        if (WIDE) {
            __syncthreads();
            load(values, p.v + kv * p.v_head, p.v_row, p.value_dim, base, flags);
            __syncthreads();
        }
        if (busy) {
            float shrink[2];
            UNROLL for (int h = 0; h < 2; h++) {
                float larger = largest[h];
                UNROLL for (int i = 0; i < TILE / 4; i++) {
                    const u64 j = base + i / 2 * 8 + t2 + i % 2;
                    float &scored = scores[i / 2][2 * h + i % 2];
                    const bool seen = j >= first[h] && j <= position[h];
                    scored = seen ? score(p, scored, tilt, position[h] - j) : -INFINITY;
                    if (seen && flags[j - base] != 0) scored = NAN;
                    larger = fmaxf(larger, scored);
                }
                larger = fmaxf(larger, __shfl_xor_sync(ALL_LANES, larger, 1));
                larger = fmaxf(larger, __shfl_xor_sync(ALL_LANES, larger, 2));
                // Where all scores are minus infinity so far, nothing may become infinity minus infinity.
                const float zero = larger == -INFINITY ? 0.0f : larger;
                shrink[h] = expf(largest[h] - zero);
                largest[h] = larger;
                float weights = 0.0f;
                UNROLL for (int i = 0; i < TILE / 4; i++) {
                    float &scored = scores[i / 2][2 * h + i % 2];
                    scored = expf(scored - zero);
                    weights += scored;
                }
                weights += __shfl_xor_sync(ALL_LANES, weights, 1);
                weights += __shfl_xor_sync(ALL_LANES, weights, 2);
                sum[h] = fmaf(sum[h], shrink[h], weights);
            }
            // The scores' fragments are those of a left operand, 16 positions at a time.
            u32 w_whole[TILE / 16][4], w_rest[TILE / 16][4];
            UNROLL for (int s = 0; s < TILE / 16; s++) {
                UNROLL for (int i = 0; i < 4; i++) {
                    const float(&pair)[4] = scores[2 * s + i / 2];
                    split(pair[i % 2 * 2], pair[i % 2 * 2 + 1], w_whole[s][i], w_rest[s][i]);
                }
            }
            UNROLL for (int d = 0; d < WIDTH / 8; d += 2) {
                if (8 * d >= p.value_dim) continue;
                UNROLL for (int e = 0; e < 8; e++) out[d + e / 4][e % 4] *= shrink[e % 4 / 2];
                u32 v[TILE / 16][4], v_rest[TILE / 16][4];
                const uint4 *const at = values + lane % 16 * CHUNKS + ((d + lane / 16) ^ lane % 8);
                load_transposed_tiles(v, at, 16 * CHUNKS);
                if (PARTS > 1) load_transposed_tiles(v_rest, at + EACH, 16 * CHUNKS);
                UNROLL for (int s = 0; s < TILE / 16; s++) {
                    mma_row<2>(out + d, w_rest[s], v + s);
                    if (PARTS > 1) mma_row<2>(out + d, w_whole[s], v_rest + s);
                    mma_row<2>(out + d, w_whole[s], v + s);
                }
            }
        }
        __syncthreads();
    }

    UNROLL for (int d = 0; d < WIDTH / 8; d++) {
        UNROLL for (int e = 0; e < 4; e++) {
            const u64 column = d * 8 + t2 + e % 2;
            if (mine + g + e / 2 * 8 >= p.n || column >= p.value_dim) continue;
            p.out[((p.first + query[e / 2]) * p.heads + head) * p.value_dim + column] = out[d][e] / sum[e / 2];
        }
    }
}

#define PROMPT_FOR(format, width)                                                                                      \
    KERNEL(attend_prompt_##format##_##width, CachedParams, AIRLLM_ATTEND_THREADS) { prompt<cache::format, width>(p); }
#define PROMPT(format) PROMPT_FOR(format, 64) PROMPT_FOR(format, 128) PROMPT_FOR(format, 256)

PROMPT(f32)
PROMPT(f16)
PROMPT(q8)
