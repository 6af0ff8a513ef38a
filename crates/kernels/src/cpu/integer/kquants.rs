//! GGUF blocks of 256 weights.

use super::{Coded, Cut, ROWS, Zero};
use crate::cpu::simd::Ints;
use airllm_format::NumFormat;

macro_rules! kquant {
    ($name:ident, $bytes:literal, $limit:expr, $zero:expr, $factors:literal, $least:literal, |$simd:ident, $block:ident, $chunk:ident| $codes:expr, $($parameters:item),* $(,)?) => {
        #[derive(Clone, Copy)]
        pub(crate) struct $name;

        impl Coded for $name {
            const FORMAT: NumFormat = NumFormat::$name;
            const ZERO: Zero = $zero;
            const FACTORS: bool = $factors;
            const LEAST: usize = $least;
            const LIMIT: i32 = $limit;

            type Row<'a> = Cut<'a, $bytes>;

            #[inline(always)]
            fn row(bytes: &[u8], _: usize) -> Self::Row<'_> {
                Cut::new(bytes)
            }

            #[inline(always)]
            fn codes<S: Ints>($simd: S, row: &Self::Row<'_>, chunk: usize) -> [S::Bytes; 2] {
                let $block = row.at(chunk / 2);
                let $chunk = chunk % 2;
                $codes
            }

            $($parameters)*
        }
    };
}

