//! Matrix products in integers.
//!
//! The codes of 256 columns of a row are made whole numbers of 16 bits that are multiples of one f32, the scales of
//! smaller groups multiplied in, exactly; activations are rounded to 16 bits under a scale for 256 columns
//! ([`operand`]). What is left are sums of products of whole numbers, exact in any order, and few f32 operations.
//! Weights lose nothing, activations less than f16 would lose.
//!
//! The order of the f32 operations is fixed. A product (one row, one token) has sixteen running sums. Columns come in
//! *chunks* of 128, four steps of 32; running sum `4k + i` takes columns `32k + 4i .. 32k + 4i + 4` and
//! `32k + 16 + 4i ..` of each chunk. A *run* is what has one scale for all that a running sum takes: two chunks where
//! the format has one for 256 columns, else one. For each run in order, the sum of integers is rounded to f32, multiplied
//! with the scale, and added; where the format has least weights, so are they, times the sums of activations of
//! 16 columns. At the end the sixteen are added up. So results are the same bit for bit for all instruction sets,
//! threads, cuts and numbers of tokens: [`few`] and [`many`] do the same operations.

#![allow(clippy::needless_range_loop, reason = "iterators over vectors would not stay in registers")]

mod few;
mod kquants;
mod many;
mod operand;
mod rows;

pub(crate) use kquants::{Q2K, Q3K, Q4K, Q5K, Q6K};
pub(crate) use rows::{A4, A4G64, A4G128, A8, Q2, Q3, Q4, Q4_0, Q5, Q5_0, Q6, Q8, Q8_0};

use super::Cpu;
use super::simd::{IntLevel, Ints};
use crate::{Columns, Matrix, Result};
use airllm_format::NumFormat;
use bytemuck::{Pod, Zeroable};
use operand::Operand;

/// Columns in a block: activations have one scale for them.
pub(crate) const BLOCK: usize = 256;
/// Columns in a chunk.
pub(crate) const CHUNK: usize = 128;

/// The parameters of a block of a row.
#[derive(Debug, Clone, Copy, Pod, Zeroable, PartialEq)]
#[repr(C, align(32))]
pub(crate) struct Params {
    /// What codes are multiplied with, for each 16 columns.
    pub(crate) factors: [i16; 16],
    /// What is subtracted from codes before, or what the least weights are multiples of.
    pub(crate) zeros: [i16; 16],
    /// A scale for each 32 columns, or the scale of the block and that of its least weights.
    pub(crate) scales: [f32; 8],
}

impl Params {
    pub(crate) const NONE: Params = Params { factors: [0; 16], zeros: [0; 16], scales: [0.0; 8] };
}

/// What is subtracted from codes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Zero {
    None,
    All(i16),
    /// `Params::zeros`.
    Groups,
}

/// A format whose products are computed in integers.
pub(crate) trait Coded: Copy + Send + Sync + 'static {
    const FORMAT: NumFormat;
    /// Whether codes are signed bytes.
    const SIGNED: bool = false;
    const ZERO: Zero = Zero::None;
    /// Whether codes are multiplied with `Params::factors`.
    const FACTORS: bool = false;
    /// Whether a block has one scale: a run is two chunks.
    const ONE_SCALE: bool = false;
    /// Whether a block has least weights: `Params::zeros` times the second of `Params::scales`.
    const LEAST: bool = false;

    /// Takes the parameters of a row, `cols.div_ceil(BLOCK)` of them.
    fn params<S: Ints>(simd: S, row: &[u8], cols: usize, to: &mut [Params]);

    /// The codes of a chunk: of the first 16 columns of each step, and of the others. What it gives beyond
    /// `cols` does not matter.
    fn codes<S: Ints>(simd: S, row: &[u8], cols: usize, chunk: usize, spare: &mut Spare) -> [S::Bytes; 2];
}

/// The whole numbers of a chunk, as [`operand::place`] orders columns.
#[inline(always)]
fn numbers<S: Ints, C: Coded>(
    simd: S,
    row: &[u8],
    cols: usize,
    chunk: usize,
    params: &Params,
    spare: &mut Spare,
) -> [S::Words; 4] {
    let [first, second] = C::codes(simd, row, cols, chunk, spare);
    let ([a, b], [c, d]) = if C::SIGNED {
        (simd.signed(first), simd.signed(second))
    } else {
        (simd.unsigned(first), simd.unsigned(second))
    };
    let mut numbers = [a, b, c, d];
    let (zeros, _) = params.zeros.as_chunks::<8>();
    let (factors, _) = params.factors.as_chunks::<8>();
    let [first, second] = match C::ZERO {
        Zero::None => [simd.splat_words(0); 2],
        Zero::All(zero) => [simd.splat_words(zero); 2],
        Zero::Groups => simd.groups(&zeros[chunk % 2]),
    };
    if C::ZERO != Zero::None {
        numbers = [
            simd.sub_words(numbers[0], first),
            simd.sub_words(numbers[1], first),
            simd.sub_words(numbers[2], second),
            simd.sub_words(numbers[3], second),
        ];
    }
    if C::FACTORS {
        let [first, second] = simd.groups(&factors[chunk % 2]);
        numbers = [
            simd.mul_words(numbers[0], first),
            simd.mul_words(numbers[1], first),
            simd.mul_words(numbers[2], second),
            simd.mul_words(numbers[3], second),
        ];
    }
    numbers
}

/// The scale of a run that begins with `chunk`, for each running sum, times that of the activations.
#[inline(always)]
fn scale<S: Ints>(simd: S, one: bool, params: &Params, chunk: usize, x: f32) -> S::Floats {
    if one {
        simd.splat(params.scales[0] * x)
    } else {
        let (scales, _) = params.scales.as_chunks::<4>();
        simd.mul(simd.spread(&scales[chunk % 2]), simd.splat(x))
    }
}

/// Where the end of a row is copied to, so that readers may take whole vectors.
pub(crate) type Spare = [u8; 256];

/// `bytes[at..at + N]`, zeros where it ends before.
#[inline(always)]
fn piece<'a, const N: usize>(bytes: &'a [u8], at: usize, spare: &'a mut Spare) -> &'a [u8; N] {
    const { assert!(N <= size_of::<Spare>()) };
    let rest = bytes.get(at..).unwrap_or_default();
    match rest.first_chunk() {
        Some(piece) => piece,
        None => {
            patch(rest, spare);
            &spare.as_chunks::<N>().0[0]
        }
    }
}

#[cold]
fn patch(rest: &[u8], spare: &mut Spare) {
    spare.fill(0);
    spare[..rest.len()].copy_from_slice(rest);
}

/// Whether products of a format are computed in integers: where it has whole codes, and no least weights in f32 for
/// groups smaller than a block.
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
            | F::A8
            | F::A4
            | F::A4G64
            | F::A4G128
            | F::Q8_0
            | F::Q5_0
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
    let batch = if n < MANY { n } else { many::BATCH };
    for (x, y) in x[..n * cols].chunks(batch * cols).zip(y.chunks_mut(batch * out.stride)) {
        let tokens = x.len() / cols;
        let mut room = cpu.shelf.take(operand::eights(tokens, cols))?;
        let operand = Operand::round(cpu, level, x, cols, &mut room);
        let y = y.chunks_mut(out.stride).take(tokens).map(|y| &mut y[columns.clone()]);
        if n < MANY {
            few::few::<C>(cpu, level, data, cols, &operand, y)?;
        } else {
            many::many::<C>(cpu, level, data, cols, &operand, y)?;
        }
    }
    Ok(())
}
