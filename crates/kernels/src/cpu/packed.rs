//! Packed rows, widened 32 columns at a time.
//!
//! Every format gives exact f32 values, so kernels see the same weights whichever way they come.

use super::simd::{Eight, Simd};
use airllm_format::NumFormat;

/// Columns that are widened in one step.
pub(crate) const STEP: usize = 32;

/// How a format packs `STEP` weights.
pub(crate) trait Packed: Copy + Send + Sync + 'static {
    const FORMAT: NumFormat;
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

packed!(F32, F32, 128, |simd, block, _scale| quarters::<128, 32>(block).map(|q| simd.from_f32(q)));
packed!(F16, F16, 64, |simd, block, _scale| quarters::<64, 16>(block).map(|q| simd.from_f16(q)));
packed!(Bf16, Bf16, 64, |simd, block, _scale| quarters::<64, 16>(block).map(|q| simd.from_bf16(q)));
packed!(Q8, Q8, 32, |simd, block, scale| {
    let scale = simd.splat(scale);
    quarters::<32, 8>(block).map(|q| simd.mul(simd.from_i8(q), scale))
});
packed!(Q4, Q4, 16, |simd, block, scale| {
    let zero = simd.splat(-8.0 * scale);
    let scale = simd.splat(scale);
    // Exact: code · scale has at most 15 bits, and so has the sum.
    let value = |code| simd.mul_add(code, scale, zero);
    let [first, second] = halves(block);
    let (a, c) = simd.from_nibbles(first);
    let (b, d) = simd.from_nibbles(second);
    [value(a), value(b), value(c), value(d)]
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
        let (codes, scales) = bytes.split_at(P::FORMAT.code_bytes(cols).min(bytes.len()));
        let whole = (cols / STEP * size_of::<P::Block>()).min(codes.len());
        let (blocks, rest) = codes.split_at(whole);
        let scales = if P::FORMAT.is_quantised() { scales } else { &[] };
        Row { blocks: P::blocks(blocks), rest, scales, cols }
    }

    /// Widens the scales of the groups to one f32 a step, from step `first` on; 1 for plain formats.
    #[inline(always)]
    pub(crate) fn scales<S: Simd>(&self, simd: S, first: usize, to: &mut [f32]) {
        if !P::FORMAT.is_quantised() {
            to.fill(1.0);
            return;
        }
        let steps = P::FORMAT.group() / STEP;
        let groups = self.scales.get(first / steps * 2..).unwrap_or(&[]);
        for (to, from) in to.chunks_mut(8 * steps).zip(groups.chunks(16)) {
            let mut eight = [0u8; 16];
            eight[..from.len()].copy_from_slice(from);
            let mut wide = [0f32; 8];
            simd.store(simd.from_f16(&eight), &mut wide);
            for (to, wide) in to.chunks_mut(steps).zip(wide) {
                to.fill(wide);
            }
        }
    }

    /// The columns after the last whole step, in up to four vectors, zeros beyond `cols`.
    #[inline(always)]
    pub(crate) fn tail<S: Simd>(&self, simd: S, scale: f32) -> [Eight; 4] {
        let mut block = P::ZERO;
        let there = self.rest.len().min(block.as_ref().len());
        block.as_mut()[..there].copy_from_slice(&self.rest[..there]);
        let mut wide = [[0f32; 8]; 4];
        for (to, v) in wide.iter_mut().zip(P::widen(simd, &block, scale)) {
            simd.store(v, to);
        }
        wide.as_flattened_mut()[self.cols % STEP..].fill(0.0);
        wide
    }
}

/// Steps of a row that starts at step 0, the last one perhaps not full.
pub(crate) const fn steps(cols: usize) -> usize {
    cols.div_ceil(STEP)
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
