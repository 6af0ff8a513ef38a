//! Formats whose scales, and zero points, lie after the codes of a row.

use super::{Packed, Scale, halves, packed, quarters, times};
use crate::cpu::simd::Simd;
use airllm_format::NumFormat;
use airllm_quant::NF4;

packed!(Q8, 32, |simd, block, scale| times(simd, signed(simd, block), simd.splat(scale.scale)));
packed!(A8, 32, |simd, block, scale| {
    let [a, b, c, d] = quarters(block);
    let codes = [simd.load_u8(a), simd.load_u8(b), simd.load_u8(c), simd.load_u8(d)];
    affine(simd, codes, scale)
});
packed!(A4, 16, |simd, block, scale| affine(simd, nibbles(simd, block), scale));
packed!(A4G64, 16, |simd, block, scale| affine(simd, nibbles(simd, block), scale));
packed!(A4G128, 16, |simd, block, scale| affine(simd, nibbles(simd, block), scale));
packed!(Nf4, 16, |simd, block, Scale { scale, .. }| {
    let [first, second] = halves(block);
    let (a, c) = simd.look_up(&NF4, first);
    let (b, d) = simd.look_up(&NF4, second);
    times(simd, [a, b, c, d], simd.splat(scale))
});
packed!(F8, 32, |simd, block, Scale { scale, .. }| {
    let [first, second] = halves(block);
    let (a, b) = simd.load_e4m3(first);
    let (c, d) = simd.load_e4m3(second);
    // The factor is exact wherever it goes, if nothing overflows on the way.
    if scale.abs() < 1e30 {
        times(simd, [a, b, c, d], simd.splat(256.0 * scale))
    } else {
        times(simd, times(simd, [a, b, c, d], simd.splat(256.0)), simd.splat(scale))
    }
});
packed!(I8, 32, |simd, block, Scale { scale, .. }| {
    let [a, b, c, d] = times(simd, signed(simd, block), simd.splat(scale));
    // The short way is right where nothing overflows or loses bits below the least exponent.
    if (1e-25..1e25).contains(&scale) {
        [simd.over_127(a), simd.over_127(b), simd.over_127(c), simd.over_127(d)]
    } else {
        let below = simd.splat(127.0);
        [simd.div(a, below), simd.div(b, below), simd.div(c, below), simd.div(d, below)]
    }
});

/// `(code − zero) · scale`; the difference is exact, the product rounded once.
#[inline(always)]
fn affine<S: Simd>(simd: S, [a, b, c, d]: [S::V; 4], Scale { scale, zero }: Scale) -> [S::V; 4] {
    let zero = simd.splat(zero);
    let codes = [simd.sub(a, zero), simd.sub(b, zero), simd.sub(c, zero), simd.sub(d, zero)];
    times(simd, codes, simd.splat(scale))
}

#[inline(always)]
fn signed<S: Simd>(simd: S, block: &[u8; 32]) -> [S::V; 4] {
    let [a, b, c, d] = quarters(block);
    [simd.load_i8(a), simd.load_i8(b), simd.load_i8(c), simd.load_i8(d)]
}

#[inline(always)]
fn nibbles<S: Simd>(simd: S, block: &[u8; 16]) -> [S::V; 4] {
    let [first, second] = halves(block);
    let (a, c) = simd.load_nibbles(first);
    let (b, d) = simd.load_nibbles(second);
    [a, b, c, d]
}
