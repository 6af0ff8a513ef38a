//! Formats whose parameters lie after the codes of a row, and GGUF blocks of 32.

use super::{Coded, Cut, ROWS, STEP, Zero};
use crate::cpu::simd::Ints;
use airllm_format::NumFormat;

/// A format in planes: `LOW` bytes of a chunk in the first plane, `HIGH` in the second.
pub(crate) struct Planes<'a, const LOW: usize, const HIGH: usize> {
    low: Cut<'a, LOW>,
    high: Cut<'a, HIGH>,
    scales: Cut<'a, 4>,
    halves: Cut<'a, 2>,
}

impl<'a, const LOW: usize, const HIGH: usize> Planes<'a, LOW, HIGH> {
    /// `low` and `high` are bytes of a step.
    #[inline(always)]
    fn new(row: &'a [u8], cols: usize, low: usize, high: usize) -> Self {
        let steps = cols.div_ceil(STEP);
        let high_at = (steps * low).next_multiple_of(16);
        let scales_at = high_at + (steps * high).next_multiple_of(16);
        let halves_at = scales_at + steps.next_multiple_of(2);
        let (codes, rest) = row.split_at(scales_at.min(row.len()));
        let (low, high) = codes.split_at(high_at.min(codes.len()));
        let (scales, halves) = rest.split_at((halves_at - scales_at).min(rest.len()));
        Planes {
            low: Cut::new(low),
            high: Cut::new(high),
            scales: Cut::new(scales),
            halves: Cut::new(halves),
        }
    }
}

macro_rules! planes {
    ($name:ident, $low:literal, $high:literal, $high_chunk:literal, $zero:literal, $bias:literal, |$simd:ident, $row:ident, $chunk:ident| $codes:expr) => {
        #[derive(Clone, Copy)]
        pub(crate) struct $name;

        impl Coded for $name {
            const FORMAT: NumFormat = NumFormat::$name;
            const ZERO: Zero = Zero::All($zero);
            const FACTORS: bool = true;

            type Row<'a> = Planes<'a, { 4 * $low }, $high_chunk>;

            #[inline(always)]
            fn row(bytes: &[u8], cols: usize) -> Self::Row<'_> {
                Planes::new(bytes, cols, $low, $high)
            }

            #[inline(always)]
            fn codes<S: Ints>($simd: S, $row: &Self::Row<'_>, $chunk: usize) -> [S::Bytes; 2] {
                $codes
            }

            #[inline(always)]
            fn scales<S: Ints>(simd: S, rows: &[Self::Row<'_>; ROWS], chunk: usize) -> S::Floats {
                let half = |r: usize| u16::from_le_bytes(*rows[r].halves.at(chunk / 2));
                simd.row_halves([half(0), half(1), half(2), half(3)])
            }

            /// Numbers of four bits.
            #[inline(always)]
            fn factors<S: Ints>(simd: S, row: &Self::Row<'_>, chunk: usize) -> S::Eight {
                simd.nibbles(*row.scales.at(chunk), $bias)
            }
        }
    };
}

planes!(Q6, 16, 8, 32, 32, 0, |simd, row, chunk| {
    let (low, high) = (nibbles(simd, row.low.at(chunk)), simd.pairs(row.high.at(chunk)));
    let [a, b] = [simd.shift_left(high[0], 4), simd.shift_left(high[1], 4)];
    [simd.or(low[0], a), simd.or(low[1], b)]
});
planes!(Q5, 16, 4, 16, 16, 0, |simd, row, chunk| {
    let (low, high) = (nibbles(simd, row.low.at(chunk)), simd.bits(row.high.at(chunk), 16));
    [simd.or(low[0], high[0]), simd.or(low[1], high[1])]
});
planes!(Q4, 16, 0, 16, 8, 8, |simd, row, chunk| nibbles(simd, row.low.at(chunk)));
planes!(Q3, 8, 4, 16, 4, 8, |simd, row, chunk| {
    let (low, high) = (simd.pairs(row.low.at(chunk)), simd.bits(row.high.at(chunk), 4));
    [simd.or(low[0], high[0]), simd.or(low[1], high[1])]
});
planes!(Q2, 8, 0, 16, 2, 8, |simd, row, chunk| simd.pairs(row.low.at(chunk)));

/// The low, then the high four bits of each byte.
#[inline(always)]
fn nibbles<S: Ints>(simd: S, bytes: &[u8; 64]) -> [S::Bytes; 2] {
    let v = simd.bytes(bytes);
    [simd.shift_right(v, 0, 15), simd.shift_right(v, 4, 15)]
}

/// Codes of eight bits, then a scale for each 64 columns.
pub(crate) struct Bytes<'a> {
    codes: Cut<'a, 128>,
    scales: Cut<'a, 4>,
}

#[derive(Clone, Copy)]
pub(crate) struct Q8;

impl Coded for Q8 {
    const FORMAT: NumFormat = NumFormat::Q8;
    const WIDE: bool = true;
    const ZERO: Zero = Zero::All(128);

    type Row<'a> = Bytes<'a>;

    #[inline(always)]
    fn row(bytes: &[u8], cols: usize) -> Self::Row<'_> {
        let groups = cols.div_ceil(64);
        let (codes, rest) = bytes.split_at((64 * groups).min(bytes.len()));
        Bytes { codes: Cut::new(codes), scales: Cut::new(&rest[..(2 * groups).min(rest.len())]) }
    }

    #[inline(always)]
    fn codes<S: Ints>(simd: S, row: &Self::Row<'_>, chunk: usize) -> [S::Bytes; 2] {
        let [first, second] = bytes(simd, row.codes.at(chunk));
        [simd.flip(first), simd.flip(second)]
    }

    #[inline(always)]
    fn scales<S: Ints>(simd: S, rows: &[Self::Row<'_>; ROWS], chunk: usize) -> S::Floats {
        let mut halves = [0; ROWS];
        for r in 0..ROWS {
            let both = u32::from_le_bytes(*rows[r].scales.at(chunk));
            let (first, second) = (u64::from(both & 0xffff), u64::from(both >> 16));
            halves[r] = first | first << 16 | second << 32 | second << 48;
        }
        simd.halves_of(halves)
    }
}

