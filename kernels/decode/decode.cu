// Packed rows widened to f32: the embedding lookup, after its rows were fetched. A thread for each weight: a token has
// one row, so there is nothing to win beyond coalesced reads and writes.

#include "formats.cuh"

template <class F> __device__ __forceinline__ void decode(const DecodeParams &p) {
    const u64 number = thread_1d();
    if (number >= p.rows * p.cols) return;
    const u64 r = number / p.cols;
    p.y[number] = F(p.w + r * p.row_bytes, p.cols).at(number % p.cols);
}

#define DECODE(format)                                                                                                 \
    KERNEL(decode_##format, DecodeParams, AIRLLM_FLAT_THREADS) { decode<fmt::format>(p); }

OWN_FORMATS(DECODE)
FOREIGN_FORMATS(DECODE)
