//! Packed rows, widened 32 columns at a time.
//!
//! Every format gives exact f32 values, so kernels see the same weights whichever way they come.

#![allow(clippy::needless_range_loop, reason = "iterators over vectors would not stay in registers")]

use super::simd::{Eight, Simd};
use airllm_format::NumFormat;

/// Columns that are widened in one step.
pub(crate) const STEP: usize = 32;

/// How a format packs `STEP` weights.
pub(crate) trait Packed: Copy + Send + Sync + 'static {
    const FORMAT: NumFormat;
    // Constants, because the format's functions may be calls in code that has no time for calls.
    const QUANTISED: bool = Self::FORMAT.is_quantised();
    const GROUP: usize = Self::FORMAT.group();
    /// Steps that share a scale.
    const STEPS: usize = if Self::QUANTISED { Self::GROUP / STEP } else { usize::MAX };
    /// Bytes of one step.
    type Block: Copy + AsRef<[u8]> + AsMut<[u8]> + 'static;
    const ZERO: Self::Block;
    /// The whole blocks at the start of `codes`.
    fn blocks(codes: &[u8]) -> &[Self::Block];
    /// 32 weights. `scale` is that of their group, 1 where the format has none.
    fn widen<S: Simd>(simd: S, block: &Self::Block, scale: f32) -> [S::V; 4];
}

macro_rules! packed {
    ($name:ident, $format:ident, $bytes:literal, |$simd:ident, $block:ident, $scale:ident| $widen:expr) => {
        #[derive(Clone, Copy)]
        pub(crate) struct $name;

        impl Packed for $name {
            const FORMAT: NumFormat = NumFormat::$format;
            type Block = [u8; $bytes];
            const ZERO: Self::Block = [0; $bytes];

            #[inline(always)]
            fn blocks(codes: &[u8]) -> &[Self::Block] {
                codes.as_chunks::<$bytes>().0
            }

            #[inline(always)]
            fn widen<S: Simd>($simd: S, $block: &Self::Block, $scale: f32) -> [S::V; 4] {
                $widen
            }
        }
    };
}

packed!(F32, F32, 128, |simd, block, _scale| {
    let [a, b, c, d] = quarters(block);
    [simd.load_f32(a), simd.load_f32(b), simd.load_f32(c), simd.load_f32(d)]
});
packed!(F16, F16, 64, |simd, block, _scale| {
    let [a, b, c, d] = quarters(block);
    [simd.load_f16(a), simd.load_f16(b), simd.load_f16(c), simd.load_f16(d)]
});
packed!(Bf16, Bf16, 64, |simd, block, _scale| {
    let [a, b, c, d] = quarters(block);
    [simd.load_bf16(a), simd.load_bf16(b), simd.load_bf16(c), simd.load_bf16(d)]
});
packed!(Q8, Q8, 32, |simd, block, scale| {
    let scale = simd.splat(scale);
    let [a, b, c, d] = quarters(block);
    [
        simd.mul(simd.load_i8(a), scale),
        simd.mul(simd.load_i8(b), scale),
        simd.mul(simd.load_i8(c), scale),
        simd.mul(simd.load_i8(d), scale),
    ]
});
packed!(Q4, Q4, 16, |simd, block, scale| {
    // Exact: code · scale has at most 15 bits, and so has the sum.
    let scale = simd.splat(scale);
    let zero = simd.mul(scale, simd.splat(-8.0));
    let [first, second] = halves(block);
    let (a, c) = simd.load_nibbles(first);
    let (b, d) = simd.load_nibbles(second);
    [
        simd.mul_add(a, scale, zero),
        simd.mul_add(b, scale, zero),
        simd.mul_add(c, scale, zero),
        simd.mul_add(d, scale, zero),
    ]
});

/// One row of a matrix.
#[derive(Clone, Copy)]
pub(crate) struct Row<'a, P: Packed> {
    /// The whole steps.
    pub(crate) blocks: &'a [P::Block],
    /// The rest of the codes: less than a step of plain numbers, the last group's rest of quantised.
    rest: &'a [u8],
    /// Bytes of f16 scales, two a group.
    scales: &'a [u8],
    cols: usize,
}

impl<'a, P: Packed> Row<'a, P> {
    /// Takes a row apart. `bytes` must be `row_bytes(cols)` long; a shorter row reads as zeros.
    #[inline(always)]
    pub(crate) fn new(bytes: &'a [u8], cols: usize) -> Self {
        let code_bytes = cols.div_ceil(P::GROUP) * P::GROUP * size_of::<P::Block>() / STEP;
        let (codes, scales) = bytes.split_at(code_bytes.min(bytes.len()));
        let whole = (cols / STEP * size_of::<P::Block>()).min(codes.len());
        let (blocks, rest) = codes.split_at(whole);
        let scales = if P::QUANTISED { scales } else { &[] };
        Row { blocks: P::blocks(blocks), rest, scales, cols }
    }

    /// Widens the scales of the groups to f32, from the group of step `first` on. Plain formats have none.
    #[inline(always)]
    pub(crate) fn scales<S: Simd>(&self, simd: S, first: usize, to: &mut [Eight]) {
        let groups = self.scales.get(first / P::STEPS * 2..).unwrap_or(&[]);
        let (whole, rest) = groups.as_chunks::<16>();
        for (to, from) in to.iter_mut().zip(whole) {
            simd.store(simd.load_f16(from), to);
        }
        if let Some(to) = to.get_mut(whole.len()) {
            let mut eight = [0u8; 16];
            eight[..rest.len()].copy_from_slice(rest);
            simd.store(simd.load_f16(&eight), to);
        }
    }

    /// The columns after the last whole step, in up to four vectors, zeros beyond `cols`.
    #[inline(always)]
    pub(crate) fn tail<S: Simd>(&self, simd: S, scale: f32) -> [Eight; 4] {
        let mut block = P::ZERO;
        let there = self.rest.len().min(block.as_ref().len());
        block.as_mut()[..there].copy_from_slice(&self.rest[..there]);
        let mut wide = [[0f32; 8]; 4];
        let vectors = P::widen(simd, &block, scale);
        for v in 0..4 {
            simd.store(vectors[v], &mut wide[v]);
        }
        wide.as_flattened_mut()[self.cols % STEP..].fill(0.0);
        wide
    }
}

/// Vectors that hold the scales of a row of `cols` columns.
pub(crate) const fn scale_vectors<P: Packed>(cols: usize) -> usize {
    if P::QUANTISED { cols.div_ceil(P::GROUP).div_ceil(8) } else { 0 }
}

/// The scale of a step, from what [`Row::scales`] gave; 1 for plain formats.
#[inline(always)]
pub(crate) fn scale<P: Packed>(scales: &[Eight], step: usize) -> f32 {
    if P::QUANTISED { scales.as_flattened()[step / P::STEPS] } else { 1.0 }
}

#[inline(always)]
fn quarters<const N: usize, const Q: usize>(block: &[u8; N]) -> [&[u8; Q]; 4] {
    let parts = block.as_chunks::<Q>().0;
    [&parts[0], &parts[1], &parts[2], &parts[3]]
}

#[inline(always)]
fn halves(block: &[u8; 16]) -> [&[u8; 8]; 2] {
    let parts = block.as_chunks::<8>().0;
    [&parts[0], &parts[1]]
}
