// Rung 1: a thread for each number of the result, which walks along its row.
//
// Every lane of a warp reads another row: nothing is coalesced, and each weight is decoded anew for each token. Steps of
// 32 columns are summed by themselves, for one chain along a long row would lose digits.

#include "formats.cuh"

template <class F> __device__ __forceinline__ void naive(const ProductParams &p) {
    const u64 number = thread_1d();
    if (number >= p.rows * p.n) return;
    const u64 r = number % p.rows, t = number / p.rows;
    const F row(p.w + r * p.row_bytes, p.cols);
    const float *x = p.x + t * p.cols;
    float sum = 0.0f;
    for (u64 first = 0; first < p.cols; first += 32) {
        float step = 0.0f;
        for (u64 c = first; c < min(first + 32, p.cols); c++) step = fmaf(row.at(c), x[c], step);
        sum += step;
    }
    p.y[t * p.stride + p.first + r] = sum;
}

#define NAIVE(format)                                                                                                  \
    KERNEL(gemv_naive_##format, ProductParams, AIRLLM_FLAT_THREADS) { naive<fmt::format>(p); }

OWN_FORMATS(NAIVE)
FOREIGN_FORMATS(NAIVE)
