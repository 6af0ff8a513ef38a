//! Formats in bit planes: low bits of 32 columns, high bits elsewhere in the row, a scale for 16 columns.
//!
//! A code has at most 6 bits and a scale 15, so all is exact.

use super::{Packed, Scale, packed};
use crate::cpu::simd::Simd;
use airllm_format::NumFormat;

packed!(Q4, 16, |simd, block, scale| halves(simd, simd.nibbles(block), scale, -8.0));
packed!(Q2, 8, |simd, block, scale| halves(simd, simd.pairs(block), scale, -2.0));

/// A format with a second plane of so many bytes a step.
macro_rules! planes {
    ($name:ident, $low:literal, $high:literal, |$simd:ident, $block:ident, $second:ident| $codes:expr, $zero:literal) => {
        #[derive(Clone, Copy)]
        pub(crate) struct $name;

        impl Packed for $name {
            const FORMAT: NumFormat = NumFormat::$name;
            type Block = [u8; $low];
            const EMPTY: Self::Block = [0; $low];
            type Head = [u8; $high];
            const NO_HEAD: Self::Head = [0; $high];

            #[inline(always)]
            fn blocks(codes: &[u8]) -> &[Self::Block] {
                codes.as_chunks::<$low>().0
            }

            #[inline(always)]
            fn head<S: Simd>(_: S, _: &Self::Block, high: &[u8], step: usize) -> Self::Head {
                high.as_chunks::<$high>().0.get(step).copied().unwrap_or(Self::NO_HEAD)
            }

            #[inline(always)]
            fn widen<S: Simd>(
                $simd: S,
                $block: &Self::Block,
                $second: &Self::Head,
                _: usize,
                scale: Scale,
            ) -> [S::V; 4] {
                halves($simd, $codes, scale, $zero)
            }
        }
    };
}

planes!(
    Q6,
    16,
    8,
    |simd, block, high| simd.or(simd.nibbles(block), simd.shift_left(simd.pairs(high), 4)),
    -32.0
);
planes!(
    Q5,
    16,
    4,
    |simd, block, high| simd.or(simd.nibbles(block), simd.spread(u32::from_le_bytes(*high), 16)),
    -16.0
);
planes!(
    Q3,
    8,
    4,
    |simd, block, high| simd.or(simd.pairs(block), simd.spread(u32::from_le_bytes(*high), 4)),
    -4.0
);

/// `(code + zero) · scale`, the first 16 columns having the first scale and the others the second.
#[inline(always)]
fn halves<S: Simd>(simd: S, codes: S::Bytes, Scale { scale, zero: other }: Scale, zero: f32) -> [S::V; 4] {
    let [a, b, c, d] = simd.codes(codes);
    let (first, offset) = (simd.splat(scale), simd.splat(scale * zero));
    let (a, b) = (simd.mul_add(a, first, offset), simd.mul_add(b, first, offset));
    let (second, offset) = (simd.splat(other), simd.splat(other * zero));
    [a, b, simd.mul_add(c, second, offset), simd.mul_add(d, second, offset)]
}
