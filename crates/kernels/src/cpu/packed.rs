//! Packed rows, widened 32 columns at a time.
//!
//! Every format gives the very f32 that `airllm_quant::unpack_row` gives, so kernels see the same weights
//! whichever way they come.

#![allow(clippy::needless_range_loop, reason = "iterators over vectors would not stay in registers")]

mod blocks;
mod kquants;
mod planes;
mod sections;

pub(crate) use blocks::{Q4_0, Q4_1, Q5_0, Q5_1, Q8_0};
pub(crate) use kquants::{Q2K, Q3K, Q4K, Q5K, Q6K};
pub(crate) use planes::{Q2, Q3, Q4, Q5, Q6};
pub(crate) use sections::{A4, A4G64, A4G128, A8, F8, I8, Nf4, Q8};

use super::simd::{Eight, Simd};
use airllm_format::{Layout, NumFormat};

/// Columns that are widened in one step.
pub(crate) const STEP: usize = 32;

/// How a format packs its weights: in blocks of `PARTS` steps, whose parameters lie in the block, after
/// the codes of the row, or nowhere. Further bits of the codes may lie in a second plane.
pub(crate) trait Packed: Copy + Send + Sync + 'static {
    const FORMAT: NumFormat;
    // Constants, because the format's functions may be calls in code that has no time for calls.
    /// Columns that share what lies after the codes.
    const GROUP: usize = if Self::PLANES { STEP } else { Self::FORMAT.group() };
    /// Whether the row is in planes: a byte of two scales for each step, and an f16 for eight of them.
    const PLANES: bool = matches!(Self::FORMAT.layout(), Layout::Planes { .. });
    /// Bytes of a step in the second plane.
    const HIGH: usize = match Self::FORMAT.layout() {
        Layout::Planes { high, .. } => STEP / 8 * high,
        _ => 0,
    };
    /// What is taken from a stored scale of four bits.
    const BIAS: f32 = match Self::FORMAT.layout() {
        Layout::Planes { low, high } if low + high <= 4 => 8.0,
        _ => 0.0,
    };
    /// Bytes of a group's scale after the codes; 0 where none lies there.
    const SCALE: usize = match Self::FORMAT.layout() {
        Layout::Sections { scale, .. } => scale,
        Layout::Planes { .. } => 1,
        _ => 0,
    };
    /// Bytes of a group's zero point after the scales.
    const ZERO: usize = match Self::FORMAT.layout() {
        Layout::Sections { zero, .. } => zero,
        _ => 0,
    };
    /// Whether a group has a second number, a zero point or the scale of its second half.
    const TWO: bool = Self::ZERO > 0 || Self::PLANES;
    /// Codes of a row are padded to a multiple of this many.
    const PAD: usize = if Self::GROUP == usize::MAX { STEP } else { Self::GROUP };
    /// Steps that share a scale.
    const STEPS: usize = if Self::SCALE > 0 { Self::GROUP / STEP } else { usize::MAX };
    /// Steps in a block.
    const PARTS: usize = 1;
    /// Bytes of `PARTS` steps.
    type Block: Copy + AsRef<[u8]> + AsMut<[u8]> + 'static;
    const EMPTY: Self::Block;
    /// What the steps of a block share, widened.
    type Head: Copy;
    const NO_HEAD: Self::Head;
    /// The whole blocks at the start of `codes`.
    fn blocks(codes: &[u8]) -> &[Self::Block];
    /// What the steps of a block share, or what the second plane has for step `step`.
    fn head<S: Simd>(simd: S, block: &Self::Block, high: &[u8], step: usize) -> Self::Head;
    /// 32 weights: step `part` of the block.
    fn widen<S: Simd>(
        simd: S,
        block: &Self::Block,
        head: &Self::Head,
        part: usize,
        scale: Scale,
    ) -> [S::V; 4];
}

/// The parameters of a group that lie after the codes. 1 and 0 where the format has none there. Where a step
/// has two scales, `zero` is the second.
#[derive(Clone, Copy)]
pub(crate) struct Scale {
    pub(crate) scale: f32,
    pub(crate) zero: f32,
}

pub(crate) const NO_SCALE: Scale = Scale { scale: 1.0, zero: 0.0 };

