// What the rungs of attention share; `P` is AttendParams or CachedParams.
#pragma once

#include "device.cuh"

// The slope of a head in ALiBi (Press et al. 2022), `whole` being the largest power of two up to the number of heads.
template <class P> __device__ __forceinline__ float slope(const P &p, u64 head) {
    const float exponent = head < p.whole ? -8.0f * (float)(head + 1) : -4.0f * (float)(2 * (head - p.whole) + 1);
    return exp2f(exponent / (float)p.whole);
}

// A product of query and key becomes a score; the key is `behind` positions behind the query.
template <class P> __device__ __forceinline__ float score(const P &p, float product, float slope, u64 behind) {
    float score = product * p.scale;
    if (p.softcap > 0.0f) score = p.softcap * tanhf(score / p.softcap);
    return p.alibi ? fmaf(-slope, (float)behind, score) : score;
}

// The first position that a query sees.
template <class P> __device__ __forceinline__ u64 oldest(const P &p, u64 position) {
    return p.window == 0 || position + 1 < p.window ? 0 : position + 1 - p.window;
}