/// The binary16 at `at` in the block of each row, for all of its steps.
#[inline(always)]
fn block_halves<S: Ints, const N: usize>(
    simd: S,
    rows: &[Cut<'_, N>; ROWS],
    chunk: usize,
    at: usize,
    sign: u16,
) -> S::Floats {
    let mut halves = [0; ROWS];
    for r in 0..ROWS {
        let block = rows[r].at(chunk / 2);
        halves[r] = u16::from_le_bytes([block[at], block[at + 1]]) ^ sign;
    }
    simd.row_halves(halves)
}

/// Turns the sign of a binary16.
const MINUS: u16 = 0x8000;

kquant!(
    Q6K,
    210,
    // Codes of 32 times factors of 128.
    i32::MAX / (32 * 128),
    Zero::All(32),
    true,
    0,
    |simd, block, chunk| {
        let v = simd.bytes(part(&block[..128], chunk));
        let low = simd.unzip(simd.shift_right(v, 0, 15), simd.shift_right(v, 4, 15));
        let high: &[u8; 32] = part(&block[128..192], chunk);
        let [a, b] = two_bits(simd, high);
        [simd.or(low[0], simd.shift_left(a, 4)), simd.or(low[1], simd.shift_left(b, 4))]
    },
    #[inline(always)]
    fn scales<S: Ints>(simd: S, rows: &[Self::Row<'_>; ROWS], chunk: usize) -> S::Floats {
        block_halves::<S, 210>(simd, rows, chunk, 208, 0)
    },
    #[inline(always)]
    fn factors<S: Ints>(simd: S, row: &Self::Row<'_>, chunk: usize) -> S::Eight {
        let eight: &[u8; 8] = part(&row.at(chunk / 2)[192..208], chunk % 2);
        simd.eight(eight.map(|factor| i16::from(factor as i8)))
    }
);
kquant!(
    Q5K,
    176,
    i32::MAX,
    Zero::None,
    false,
    1,
    |simd, block, chunk| {
        let low = four_bits(simd, part(&block[48..], chunk));
        let [first, second] = [part(&block[16..48], 0), part(&block[16..48], 1)];
        let by = if chunk == 0 { [0, 1, 2, 3] } else { [4, 5, 6, 7] };
        let high = [simd.lanes(first, by, 1), simd.lanes(second, by, 1)];
        [simd.or(low[0], simd.shift_left(high[0], 4)), simd.or(low[1], simd.shift_left(high[1], 4))]
    },
    #[inline(always)]
    fn scales<S: Ints>(simd: S, rows: &[Self::Row<'_>; ROWS], chunk: usize) -> S::Floats {
        six_bits::<S, 176>(simd, rows, chunk, 0)
    },
    #[inline(always)]
    fn least<S: Ints>(simd: S, rows: &[Self::Row<'_>; ROWS], chunk: usize) -> [S::Floats; 2] {
        [six_bits::<S, 176>(simd, rows, chunk, 1); 2]
    }
);
kquant!(
    Q4K,
    144,
    i32::MAX,
    Zero::None,
    false,
    1,
    |simd, block, chunk| four_bits(simd, part(&block[16..], chunk)),
    #[inline(always)]
    fn scales<S: Ints>(simd: S, rows: &[Self::Row<'_>; ROWS], chunk: usize) -> S::Floats {
        six_bits::<S, 144>(simd, rows, chunk, 0)
    },
    #[inline(always)]
    fn least<S: Ints>(simd: S, rows: &[Self::Row<'_>; ROWS], chunk: usize) -> [S::Floats; 2] {
        [six_bits::<S, 144>(simd, rows, chunk, 1); 2]
    }
);
kquant!(
    Q3K,
    110,
    i32::MAX,
    Zero::All(4),
    true,
    0,
    |simd, block, chunk| {
        let low: &[u8; 32] = part(&block[32..96], chunk);
        let low = two_bits(simd, low);
        let [first, second] = [part(&block[..32], 0), part(&block[..32], 1)];
        let by = if chunk == 0 { [0, 1, 2, 3] } else { [4, 5, 6, 7] };
        let high = [simd.lanes(first, by, 1), simd.lanes(second, by, 1)];
        [simd.or(low[0], simd.shift_left(high[0], 2)), simd.or(low[1], simd.shift_left(high[1], 2))]
    },
    #[inline(always)]
    fn scales<S: Ints>(simd: S, rows: &[Self::Row<'_>; ROWS], chunk: usize) -> S::Floats {
        block_halves::<S, 110>(simd, rows, chunk, 108, 0)
    },
    #[inline(always)]
    fn factors<S: Ints>(simd: S, row: &Self::Row<'_>, chunk: usize) -> S::Eight {
        // The low four bits of 16 numbers in 8 bytes, the high two in 4.
        let block = row.at(chunk / 2);
        let low: &[u8; 8] = part(&block[96..104], 0);
        let high: &[u8; 4] = part(&block[104..108], 0);
        let low = u64::from_le_bytes(*low) >> (chunk % 2 * 4) & 0x0f0f_0f0f_0f0f_0f0f;
        let high = u32::from_le_bytes(*high) >> (chunk % 2 * 4);
        let both = |high: u32| u64::from(high & 0x0303_0303) << 4;
        let six = low | both(high) | both(high >> 2) << 32;
        simd.eight(six.to_le_bytes().map(|factor| i16::from(factor) - 32))
    }
);
kquant!(
    Q2K,
    84,
    i32::MAX,
    Zero::None,
    true,
    2,
    |simd, block, chunk| {
        let v: &[u8; 32] = part(&block[16..80], chunk);
        two_bits(simd, v)
    },
    #[inline(always)]
    fn scales<S: Ints>(simd: S, rows: &[Self::Row<'_>; ROWS], chunk: usize) -> S::Floats {
        block_halves::<S, 84>(simd, rows, chunk, 80, 0)
    },
    #[inline(always)]
    fn factors<S: Ints>(simd: S, row: &Self::Row<'_>, chunk: usize) -> S::Eight {
        let eight: &[u8; 8] = part(&row.at(chunk / 2)[..16], chunk % 2);
        simd.eight(eight.map(|both| i16::from(both & 15)))
    },
    #[inline(always)]
    fn least<S: Ints>(simd: S, rows: &[Self::Row<'_>; ROWS], chunk: usize) -> [S::Floats; 2] {
        let scales = block_halves::<S, 84>(simd, rows, chunk, 82, MINUS);
        let mut halves = [[[0; 4]; ROWS]; 2];
        for r in 0..ROWS {
            let eight: &[u8; 8] = part(&rows[r].at(chunk / 2)[..16], chunk % 2);
            for i in 0..8 {
                halves[i % 2][r][i / 2] = eight[i] >> 4;
            }
        }
        let of = |rows| simd.floats(simd.bytes_of(rows));
        [simd.mul(of(halves[0]), scales), simd.mul(of(halves[1]), scales)]
    }
);

#[inline(always)]
fn part<const N: usize>(bytes: &[u8], at: usize) -> &[u8; N] {
    &bytes.as_chunks::<N>().0[at]
}

/// Codes of a chunk of `q4_k`: of two steps the low, then the high halves of 32 bytes, twice.
#[inline(always)]
fn four_bits<S: Ints>(simd: S, from: &[u8; 64]) -> [S::Bytes; 2] {
    let v = simd.bytes(from);
    simd.transpose(simd.shift_right(v, 0, 15), simd.shift_right(v, 4, 15))
}

/// Four steps in two bits each of 32 bytes.
#[inline(always)]
fn two_bits<S: Ints>(simd: S, from: &[u8; 32]) -> [S::Bytes; 2] {
    let [first, second] = [part(from, 0), part(from, 1)];
    [simd.lanes(first, [0, 2, 4, 6], 3), simd.lanes(second, [0, 2, 4, 6], 3)]
}

/// The parameters at the start of `q4_k` and `q5_k` blocks: two f16, then eight scales and eight least
/// weights of six bits in 12 bytes. `which` is 0 for the scales, 1 for the least weights.
#[inline(always)]
fn six_bits<S: Ints, const N: usize>(
    simd: S,
    rows: &[Cut<'_, N>; ROWS],
    chunk: usize,
    which: usize,
) -> S::Floats {
    let mut factors = [[0; 4]; ROWS];
    for r in 0..ROWS {
        let block = rows[r].at(chunk / 2);
        let word = |at: usize| u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
        let first = word(4 + 4 * which);
        let six = if chunk.is_multiple_of(2) {
            first & 0x3f3f_3f3f
        } else {
            word(12) >> (4 * which) & 0x0f0f_0f0f | first >> 2 & 0x3030_3030
        };
        factors[r] = six.to_le_bytes();
    }
    let scales = block_halves::<S, N>(simd, rows, chunk, 2 * which, if which == 1 { MINUS } else { 0 });
    simd.mul(simd.floats(simd.bytes_of(factors)), scales)
}