/// 128 bytes in the order of columns.
#[inline(always)]
fn bytes<S: Ints>(simd: S, both: &[u8; 128]) -> [S::Bytes; 2] {
    let (halves, _) = both.as_chunks::<64>();
    simd.unzip(simd.bytes(&halves[0]), simd.bytes(&halves[1]))
}

/// GGUF blocks of 32 that begin with their scale; least weights follow, where there are some.
macro_rules! blocks {
    ($name:ident, $bytes:literal, $wide:literal, $zero:expr, $least:literal, |$simd:ident, $blocks:ident| $codes:expr) => {
        #[derive(Clone, Copy)]
        pub(crate) struct $name;

        impl Coded for $name {
            const FORMAT: NumFormat = NumFormat::$name;
            const WIDE: bool = $wide;
            const ZERO: Zero = $zero;
            const LEAST: usize = $least;

            type Row<'a> = Cut<'a, { 4 * $bytes }>;

            #[inline(always)]
            fn row(bytes: &[u8], _: usize) -> Self::Row<'_> {
                Cut::new(bytes)
            }

            #[inline(always)]
            fn codes<S: Ints>($simd: S, row: &Self::Row<'_>, chunk: usize) -> [S::Bytes; 2] {
                let $blocks = row.at(chunk);
                $codes
            }

            #[inline(always)]
            fn scales<S: Ints>(simd: S, rows: &[Self::Row<'_>; ROWS], chunk: usize) -> S::Floats {
                block_halves::<S, { 4 * $bytes }>(simd, rows, chunk, 0)
            }

            #[inline(always)]
            fn least<S: Ints>(simd: S, rows: &[Self::Row<'_>; ROWS], chunk: usize) -> [S::Floats; 2] {
                [block_halves::<S, { 4 * $bytes }>(simd, rows, chunk, 2); 2]
            }
        }
    };
}

/// The numbers of 16 bits at byte `at` of a chunk's four blocks.
#[inline(always)]
fn block_halves<S: Ints, const N: usize>(
    simd: S,
    rows: &[Cut<'_, N>; ROWS],
    chunk: usize,
    at: usize,
) -> S::Floats {
    let four = [rows[0].at(chunk), rows[1].at(chunk), rows[2].at(chunk), rows[3].at(chunk)];
    if let [Some(a), Some(b), Some(c), Some(d)] = four.map(|row| row[at..].first_chunk())
        && 3 * N / 8 < 32
    {
        return match N / 8 {
            9 => simd.strided_halves::<9>([a, b, c, d]),
            _ => simd.strided_halves::<10>([a, b, c, d]),
        };
    }
    let half = |row: &[u8; N], k: usize| {
        let from = k * (N / 4) + at;
        u64::from(u16::from_le_bytes([row[from], row[from + 1]])) << (16 * k)
    };
    let mut halves = [0; ROWS];
    for r in 0..ROWS {
        halves[r] = half(four[r], 0) | half(four[r], 1) | half(four[r], 2) | half(four[r], 3);
    }
    simd.halves_of(halves)
}

/// Bytes at the same place of four blocks.
#[inline(always)]
fn places<const N: usize, const BYTES: usize>(blocks: &[u8; N], at: usize) -> [&[u8; BYTES]; 4] {
    let place = |k: usize| blocks[k * (N / 4) + at..].first_chunk().unwrap_or(&[0; BYTES]);
    [place(0), place(1), place(2), place(3)]
}

/// The low, then the high four bits of 16 bytes of four blocks.
#[inline(always)]
fn low_bits<S: Ints, const N: usize>(simd: S, blocks: &[u8; N], at: usize) -> [S::Bytes; 2] {
    let v = simd.quarters(places(blocks, at));
    [simd.shift_right(v, 0, 15), simd.shift_right(v, 4, 15)]
}

/// The fifth bits, before the others.
#[inline(always)]
fn five_bits<S: Ints, const N: usize>(simd: S, blocks: &[u8; N], at: usize) -> [S::Bytes; 2] {
    let [a, b, c, d] = places::<N, 4>(blocks, at);
    let mut fifth = [0; 16];
    fifth.copy_from_slice([*a, *b, *c, *d].as_flattened());
    let (low, fifth) = (low_bits(simd, blocks, at + 4), simd.bits(&fifth, 16));
    [simd.or(low[0], fifth[0]), simd.or(low[1], fifth[1])]
}

blocks!(Q8_0, 34, true, Zero::All(128), 0, |simd, blocks| [
    simd.flip(simd.quarters(places(blocks, 2))),
    simd.flip(simd.quarters(places(blocks, 18)))
]);
blocks!(Q4_0, 18, false, Zero::All(8), 0, |simd, blocks| low_bits(simd, blocks, 2));
blocks!(Q4_1, 20, false, Zero::None, 1, |simd, blocks| low_bits(simd, blocks, 4));
blocks!(Q5_0, 22, false, Zero::All(16), 0, |simd, blocks| five_bits(simd, blocks, 2));
blocks!(Q5_1, 24, false, Zero::None, 1, |simd, blocks| five_bits(simd, blocks, 4));
