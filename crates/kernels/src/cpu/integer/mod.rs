//! Matrix products in integers.
//!
//! Columns come in *chunks* of 128, four *steps* of 32. Activations of a step are rounded to 16 bits under a scale of
//! their own ([`operand`]). The codes of a step, less their zero and times the factors that groups of 16 have, are whole
//! numbers of 16 bits at most, exactly; so the sum of their products with activations is an integer, exact in any order.
//! Weights lose nothing, activations less than f16 would lose.
//!
//! What is done in f32 has a fixed order. A product (one row, one token) has four running sums; the `k`th takes step `k` of
//! each chunk, one chunk after the other: the step's sum of integers, rounded to f32, times the product of both scales, and
//! added, rounded once. Where the format has least weights, they are multiplied with the sum of a step's
//! activations and added in the same way. At the end the four are added up, one after the other. So results are the same
//! bit for bit for all instruction sets, threads, cuts and numbers of tokens: [`few`] and [`many`] differ in how they come
//! to the sums of integers, and in nothing else.

#![allow(clippy::needless_range_loop, reason = "iterators over vectors would not stay in registers")]

mod few;
mod kquants;
mod many;
mod operand;
mod rows;

pub(crate) use kquants::{Q2K, Q3K, Q4K, Q5K, Q6K};
pub(crate) use rows::{Q2, Q3, Q4, Q4_0, Q4_1, Q5, Q5_0, Q5_1, Q6, Q8, Q8_0};

use super::Cpu;
use super::simd::{IntLevel, Ints};
use crate::{Columns, Matrix, Result};
use airllm_format::NumFormat;

/// Columns in a step: activations have one scale for them.
pub(crate) const STEP: usize = 32;
/// Columns in a chunk.
pub(crate) const CHUNK: usize = 128;
/// Rows that are taken together.
const ROWS: usize = 4;

/// What is subtracted from codes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Zero {
    None,
    All(i16),
}

/// A format whose products are computed in integers. Parameters beyond the columns are 0, or anything finite.
pub(crate) trait Coded: Copy + Send + Sync + 'static {
    const FORMAT: NumFormat;
    /// Whether codes take eight bits, not six at most.
    const WIDE: bool = false;
    const ZERO: Zero = Zero::None;
    /// Whether codes are multiplied with [`factors`](Coded::factors).
    const FACTORS: bool = false;
    /// How many least weights a step has.
    const LEAST: usize = 0;
    /// The largest sum of magnitudes of a step's activations with which its products fit 32 bits.
    const LIMIT: i32 = i32::MAX;

    /// A row, cut into chunks.
    type Row<'a>;

    fn row(bytes: &[u8], cols: usize) -> Self::Row<'_>;

    /// The codes of a chunk, unsigned: of the first 16 columns of each step, and of the others. Beyond the columns they are
    /// anything.
    fn codes<S: Ints>(simd: S, row: &Self::Row<'_>, chunk: usize) -> [S::Bytes; 2];

    /// The scales of a chunk's steps, of four rows: number `4k + r` is that of step `k` of row `r`.
    fn scales<S: Ints>(simd: S, rows: &[Self::Row<'_>; ROWS], chunk: usize) -> S::Floats;

    /// What codes of a chunk are multiplied with, for each 16 columns.
    #[inline(always)]
    fn factors<S: Ints>(simd: S, _row: &Self::Row<'_>, _chunk: usize) -> S::Eight {
        simd.eight([0; 8])
    }

    /// What is added to all weights of a chunk's steps, or to the first 16 of them and to the others: in the order of
    /// [`scales`](Coded::scales).
    #[inline(always)]
    fn least<S: Ints>(simd: S, _rows: &[Self::Row<'_>; ROWS], _chunk: usize) -> [S::Floats; 2] {
        [simd.splat(0.0); 2]
    }
}

/// The whole numbers of a chunk: bytes at even places of the first codes, those at odd ones, and of the second codes.
#[inline(always)]
fn numbers<S: Ints, C: Coded>(simd: S, row: &C::Row<'_>, chunk: usize) -> [S::Words; 4] {
    let [first, second] = C::codes(simd, row, chunk);
    let ([a, b], [c, d]) = (simd.unsigned(first), simd.unsigned(second));
    let mut numbers = [a, b, c, d];
    if let Zero::All(zero) = C::ZERO {
        for v in 0..4 {
            numbers[v] = simd.sub_words(numbers[v], simd.splat_words(zero));
        }
    }
    if C::FACTORS {
        let [first, second] = simd.groups(C::factors(simd, row, chunk));
        numbers = [
            simd.mul_words(numbers[0], first),
            simd.mul_words(numbers[1], first),
            simd.mul_words(numbers[2], second),
            simd.mul_words(numbers[3], second),
        ];
    }
    numbers
}

/// Bytes in pieces of `N`, the last one filled up with zeros.
pub(crate) struct Cut<'a, const N: usize> {
    whole: &'a [[u8; N]],
    last: [u8; N],
}

impl<'a, const N: usize> Cut<'a, N> {
    #[inline(always)]
    fn new(bytes: &'a [u8]) -> Self {
        let (whole, rest) = bytes.as_chunks();
        let mut last = [0; N];
        last[..rest.len()].copy_from_slice(rest);
        Cut { whole, last }
    }

    #[inline(always)]
    fn at(&self, piece: usize) -> &[u8; N] {
        self.whole.get(piece).unwrap_or(&self.last)
    }
}

/// Whether products of a format are computed in integers: where codes are whole, and the format is one that weights are
/// rounded to. Checkpoints of GPTQ and AWQ are taken as they are: what is rounded off activations with outliers shows in
/// hidden states there (6e-4 on a fixture that allows 3e-4), so their products stay in f32.
pub(crate) const fn has(format: NumFormat) -> bool {
    use NumFormat as F;
    matches!(
        format,
        F::Q8
            | F::Q6
            | F::Q5
            | F::Q4
            | F::Q3
            | F::Q2
            | F::Q8_0
            | F::Q5_1
            | F::Q5_0
            | F::Q4_1
            | F::Q4_0
            | F::Q6K
            | F::Q5K
            | F::Q4K
            | F::Q3K
            | F::Q2K
    )
}

/// Tokens from which on weights are widened once for all of them.
const MANY: usize = 9;

/// `y[t, out.first + r] = Σ_c x[t, c] · w[r, c]`, sizes already checked, and none of them 0.
pub(crate) fn matmul<C: Coded>(
    cpu: &Cpu,
    level: IntLevel,
    w: Matrix<&[u8]>,
    x: &[f32],
    n: usize,
    y: &mut [f32],
    out: Columns,
) -> Result<()> {
    let Matrix { data, rows, cols, .. } = w;
    let columns = out.first..out.first + rows;
    let data = &data[..rows * C::FORMAT.row_bytes(cols)];
    if n < MANY {
        let y = y.chunks_mut(out.stride).take(n).map(|y| &mut y[columns.clone()]);
        return few::few::<C>(cpu, level, data, cols, &x[..n * cols], y);
    }
    let batch = many::BATCH;
    for (x, y) in x[..n * cols].chunks(batch * cols).zip(y.chunks_mut(batch * out.stride)) {
        let y = y.chunks_mut(out.stride).take(x.len() / cols).map(|y| &mut y[columns.clone()]);
        many::many::<C>(cpu, level, data, cols, x, y)?;
    }
    Ok(())
}
