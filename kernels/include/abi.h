/* What host and device agree on: the one structure that each kernel takes, by value.
 *
 * Plain C. `crates/kernels/src/abi.rs` holds the same structures for Rust; a launch compares their sizes. Pointers are
 * device pointers; sizes and offsets are 64 bits wide, counted in elements unless the name says bytes. The host has
 * checked every size: kernels check nothing.
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
#define AIRLLM_NORM_THREADS 256
#define AIRLLM_ATTEND_THREADS 128

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