/// A format whose blocks are one step.
macro_rules! packed {
    ($name:ident, $bytes:literal, |$simd:ident, $block:ident, $scale:pat_param| $widen:expr) => {
        #[derive(Clone, Copy)]
        pub(crate) struct $name;

        impl Packed for $name {
            const FORMAT: NumFormat = NumFormat::$name;
            type Block = [u8; $bytes];
            const EMPTY: Self::Block = [0; $bytes];
            type Head = ();
            const NO_HEAD: () = ();

            #[inline(always)]
            fn blocks(codes: &[u8]) -> &[Self::Block] {
                codes.as_chunks::<$bytes>().0
            }

            #[inline(always)]
            fn head<S: Simd>(_: S, _: &Self::Block, _: &[u8], _: usize) {}

            #[inline(always)]
            fn widen<S: Simd>($simd: S, $block: &Self::Block, (): &(), _: usize, $scale: Scale) -> [S::V; 4] {
                $widen
            }
        }
    };
}
use packed;

packed!(F32, 128, |simd, block, _| {
    let [a, b, c, d] = quarters(block);
    [simd.load_f32(a), simd.load_f32(b), simd.load_f32(c), simd.load_f32(d)]
});
packed!(F16, 64, |simd, block, _| {
    let [a, b, c, d] = quarters(block);
    [simd.load_f16(a), simd.load_f16(b), simd.load_f16(c), simd.load_f16(d)]
});
packed!(Bf16, 64, |simd, block, _| {
    let [a, b, c, d] = quarters(block);
    [simd.load_bf16(a), simd.load_bf16(b), simd.load_bf16(c), simd.load_bf16(d)]
});

/// One row of a matrix.
#[derive(Clone, Copy)]
pub(crate) struct Row<'a, P: Packed> {
    /// The whole blocks.
    pub(crate) blocks: &'a [P::Block],
    /// The rest of the codes: less than a step of plain numbers, the last group's rest of quantised.
    rest: &'a [u8],
    /// The second plane.
    pub(crate) high: &'a [u8],
    /// Bytes of scales, `P::SCALE` a group.
    scales: &'a [u8],
    /// Bytes of zero points, `P::ZERO` a group, or what the scales of planes are multiples of.
    zeros: &'a [u8],
    cols: usize,
}

impl<'a, P: Packed> Row<'a, P> {
    /// Takes a row apart. `bytes` must be `row_bytes(cols)` long; a shorter row reads as zeros.
    #[inline(always)]
    pub(crate) fn new(bytes: &'a [u8], cols: usize) -> Self {
        let per_block = STEP * P::PARTS;
        let code_bytes = cols.div_ceil(P::PAD) * P::PAD * size_of::<P::Block>() / per_block;
        let aligned = |bytes: usize| if P::PLANES { bytes.next_multiple_of(16) } else { bytes };
        let (codes, scales) = bytes.split_at(aligned(code_bytes).min(bytes.len()));
        let (high, scales) = match P::HIGH {
            0 => (&[][..], scales),
            high => scales.split_at(aligned(cols.div_ceil(STEP) * high).min(scales.len())),
        };
        let whole = (cols / per_block * size_of::<P::Block>()).min(codes.len());
        let (blocks, rest) = codes.split_at(whole);
        let (scales, zeros) = match P::SCALE {
            0 => (&[][..], &[][..]),
            // Eight scales are read at once, at the end some of what follows them with them.
            _ if P::PLANES => {
                let halves = cols.div_ceil(STEP).next_multiple_of(2);
                (scales, scales.get(halves..).unwrap_or(&[]))
            }
            scale => scales.split_at((cols.div_ceil(P::GROUP) * scale).min(scales.len())),
        };
        Row { blocks: P::blocks(blocks), rest, high, scales, zeros, cols }
    }

