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
    type Bytes = __m256i;

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
    fn load_u8(self, from: &[u8; 8]) -> __m256 {
        // SAFETY: `self` proves AVX2; the reference is to 8 readable bytes, unaligned loads are allowed.
        unsafe {
            let wide = _mm256_cvtepu8_epi32(_mm_loadl_epi64(from.as_ptr().cast()));
            _mm256_cvtepi32_ps(wide)
        }
    }

    #[inline(always)]
    fn load_e4m3(self, from: &[u8; 16]) -> (__m256, __m256) {
        // As binary16: the exponent has one bit more, in front, and its bias is 15, not 7. A code of all
        // ones, made all ones, is NaN there too.
        // SAFETY: `self` proves AVX2 and F16C; the reference is to 16 readable bytes, unaligned loads are
        // allowed.
        unsafe {
            let bits = _mm256_set1_epi16(0xbf80u16 as i16);
            let wide = _mm256_cvtepi8_epi16(_mm_loadu_si128(from.as_ptr().cast()));
            let half = _mm256_and_si256(_mm256_slli_epi16::<7>(wide), bits);
            let nan = _mm256_cmpeq_epi16(_mm256_or_si256(half, _mm256_set1_epi16(i16::MIN)), bits);
            let half = _mm256_or_si256(half, nan);
            let (first, second) = (_mm256_castsi256_si128(half), _mm256_extracti128_si256::<1>(half));
            (_mm256_cvtph_ps(first), _mm256_cvtph_ps(second))
        }
    }

    #[inline(always)]
    fn look_up(self, table: &[f32; 16], from: &[u8; 8]) -> (__m256, __m256) {
        // A permutation takes three bits of each lane; the fourth, moved to where the sign is, chooses
        // between the halves of the table.
        // SAFETY: `self` proves AVX2; the references are to 64 and 8 readable bytes, unaligned loads are
        // allowed.
        unsafe {
            let first = _mm256_loadu_ps(table.as_ptr());
            let second = _mm256_loadu_ps(table.as_ptr().add(8));
            let low = _mm256_cvtepu8_epi32(_mm_loadl_epi64(from.as_ptr().cast()));
            let high = _mm256_srli_epi32::<4>(low);
            let choice = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(low));
            let low = _mm256_blendv_ps(
                _mm256_permutevar8x32_ps(first, low),
                _mm256_permutevar8x32_ps(second, low),
                choice,
            );
            let choice = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(high));
            let high = _mm256_blendv_ps(
                _mm256_permutevar8x32_ps(first, high),
                _mm256_permutevar8x32_ps(second, high),
                choice,
            );
            (low, high)
        }
    }

    #[inline(always)]
    fn splat_f16(self, from: [u8; 2]) -> __m256 {
        // SAFETY: `self` proves AVX and F16C.
        unsafe { _mm256_cvtph_ps(_mm_set1_epi16(i16::from_le_bytes(from))) }
    }

    #[inline(always)]
    fn over_127(self, v: __m256) -> __m256 {
        // A quotient within one unit in the last place, corrected by what is left of `v` (exact, for it is
        // fused) times the nearest number to 1/127: that is the rounded quotient (Markstein 1990).
        const INVERSE: f32 = 1.0 / 127.0;
        // SAFETY: `self` proves AVX and FMA.
        unsafe {
            let quotient = _mm256_mul_ps(v, _mm256_set1_ps(INVERSE));
            let left = _mm256_fnmadd_ps(quotient, _mm256_set1_ps(127.0), v);
            _mm256_fmadd_ps(left, _mm256_set1_ps(INVERSE), quotient)
        }
    }

    #[inline(always)]
    fn load_bytes(self, from: &[u8; 32]) -> __m256i {
        // SAFETY: `self` proves AVX; the reference is to 32 readable bytes, unaligned loads are allowed.
        unsafe { _mm256_loadu_si256(from.as_ptr().cast()) }
    }

    #[inline(always)]
    fn nibbles(self, from: &[u8; 16]) -> __m256i {
        // SAFETY: `self` proves AVX2; the reference is to 16 readable bytes, unaligned loads are allowed.
        unsafe {
            let both = _mm_loadu_si128(from.as_ptr().cast());
            let wide = _mm256_set_m128i(_mm_srli_epi16::<4>(both), both);
            _mm256_and_si256(wide, _mm256_set1_epi8(15))
        }
    }

    #[inline(always)]
    fn pairs(self, from: &[u8; 8]) -> __m256i {
        // SAFETY: `self` proves AVX2.
        unsafe {
            // Bits of the neighbour come in above and are masked.
            let all = _mm256_set1_epi64x(i64::from_le_bytes(*from));
            let shifted = _mm256_srlv_epi64(all, _mm256_set_epi64x(6, 4, 2, 0));
            _mm256_and_si256(shifted, _mm256_set1_epi8(3))
        }
    }

    #[inline(always)]
    fn spread(self, bits: u32, value: u8) -> __m256i {
        // SAFETY: `self` proves AVX2.
        unsafe {
            // Byte `i / 8` of the four, then bit `i mod 8` of it.
            let (a, b) = (0x0101_0101_0101_0101, 0x0202_0202_0202_0202);
            let places = _mm256_set_epi64x(0x0303_0303_0303_0303, b, a, 0);
            let bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(bits as i32), places);
            let masks = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
            let set = _mm256_cmpeq_epi8(_mm256_and_si256(bytes, masks), masks);
            _mm256_and_si256(set, _mm256_set1_epi8(value as i8))
        }
    }

    #[inline(always)]
    fn shift_right(self, v: __m256i, by: usize, mask: u8) -> __m256i {
        // Bits of the neighbour come in above and are masked.
        // SAFETY: `self` proves AVX2.
        unsafe {
            let shifted = _mm256_srl_epi16(v, _mm_cvtsi32_si128(by as i32));
            _mm256_and_si256(shifted, _mm256_set1_epi8(mask as i8))
        }
    }

    #[inline(always)]
    fn shift_left(self, v: __m256i, by: usize) -> __m256i {
        // SAFETY: `self` proves AVX2.
        unsafe { _mm256_sll_epi16(v, _mm_cvtsi32_si128(by as i32)) }
    }

    #[inline(always)]
    fn or(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: `self` proves AVX2.
        unsafe { _mm256_or_si256(a, b) }
    }

    #[inline(always)]
    fn codes(self, v: __m256i) -> [__m256; 4] {
        // SAFETY: `self` proves AVX2.
        unsafe {
            let (first, second) = (_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
            [
                _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(first)),
                _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128::<8>(first))),
                _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(second)),
                _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128::<8>(second))),
            ]
        }
    }

    #[inline(always)]
    fn prefetch<T>(self, from: &[T], at: usize) {
        // SAFETY: a prefetch reads nothing that the program can see and faults nowhere, so any address
        // is allowed; `wrapping_add` makes one without claiming that it is inside the slice.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(from.as_ptr().wrapping_byte_add(at).cast()) }
    }
}
