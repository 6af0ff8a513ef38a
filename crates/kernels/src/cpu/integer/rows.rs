//! Formats whose parameters lie after the codes of a row, and GGUF blocks of 32.

use super::{BLOCK, Coded, Params, Spare, Zero, piece};
use crate::cpu::simd::Ints;
use airllm_format::NumFormat;

/// Columns in a step.
const STEP: usize = 32;

/// A format in planes: `LOW` bytes of a step in the first plane, `HIGH` in the second.
#[derive(Clone, Copy)]
struct Planes<'a> {
    low: &'a [u8],
    high: &'a [u8],
    scales: &'a [u8],
    halves: &'a [u8],
}

impl<'a> Planes<'a> {
    #[inline(always)]
    fn new(row: &'a [u8], cols: usize, low: usize, high: usize) -> Self {
        let steps = cols.div_ceil(STEP);
        let high_at = (steps * low).next_multiple_of(16);
        let scales_at = high_at + (steps * high).next_multiple_of(16);
        let halves_at = scales_at + steps.next_multiple_of(2);
        let (codes, rest) = row.split_at(scales_at.min(row.len()));
        let (low, high) = codes.split_at(high_at.min(codes.len()));
        let (scales, halves) = rest.split_at((halves_at - scales_at).min(rest.len()));
        Planes { low, high, scales, halves }
    }

    /// Factors are numbers of four bits less `bias`.
    #[inline(always)]
    fn params<S: Ints>(&self, simd: S, bias: i16, to: &mut [Params]) {
        let halves = self.halves.as_chunks::<2>().0;
        let mut spare = [0; 256];
        for (b, (to, &half)) in to.iter_mut().zip(halves).enumerate() {
            let eight: &[u8; BLOCK / STEP] = piece(self.scales, b * (BLOCK / STEP), &mut spare);
            to.factors = simd.double(eight, 12, 0x000f_000f, bias);
            to.scales[0] = simd.half(half);
        }
    }
}

macro_rules! planes {
    ($name:ident, $low:literal, $high:literal, $zero:literal, $bias:literal, |$simd:ident, $row:ident, $chunk:ident, $spare:ident| $codes:expr) => {
        #[derive(Clone, Copy)]
        pub(crate) struct $name;

        impl Coded for $name {
            const FORMAT: NumFormat = NumFormat::$name;
            const ZERO: Zero = Zero::All($zero);
            const FACTORS: bool = true;
            const ONE_SCALE: bool = true;

            #[inline(always)]
            fn params<S: Ints>(simd: S, row: &[u8], cols: usize, to: &mut [Params]) {
                Planes::new(row, cols, $low, $high).params(simd, $bias, to);
            }

            #[inline(always)]
            fn codes<S: Ints>(
                $simd: S,
                row: &[u8],
                cols: usize,
                $chunk: usize,
                $spare: &mut Spare,
            ) -> [S::Bytes; 2] {
                let $row = Planes::new(row, cols, $low, $high);
                $codes
            }
        }
    };
}

planes!(Q6, 16, 8, 32, 0, |simd, row, chunk, spare| {
    let (low, high) = (nibbles(simd, row.low, chunk, spare), pairs(simd, row.high, chunk, spare));
    let [a, b] = [simd.shift_left(high[0], 4), simd.shift_left(high[1], 4)];
    [simd.or(low[0], a), simd.or(low[1], b)]
});
planes!(Q5, 16, 4, 16, 0, |simd, row, chunk, spare| {
    let (low, high) = (nibbles(simd, row.low, chunk, spare), bits(simd, row.high, chunk, spare, 16));
    [simd.or(low[0], high[0]), simd.or(low[1], high[1])]
});
planes!(Q4, 16, 0, 8, 8, |simd, row, chunk, spare| nibbles(simd, row.low, chunk, spare));
planes!(Q3, 8, 4, 4, 8, |simd, row, chunk, spare| {
    let (low, high) = (pairs(simd, row.low, chunk, spare), bits(simd, row.high, chunk, spare, 4));
    [simd.or(low[0], high[0]), simd.or(low[1], high[1])]
});
planes!(Q2, 8, 0, 2, 8, |simd, row, chunk, spare| pairs(simd, row.low, chunk, spare));

