//! What a cache of keys and values holds: packed as it is stored, widened in blocks of positions as it is read.

use super::matmul::Widen;
use super::packed::{self, Packed, Row, scale_vectors};
use super::simd::{Eight, Job, Simd};
use crate::{Heads, KvFormat};
use half::f16;

/// Positions that are widened at once: of heads of 128 numbers 16 KiB, which stay in the nearest cache.
const BLOCK: usize = 32;
/// Numbers of `q8` that share a scale.
const GROUP: usize = 64;

/// Numbers of `q4` that share a scale, and their bytes.
const BLOCK4: (usize, usize) = (32, 18);

/// One row of all heads, to be packed in f16, q8 or q4.
pub(super) struct Pack<'a> {
    pub(super) x: &'a [f32],
    pub(super) shape: Heads,
    pub(super) to: &'a mut [u8],
}

impl Job for Pack<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Heads { dim, cache, .. } = self.shape;
        for (x, to) in self.x.chunks(dim).zip(self.to.chunks_mut(cache.head_bytes(dim))) {
            match cache {
                KvFormat::Q8 => pack_q8(x, to),
                KvFormat::Q4 => pack_q4(x, to),
                KvFormat::F16 | KvFormat::F32 => {
                    for (x, to) in x.iter().zip(to.as_chunks_mut::<2>().0) {
                        *to = f16::from_f32(*x).to_le_bytes();
                    }
                }
            }
        }
    }
}

/// What `airllm_quant::pack_row` makes of finite numbers, bit for bit; 64 numbers of which one is not are NaN.
#[inline(always)]
fn pack_q8(x: &[f32], to: &mut [u8]) {
    let (codes, scales) = to.split_at_mut(x.len().next_multiple_of(GROUP));
    let groups = codes.chunks_mut(GROUP).zip(scales.as_chunks_mut::<2>().0);
    for (x, (codes, scale_to)) in x.chunks(GROUP).zip(groups) {
        codes.fill(0);
        let largest = x.iter().fold(0f32, |largest, x| largest.max(x.abs()));
        let finite = x.iter().fold(true, |finite, x| finite & x.is_finite());
        let mut scale = f16::from_f32(largest / 127.0);
        if !finite {
            scale = f16::from_bits(0x7e00);
        } else if largest > 0.0 {
            // Rounded down, the scale may leave the largest number outside the codes: the next one then.
            if scale == f16::ZERO || largest / scale.to_f32() >= 127.5 {
                scale = f16::from_bits(scale.to_bits() + 1);
            }
            let divisor = scale.to_f32();
            for (code, x) in codes.iter_mut().zip(x) {
                *code = (x / divisor).round_ties_even() as i8 as u8;
            }
        }
        *scale_to = scale.to_le_bytes();
    }
}

/// What `airllm_quant::pack_row` makes of 32 finite numbers, zeros in place of missing ones, bit for bit; 32 numbers of
/// which one is not are NaN.
#[inline(always)]
fn pack_q4(x: &[f32], to: &mut [u8]) {
    for (x, to) in x.chunks(BLOCK4.0).zip(to.as_chunks_mut::<{ BLOCK4.1 }>().0) {
        // The number of largest magnitude, of which the first: it gets the code that is farthest from zero.
        let largest = x.iter().fold(0f32, |largest, &x| if x.abs() > largest.abs() { x } else { largest });
        let finite = x.iter().fold(true, |finite, x| finite & x.is_finite());
        let scale = if finite { f16::from_f32(largest / -8.0) } else { f16::from_bits(0x7e00) };
        let mut codes = [8u8; BLOCK4.0];
        let divisor = scale.to_f32();
        if finite && divisor != 0.0 {
            for (code, x) in codes.iter_mut().zip(x) {
                *code = ((x / divisor).round_ties_even() as i32 + 8).clamp(0, 15) as u8;
            }
        }
        let (head, bytes) = to.split_at_mut(2);
        head.copy_from_slice(&scale.to_le_bytes());
        let (low, high) = codes.split_at(BLOCK4.0 / 2);
        for ((to, low), high) in bytes.iter_mut().zip(low).zip(high) {
            *to = low | high << 4;
        }
    }
}

