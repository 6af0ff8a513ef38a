//! One token, or a few: weights go straight from memory into the sums of all tokens.

use super::operand::Operand;
use super::{BLOCK, CHUNK, Coded, Params, numbers, scale};
use crate::Result;
use crate::cpu::Cpu;
use crate::cpu::matmul::results;
use crate::cpu::simd::{Eight, IntJob, IntLevel, Ints};
use std::marker::PhantomData;

/// Bytes of weights in a piece of work.
const PIECE_BYTES: usize = 64 << 10;

/// How many bytes ahead memory is asked for.
const AHEAD: usize = 4096;

/// All rows times at most eight tokens; `y` are the tokens' results.
pub(super) fn few<'y, C: Coded>(
    cpu: &Cpu,
    level: IntLevel,
    w: &[u8],
    cols: usize,
    x: &Operand<'_>,
    y: impl Iterator<Item = &'y mut [f32]>,
) -> Result<()> {
    let row_bytes = C::FORMAT.row_bytes(cols);
    let rows = w.len() / row_bytes;
    let piece = (PIECE_BYTES / row_bytes).max(1);
    let pieces = w.chunks(piece * row_bytes).zip(results(y, piece, rows));
    let hands = cpu.pool.hands(2 * (rows as u64) * (cols as u64) * (x.tokens as u64));
    let eights = x.blocks * size_of::<Params>() / size_of::<Eight>();
    let mut scratch = cpu.shelf.take_each(hands, eights)?;
    cpu.pool.share(&mut scratch, pieces, |params, pieces| {
        for (w, mut y) in pieces {
            let params: &mut [Params] = bytemuck::cast_slice_mut(params);
            let (y, format) = (&mut y[..], PhantomData::<C>);
            match x.tokens {
                1 => level.run(Few::<C, 1> { w, row_bytes, cols, x, y, params, format }),
                2..=4 => level.run(Few::<C, 4> { w, row_bytes, cols, x, y, params, format }),
                _ => level.run(Few::<C, 8> { w, row_bytes, cols, x, y, params, format }),
            }
        }
    });
    Ok(())
}

/// Some rows times at most `T` tokens.
struct Few<'a, 'y, C, const T: usize> {
    w: &'a [u8],
    row_bytes: usize,
    cols: usize,
    x: &'a Operand<'a>,
    y: &'a mut [&'y mut [f32]],
    params: &'a mut [Params],
    format: PhantomData<C>,
}

impl<C: Coded, const T: usize> IntJob for Few<'_, '_, C, T> {
    type Out = ();

    #[inline(always)]
    fn run<S: Ints>(self, simd: S) {
        let Few { w, row_bytes, cols, x, y, params, .. } = self;
        let mut tokens = [Token { numbers: &[], scales: &[], sums: &[] }; T];
        for t in 0..T {
            // What is missing is done twice.
            let token = t.min(x.tokens - 1);
            let numbers = x.numbers(token, 0, x.blocks).as_flattened().as_chunks().0.as_chunks().0;
            let (scales, sums) = (x.scales(token, 0, x.blocks), x.sums(token, 0, x.blocks));
            tokens[t] = Token { numbers, scales, sums };
        }
        let rows = w.len() / row_bytes;
        for row in 0..rows {
            let after = &w[row * row_bytes..];
            let bytes = &after[..row_bytes];
            C::params(simd, bytes, cols, params);
            let sums = sums::<S, C, T>(simd, bytes, cols, &tokens, params, after);
            for (y, sum) in y.iter_mut().zip(sums) {
                y[row] = simd.sum(sum);
            }
        }
    }
}

/// A token's numbers by chunks, and the scales and sums of its blocks.
#[derive(Clone, Copy)]
struct Token<'a> {
    numbers: &'a [[[i16; 32]; 4]],
    scales: &'a [f32],
    sums: &'a [[i32; 16]],
}

/// The running sums of a row times `T` tokens. `after` begins with this row; as many bytes that follow
/// it are fetched meanwhile, for rows are too short for the processor to see where reading goes.
#[inline(always)]
fn sums<S: Ints, C: Coded, const T: usize>(
    simd: S,
    row: &[u8],
    cols: usize,
    tokens: &[Token<'_>; T],
    params: &[Params],
    after: &[u8],
) -> [S::Floats; T] {
    let chunks = cols.div_ceil(CHUNK);
    // Bytes of a chunk, near enough.
    let pace = const { C::FORMAT.row_bytes(100 * BLOCK) / (100 * BLOCK / CHUNK) };
    let mut ahead = AHEAD;
    let spare = &mut [0; 256];
    let mut sums = [simd.splat(0.0); T];
    let mut chunk = 0;
    for params in params {
        // With one token its four vectors have sums of their own, so that none waits for another.
        let mut whole = [[simd.no_sums(); 4]; T];
        for half in 0..2 {
            if chunk == chunks {
                break;
            }
            for line in 0..pace / 64 + 1 {
                simd.prefetch(after, ahead + 64 * line);
            }
            ahead += pace;
            let w = numbers::<S, C>(simd, row, cols, chunk, params, spare);
            for t in 0..T {
                let x = &tokens[t].numbers[chunk];
                for v in 0..4 {
                    let to = if T == 1 { v } else { 0 };
                    whole[t][to] = simd.dot(whole[t][to], w[v], simd.words(&x[v]));
                }
            }
            chunk += 1;
            if C::ONE_SCALE && half == 0 && chunk < chunks {
                continue;
            }
            let block = (chunk - 1) / 2;
            for t in 0..T {
                let x = tokens[t].scales[block];
                let mut sum = whole[t][0];
                if T == 1 {
                    sum = simd
                        .add_sums(simd.add_sums(sum, whole[t][1]), simd.add_sums(whole[t][2], whole[t][3]));
                }
                let scale = scale(simd, C::ONE_SCALE, params, chunk - 1, x);
                sums[t] = simd.add_product(sums[t], simd.floats(sum), scale);
                if C::LEAST {
                    let least = simd.splat(params.scales[1] * x);
                    let groups = simd.mul_sums(&params.zeros, &tokens[t].sums[block]);
                    sums[t] = simd.add_product(sums[t], simd.floats(groups), least);
                }
                whole[t] = [simd.no_sums(); 4];
            }
        }
    }
    sums
}
