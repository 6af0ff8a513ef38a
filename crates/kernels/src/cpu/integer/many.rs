//! Many tokens: weights are widened once for all of them.
//!
//! The numbers of 32 rows and 2048 columns are laid down next to the processor, in vectors of 16 rows and two columns
//! each; two of them and six tokens go through the registers at once. Running sums rest in memory between.

use super::operand::{Words, words_room};
use super::{CHUNK, Coded, ROWS, numbers};
use crate::Result;
use crate::cpu::Cpu;
use crate::cpu::matmul::results;
use crate::cpu::simd::{Eight, IntJob, IntLevel, Ints};
use bytemuck::{Pod, Zeroable};
use std::marker::PhantomData;

/// Tokens that share one widening of the weights.
pub(super) const BATCH: usize = 192;
/// Chunks of columns that are widened at once.
const DEPTH: usize = 16;
/// Rows in a vector.
const LANES: usize = 16;
/// Vectors of rows in a piece of work.
const VECTORS: usize = 2;
const PIECE: usize = VECTORS * LANES;

/// Of 16 rows, the steps that have the same place in their chunks.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Steps {
    numbers: [[[i16; 2 * LANES]; 16]; DEPTH],
    scales: [[f32; LANES]; DEPTH],
    least: [[[f32; LANES]; 2]; DEPTH],
}

/// The running sums of a token with the rows of a piece.
type Sums = [[[f32; LANES]; VECTORS]; 4];

/// What a thread works in.
struct Scratch<'a> {
    weights: &'a mut [[Steps; 4]],
    sums: &'a mut [Sums],
}

impl<'a> Scratch<'a> {
    const WEIGHTS: usize = VECTORS * size_of::<[Steps; 4]>() / size_of::<Eight>();

    fn eights(tokens: usize) -> usize {
        Self::WEIGHTS + tokens * size_of::<Sums>() / size_of::<Eight>()
    }

    fn new(room: &'a mut [Eight]) -> Self {
        let (weights, sums) = room.split_at_mut(Self::WEIGHTS);
        Scratch { weights: bytemuck::cast_slice_mut(weights), sums: bytemuck::cast_slice_mut(sums) }
    }
}

/// All rows times all tokens; `y` are the tokens' results.
pub(super) fn many<'y, C: Coded>(
    cpu: &Cpu,
    level: IntLevel,
    w: &[u8],
    cols: usize,
    x: &[f32],
    y: impl Iterator<Item = &'y mut [f32]>,
) -> Result<()> {
    let tokens = x.len() / cols;
    let mut room = cpu.shelf.take(words_room(tokens, cols))?;
    let x = &Words::round::<C>(cpu, level, x, cols, &mut room);
    let row_bytes = C::FORMAT.row_bytes(cols);
    let rows = w.len() / row_bytes;
    let pieces = w.chunks(PIECE * row_bytes).zip(results(y, PIECE, rows));
    let hands = cpu.pool.hands(2 * (rows as u64) * (cols as u64) * (tokens as u64));
    let mut scratch = cpu.shelf.take_each(hands, Scratch::eights(tokens))?;
    cpu.pool.share(&mut scratch, pieces, |room, pieces| {
        let mut scratch = Scratch::new(room);
        for (w, mut y) in pieces {
            scratch.sums.fill(Zeroable::zeroed());
            for first in (0..x.chunks).step_by(DEPTH) {
                let scratch = &mut scratch;
                level.run(Widen::<C> { w, row_bytes, cols, first, scratch, format: PhantomData });
                let rows = w.len() / row_bytes;
                // By what they need to know of a format, for there are many.
                match C::LEAST {
                    0 => level.run(Tiles::<0> { rows, first, x, scratch }),
                    1 => level.run(Tiles::<1> { rows, first, x, scratch }),
                    _ => level.run(Tiles::<2> { rows, first, x, scratch }),
                }
            }
            finish(scratch.sums, &mut y);
        }
    });
    Ok(())
}

/// Lays down at most `DEPTH` chunks of some rows, from chunk `first` on. Vectors that are not full hold rows twice.
struct Widen<'a, 'b, C> {
    w: &'a [u8],
    row_bytes: usize,
    cols: usize,
    first: usize,
    scratch: &'a mut Scratch<'b>,
    format: PhantomData<C>,
}

impl<C: Coded> IntJob for Widen<'_, '_, C> {
    type Out = ();

    #[inline(always)]
    fn run<S: Ints>(self, simd: S) {
        let Widen { w, row_bytes, cols, first, scratch, .. } = self;
        let rows = w.len() / row_bytes;
        let chunks = DEPTH.min(cols.div_ceil(CHUNK) - first);
        for row in (0..rows.next_multiple_of(LANES)).step_by(ROWS) {
            let bytes = |r: usize| C::row(&w[(row + r).min(rows - 1) * row_bytes..][..row_bytes], cols);
            let four = [bytes(0), bytes(1), bytes(2), bytes(3)];
            let to = &mut scratch.weights[row / LANES];
            for chunk in 0..chunks {
                widen::<S, C>(simd, &four, (first + chunk, chunk), row % LANES, to);
            }
        }
    }
}

