/* What host and device agree on: the one structure that each kernel takes, by value.
 *
 * Plain C. `cargo xtask codegen` writes the same structures for Rust, `crates/kernels/src/abi/generated.rs`; a launch
 * compares their sizes. Pointers are device pointers; sizes and offsets are 64 bits wide, counted in elements unless the
 * name says bytes. The host has checked every size: kernels check nothing.
 *
 * How weights lie in a row is documented, byte by byte, in the crate docs of `airllm-quant`; `formats.cuh` and
 * `steps.cuh` are derived from that page.
 */
#ifndef AIRLLM_ABI_H
#define AIRLLM_ABI_H

#ifdef __cplusplus
#include <cstdint>
#else
#include <stdint.h>
#endif

/* Threads in a block of the kernels that treat numbers one by one. */
#define AIRLLM_FLAT_THREADS 256
/* `gemv`: rows in a block, threads in a block, columns of a slice (one step of 32 for each lane of a warp). */
#define AIRLLM_GEMV_ROWS 4
#define AIRLLM_GEMV_THREADS 128
#define AIRLLM_SLICE 1024
/* `gemm`: rows and tokens in a block. */
#define AIRLLM_GEMM_ROWS 64
#define AIRLLM_GEMM_TOKENS 32
#define AIRLLM_GEMM_THREADS 128
/* `gemm_mma`: rows, tokens (half of them where they come in two parts) and threads of a block, those of `gemm_mma_small`, and those of
 * `gemm_mma` for weights in two parts; columns of a turn, to a multiple of which `gemm_prepare` pads tokens. */
#define AIRLLM_MMA_ROWS 128
#define AIRLLM_MMA_TOKENS 128
#define AIRLLM_MMA_THREADS 256
#define AIRLLM_MMA_SMALL_ROWS 64
#define AIRLLM_MMA_SMALL_TOKENS 64
#define AIRLLM_MMA_SMALL_THREADS 128
#define AIRLLM_MMA_EXACT_ROWS 64
#define AIRLLM_MMA_EXACT_TOKENS 128
#define AIRLLM_MMA_EXACT_THREADS 128
#define AIRLLM_MMA_COLS 64
#define AIRLLM_PREPARE_THREADS 256
#define AIRLLM_NORM_THREADS 256
#define AIRLLM_ATTEND_THREADS 128
/* `topk`: threads of a block, the most numbers it picks. `route`: threads of a block. */
#define AIRLLM_PICK_THREADS 256
#define AIRLLM_PICK_MOST 64
#define AIRLLM_ROUTE_THREADS 32
/* `lora_up`: rows (a warp for each) and tokens in a block. */
#define AIRLLM_LORA_ROWS 8
#define AIRLLM_LORA_TOKENS 8
#define AIRLLM_LORA_THREADS 256
/* `attend_prompt`: queries in a block, most numbers of a head. */
#define AIRLLM_ATTEND_QUERIES 64
#define AIRLLM_ATTEND_WIDEST 256
/* `attend_chunk`: positions in a chunk, columns to a multiple of which a block pads its queries. */
#define AIRLLM_ATTEND_CHUNK 256
#define AIRLLM_ATTEND_COLS 128

/* y[t * stride + first + r] = sum over c of w[r][c] * x[t][c], for r < rows, t < n.
 * `x` is [n, cols], but for `gemv_*`, which reads what `gemv_spread` wrote. */
typedef struct {
    const uint8_t *w;
    uint64_t row_bytes, rows, cols;
    const float *x;
    uint64_t n;
    float *y;
    uint64_t stride, first;
} ProductParams;

/* `x`, [n, cols], in the order in which lanes of `gemv` read it; see gemv/README.md. */
typedef struct {
    const float *x;
    float *to;
    uint64_t n, cols;
} SpreadParams;

/* Tokens as `gemm_mma` takes them. A token is multiplied by a power of two that puts its largest number below 2^15, and rounded to
 * halves: `to` is [parts][n][padded] of them, part 1 being what part 0 lacks, zeros from `cols` on;
 * `factors`, [n], undo the power. `padded` is `cols` up to a multiple of AIRLLM_MMA_COLS. */
typedef struct {
    const float *x;
    uint8_t *to;
    float *factors;
    uint64_t n, cols, padded;
    uint32_t parts, unused;
} PrepareParams;

/* As ProductParams; `x` and `factors` are what `gemm_prepare` wrote. */
typedef struct {
    const uint8_t *w;
    uint64_t row_bytes, rows, cols;
    const uint8_t *x;
    const float *factors;
    uint64_t n, padded;
    float *y;
    uint64_t stride, first;
} PromptProductParams;

/* y[r][c] = w[r][c]. */
typedef struct {
    const uint8_t *w;
    uint64_t row_bytes, rows, cols;
    float *y;
} DecodeParams;

/* y[t] = x[t] / sqrt(mean(x[t]^2) + eps) * weight; `x` and `y` may be the same. */
typedef struct {
    const float *x;
    const float *weight;
    float *y;
    uint64_t rows, dim;
    float eps;
    uint32_t unused;
} NormParams;

