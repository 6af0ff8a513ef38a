//! Two registers of AVX2, with its products, or those of AVX-VNNI where the processor has them.

#[macro_use]
mod codes;
#[macro_use]
mod sums;

use super::{IntJob, Ints};
use std::arch::x86_64::*;

/// Proof that the processor has AVX2, FMA and F16C: only [`Avx2::detect`] makes one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx2(());

/// Proof that it has AVX-VNNI as well: only [`AvxVnni::detect`] makes one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AvxVnni(());

impl Avx2 {
    /// Asks the processor.
    pub(crate) fn detect() -> Option<Avx2> {
        let has = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        has.then_some(Avx2(()))
    }

    /// `sum[i] + a[2i] · b[2i] + a[2i + 1] · b[2i + 1]`.
    #[inline(always)]
    fn add_pairs(self, sum: __m256i, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: `self` proves AVX2.
        unsafe { _mm256_add_epi32(sum, _mm256_madd_epi16(a, b)) }
    }
}

impl Avx2 {
    /// `sum[i] + Σ_j codes[4i + j] · x[4i + j]`.
    #[inline(always)]
    fn add_fours<const WIDE: bool>(self, sum: __m256i, codes: __m256i, x: __m256i) -> __m256i {
        // Two products fit 16 bits where codes are below 128; the highest bit goes by itself.
        // SAFETY: `self` proves AVX2.
        unsafe {
            let ones = _mm256_set1_epi16(1);
            if !WIDE {
                return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(codes, x), ones));
            }
            let low = _mm256_and_si256(codes, _mm256_set1_epi8(127));
            let high = _mm256_and_si256(_mm256_srli_epi16::<7>(codes), _mm256_set1_epi8(1));
            let low = _mm256_madd_epi16(_mm256_maddubs_epi16(low, x), ones);
            let high = _mm256_madd_epi16(_mm256_maddubs_epi16(high, x), _mm256_set1_epi16(128));
            _mm256_add_epi32(sum, _mm256_add_epi32(low, high))
        }
    }
}

impl AvxVnni {
    /// `sum[i] + Σ_j codes[4i + j] · x[4i + j]`.
    #[inline(always)]
    fn add_fours<const WIDE: bool>(self, sum: __m256i, codes: __m256i, x: __m256i) -> __m256i {
        // SAFETY: `self` proves AVX-VNNI.
        unsafe { _mm256_dpbusd_avx_epi32(sum, codes, x) }
    }
}

impl AvxVnni {
    /// Asks the processor.
    pub(crate) fn detect() -> Option<AvxVnni> {
        (Avx2::detect().is_some() && is_x86_feature_detected!("avxvnni")).then_some(AvxVnni(()))
    }

    #[inline(always)]
    fn add_pairs(self, sum: __m256i, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: `self` proves AVX-VNNI.
        unsafe { _mm256_dpwssd_avx_epi32(sum, a, b) }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn enter_avx2<J: IntJob>(simd: Avx2, job: J) -> J::Out {
    job.run(simd)
}

#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
fn enter_vnni<J: IntJob>(simd: AvxVnni, job: J) -> J::Out {
    job.run(simd)
}

/// What both have in common: all but the products.
macro_rules! ints {
    ($name:ident, $enter:ident) => {
        impl Ints for $name {
            type Bytes = [__m256i; 2];
            type Words = [__m256i; 2];
            type Sums = [__m256i; 2];
            type Floats = [__m256; 2];
            type Eight = __m128i;

            #[inline(always)]
            fn enter<J: IntJob>(self, job: J) -> J::Out {
                // SAFETY: `self` proves that the processor has the features that it is compiled for.
                unsafe { $enter(self, job) }
            }

            codes!();
            sums!();
        }
    };
}

ints!(Avx2, enter_avx2);
ints!(AvxVnni, enter_vnni);
