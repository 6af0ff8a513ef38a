//! Operations of bytes and words, for both kinds of AVX2.

macro_rules! codes {
    () => {
        #[inline(always)]
        fn bytes(self, from: &[u8; 64]) -> Self::Bytes {
            // SAFETY: `self` proves AVX; the reference is to 64 readable bytes, unaligned loads are allowed.
            unsafe {
                let at = from.as_ptr();
                [_mm256_loadu_si256(at.cast()), _mm256_loadu_si256(at.add(32).cast())]
            }
        }

        #[inline(always)]
        fn quarters(self, [a, b, c, d]: [&[u8; 16]; 4]) -> Self::Bytes {
            // SAFETY: `self` proves AVX; the references are to 16 readable bytes each, unaligned loads are
            // allowed.
            unsafe {
                let (a, b) = (_mm_loadu_si128(a.as_ptr().cast()), _mm_loadu_si128(b.as_ptr().cast()));
                let (c, d) = (_mm_loadu_si128(c.as_ptr().cast()), _mm_loadu_si128(d.as_ptr().cast()));
                [_mm256_set_m128i(b, a), _mm256_set_m128i(d, c)]
            }
        }

        #[inline(always)]
        fn lanes(self, from: &[u8; 16], [a, b, c, d]: [u8; 4], mask: u8) -> Self::Bytes {
            // SAFETY: `self` proves AVX2; the reference is to 16 readable bytes, unaligned loads are allowed.
            unsafe {
                let (a, b, c, d) = (i64::from(a), i64::from(b), i64::from(c), i64::from(d));
                let all = _mm256_broadcastsi128_si256(_mm_loadu_si128(from.as_ptr().cast()));
                let first = _mm256_srlv_epi64(all, _mm256_set_epi64x(b, b, a, a));
                let second = _mm256_srlv_epi64(all, _mm256_set_epi64x(d, d, c, c));
                let mask = _mm256_set1_epi8(mask as i8);
                [_mm256_and_si256(first, mask), _mm256_and_si256(second, mask)]
            }
        }

        #[inline(always)]
        fn pairs(self, from: &[u8; 32]) -> [Self::Bytes; 2] {
            // SAFETY: `self` proves AVX2; the reference is to 32 readable bytes, unaligned loads are allowed.
            unsafe {
                let four = _mm256_loadu_si256(from.as_ptr().cast());
                let twice = [
                    _mm256_permute4x64_epi64::<0b01_01_00_00>(four),
                    _mm256_permute4x64_epi64::<0b11_11_10_10>(four),
                ];
                let (low, high) = (_mm256_set_epi64x(2, 0, 2, 0), _mm256_set_epi64x(6, 4, 6, 4));
                let mask = _mm256_set1_epi8(3);
                [
                    [
                        _mm256_and_si256(_mm256_srlv_epi64(twice[0], low), mask),
                        _mm256_and_si256(_mm256_srlv_epi64(twice[1], low), mask),
                    ],
                    [
                        _mm256_and_si256(_mm256_srlv_epi64(twice[0], high), mask),
                        _mm256_and_si256(_mm256_srlv_epi64(twice[1], high), mask),
                    ],
                ]
            }
        }

        #[inline(always)]
        fn bits(self, from: &[u8; 16], value: u8) -> [Self::Bytes; 2] {
            // SAFETY: `self` proves AVX2; the reference is to 16 readable bytes, unaligned loads are allowed.
            unsafe {
                let all = _mm256_broadcastsi128_si256(_mm_loadu_si128(from.as_ptr().cast()));
                let masks = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
                let value = _mm256_set1_epi8(value as i8);
                // Byte `i / 8` of the two that belong to a quarter, then bit `i mod 8` of it.
                let byte = |at: i64| at * 0x0101_0101_0101_0101;
                let mut places = _mm256_set_epi64x(byte(5), byte(4), byte(1), byte(0));
                let mut out = [[_mm256_setzero_si256(); 2]; 2];
                for h in 0..2 {
                    let first = _mm256_shuffle_epi8(all, places);
                    let second = _mm256_shuffle_epi8(all, _mm256_add_epi8(places, _mm256_set1_epi8(8)));
                    let first = _mm256_cmpeq_epi8(_mm256_and_si256(first, masks), masks);
                    let second = _mm256_cmpeq_epi8(_mm256_and_si256(second, masks), masks);
                    out[h] = [_mm256_and_si256(first, value), _mm256_and_si256(second, value)];
                    places = _mm256_add_epi8(places, _mm256_set1_epi8(2));
                }
                out
            }
        }

        #[inline(always)]
        fn shift_right(self, [a, b]: Self::Bytes, by: usize, mask: u8) -> Self::Bytes {
            // Bits of the neighbour come in above and are masked.
            // SAFETY: `self` proves AVX2.
            unsafe {
                let (by, mask) = (_mm_cvtsi32_si128(by as i32), _mm256_set1_epi8(mask as i8));
                [
                    _mm256_and_si256(_mm256_srl_epi16(a, by), mask),
                    _mm256_and_si256(_mm256_srl_epi16(b, by), mask),
                ]
            }
        }

        #[inline(always)]
        fn shift_left(self, [a, b]: Self::Bytes, by: usize) -> Self::Bytes {
            // SAFETY: `self` proves AVX2.
            unsafe {
                let by = _mm_cvtsi32_si128(by as i32);
                [_mm256_sll_epi16(a, by), _mm256_sll_epi16(b, by)]
            }
        }

        #[inline(always)]
        fn or(self, a: Self::Bytes, b: Self::Bytes) -> Self::Bytes {
            // SAFETY: `self` proves AVX2.
            unsafe { [_mm256_or_si256(a[0], b[0]), _mm256_or_si256(a[1], b[1])] }
        }

        #[inline(always)]
        fn unzip(self, a: Self::Bytes, b: Self::Bytes) -> [Self::Bytes; 2] {
            // SAFETY: `self` proves AVX2.
            unsafe {
                [
                    [
                        _mm256_permute2x128_si256::<0x20>(a[0], a[1]),
                        _mm256_permute2x128_si256::<0x20>(b[0], b[1]),
                    ],
                    [
                        _mm256_permute2x128_si256::<0x31>(a[0], a[1]),
                        _mm256_permute2x128_si256::<0x31>(b[0], b[1]),
                    ],
                ]
            }
        }

        #[inline(always)]
        fn transpose(self, a: Self::Bytes, b: Self::Bytes) -> [Self::Bytes; 2] {
            // SAFETY: `self` proves AVX2.
            unsafe {
                [
                    [
                        _mm256_permute2x128_si256::<0x20>(a[0], b[0]),
                        _mm256_permute2x128_si256::<0x20>(a[1], b[1]),
                    ],
                    [
                        _mm256_permute2x128_si256::<0x31>(a[0], b[0]),
                        _mm256_permute2x128_si256::<0x31>(a[1], b[1]),
                    ],
                ]
            }
        }

        #[inline(always)]
        fn unsigned(self, [a, b]: Self::Bytes) -> [Self::Words; 2] {
            // SAFETY: `self` proves AVX2.
            unsafe {
                let mask = _mm256_set1_epi16(0xff);
                [
                    [_mm256_and_si256(a, mask), _mm256_and_si256(b, mask)],
                    [_mm256_srli_epi16::<8>(a), _mm256_srli_epi16::<8>(b)],
                ]
            }
        }

        #[inline(always)]
        fn splat_words(self, x: i16) -> Self::Words {
            // SAFETY: `self` proves AVX.
            unsafe { [_mm256_set1_epi16(x); 2] }
        }

        #[inline(always)]
        fn words(self, from: &[i16; 32]) -> Self::Words {
            // SAFETY: `self` proves AVX; the reference is to 64 readable bytes, unaligned loads are allowed.
            unsafe {
                let at = from.as_ptr();
                [_mm256_loadu_si256(at.cast()), _mm256_loadu_si256(at.add(16).cast())]
            }
        }

        #[inline(always)]
        fn store_words(self, [a, b]: Self::Words, to: &mut [i16; 32]) {
            // SAFETY: `self` proves AVX; the reference is to 64 writable bytes, unaligned stores are allowed.
            unsafe {
                let at = to.as_mut_ptr();
                _mm256_storeu_si256(at.cast(), a);
                _mm256_storeu_si256(at.add(16).cast(), b);
            }
        }

        #[inline(always)]
        fn sub_words(self, a: Self::Words, b: Self::Words) -> Self::Words {
            // SAFETY: `self` proves AVX2.
            unsafe { [_mm256_sub_epi16(a[0], b[0]), _mm256_sub_epi16(a[1], b[1])] }
        }

        #[inline(always)]
        fn mul_words(self, a: Self::Words, b: Self::Words) -> Self::Words {
            // SAFETY: `self` proves AVX2.
            unsafe { [_mm256_mullo_epi16(a[0], b[0]), _mm256_mullo_epi16(a[1], b[1])] }
        }

        #[inline(always)]
        fn dot(self, sum: Self::Sums, a: Self::Words, b: Self::Words) -> Self::Sums {
            [self.add_pairs(sum[0], a[0], b[0]), self.add_pairs(sum[1], a[1], b[1])]
        }

        #[inline(always)]
        fn add_sums(self, a: Self::Sums, b: Self::Sums) -> Self::Sums {
            // SAFETY: `self` proves AVX2.
            unsafe { [_mm256_add_epi32(a[0], b[0]), _mm256_add_epi32(a[1], b[1])] }
        }

        #[inline(always)]
        fn no_sums(self) -> Self::Sums {
            // SAFETY: `self` proves AVX.
            unsafe { [_mm256_setzero_si256(); 2] }
        }

        #[inline(always)]
        fn floats(self, [a, b]: Self::Sums) -> Self::Floats {
            // SAFETY: `self` proves AVX.
            unsafe { [_mm256_cvtepi32_ps(a), _mm256_cvtepi32_ps(b)] }
        }

        #[inline(always)]
        fn splat(self, x: f32) -> Self::Floats {
            // SAFETY: `self` proves AVX.
            unsafe { [_mm256_set1_ps(x); 2] }
        }

        #[inline(always)]
        fn spread(self, from: &[f32; 4]) -> Self::Floats {
            // SAFETY: `self` proves AVX; the reference is to 16 readable bytes, unaligned loads are allowed.
            unsafe {
                let four = _mm_loadu_ps(from.as_ptr());
                let twice = _mm256_set_m128(four, four);
                let (ab, cd) =
                    (_mm256_set_epi32(1, 1, 1, 1, 0, 0, 0, 0), _mm256_set_epi32(3, 3, 3, 3, 2, 2, 2, 2));
                [_mm256_permutevar_ps(twice, ab), _mm256_permutevar_ps(twice, cd)]
            }
        }

        #[inline(always)]
        fn load(self, from: &[f32; 16]) -> Self::Floats {
            // SAFETY: `self` proves AVX; the reference is to 64 readable bytes, unaligned loads are allowed.
            unsafe { [_mm256_loadu_ps(from.as_ptr()), _mm256_loadu_ps(from.as_ptr().add(8))] }
        }

        #[inline(always)]
        fn store(self, [a, b]: Self::Floats, to: &mut [f32; 16]) {
            // SAFETY: `self` proves AVX; the reference is to 64 writable bytes, unaligned stores are allowed.
            unsafe {
                _mm256_storeu_ps(to.as_mut_ptr(), a);
                _mm256_storeu_ps(to.as_mut_ptr().add(8), b);
            }
        }

        #[inline(always)]
        fn mul(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
            // SAFETY: `self` proves AVX.
            unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
        }

        #[inline(always)]
        fn flip(self, v: Self::Bytes) -> Self::Bytes {
            // SAFETY: `self` proves AVX2.
            unsafe {
                let high = _mm256_set1_epi8(-128);
                [_mm256_xor_si256(v[0], high), _mm256_xor_si256(v[1], high)]
            }
        }

        #[inline(always)]
        fn eight(self, from: [i16; 8]) -> __m128i {
            // SAFETY: `self` proves AVX; the array is 16 readable bytes, unaligned loads are allowed.
            unsafe { _mm_loadu_si128(from.as_ptr().cast()) }
        }

        #[inline(always)]
        fn nibbles(self, from: [u8; 4], bias: i16) -> __m128i {
            // SAFETY: `self` proves AVX.
            unsafe {
                let wide = _mm_cvtepu8_epi32(_mm_cvtsi32_si128(i32::from_le_bytes(from)));
                let both = _mm_or_si128(wide, _mm_slli_epi32::<12>(wide));
                _mm_sub_epi16(_mm_and_si128(both, _mm_set1_epi16(15)), _mm_set1_epi16(bias))
            }
        }

        #[inline(always)]
        fn groups(self, from: __m128i) -> [Self::Words; 2] {
            // SAFETY: `self` proves AVX2.
            unsafe {
                let eight = _mm256_broadcastsi128_si256(from);
                // Within each quarter, the two bytes of one word eight times.
                let place = |word: i64| 0x0100_0100_0100_0100 + word * 0x0202_0202_0202_0202;
                let ab = _mm256_set_epi64x(place(2), place(2), place(0), place(0));
                let cd = _mm256_set_epi64x(place(6), place(6), place(4), place(4));
                let next = _mm256_set1_epi8(2);
                [
                    [_mm256_shuffle_epi8(eight, ab), _mm256_shuffle_epi8(eight, cd)],
                    [
                        _mm256_shuffle_epi8(eight, _mm256_add_epi8(ab, next)),
                        _mm256_shuffle_epi8(eight, _mm256_add_epi8(cd, next)),
                    ],
                ]
            }
        }

        #[inline(always)]
        fn split(self, from: __m128i) -> Self::Words {
            // SAFETY: `self` proves AVX2.
            unsafe {
                let eight = _mm256_broadcastsi128_si256(from);
                let place = |word: i64| 0x0100_0100_0100_0100 + word * 0x0202_0202_0202_0202;
                let ab = _mm256_set_epi64x(place(3), place(2), place(1), place(0));
                let cd = _mm256_set_epi64x(place(7), place(6), place(5), place(4));
                [_mm256_shuffle_epi8(eight, ab), _mm256_shuffle_epi8(eight, cd)]
            }
        }

        #[inline(always)]
        fn pair(self, x: i32) -> Self::Words {
            // SAFETY: `self` proves AVX.
            unsafe { [_mm256_set1_epi32(x); 2] }
        }

        #[inline(always)]
        fn columns(self, [a, b, c, d]: [Self::Words; 4]) -> [Self::Words; 4] {
            // SAFETY: `self` proves AVX2.
            unsafe {
                let mut out = [[_mm256_setzero_si256(); 2]; 4];
                for h in 0..2 {
                    let first = _mm256_unpacklo_epi32(a[h], b[h]);
                    let second = _mm256_unpacklo_epi32(c[h], d[h]);
                    let third = _mm256_unpackhi_epi32(a[h], b[h]);
                    let fourth = _mm256_unpackhi_epi32(c[h], d[h]);
                    out[0][h] = _mm256_unpacklo_epi64(first, second);
                    out[1][h] = _mm256_unpackhi_epi64(first, second);
                    out[2][h] = _mm256_unpacklo_epi64(third, fourth);
                    out[3][h] = _mm256_unpackhi_epi64(third, fourth);
                }
                out
            }
        }
    };
}