/* x[t] += h[t], then y[t] as NormParams has it; `x`, `h` and `y` lie apart. */
typedef struct {
    float *x;
    const float *h;
    const float *weight;
    float *y;
    uint64_t rows, dim;
    float eps;
    uint32_t unused;
} NormAddParams;

/* y[t] = (x[t] - mean(x[t])) / sqrt(mean((x[t] - mean(x[t]))^2) + eps) * weight + bias; `bias` may be null, `x` and `y` the same. */
typedef struct {
    const float *x;
    const float *weight;
    const float *bias;
    float *y;
    uint64_t rows, dim;
    float eps;
    uint32_t unused;
} LayerNormParams;

/* The `k` largest of each row x[r * stride ..][cols], the largest first, of equal ones the first: `indices` and `values` are [rows][k];
 * `strange`, [rows], says whether a NaN is in the row. */
typedef struct {
    const float *x;
    uint32_t *indices;
    float *values;
    uint32_t *strange;
    uint64_t rows, cols, stride, k;
} PickParams;

/* The experts of each token and their weights, [n][top_k], from scores [n][experts]: as `route` in `airllm-model`. `bias`, [experts],
 * may be null; `kept` of `groups` groups stay open, all where both are 1. */
typedef struct {
    const float *scores;
    const float *bias;
    uint32_t *chosen;
    float *weights;
    uint64_t n, experts, top_k, groups, kept;
    float scale;
    uint32_t sigmoid, normalise;
    uint32_t unused;
} RouteParams;

/* y[t * stride + first + r] += factor * sum over c of w[r][c] * x[t][c], for r < rows, t < n; `x` is [n, cols]. */
typedef struct {
    const uint8_t *w;
    uint64_t row_bytes, rows, cols;
    const float *x;
    uint64_t n;
    float *y;
    uint64_t stride, first;
    float factor;
    uint32_t unused;
} LoraParams;

/* Turns pairs of x[n][heads][head_dim]; `table` is [n][rotary], cosines then sines. */
typedef struct {
    float *x;
    const float *table;
    uint64_t n, heads, head_dim, rotary;
    uint32_t interleaved;
    uint32_t unused;
} RopeParams;

/* Causal grouped-query attention; the fields are those of `Attend` in the crate's docs. `whole` is the largest power of
 * two up to `heads`. */
typedef struct {
    const float *q;
    const float *k;
    const float *v;
    float *out;
    uint64_t first, n, start, heads, kv_heads, head_dim, value_dim, window;
    float scale, softcap;
    uint32_t alibi, whole;
} AttendParams;

/* AttendParams over a cache in any of its formats: position `j`, head `h` of the keys start at byte `j * k_row + h * k_head`. For
 * `attend_chunk` and `attend_join` besides: the first chunk that a query of the call sees, how many there are up to that of the last
 * query, and what is kept of each: `ends` [n][heads][chunks][2], largest score and sum of weights, and `sums`
 * [n][heads][chunks][value_dim]. */
typedef struct {
    const float *q;
    const uint8_t *k;
    const uint8_t *v;
    float *out;
    uint64_t first, n, start, heads, kv_heads, head_dim, value_dim, window;
    uint64_t k_row, k_head, v_row, v_head;
    float scale, softcap;
    uint32_t alibi, whole;
    float *ends;
    float *sums;
    uint64_t chunk, chunks;
} CachedParams;

/* Puts x[n][heads][dim] into a cache: token `t`, head `h` at byte `t * row + h * head` of `to`. */
typedef struct {
    const float *x;
    uint8_t *to;
    uint64_t n, heads, dim, row, head;
} StoreParams;

/* gate[i] = f(gate[i]) * up[i]; `gelu` chooses f. */
typedef struct {
    float *gate;
    const float *up;
    uint64_t len;
    uint32_t gelu;
    uint32_t unused;
} GatedParams;

/* y[i] += x[i], or y[i] = x[i]. */
typedef struct {
    float *y;
    const float *x;
    uint64_t len;
} FlatParams;

/* y[t][i] += by[i], or y[t][i] *= by[t]. */
typedef struct {
    float *y;
    const float *by;
    uint64_t n, dim;
} RowsParams;

/* y[rows[i]] += factors[i] * x[i], in the order of i. */
typedef struct {
    const float *x;
    const uint32_t *rows;
    const float *factors;
    float *y;
    uint64_t count, dim;
} ScatterParams;

/* y[i] = x[rows[i]]. */
typedef struct {
    const float *x;
    const uint32_t *rows;
    float *y;
    uint64_t count, dim;
} GatherParams;

/* y[t][c] = x[t][order[c]]. */
typedef struct {
    const float *x;
    const float *order;
    float *y;
    uint64_t n, dim;
} ReorderParams;

/* y[r][to_first + c] = x[r / repeat][from_first + c]. */
typedef struct {
    const float *x;
    float *y;
    uint64_t rows, repeat, width, from_stride, from_first, to_stride, to_first;
} PlaceParams;

#endif
