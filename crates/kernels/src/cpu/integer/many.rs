//! Many tokens: weights are widened once for all of them.
//!
//! Of some rows, the numbers of 1024 columns are laid down next to the processor; tiles of them and of the tokens' go
//! through the registers. Running sums rest in memory between.

use super::operand::Operand;
use super::{BLOCK, CHUNK, Coded, Params, numbers, scale};
use crate::Result;
use crate::cpu::Cpu;
use crate::cpu::matmul::results;
use crate::cpu::simd::{Eight, IntJob, IntLevel, Ints};
use std::marker::PhantomData;

/// Tokens that share one widening of the weights.
pub(super) const BATCH: usize = 96;
/// Blocks of columns that are widened at once: 96 tokens' numbers take 192 KiB.
const DEPTH: usize = 4;
/// Rows in a piece of work: their numbers take 32 KiB, the sums of 96 tokens 96 KiB.
const PIECE: usize = 16;
/// Rows and tokens of a tile: twelve sums in integers, as many in f32, three vectors of tokens and one of a row.
const ROWS: usize = 4;
const TOKENS: usize = 3;

/// What a thread works in: numbers and parameters of some rows, and their sums.
struct Scratch<'a> {
    numbers: &'a mut [[i16; BLOCK]],
    params: &'a mut [Params],
    sums: &'a mut [[f32; 16]],
}

impl<'a> Scratch<'a> {
    fn eights(tokens: usize, blocks: usize) -> usize {
        let bytes = PIECE * DEPTH * BLOCK * 2 + PIECE * blocks * size_of::<Params>() + PIECE * tokens * 64;
        bytes / size_of::<Eight>()
    }

    fn new(room: &'a mut [Eight], tokens: usize, blocks: usize) -> Self {
        let eight = size_of::<Eight>();
        let (numbers, room) = room.split_at_mut(PIECE * DEPTH * BLOCK * 2 / eight);
        let (sums, room) = room.split_at_mut(PIECE * tokens * 64 / eight);
        let params = &mut room[..PIECE * blocks * size_of::<Params>() / eight];
        Scratch {
            numbers: bytemuck::cast_slice_mut(numbers),
            sums: bytemuck::cast_slice_mut(sums),
            params: bytemuck::cast_slice_mut(params),
        }
    }
}

/// All rows times all tokens; `y` are the tokens' results.
pub(super) fn many<'y, C: Coded>(
    cpu: &Cpu,
    level: IntLevel,
    w: &[u8],
    cols: usize,
    x: &Operand<'_>,
    y: impl Iterator<Item = &'y mut [f32]>,
) -> Result<()> {
    let row_bytes = C::FORMAT.row_bytes(cols);
    let rows = w.len() / row_bytes;
    let pieces = results(y, PIECE, rows);
    let hands = cpu.pool.hands(2 * (rows as u64) * (cols as u64) * (x.tokens as u64));
    let mut scratch = cpu.shelf.take_each(hands, Scratch::eights(x.tokens, x.blocks))?;
    let pieces = w.chunks(PIECE * row_bytes).zip(pieces);
    cpu.pool.share(&mut scratch, pieces, |room, pieces| {
        for (w, mut y) in pieces {
            let mut scratch = Scratch::new(room, x.tokens, x.blocks);
            scratch.sums.fill([0.0; 16]);
            for first in (0..x.blocks).step_by(DEPTH) {
                let scratch = &mut scratch;
                level.run(Widen::<C> { w, row_bytes, cols, first, scratch, format: PhantomData });
                let rows = w.len() / row_bytes;
                // By what they need to know of a format, for there are many.
                match (C::ONE_SCALE, C::LEAST) {
                    (false, _) => level.run(Tiles::<false, false> { rows, first, x, scratch }),
                    (true, false) => level.run(Tiles::<true, false> { rows, first, x, scratch }),
                    (true, true) => level.run(Tiles::<true, true> { rows, first, x, scratch }),
                }
            }
            level.run(Finish { sums: scratch.sums, y: &mut y });
        }
    });
    Ok(())
}

/// Lays down the numbers of `DEPTH` blocks of some rows, from block `first` on; with the first ones the parameters of
/// the rows.
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
        let blocks = cols.div_ceil(BLOCK);
        let spare = &mut [0; 256];
        let chunks = (2 * (first + DEPTH)).min(cols.div_ceil(CHUNK));
        for (r, row) in w.chunks(row_bytes).enumerate() {
            let params = &mut scratch.params[r * blocks..][..blocks];
            if first == 0 {
                C::params(simd, row, cols, params);
            }
            let to = scratch.numbers[r * DEPTH..][..DEPTH].as_flattened_mut().as_chunks_mut::<32>().0;
            for (chunk, to) in (2 * first..chunks).zip(to.chunks_mut(4)) {
                let vectors = numbers::<S, C>(simd, row, cols, chunk, &params[chunk / 2], spare);
                for v in 0..4 {
                    simd.store_words(vectors[v], &mut to[v]);
                }
            }
        }
    }
}

/// Some rows times all tokens, `DEPTH` blocks of columns. Sums are `[row][token]`.
struct Tiles<'a, 'b, const ONE_SCALE: bool, const LEAST: bool> {
    rows: usize,
    first: usize,
    x: &'a Operand<'a>,
    scratch: &'a mut Scratch<'b>,
}

impl<const ONE_SCALE: bool, const LEAST: bool> IntJob for Tiles<'_, '_, ONE_SCALE, LEAST> {
    type Out = ();

