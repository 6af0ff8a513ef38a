//! GGUF blocks of 32 weights.
//!
//! A code has at most 8 bits and a scale 11, so all is exact but for the adding of a least weight, which
//! rounds once: with or without a fused multiply-add the same numbers come out.

use super::{Packed, Scale, packed, quarters, scaled, times};
use crate::cpu::simd::Simd;
use airllm_format::NumFormat;

packed!(Q8_0, 34, |simd, block, _| {
    let [d0, d1, codes @ ..] = block;
    let [a, b, c, d] = quarters(codes);
    let codes = [simd.load_i8(a), simd.load_i8(b), simd.load_i8(c), simd.load_i8(d)];
    times(simd, codes, simd.splat_f16([*d0, *d1]))
});
packed!(Q4_0, 18, |simd, block, _| {
    let [d0, d1, codes @ ..] = block;
    let d = simd.splat_f16([*d0, *d1]);
    scaled(simd, simd.codes(simd.nibbles(codes)), d, simd.mul(d, simd.splat(-8.0)))
});
packed!(Q4_1, 20, |simd, block, _| {
    let [d0, d1, m0, m1, codes @ ..] = block;
    let (d, m) = (simd.splat_f16([*d0, *d1]), simd.splat_f16([*m0, *m1]));
    scaled(simd, simd.codes(simd.nibbles(codes)), d, m)
});
packed!(Q5_0, 22, |simd, block, _| {
    let [d0, d1, b0, b1, b2, b3, codes @ ..] = block;
    let d = simd.splat_f16([*d0, *d1]);
    let codes = five_bits(simd, codes, [*b0, *b1, *b2, *b3]);
    scaled(simd, codes, d, simd.mul(d, simd.splat(-16.0)))
});
packed!(Q5_1, 24, |simd, block, _| {
    let [d0, d1, m0, m1, b0, b1, b2, b3, codes @ ..] = block;
    let (d, m) = (simd.splat_f16([*d0, *d1]), simd.splat_f16([*m0, *m1]));
    scaled(simd, five_bits(simd, codes, [*b0, *b1, *b2, *b3]), d, m)
});

#[inline(always)]
fn five_bits<S: Simd>(simd: S, low: &[u8; 16], fifth: [u8; 4]) -> [S::V; 4] {
    simd.codes(simd.or(simd.nibbles(low), simd.spread(u32::from_le_bytes(fifth), 16)))
}