/// The numbers of a cache.
#[derive(Clone, Copy)]
pub(super) enum Stored<'a> {
    F32(&'a [f32]),
    F16(&'a [u8]),
    Q8(&'a [u8]),
    Q4(&'a [u8]),
}

/// Keys or values of one head of a cache, from one position on.
#[derive(Clone, Copy)]
pub(super) struct Cached<'a> {
    pub(super) data: Stored<'a>,
    /// Heads in a row of the cache.
    pub(super) heads: usize,
    /// Numbers in a head.
    pub(super) dim: usize,
    /// The head.
    pub(super) head: usize,
    /// The first position.
    pub(super) base: usize,
    /// Positions from there on.
    pub(super) len: usize,
}

impl<'a> Cached<'a> {
    /// Whether heads are vectors where they lie.
    fn direct(&self) -> bool {
        matches!(self.data, Stored::F32(_)) && self.dim.is_multiple_of(8)
    }

    /// Positions of a block: all, where heads are vectors already.
    pub(super) fn block(&self) -> usize {
        if self.direct() { self.len.max(1) } else { BLOCK }
    }

    /// Vectors that a block takes of working memory, with heads of `dim` numbers.
    pub(super) fn panel(format: KvFormat, dim: usize) -> usize {
        match format {
            KvFormat::F32 if dim.is_multiple_of(8) => 0,
            KvFormat::Q8 => BLOCK * dim.div_ceil(8) + scale_vectors::<packed::Q8>(dim),
            KvFormat::Q4 => BLOCK * dim.div_ceil(8) + scale_vectors::<packed::Q4_0>(dim),
            _ => BLOCK * dim.div_ceil(8),
        }
    }

    /// The block of positions from `from` on, counted from `base`: as it lies in the cache, or widened to `panel`.
    #[inline(always)]
    pub(super) fn rows<'p, S: Simd>(&self, simd: S, from: usize, panel: &'p mut [Eight]) -> Rows<'p>
    where
        'a: 'p,
    {
        let Cached { data, heads, dim, head, base, len } = *self;
        let width = dim.div_ceil(8);
        let rows =
            Rows { data: &[], stride: width, first: 0, width, from, end: (from + self.block()).min(len) };
        let at = base + from;
        let count = rows.end - from;
        match data {
            Stored::F32(data) if self.direct() => {
                let data = data[at * heads * dim..].as_chunks().0;
                return Rows { data, stride: heads * width, first: head * width, ..rows };
            }
            Stored::F32(data) => {
                let rows = data[at * heads * dim..].chunks(heads * dim).take(count);
                for (to, row) in panel.chunks_mut(width).zip(rows) {
                    copy_padded(&row[head * dim..][..dim], to);
                }
            }
            Stored::F16(data) => {
                let bytes = KvFormat::F16.head_bytes(dim);
                widen::<S, packed::F16>(simd, &data[at * heads * bytes..], (heads, dim, head, count), panel);
            }
            Stored::Q8(data) => {
                let bytes = KvFormat::Q8.head_bytes(dim);
                widen::<S, packed::Q8>(simd, &data[at * heads * bytes..], (heads, dim, head, count), panel);
            }
            Stored::Q4(data) => {
                let bytes = KvFormat::Q4.head_bytes(dim);
                widen::<S, packed::Q4_0>(simd, &data[at * heads * bytes..], (heads, dim, head, count), panel);
            }
        }
        Rows { data: panel, ..rows }
    }
}

/// Widens one head of the first `count` rows of a cache, zeros beyond its numbers.
#[inline(always)]
fn widen<S: Simd, P: Packed>(
    simd: S,
    data: &[u8],
    (heads, dim, head, count): (usize, usize, usize, usize),
    panel: &mut [Eight],
) {
    let bytes = P::FORMAT.row_bytes(dim);
    let width = dim.div_ceil(8);
    let (wide, scales) = panel.split_at_mut(BLOCK * width);
    for (wide, row) in wide.chunks_mut(width).zip(data.chunks(heads * bytes).take(count)) {
        let row = Row::<P>::new(&row[head * bytes..][..bytes], dim);
        Widen { row, cols: dim, first: 0, wide, scales }.run(simd);
    }
}

/// A block of positions of one head, in vectors.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    data: &'a [Eight],
    stride: usize,
    first: usize,
    /// Vectors of a head.
    pub(super) width: usize,
    /// The first position.
    pub(super) from: usize,
    /// The one behind the last.
    pub(super) end: usize,
}

impl<'a> Rows<'a> {
    #[inline(always)]
    pub(super) fn row(&self, j: usize) -> &'a [Eight] {
        &self.data[(j - self.from) * self.stride + self.first..][..self.width]
    }
}

/// Copies numbers into vectors, zeros beyond their end.
#[inline(always)]
pub(super) fn copy_padded(from: &[f32], to: &mut [Eight]) {
    let (to, rest) = to.as_flattened_mut().split_at_mut(from.len());
    to.copy_from_slice(from);
    rest.fill(0.0);
}