    /// Widens the parameters of the groups to f32, from the group of step `first` on: scales into the first
    /// half of `to` and zero points, or scales of second halves, into the second; scales alone where the format
    /// has neither. For planes, `first` is a multiple of eight.
    #[inline(always)]
    pub(crate) fn scales<S: Simd>(&self, simd: S, first: usize, to: &mut [Eight]) {
        let first = first / P::STEPS;
        let scales = self.scales.get(first * P::SCALE..).unwrap_or(&[]);
        let (to, zeros_to) = to.split_at_mut(if P::TWO { to.len() / 2 } else { to.len() });
        if P::PLANES {
            let halves = self.zeros.as_chunks::<2>().0.get(first / 8..).unwrap_or(&[]);
            let (bias, eights) = (simd.splat(P::BIAS), scales.as_chunks::<8>().0);
            for ((to, other), (eight, d)) in to.iter_mut().zip(zeros_to).zip(eights.iter().zip(halves)) {
                let (d, (a, b)) = (simd.splat_f16(*d), simd.load_nibbles(eight));
                simd.store(simd.mul(simd.sub(a, bias), d), to);
                simd.store(simd.mul(simd.sub(b, bias), d), other);
            }
            return;
        }
        if P::SCALE == 2 {
            let (whole, rest) = scales.as_chunks::<16>();
            for (to, from) in to.iter_mut().zip(whole) {
                simd.store(simd.load_f16(from), to);
            }
            if let Some(to) = to.get_mut(whole.len()) {
                let mut eight = [0u8; 16];
                eight[..rest.len()].copy_from_slice(rest);
                simd.store(simd.load_f16(&eight), to);
            }
        } else {
            for (to, from) in to.as_flattened_mut().iter_mut().zip(scales.as_chunks::<4>().0) {
                *to = f32::from_le_bytes(*from);
            }
        }
        let zeros = self.zeros.get(first * P::ZERO..).unwrap_or(&[]);
        let zeros_to = zeros_to.as_flattened_mut().iter_mut();
        if P::ZERO == 1 {
            zeros_to.zip(zeros).for_each(|(to, &from)| *to = f32::from(from));
        } else if P::ZERO == 2 {
            let zeros = zeros.as_chunks::<2>().0;
            zeros_to.zip(zeros).for_each(|(to, from)| *to = f32::from(u16::from_le_bytes(*from)));
        }
    }

    /// The columns after the last whole step, in up to four vectors, zeros beyond `cols`. Formats in larger
    /// blocks have none.
    #[inline(always)]
    pub(crate) fn tail<S: Simd>(&self, simd: S, scale: Scale) -> [Eight; 4] {
        let mut block = P::EMPTY;
        let there = self.rest.len().min(block.as_ref().len());
        block.as_mut()[..there].copy_from_slice(&self.rest[..there]);
        let mut wide = [[0f32; 8]; 4];
        let head = P::head(simd, &block, self.high, self.cols / STEP);
        let vectors = P::widen(simd, &block, &head, 0, scale);
        for v in 0..4 {
            simd.store(vectors[v], &mut wide[v]);
        }
        wide.as_flattened_mut()[self.cols % STEP..].fill(0.0);
        wide
    }
}

/// Vectors that hold the scales and zero points of a row of `cols` columns.
pub(crate) const fn scale_vectors<P: Packed>(cols: usize) -> usize {
    let vectors = if P::SCALE > 0 { cols.div_ceil(P::GROUP).div_ceil(8) } else { 0 };
    if P::TWO { 2 * vectors } else { vectors }
}

/// The parameters of a step, from what [`Row::scales`] gave.
#[inline(always)]
pub(crate) fn scale<P: Packed>(scales: &[Eight], step: usize) -> Scale {
    if P::SCALE == 0 {
        return NO_SCALE;
    }
    let at = step / P::STEPS;
    if !P::TWO {
        return Scale { scale: scales.as_flattened()[at], zero: 0.0 };
    }
    let (scales, zeros) = scales.split_at(scales.len() / 2);
    Scale { scale: scales.as_flattened()[at], zero: zeros.as_flattened()[at] }
}

#[inline(always)]
fn quarters<const N: usize, const Q: usize>(block: &[u8; N]) -> [&[u8; Q]; 4] {
    let parts = block.as_chunks::<Q>().0;
    [&parts[0], &parts[1], &parts[2], &parts[3]]
}

#[inline(always)]
fn halves<const N: usize, const H: usize>(block: &[u8; N]) -> [&[u8; H]; 2] {
    let parts = block.as_chunks::<H>().0;
    [&parts[0], &parts[1]]
}

/// `v · scale + offset` of each.
#[inline(always)]
fn scaled<S: Simd>(simd: S, [a, b, c, d]: [S::V; 4], scale: S::V, offset: S::V) -> [S::V; 4] {
    [
        simd.mul_add(a, scale, offset),
        simd.mul_add(b, scale, offset),
        simd.mul_add(c, scale, offset),
        simd.mul_add(d, scale, offset),
    ]
}

/// `v · scale` of each.
#[inline(always)]
fn times<S: Simd>(simd: S, [a, b, c, d]: [S::V; 4], scale: S::V) -> [S::V; 4] {
    [simd.mul(a, scale), simd.mul(b, scale), simd.mul(c, scale), simd.mul(d, scale)]
}
