//! One register of AVX-512, with products of words from its neural network instructions.

use super::avx2::Avx2;
use super::{IntJob, Ints};
use std::arch::asm;
use std::arch::x86_64::*;

/// Proof that the processor has AVX2, F16C, and of AVX-512 F, BW, DQ, VL and VNNI: only [`Avx512::detect`] makes
/// one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx512(Avx2);

impl Avx512 {
    /// Asks the processor.
    pub(crate) fn detect() -> Option<Avx512> {
        let avx2 = Avx2::detect()?;
        let has = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni");
        has.then_some(Avx512(avx2))
    }
}

#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn enter<J: IntJob>(simd: Avx512, job: J) -> J::Out {
    job.run(simd)
}

/// `sum[i] + a[2i] · b[2i] + a[2i + 1] · b[2i + 1]`.
///
/// Of the intrinsic the compiler makes a product and a sum, where it thinks that sooner; with as many sums at once as
/// kernels have, two instructions take twice as long as one.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
fn add_pairs(mut sum: __m512i, a: __m512i, b: __m512i) -> __m512i {
    // SAFETY: the features are switched on; the instruction touches nothing but its operands.
    unsafe {
        asm!(
            "vpdpwssd {0}, {1}, {2}",
            inout(zmm_reg) sum, in(zmm_reg) a, in(zmm_reg) b,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sum
}

/// Where number `4k + r` is in four rows of four numbers.
#[inline]
#[target_feature(enable = "avx512f")]
fn across() -> __m512i {
    _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0)
}

impl Ints for Avx512 {
    type Bytes = __m512i;
    type Words = __m512i;
    type Sums = __m512i;
    type Floats = __m512;
    type Eight = __m128i;

    const MANY_REGISTERS: bool = true;

    #[inline(always)]
    fn enter<J: IntJob>(self, job: J) -> J::Out {
        // SAFETY: `self` proves that the processor has the features that `enter` is compiled for.
        unsafe { enter(self, job) }
    }

    #[inline(always)]
    fn bytes(self, from: &[u8; 64]) -> __m512i {
        // SAFETY: `self` proves AVX-512; the reference is to 64 readable bytes, unaligned loads are allowed.
        unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
    }

    #[inline(always)]
    fn quarters(self, [a, b, c, d]: [&[u8; 16]; 4]) -> __m512i {
        // SAFETY: `self` proves AVX-512; the references are to 16 readable bytes each, unaligned loads are allowed.
        unsafe {
            let v = _mm512_castsi128_si512(_mm_loadu_si128(a.as_ptr().cast()));
            let v = _mm512_inserti32x4::<1>(v, _mm_loadu_si128(b.as_ptr().cast()));
            let v = _mm512_inserti32x4::<2>(v, _mm_loadu_si128(c.as_ptr().cast()));
            _mm512_inserti32x4::<3>(v, _mm_loadu_si128(d.as_ptr().cast()))
        }
    }

    #[inline(always)]
    fn lanes(self, from: &[u8; 16], [a, b, c, d]: [u8; 4], mask: u8) -> __m512i {
        // SAFETY: `self` proves AVX-512; the reference is to 16 readable bytes, unaligned loads are allowed.
        unsafe {
            let (a, b, c, d) = (i64::from(a), i64::from(b), i64::from(c), i64::from(d));
            let all = _mm512_broadcast_i32x4(_mm_loadu_si128(from.as_ptr().cast()));
            let shifted = _mm512_srlv_epi64(all, _mm512_set_epi64(d, d, c, c, b, b, a, a));
            _mm512_and_si512(shifted, _mm512_set1_epi8(mask as i8))
        }
    }

    #[inline(always)]
    fn pairs(self, from: &[u8; 32]) -> [__m512i; 2] {
        // SAFETY: `self` proves AVX-512; the reference is to 32 readable bytes, unaligned loads are allowed.
        unsafe {
            let four = _mm512_castsi256_si512(_mm256_loadu_si256(from.as_ptr().cast()));
            let twice = _mm512_permutexvar_epi64(_mm512_set_epi64(3, 3, 2, 2, 1, 1, 0, 0), four);
            let first = _mm512_srlv_epi64(twice, _mm512_set_epi64(2, 0, 2, 0, 2, 0, 2, 0));
            let second = _mm512_srlv_epi64(twice, _mm512_set_epi64(6, 4, 6, 4, 6, 4, 6, 4));
            let mask = _mm512_set1_epi8(3);
            [_mm512_and_si512(first, mask), _mm512_and_si512(second, mask)]
        }
    }

    #[inline(always)]
    fn bits(self, from: &[u8; 16], value: u8) -> [__m512i; 2] {
        // SAFETY: `self` proves AVX-512; the reference is to 16 readable bytes, unaligned loads are allowed.
        unsafe {
            // The first two bytes of each four, then the others: 64 bits are a mask.
            let order = _mm_set_epi8(15, 14, 11, 10, 7, 6, 3, 2, 13, 12, 9, 8, 5, 4, 1, 0);
            let halves = _mm_shuffle_epi8(_mm_loadu_si128(from.as_ptr().cast()), order);
            let first = _mm_cvtsi128_si64(halves) as u64;
            let second = _mm_extract_epi64::<1>(halves) as u64;
            let value = _mm512_set1_epi8(value as i8);
            [_mm512_maskz_mov_epi8(first, value), _mm512_maskz_mov_epi8(second, value)]
        }
    }

    #[inline(always)]
    fn shift_right(self, v: __m512i, by: usize, mask: u8) -> __m512i {
        // Bits of the neighbour come in above and are masked.
        // SAFETY: `self` proves AVX-512.
        unsafe {
            let shifted = _mm512_srl_epi16(v, _mm_cvtsi32_si128(by as i32));
            _mm512_and_si512(shifted, _mm512_set1_epi8(mask as i8))
        }
    }

    #[inline(always)]
    fn shift_left(self, v: __m512i, by: usize) -> __m512i {
        // SAFETY: `self` proves AVX-512.
        unsafe { _mm512_sll_epi16(v, _mm_cvtsi32_si128(by as i32)) }
    }

    #[inline(always)]
    fn or(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: `self` proves AVX-512.
        unsafe { _mm512_or_si512(a, b) }
    }

    #[inline(always)]
    fn unzip(self, a: __m512i, b: __m512i) -> [__m512i; 2] {
        // SAFETY: `self` proves AVX-512.
        unsafe { [_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0xdd>(a, b)] }
    }

    #[inline(always)]
    fn transpose(self, a: __m512i, b: __m512i) -> [__m512i; 2] {
        // SAFETY: `self` proves AVX-512.
        unsafe {
            let first = _mm512_set_epi64(13, 12, 5, 4, 9, 8, 1, 0);
            let second = _mm512_set_epi64(15, 14, 7, 6, 11, 10, 3, 2);
            [_mm512_permutex2var_epi64(a, first, b), _mm512_permutex2var_epi64(a, second, b)]
        }
    }

    #[inline(always)]
    fn unsigned(self, v: __m512i) -> [__m512i; 2] {
        // SAFETY: `self` proves AVX-512.
        unsafe { [_mm512_and_si512(v, _mm512_set1_epi16(0xff)), _mm512_srli_epi16::<8>(v)] }
    }

    #[inline(always)]
    fn splat_words(self, x: i16) -> __m512i {
        // SAFETY: `self` proves AVX-512.
        unsafe { _mm512_set1_epi16(x) }
    }

    #[inline(always)]
    fn words(self, from: &[i16; 32]) -> __m512i {
        // SAFETY: `self` proves AVX-512; the reference is to 64 readable bytes, unaligned loads are allowed.
        unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
    }

    #[inline(always)]
    fn store_words(self, v: __m512i, to: &mut [i16; 32]) {
        // SAFETY: `self` proves AVX-512; the reference is to 64 writable bytes, unaligned stores are allowed.
        unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), v) }
    }

    #[inline(always)]
    fn sub_words(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: `self` proves AVX-512.
        unsafe { _mm512_sub_epi16(a, b) }
    }

    #[inline(always)]
    fn mul_words(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: `self` proves AVX-512.
        unsafe { _mm512_mullo_epi16(a, b) }
    }

    #[inline(always)]
    fn dot(self, sum: __m512i, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: `self` proves AVX-512 with VNNI.
        unsafe { add_pairs(sum, a, b) }
    }

    #[inline(always)]
    fn add_sums(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: `self` proves AVX-512.
        unsafe { _mm512_add_epi32(a, b) }
    }

    #[inline(always)]
    fn no_sums(self) -> __m512i {
        // SAFETY: `self` proves AVX-512.
        unsafe { _mm512_setzero_si512() }
    }

    #[inline(always)]
    fn floats(self, v: __m512i) -> __m512 {
        // SAFETY: `self` proves AVX-512.
        unsafe { _mm512_cvtepi32_ps(v) }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        // SAFETY: `self` proves AVX-512.
        unsafe { _mm512_set1_ps(x) }
    }

    #[inline(always)]
    fn spread(self, from: &[f32; 4]) -> __m512 {
        // SAFETY: `self` proves AVX-512; the reference is to 16 readable bytes, unaligned loads are allowed.
        unsafe {
            let four = _mm512_broadcast_f32x4(_mm_loadu_ps(from.as_ptr()));
            let places = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
            _mm512_permutevar_ps(four, places)
        }
    }

    #[inline(always)]
    fn load(self, from: &[f32; 16]) -> __m512 {
        // SAFETY: `self` proves AVX-512; the reference is to 64 readable bytes, unaligned loads are allowed.
        unsafe { _mm512_loadu_ps(from.as_ptr()) }
    }

    #[inline(always)]
    fn store(self, v: __m512, to: &mut [f32; 16]) {
        // SAFETY: `self` proves AVX-512; the reference is to 64 writable bytes, unaligned stores are allowed.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), v) }
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves AVX-512.
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    fn flip(self, v: __m512i) -> __m512i {
        // SAFETY: `self` proves AVX-512.
        unsafe { _mm512_xor_si512(v, _mm512_set1_epi8(-128)) }
    }

    #[inline(always)]
    fn eight(self, from: [i16; 8]) -> __m128i {
        // SAFETY: `self` proves AVX-512; the array is 16 readable bytes, unaligned loads are allowed.
        unsafe { _mm_loadu_si128(from.as_ptr().cast()) }
    }

    #[inline(always)]
    fn nibbles(self, from: [u8; 4], bias: i16) -> __m128i {
        // SAFETY: `self` proves AVX-512.
        unsafe {
            let wide = _mm_cvtepu8_epi32(_mm_cvtsi32_si128(i32::from_le_bytes(from)));
            let both = _mm_or_si128(wide, _mm_slli_epi32::<12>(wide));
            _mm_sub_epi16(_mm_and_si128(both, _mm_set1_epi16(15)), _mm_set1_epi16(bias))
        }
    }

    #[inline(always)]
    fn groups(self, from: __m128i) -> [__m512i; 2] {
        // SAFETY: `self` proves AVX-512.
        unsafe {
            let eight = _mm512_broadcast_i32x4(from);
            // Within each quarter, the two bytes of one word eight times.
            const TWICE: i64 = 0x0100_0100_0100_0100;
            let place = |word: i64| TWICE + word * 0x0202_0202_0202_0202;
            let (a, b, c, d) = (place(0), place(2), place(4), place(6));
            let first = _mm512_set_epi64(d, d, c, c, b, b, a, a);
            let second = _mm512_add_epi8(first, _mm512_set1_epi8(2));
            [_mm512_shuffle_epi8(eight, first), _mm512_shuffle_epi8(eight, second)]
        }
    }

    #[inline(always)]
    fn split(self, from: __m128i) -> __m512i {
        // SAFETY: `self` proves AVX-512.
        unsafe {
            let place = |word: i64| word * 0x0001_0001_0001_0001;
            let (a, b, c, d) = (place(1), place(3), place(5), place(7));
            let places = _mm512_set_epi64(d, place(6), c, place(4), b, place(2), a, 0);
            _mm512_permutexvar_epi16(places, _mm512_castsi128_si512(from))
        }
    }

    #[inline(always)]
    fn pair(self, x: i32) -> __m512i {
        // SAFETY: `self` proves AVX-512.
        unsafe { _mm512_set1_epi32(x) }
    }

    #[inline(always)]
    fn columns(self, [a, b, c, d]: [__m512i; 4]) -> [__m512i; 4] {
        // SAFETY: `self` proves AVX-512.
        unsafe {
            let (first, second) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
            let (third, fourth) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
            [
                _mm512_unpacklo_epi64(first, second),
                _mm512_unpackhi_epi64(first, second),
                _mm512_unpacklo_epi64(third, fourth),
                _mm512_unpackhi_epi64(third, fourth),
            ]
        }
    }

    #[inline(always)]
    fn dot_bytes<const WIDE: bool>(self, sum: __m512i, codes: __m512i, x: __m512i) -> __m512i {
        // SAFETY: `self` proves AVX-512 with VNNI.
        unsafe { _mm512_dpbusd_epi32(sum, codes, x) }
    }

    #[inline(always)]
    fn pack(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: `self` proves AVX-512.
        unsafe { _mm512_packs_epi32(a, b) }
    }

    #[inline(always)]
    fn fold(self, [a, b, c, d]: [__m512i; 4]) -> __m512i {
        // SAFETY: `self` proves AVX-512.
        unsafe {
            let first = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
            let second = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
            _mm512_add_epi32(_mm512_unpacklo_epi64(first, second), _mm512_unpackhi_epi64(first, second))
        }
    }

    #[inline(always)]
    fn shift_sums(self, v: __m512i) -> __m512i {
        // SAFETY: `self` proves AVX-512.
        unsafe { _mm512_slli_epi32::<8>(v) }
    }

    #[inline(always)]
    fn sums(self, from: &[i32; 16]) -> __m512i {
        // SAFETY: `self` proves AVX-512; the reference is to 64 readable bytes, unaligned loads are allowed.
        unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
    }

    #[inline(always)]
    fn spread_sums(self, from: &[i32; 4]) -> __m512i {
        // SAFETY: `self` proves AVX-512; the reference is to 16 readable bytes, unaligned loads are allowed.
        unsafe {
            let places = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
            let four = _mm512_castsi128_si512(_mm_loadu_si128(from.as_ptr().cast()));
            _mm512_permutexvar_epi32(places, four)
        }
    }

    #[inline(always)]
    fn bytes_of(self, [a, b, c, d]: [[u8; 4]; 4]) -> __m512i {
        // SAFETY: `self` proves AVX-512.
        unsafe {
            let word = i32::from_le_bytes;
            let rows = _mm_set_epi32(word(d), word(c), word(b), word(a));
            let order = _mm_set_epi8(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
            _mm512_cvtepu8_epi32(_mm_shuffle_epi8(rows, order))
        }
    }

    #[inline(always)]
    fn halves_of(self, [a, b, c, d]: [u64; 4]) -> __m512 {
        // SAFETY: `self` proves AVX-512.
        unsafe {
            let rows = _mm256_set_epi64x(d as i64, c as i64, b as i64, a as i64);
            _mm512_permutexvar_ps(across(), _mm512_cvtph_ps(rows))
        }
    }

    #[inline(always)]
    fn row_halves(self, [a, b, c, d]: [u16; 4]) -> __m512 {
        // SAFETY: `self` proves AVX-512.
        unsafe {
            let four = i64::from(a) | i64::from(b) << 16 | i64::from(c) << 32 | i64::from(d) << 48;
            _mm512_broadcast_f32x4(_mm_cvtph_ps(_mm_cvtsi64_si128(four)))
        }
    }

    #[inline(always)]
    fn strided_halves<const STRIDE: usize>(self, rows: [&[u8; 64]; 4]) -> __m512 {
        let mut places = [[0u16; 32]; 4];
        for r in 0..4 {
            for k in 0..4 {
                places[r][4 * k + r] = (STRIDE * k) as u16;
            }
        }
        // SAFETY: `self` proves AVX-512; the references are to 64 readable bytes each, unaligned loads are allowed.
        unsafe {
            let mut words = _mm512_setzero_si512();
            for r in 0..4 {
                let (row, place) = (rows[r].as_ptr().cast(), places[r].as_ptr().cast());
                let (row, place) = (_mm512_loadu_si512(row), _mm512_loadu_si512(place));
                words = _mm512_mask_permutexvar_epi16(words, 0x1111 << r, place, row);
            }
            _mm512_cvtph_ps(_mm512_castsi512_si256(words))
        }
    }

    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: `self` proves AVX-512.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn prefetch<T>(self, from: &[T], at: usize) {
        self.0.prefetch(from, at);
    }
}
