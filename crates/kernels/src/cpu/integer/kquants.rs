//! GGUF blocks of 256 weights.

use super::{Coded, Params, Spare, Zero, piece};
use crate::cpu::simd::Ints;
use airllm_format::NumFormat;

macro_rules! kquant {
    ($name:ident, $bytes:literal, $zero:expr, $least:literal, |$simd:ident, $block:ident, $to:ident| $params:expr, |$chunk:ident| $codes:expr) => {
        #[derive(Clone, Copy)]
        pub(crate) struct $name;

        impl Coded for $name {
            const FORMAT: NumFormat = NumFormat::$name;
            const ZERO: Zero = $zero;
            const FACTORS: bool = true;
            const ONE_SCALE: bool = true;
            const LEAST: bool = $least;

            #[inline(always)]
            fn params<S: Ints>($simd: S, row: &[u8], _: usize, to: &mut [Params]) {
                for ($to, $block) in to.iter_mut().zip(row.as_chunks::<$bytes>().0) {
                    $params
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
                let $block: &[u8; $bytes] = piece(row, chunk / 2 * $bytes, spare);
                let $chunk = chunk % 2;
                $codes
            }
        }
    };
}

kquant!(
    Q6K,
    210,
    Zero::All(32),
    false,
    |simd, block, to| {
        for (to, &factor) in to.factors.iter_mut().zip(&block[192..208]) {
            *to = i16::from(factor as i8);
        }
        to.scales[0] = simd.half([block[208], block[209]]);
    },
    |chunk| {
        let v = simd.bytes(part(&block[..128], chunk));
        let low = simd.unzip(simd.shift_right(v, 0, 15), simd.shift_right(v, 4, 15));
        let high: &[u8; 32] = part(&block[128..192], chunk);
        let [a, b] = two_bits(simd, high);
        [simd.or(low[0], simd.shift_left(a, 4)), simd.or(low[1], simd.shift_left(b, 4))]
    }
);
kquant!(Q5K, 176, Zero::None, true, |simd, block, to| six_bits(simd, block, to), |chunk| {
    let low = four_bits(simd, part(&block[48..], chunk));
    let [first, second] = [part(&block[16..48], 0), part(&block[16..48], 1)];
    let by = if chunk == 0 { [0, 1, 2, 3] } else { [4, 5, 6, 7] };
    let high = [simd.lanes(first, by, 1), simd.lanes(second, by, 1)];
    [simd.or(low[0], simd.shift_left(high[0], 4)), simd.or(low[1], simd.shift_left(high[1], 4))]
});
kquant!(Q4K, 144, Zero::None, true, |simd, block, to| six_bits(simd, block, to), |chunk| four_bits(
    simd,
    part(&block[16..], chunk)
));
kquant!(
    Q3K,
    110,
    Zero::All(4),
    false,
    |simd, block, to| {
        // The low four bits of 16 numbers in 8 bytes, the high two in 4.
        for p in 0..16 {
            let low = block[96 + p % 8] >> (p / 8 * 4) & 15;
            let high = block[104 + p % 4] >> (p / 4 * 2) & 3;
            to.factors[p] = i16::from(low | high << 4) - 32;
        }
        to.scales[0] = simd.half([block[108], block[109]]);
    },
    |chunk| {
        let low: &[u8; 32] = part(&block[32..96], chunk);
        let low = two_bits(simd, low);
        let [first, second] = [part(&block[..32], 0), part(&block[..32], 1)];
        let by = if chunk == 0 { [0, 1, 2, 3] } else { [4, 5, 6, 7] };
        let high = [simd.lanes(first, by, 1), simd.lanes(second, by, 1)];
        [simd.or(low[0], simd.shift_left(high[0], 2)), simd.or(low[1], simd.shift_left(high[1], 2))]
    }
);
kquant!(
    Q2K,
    84,
    Zero::None,
    true,
    |simd, block, to| {
        for p in 0..16 {
            (to.factors[p], to.zeros[p]) = (i16::from(block[p] & 15), i16::from(block[p] >> 4));
        }
        to.scales[0] = simd.half([block[80], block[81]]);
        to.scales[1] = -simd.half([block[82], block[83]]);
    },
    |chunk| {
        let v: &[u8; 32] = part(&block[16..80], chunk);
        two_bits(simd, v)
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
/// weights of six bits in 12 bytes.
#[inline(always)]
fn six_bits<S: Ints>(simd: S, block: &[u8], to: &mut Params) {
    let word = |at: usize| u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
    let (scales, mins, both) = (word(4), word(8), word(12));
    let last = |low: u32, high: u32| low & 0x0f0f_0f0f | high >> 2 & 0x3030_3030;
    let first = |low: u32| low & 0x3f3f_3f3f;
    let both_words = |first: u32, second: u32| (u64::from(first) | u64::from(second) << 32).to_le_bytes();
    let (factors, zeros) =
        (both_words(first(scales), last(both, scales)), both_words(first(mins), last(both >> 4, mins)));
    // One for each 32 columns: twice.
    to.factors = simd.double(&factors, 16, 0x00ff_00ff, 0);
    to.zeros = simd.double(&zeros, 16, 0x00ff_00ff, 0);
    to.scales[0] = simd.half([block[0], block[1]]);
    to.scales[1] = -simd.half([block[2], block[3]]);
}