#[inline(always)]
fn nibbles<S: Ints>(simd: S, plane: &[u8], chunk: usize, spare: &mut Spare) -> [S::Bytes; 2] {
    let v = simd.bytes(piece(plane, 64 * chunk, spare));
    [simd.shift_right(v, 0, 15), simd.shift_right(v, 4, 15)]
}

#[inline(always)]
fn pairs<S: Ints>(simd: S, plane: &[u8], chunk: usize, spare: &mut Spare) -> [S::Bytes; 2] {
    simd.pairs(piece(plane, 32 * chunk, spare))
}

#[inline(always)]
fn bits<S: Ints>(simd: S, plane: &[u8], chunk: usize, spare: &mut Spare, value: u8) -> [S::Bytes; 2] {
    simd.bits(piece(plane, 16 * chunk, spare), value)
}

#[derive(Clone, Copy)]
pub(crate) struct Q8;

impl Coded for Q8 {
    const FORMAT: NumFormat = NumFormat::Q8;
    const SIGNED: bool = true;

    #[inline(always)]
    fn params<S: Ints>(simd: S, row: &[u8], cols: usize, to: &mut [Params]) {
        let scales = row.get(cols.next_multiple_of(64)..).unwrap_or_default().as_chunks::<2>().0;
        let scales = scales.get(..cols.div_ceil(64)).unwrap_or_default();
        let scales = scales.as_flattened();
        for (to, bytes) in to.iter_mut().zip(scales.chunks(8)) {
            let four = match bytes.first_chunk() {
                Some(bytes) => simd.halves(bytes),
                None => {
                    let mut padded = [0; 8];
                    padded[..bytes.len()].copy_from_slice(bytes);
                    simd.halves(&padded)
                }
            };
            let [a, b, c, d] = four;
            to.scales = [a, a, b, b, c, c, d, d];
        }
    }

    #[inline(always)]
    fn codes<S: Ints>(simd: S, row: &[u8], _: usize, chunk: usize, spare: &mut Spare) -> [S::Bytes; 2] {
        bytes(simd, row, chunk, spare)
    }
}

/// 128 bytes in the order of columns.
#[inline(always)]
fn bytes<S: Ints>(simd: S, row: &[u8], chunk: usize, spare: &mut Spare) -> [S::Bytes; 2] {
    let both: &[u8; 128] = piece(row, 128 * chunk, spare);
    let (halves, _) = both.as_chunks::<64>();
    simd.unzip(simd.bytes(&halves[0]), simd.bytes(&halves[1]))
}

/// Codes of GPTQ and AWQ: a scale in f32 and a zero for each `$steps` steps.
macro_rules! affine {
    ($name:ident, $steps:literal, $code:literal, $zero:literal, |$simd:ident, $row:ident, $chunk:ident, $spare:ident| $codes:expr) => {
        #[derive(Clone, Copy)]
        pub(crate) struct $name;

        impl Coded for $name {
            const FORMAT: NumFormat = NumFormat::$name;
            const ZERO: Zero = Zero::Groups;

            #[inline(always)]
            fn params<S: Ints>(_: S, row: &[u8], cols: usize, to: &mut [Params]) {
                let groups = cols.div_ceil(STEP * $steps);
                let (_, rest) = row.split_at((groups * $steps * $code).min(row.len()));
                let (scales, zeros) = rest.split_at((4 * groups).min(rest.len()));
                let (scales, zeros) = (scales.as_chunks::<4>().0, zeros.as_chunks::<$zero>().0);
                let each = scales.chunks(8 / $steps).zip(zeros.chunks(8 / $steps));
                for (to, (scales, zeros)) in to.iter_mut().zip(each) {
                    *to = Params::NONE;
                    for (g, (&scale, &zero)) in scales.iter().zip(zeros).enumerate() {
                        let mut wide = [0; 2];
                        wide[..$zero].copy_from_slice(&zero);
                        to.scales[g * $steps..][..$steps].fill(f32::from_le_bytes(scale));
                        to.zeros[2 * g * $steps..][..2 * $steps].fill(i16::from_le_bytes(wide));
                    }
                }
            }

            #[inline(always)]
            fn codes<S: Ints>(
                $simd: S,
                $row: &[u8],
                _: usize,
                $chunk: usize,
                $spare: &mut Spare,
            ) -> [S::Bytes; 2] {
                $codes
            }
        }
    };
}

