//! Operations of sums and of f32, for both kinds of AVX2.

macro_rules! sums {
    () => {
        #[inline(always)]
        fn dot_bytes<const WIDE: bool>(
            self,
            sum: Self::Sums,
            codes: Self::Bytes,
            x: Self::Bytes,
        ) -> Self::Sums {
            [self.add_fours::<WIDE>(sum[0], codes[0], x[0]), self.add_fours::<WIDE>(sum[1], codes[1], x[1])]
        }

        #[inline(always)]
        fn pack(self, a: Self::Sums, b: Self::Sums) -> Self::Words {
            // SAFETY: `self` proves AVX2.
            unsafe { [_mm256_packs_epi32(a[0], b[0]), _mm256_packs_epi32(a[1], b[1])] }
        }

        #[inline(always)]
        fn fold(self, [a, b, c, d]: [Self::Sums; 4]) -> Self::Sums {
            // SAFETY: `self` proves AVX2.
            unsafe {
                let mut out = [_mm256_setzero_si256(); 2];
                for h in 0..2 {
                    let (first, second) = (_mm256_hadd_epi32(a[h], b[h]), _mm256_hadd_epi32(c[h], d[h]));
                    out[h] = _mm256_hadd_epi32(first, second);
                }
                out
            }
        }

        #[inline(always)]
        fn shift_sums(self, v: Self::Sums) -> Self::Sums {
            // SAFETY: `self` proves AVX2.
            unsafe { [_mm256_slli_epi32::<8>(v[0]), _mm256_slli_epi32::<8>(v[1])] }
        }

        #[inline(always)]
        fn sums(self, from: &[i32; 16]) -> Self::Sums {
            // SAFETY: `self` proves AVX; the reference is to 64 readable bytes, unaligned loads are allowed.
            unsafe {
                let at = from.as_ptr();
                [_mm256_loadu_si256(at.cast()), _mm256_loadu_si256(at.add(8).cast())]
            }
        }

        #[inline(always)]
        fn spread_sums(self, from: &[i32; 4]) -> Self::Sums {
            // SAFETY: `self` proves AVX.
            unsafe {
                let [a, b, c, d] = *from;
                [_mm256_set_epi32(b, b, b, b, a, a, a, a), _mm256_set_epi32(d, d, d, d, c, c, c, c)]
            }
        }

        #[inline(always)]
        fn bytes_of(self, [a, b, c, d]: [[u8; 4]; 4]) -> Self::Sums {
            // SAFETY: `self` proves AVX2.
            unsafe {
                let word = i32::from_le_bytes;
                let rows = _mm_set_epi32(word(d), word(c), word(b), word(a));
                let order = _mm_set_epi8(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
                let bytes = _mm_shuffle_epi8(rows, order);
                [_mm256_cvtepu8_epi32(bytes), _mm256_cvtepu8_epi32(_mm_srli_si128::<8>(bytes))]
            }
        }

        #[inline(always)]
        fn halves_of(self, [a, b, c, d]: [u64; 4]) -> Self::Floats {
            // SAFETY: `self` proves AVX and F16C.
            unsafe {
                let ab = _mm_unpacklo_epi16(_mm_cvtsi64_si128(a as i64), _mm_cvtsi64_si128(b as i64));
                let cd = _mm_unpacklo_epi16(_mm_cvtsi64_si128(c as i64), _mm_cvtsi64_si128(d as i64));
                [_mm256_cvtph_ps(_mm_unpacklo_epi32(ab, cd)), _mm256_cvtph_ps(_mm_unpackhi_epi32(ab, cd))]
            }
        }

        #[inline(always)]
        fn row_halves(self, [a, b, c, d]: [u16; 4]) -> Self::Floats {
            // SAFETY: `self` proves AVX and F16C.
            unsafe {
                let four = i64::from(a) | i64::from(b) << 16 | i64::from(c) << 32 | i64::from(d) << 48;
                let four = _mm_cvtph_ps(_mm_cvtsi64_si128(four));
                [_mm256_set_m128(four, four); 2]
            }
        }

        #[inline(always)]
        fn mul_add(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
            // SAFETY: `self` proves FMA.
            unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
        }

        #[inline(always)]
        fn prefetch<T>(self, from: &[T], at: usize) {
            // SAFETY: a prefetch reads nothing that the program can see and faults nowhere, so any address
            // is allowed; `wrapping_byte_add` makes one without claiming that it is inside the slice.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(from.as_ptr().wrapping_byte_add(at).cast()) }
        }
    };
}