/// A chunk of four rows goes to rows `row..row + 4`.
#[inline(always)]
fn widen<S: Ints, C: Coded>(
    simd: S,
    rows: &[C::Row<'_>; ROWS],
    (chunk, at): (usize, usize),
    row: usize,
    to: &mut [Steps; 4],
) {
    let mut all = [[simd.splat_words(0); 4]; ROWS];
    for r in 0..ROWS {
        all[r] = numbers::<S, C>(simd, &rows[r], chunk);
    }
    for v in 0..4 {
        let columns = simd.columns([all[0][v], all[1][v], all[2][v], all[3][v]]);
        for j in 0..4 {
            let mut words = [0; 32];
            simd.store_words(columns[j], &mut words);
            for (to, words) in to.iter_mut().zip(words.as_chunks::<8>().0) {
                to.numbers[at][4 * v + j][2 * row..][..8].copy_from_slice(words);
            }
        }
    }
    let mut lanes = [0.0; 16];
    simd.store(C::scales(simd, rows, chunk), &mut lanes);
    for (to, four) in to.iter_mut().zip(lanes.as_chunks::<4>().0) {
        to.scales[at][row..][..4].copy_from_slice(four);
    }
    if C::LEAST > 0 {
        let least = C::least(simd, rows, chunk);
        for i in 0..C::LEAST {
            simd.store(least[i], &mut lanes);
            for (to, four) in to.iter_mut().zip(lanes.as_chunks::<4>().0) {
                to.least[at][i][row..][..4].copy_from_slice(four);
            }
        }
    }
}

/// Rows times all tokens, at most `DEPTH` chunks of columns from chunk `first` on.
struct Tiles<'a, 'b, const LEAST: usize> {
    rows: usize,
    first: usize,
    x: &'a Words<'a>,
    scratch: &'a mut Scratch<'b>,
}

impl<const LEAST: usize> IntJob for Tiles<'_, '_, LEAST> {
    type Out = ();

    #[inline(always)]
    fn run<S: Ints>(self, simd: S) {
        let Tiles { rows, first, x, scratch } = self;
        let Scratch { weights, sums } = scratch;
        if S::MANY_REGISTERS && rows > LANES {
            tiles::<S, 2, 6, LEAST>(simd, weights, 0, first, x, sums);
        } else if S::MANY_REGISTERS {
            tiles::<S, 1, 6, LEAST>(simd, weights, 0, first, x, sums);
        } else {
            for vector in 0..rows.div_ceil(LANES) {
                tiles::<S, 1, 3, LEAST>(simd, weights, vector, first, x, sums);
            }
        }
    }
}

/// `V` vectors of rows from `vector` on, `T` tokens at once.
#[inline(always)]
fn tiles<S: Ints, const V: usize, const T: usize, const LEAST: usize>(
    simd: S,
    weights: &[[Steps; 4]],
    vector: usize,
    first: usize,
    x: &Words<'_>,
    sums: &mut [Sums],
) {
    let chunks = DEPTH.min(x.chunks - first);
    for token in (0..x.tokens).step_by(T) {
        for k in 0..4 {
            let mut w = [&weights[vector][k]; V];
            for v in 0..V {
                w[v] = &weights[vector + v][k];
            }
            let mut tokens = [Token { pairs: &[], scales: &[], least: &[] }; T];
            let mut running = [[simd.splat(0.0); T]; V];
            for t in 0..T {
                // What is missing is done twice.
                let token = (token + t).min(x.tokens - 1);
                let at = (4 * token + k) * x.chunks + first;
                tokens[t] = Token {
                    pairs: &x.pairs[at..][..chunks],
                    scales: &x.scales[at..][..chunks],
                    least: &x.least[at..][..chunks],
                };
                for v in 0..V {
                    running[v][t] = simd.load(&sums[token][k][vector + v]);
                }
            }
            tile::<S, V, T, LEAST>(simd, w, &tokens, chunks, &mut running);
            for t in 0..T.min(x.tokens - token) {
                for v in 0..V {
                    simd.store(running[v][t], &mut sums[token + t][k][vector + v]);
                }
            }
        }
    }
}

#[derive(Clone, Copy)]
struct Token<'a> {
    pairs: &'a [[i32; 16]],
    scales: &'a [f32],
    least: &'a [[f32; 2]],
}

/// Adds to the running sums of a tile what some steps make.
#[inline(always)]
fn tile<S: Ints, const V: usize, const T: usize, const LEAST: usize>(
    simd: S,
    w: [&Steps; V],
    x: &[Token<'_>; T],
    chunks: usize,
    sums: &mut [[S::Floats; T]; V],
) {
    let mut running = *sums;
    for chunk in 0..chunks {
        let mut whole = [[simd.no_sums(); T]; V];
        for p in 0..16 {
            let mut rows = [simd.splat_words(0); V];
            for v in 0..V {
                rows[v] = simd.words(&w[v].numbers[chunk][p]);
            }
            for t in 0..T {
                let pair = simd.pair(x[t].pairs[chunk][p]);
                for v in 0..V {
                    whole[v][t] = simd.dot(whole[v][t], rows[v], pair);
                }
            }
        }
        for v in 0..V {
            let scales = simd.load(&w[v].scales[chunk]);
            for t in 0..T {
                let scale = simd.mul(scales, simd.splat(x[t].scales[chunk]));
                running[v][t] = simd.mul_add(simd.floats(whole[v][t]), scale, running[v][t]);
                for i in 0..LEAST {
                    let least = simd.load(&w[v].least[chunk][i]);
                    running[v][t] = simd.mul_add(least, simd.splat(x[t].least[chunk][i]), running[v][t]);
                }
            }
        }
    }
    *sums = running;
}

/// Adds up the running sums: `y[t][r]`.
fn finish(sums: &[Sums], y: &mut [&mut [f32]]) {
    for (sums, y) in sums.iter().zip(y) {
        let [first, second, third, fourth] = sums.each_ref().map(|sums| sums.as_flattened());
        for (r, y) in y.iter_mut().enumerate() {
            *y = ((first[r] + second[r]) + third[r]) + fourth[r];
        }
    }
}