affine!(A4, 1, 16, 1, |simd, row, chunk, spare| nibbles(simd, row, chunk, spare));
affine!(A4G64, 2, 16, 1, |simd, row, chunk, spare| nibbles(simd, row, chunk, spare));
affine!(A4G128, 4, 16, 1, |simd, row, chunk, spare| nibbles(simd, row, chunk, spare));
affine!(A8, 1, 32, 2, |simd, row, chunk, spare| bytes(simd, row, chunk, spare));

/// GGUF blocks of 32 with one scale.
macro_rules! blocks {
    ($name:ident, $bytes:literal, $signed:literal, $zero:expr, |$simd:ident, $blocks:ident| $codes:expr) => {
        #[derive(Clone, Copy)]
        pub(crate) struct $name;

        impl Coded for $name {
            const FORMAT: NumFormat = NumFormat::$name;
            const SIGNED: bool = $signed;
            const ZERO: Zero = $zero;

            #[inline(always)]
            fn params<S: Ints>(simd: S, row: &[u8], _: usize, to: &mut [Params]) {
                for (to, eight) in to.iter_mut().zip(row.as_chunks::<$bytes>().0.chunks(8)) {
                    // What is left of before must not be infinite.
                    to.scales = [0.0; 8];
                    for (to, block) in to.scales.iter_mut().zip(eight) {
                        *to = simd.half([block[0], block[1]]);
                    }
                }
            }

            #[inline(always)]
            fn codes<S: Ints>(
                $simd: S,
                row: &[u8],
                _: usize,
                chunk: usize,
                spare: &mut Spare,
            ) -> [S::Bytes; 2] {
                let four: &[u8; 4 * $bytes] = piece(row, 4 * $bytes * chunk, spare);
                let $blocks = four.as_chunks::<$bytes>().0;
                $codes
            }
        }
    };
}

/// 16 bytes at the same place of four blocks.
#[inline(always)]
fn sixteen<S: Ints, const N: usize>(simd: S, blocks: &[[u8; N]], at: usize) -> S::Bytes {
    let mut quarters = [&[0; 16]; 4];
    for (to, block) in quarters.iter_mut().zip(blocks) {
        if let Some(part) = block[at..].first_chunk() {
            *to = part;
        }
    }
    simd.quarters(quarters)
}

blocks!(Q8_0, 34, true, Zero::None, |simd, blocks| [sixteen(simd, blocks, 2), sixteen(simd, blocks, 18)]);
blocks!(Q4_0, 18, false, Zero::All(8), |simd, blocks| {
    let v = sixteen(simd, blocks, 2);
    [simd.shift_right(v, 0, 15), simd.shift_right(v, 4, 15)]
});
blocks!(Q5_0, 22, false, Zero::All(16), |simd, blocks| {
    let mut fifth = [0; 16];
    for (to, block) in fifth.as_chunks_mut::<4>().0.iter_mut().zip(blocks) {
        to.copy_from_slice(&block[2..6]);
    }
    let (v, fifth) = (sixteen(simd, blocks, 6), simd.bits(&fifth, 16));
    [simd.or(simd.shift_right(v, 0, 15), fifth[0]), simd.or(simd.shift_right(v, 4, 15), fifth[1])]
});