    #[inline(always)]
    fn run<S: Ints>(self, simd: S) {
        let Tiles { rows, first, x, scratch } = self;
        let blocks = DEPTH.min(x.blocks - first);
        for row in (0..rows).step_by(ROWS) {
            // What is missing is done twice.
            let mut w = [&[][..]; ROWS];
            let mut params = [&[][..]; ROWS];
            for r in 0..ROWS {
                let row = (row + r).min(rows - 1);
                w[r] = &scratch.numbers[row * DEPTH..][..blocks];
                params[r] = &scratch.params[row * x.blocks + first..][..blocks];
            }
            for token in (0..x.tokens).step_by(TOKENS) {
                let mut sums = [[simd.splat(0.0); TOKENS]; ROWS];
                for r in 0..ROWS {
                    for t in 0..TOKENS {
                        let (row, token) = ((row + r).min(rows - 1), (token + t).min(x.tokens - 1));
                        sums[r][t] = simd.load(&scratch.sums[row * x.tokens + token]);
                    }
                }
                tile::<S, ONE_SCALE, LEAST>(simd, w, params, x, token, first, &mut sums);
                for r in 0..ROWS.min(rows - row) {
                    for t in 0..TOKENS.min(x.tokens - token) {
                        simd.store(sums[r][t], &mut scratch.sums[(row + r) * x.tokens + token + t]);
                    }
                }
            }
        }
    }
}

/// Adds to the running sums of a tile what some chunks make, from block `first` on.
#[inline(always)]
fn tile<S: Ints, const ONE_SCALE: bool, const LEAST: bool>(
    simd: S,
    w: [&[[i16; BLOCK]]; ROWS],
    params: [&[Params]; ROWS],
    operand: &Operand<'_>,
    token: usize,
    first: usize,
    sums: &mut [[S::Floats; TOKENS]; ROWS],
) {
    let blocks = params[0].len();
    let mut x = [&[][..]; TOKENS];
    let mut scales = [&[][..]; TOKENS];
    let mut groups = [&[][..]; TOKENS];
    for t in 0..TOKENS {
        let token = (token + t).min(operand.tokens - 1);
        x[t] = operand.numbers(token, first, blocks);
        scales[t] = operand.scales(token, first, blocks);
        groups[t] = operand.sums(token, first, blocks);
    }
    // The tokens that come next are fetched meanwhile.
    let ahead = TOKENS * operand.blocks * size_of::<[i16; BLOCK]>();
    let mut running = *sums;
    for block in 0..blocks {
        // Beyond the columns, activations are 0 and weights anything.
        let mut rows = [&[[0; 32]; 8]; ROWS];
        let mut tokens = [&[[0; 32]; 8]; TOKENS];
        for r in 0..ROWS {
            rows[r] = vectors(&w[r][block]);
        }
        for t in 0..TOKENS {
            tokens[t] = vectors(&x[t][block]);
        }
        let runs = if ONE_SCALE { 1 } else { 2 };
        for run in 0..runs {
            let whole = if ONE_SCALE {
                products::<S, 0, 8>(simd, rows, tokens, ahead)
            } else if run == 0 {
                products::<S, 0, 4>(simd, rows, tokens, ahead)
            } else {
                products::<S, 4, 8>(simd, rows, tokens, ahead)
            };
            for t in 0..TOKENS {
                let x = scales[t][block];
                for r in 0..ROWS {
                    let params = &params[r][block];
                    let scale = scale(simd, ONE_SCALE, params, run, x);
                    running[r][t] = simd.add_product(running[r][t], simd.floats(whole[r][t]), scale);
                    if LEAST {
                        let least = simd.splat(params.scales[1] * x);
                        let groups = simd.mul_sums(&params.zeros, &groups[t][block]);
                        running[r][t] = simd.add_product(running[r][t], simd.floats(groups), least);
                    }
                }
            }
        }
    }
    *sums = running;
}

/// The eight vectors of a block.
#[inline(always)]
fn vectors(numbers: &[i16; BLOCK]) -> &[[i16; 32]; 8] {
    bytemuck::cast_ref(numbers)
}

/// The sums of a tile's products over vectors `FROM..TO` of a block.
#[inline(always)]
fn products<S: Ints, const FROM: usize, const TO: usize>(
    simd: S,
    w: [&[[i16; 32]; 8]; ROWS],
    x: [&[[i16; 32]; 8]; TOKENS],
    ahead: usize,
) -> [[S::Sums; TOKENS]; ROWS] {
    let mut whole = [[simd.no_sums(); TOKENS]; ROWS];
    for v in FROM..TO {
        let mut vectors = [simd.splat_words(0); TOKENS];
        for t in 0..TOKENS {
            vectors[t] = simd.words(&x[t][v]);
            simd.prefetch(&x[t][v], ahead);
        }
        for r in 0..ROWS {
            let w = simd.words(&w[r][v]);
            for t in 0..TOKENS {
                whole[r][t] = simd.dot(whole[r][t], w, vectors[t]);
            }
        }
    }
    whole
}

/// Sums the lanes: `y[t][r]` from `sums[r][t]`.
struct Finish<'a, 'y> {
    sums: &'a [[f32; 16]],
    y: &'a mut [&'y mut [f32]],
}

impl IntJob for Finish<'_, '_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Ints>(self, simd: S) {
        let tokens = self.y.len();
        for (t, y) in self.y.iter_mut().enumerate() {
            for (r, y) in y.iter_mut().enumerate() {
                *y = simd.sum(simd.load(&self.sums[r * tokens + t]));
            }
        }
    }
}
