//! Eight lanes of AVX2, with fused multiply-add and half conversion.

use super::{Eight, Job, Simd};
use std::arch::x86_64::*;

/// Proof that the processor has AVX2, FMA and F16C: only [`Avx2::detect`] makes one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// Asks the processor.
    pub(crate) fn detect() -> Option<Avx2> {
        let has = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        has.then_some(Avx2(()))
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn enter<J: Job>(simd: Avx2, job: J) -> J::Out {
    job.run(simd)
}

impl Simd for Avx2 {
    type V = __m256;

    #[inline(always)]
    fn enter<J: Job>(self, job: J) -> J::Out {
        // SAFETY: `self` proves that the processor has the features that `enter` is compiled for.
        unsafe { enter(self, job) }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        // SAFETY: `self` proves AVX.
        unsafe { _mm256_set1_ps(x) }
    }

    #[inline(always)]
    fn load(self, from: &Eight) -> __m256 {
        // SAFETY: `self` proves AVX; the reference is to 32 readable bytes, unaligned loads are allowed.
        unsafe { _mm256_loadu_ps(from.as_ptr()) }
    }

    #[inline(always)]
    fn store(self, v: __m256, to: &mut Eight) {
        // SAFETY: `self` proves AVX; the reference is to 32 writable bytes, unaligned stores are allowed.
        unsafe { _mm256_storeu_ps(to.as_mut_ptr(), v) }
    }

    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: `self` proves AVX.
        unsafe { _mm256_add_ps(a, b) }
    }

    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: `self` proves AVX.
        unsafe { _mm256_sub_ps(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: `self` proves AVX.
        unsafe { _mm256_mul_ps(a, b) }
    }

    #[inline(always)]
    fn div(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: `self` proves AVX.
        unsafe { _mm256_div_ps(a, b) }
    }

    #[inline(always)]
    fn mul_add(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: `self` proves FMA.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn max(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: `self` proves AVX.
        unsafe { _mm256_max_ps(a, b) }
    }

    #[inline(always)]
    fn at_most(self, v: __m256, bound: f32) -> __m256 {
        // The instruction returns its second operand when either is NaN, hence the order.
        // SAFETY: `self` proves AVX.
        unsafe { _mm256_min_ps(_mm256_set1_ps(bound), v) }
    }

    #[inline(always)]
    fn at_least(self, v: __m256, bound: f32) -> __m256 {
        // The order matters as in `at_most`.
        // SAFETY: `self` proves AVX.
        unsafe { _mm256_max_ps(_mm256_set1_ps(bound), v) }
    }

    #[inline(always)]
    fn exponent(self, v: __m256) -> __m256 {
        // SAFETY: `self` proves AVX2.
        unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_castps_si256(v))) }
    }

    #[inline(always)]
    fn sum4(self, [a, b, c, d]: [__m256; 4]) -> [f32; 4] {
        let mut out = [0.0; 4];
        // SAFETY: `self` proves AVX; `out` is 16 writable bytes, unaligned stores are allowed.
        unsafe {
            // Pairs of neighbours, then of pairs; each half of the register sums its own four lanes.
            let quarters = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
            let low = _mm256_castps256_ps128(quarters);
            let high = _mm256_extractf128_ps::<1>(quarters);
            _mm_storeu_ps(out.as_mut_ptr(), _mm_add_ps(low, high));
        }
        out
    }

    #[inline(always)]
    fn load_f32(self, from: &[u8; 32]) -> __m256 {
        // SAFETY: `self` proves AVX; the reference is to 32 readable bytes, unaligned loads are allowed.
        unsafe { _mm256_loadu_ps(from.as_ptr().cast()) }
    }

    #[inline(always)]
    fn load_f16(self, from: &[u8; 16]) -> __m256 {
        // SAFETY: `self` proves F16C; the reference is to 16 readable bytes, unaligned loads are allowed.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.as_ptr().cast())) }
    }

    #[inline(always)]
    fn load_bf16(self, from: &[u8; 16]) -> __m256 {
        // SAFETY: `self` proves AVX2; the reference is to 16 readable bytes, unaligned loads are allowed.
        unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.as_ptr().cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        }
    }

    #[inline(always)]
    fn load_i8(self, from: &[u8; 8]) -> __m256 {
        // SAFETY: `self` proves AVX2; the reference is to 8 readable bytes, unaligned loads are allowed.
        unsafe {
            let wide = _mm256_cvtepi8_epi32(_mm_loadl_epi64(from.as_ptr().cast()));
            _mm256_cvtepi32_ps(wide)
        }
    }

    #[inline(always)]
    fn load_nibbles(self, from: &[u8; 8]) -> (__m256, __m256) {
        // SAFETY: `self` proves AVX2; the reference is to 8 readable bytes, unaligned loads are allowed.
        unsafe {
            let wide = _mm256_cvtepu8_epi32(_mm_loadl_epi64(from.as_ptr().cast()));
            let low = _mm256_and_si256(wide, _mm256_set1_epi32(15));
            let high = _mm256_srli_epi32::<4>(wide);
            (_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high))
        }
    }

    #[inline(always)]
    fn prefetch<T>(self, from: &[T], at: usize) {
        // SAFETY: a prefetch reads nothing that the program can see and faults nowhere, so any address
        // is allowed; `wrapping_add` makes one without claiming that it is inside the slice.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(from.as_ptr().wrapping_byte_add(at).cast()) }
    }
}
