//! Matrix products.
//!
//! The order of summation of one product (one row, one token) is fixed: eight running sums, one a lane,
//! along the columns, the last vector padded with zeros; then the lanes as in `Simd::sum4`. One token
//! widens packed weights straight into the sums of four rows. Several tokens widen a block of four rows
//! and 512 columns once, into the first-level cache, and use it for all tokens; the sums of all
//! pairs rest in memory between blocks of columns. Both add the same numbers in the same order.

#![allow(clippy::needless_range_loop, reason = "iterators over vectors would not stay in registers")]

use super::Cpu;
use super::lines::Borrowed;
use super::packed::{NO_SCALE, Packed, Row, STEP, scale, scale_vectors};
use super::simd::{Eight, Job, Simd};
use super::tile::{ROWS, TOKENS, tile};
use crate::{Columns, Matrix, Result};
use std::marker::PhantomData;

/// Vectors in a block of columns: four rows take 8 KiB, three tokens 6 KiB of the first-level cache.
const BLOCK: usize = 64;
/// Tokens that share one widening of the weights: a block of columns of x takes 192 KiB.
const BATCH: usize = 96;
/// Rows in a piece of work, several tokens. Their sums take 96 KiB.
const PIECE: usize = 32;
/// Bytes of weights in a piece of work, one token.
const PIECE_BYTES: usize = 128 << 10;

/// `y[t, out.first + r] = Σ_c x[t, c] · w[r, c]`, sizes already checked, and none of them 0.
pub(crate) fn matmul<P: Packed>(
    cpu: &Cpu,
    w: Matrix<&[u8]>,
    x: &[f32],
    n: usize,
    y: &mut [f32],
    out: Columns,
) -> Result<()> {
    let Matrix { data, rows, cols, .. } = w;
    let columns = out.first..out.first + rows;
    let data = &data[..rows * P::FORMAT.row_bytes(cols)];
    if n == 1 {
        return one_token::<P>(cpu, data, &x[..cols], &mut y[columns]);
    }
    for (x, y) in x[..n * cols].chunks(BATCH * cols).zip(y.chunks_mut(BATCH * out.stride)) {
        let y = y.chunks_mut(out.stride).map(|y| &mut y[columns.clone()]);
        batch::<P>(cpu, data, cols, x, y.take(x.len() / cols))?;
    }
    Ok(())
}

/// The tokens' results, cut into pieces of `piece` rows: of each piece, what every token has of it.
pub(super) fn results<'y>(
    y: impl Iterator<Item = &'y mut [f32]>,
    piece: usize,
    rows: usize,
) -> Vec<Vec<&'y mut [f32]>> {
    let (tokens, _) = y.size_hint();
    let mut pieces = Vec::new();
    pieces.resize_with(rows.div_ceil(piece), || Vec::with_capacity(tokens));
    for y in y {
        pieces.iter_mut().zip(y.chunks_mut(piece)).for_each(|(piece, y)| piece.push(y));
    }
    pieces
}

fn one_token<P: Packed>(cpu: &Cpu, w: &[u8], x: &[f32], y: &mut [f32]) -> Result<()> {
    let cols = x.len();
    let mut padded;
    let x = match x.as_chunks() {
        (whole, []) => whole,
        _ => {
            padded = cpu.shelf.take(cols.div_ceil(8))?;
            pad(x, &mut padded);
            &padded[..cols.div_ceil(8)]
        }
    };
    let row_bytes = P::FORMAT.row_bytes(cols);
    let piece = (PIECE_BYTES / row_bytes).next_multiple_of(ROWS).max(ROWS);
    let hands = cpu.pool.hands(2 * (y.len() as u64) * (cols as u64));
    let mut scales = cpu.shelf.take_each(hands, ROWS * scale_vectors::<P>(cols))?;
    let pieces = w.chunks(piece * row_bytes).zip(y.chunks_mut(piece));
    cpu.pool.share(&mut scales, pieces, |scales, pieces| {
        for (w, y) in pieces {
            let scales = &mut scales[..];
            cpu.level.run(OneToken::<P> { w, row_bytes, cols, x, y, scales, format: PhantomData });
        }
    });
    Ok(())
}

/// Some rows times one token.
struct OneToken<'a, P> {
    w: &'a [u8],
    row_bytes: usize,
    cols: usize,
    x: &'a [Eight],
    y: &'a mut [f32],
    scales: &'a mut [Eight],
    format: PhantomData<P>,
}

impl<P: Packed> Job for OneToken<'_, P> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let OneToken { w, row_bytes, cols, x, y, scales, .. } = self;
        for (y, w) in y.chunks_mut(ROWS).zip(w.chunks(ROWS * row_bytes)) {
            let rows = |r: usize| Row::<P>::new(&w[r * row_bytes..][..row_bytes], cols);
            match y {
                [a, b, c, d] => {
                    let four = [rows(0), rows(1), rows(2), rows(3)];
                    let sums = dots(simd, four, cols, x, scales, w);
                    [*a, *b, *c, *d] = simd.sum4(sums);
                }
                _ => {
                    for (r, y) in y.iter_mut().enumerate() {
                        let [sum] = dots(simd, [rows(r)], cols, x, scales, &[]);
                        *y = simd.sum(sum);
                    }
                }
            }
        }
    }
}

/// The running sums of `R` rows times one token. `w` are the bytes of these rows; as many that follow
/// them are fetched meanwhile, for rows are too short for the processor to see where reading goes.
#[inline(always)]
fn dots<S: Simd, P: Packed, const R: usize>(
    simd: S,
    rows: [Row<'_, P>; R],
    cols: usize,
    x: &[Eight],
    scales: &mut [Eight],
    w: &[u8],
) -> [S::V; R] {
    let vectors = scale_vectors::<P>(cols);
    for r in 0..R {
        rows[r].scales(simd, 0, &mut scales[r * vectors..][..vectors]);
    }
    let whole = cols / (STEP * P::PARTS);
    let scales: [&[Eight]; R] = std::array::from_fn(|r| &scales[r * vectors..][..vectors]);
    let blocks: [&[P::Block]; R] = std::array::from_fn(|r| &rows[r].blocks[..whole]);
    let (steps_of_x, rest_of_x) = x.as_chunks::<4>();
    let steps_of_x = &steps_of_x[..whole * P::PARTS];

    let mut sums = [simd.zero(); R];
    let mut ahead = w.len();
    let pace = w.len() / whole.max(1);
    for i in 0..whole {
        for line in 0..(R * size_of::<P::Block>()).div_ceil(64) + usize::from(P::SCALE > 0) {
            simd.prefetch(w, ahead + 64 * line);
        }
        ahead += pace;
        let mut heads = [P::NO_HEAD; R];
        for r in 0..R {
            heads[r] = P::head(simd, &blocks[r][i], rows[r].high, i);
        }
        for part in 0..P::PARTS {
            let x = &steps_of_x[i * P::PARTS + part];
            let x = [simd.load(&x[0]), simd.load(&x[1]), simd.load(&x[2]), simd.load(&x[3])];
            for r in 0..R {
                let w = P::widen(simd, &blocks[r][i], &heads[r], part, scale::<P>(scales[r], i));
                for v in 0..4 {
                    sums[r] = simd.mul_add(w[v], x[v], sums[r]);
                }
            }
        }
    }
    if !cols.is_multiple_of(STEP) {
        // A rest of 25 to 31 columns fills a step of x as well.
        let rest_of_x = if rest_of_x.is_empty() { &x[whole * 4..] } else { rest_of_x };
        for r in 0..R {
            for (w, x) in rows[r].tail(simd, scale::<P>(scales[r], whole)).iter().zip(rest_of_x) {
                sums[r] = simd.mul_add(simd.load(w), simd.load(x), sums[r]);
            }
        }
    }
    sums
}

/// All rows times the tokens of `x`, at most `BATCH`; `y` are the tokens' results.
fn batch<'y, P: Packed>(
    cpu: &Cpu,
    w: &[u8],
    cols: usize,
    x: &[f32],
    y: impl Iterator<Item = &'y mut [f32]>,
) -> Result<()> {
    let tokens = x.len() / cols;
    let row_bytes = P::FORMAT.row_bytes(cols);
    let rows = w.len() / row_bytes;
    let mut panel = cpu.shelf.take(tokens * cols.div_ceil(8))?;
    fill_panel(x, cols, &mut panel);

    let pieces = results(y, PIECE, rows);
    let hands = cpu.pool.hands(2 * (rows as u64) * (cols as u64) * (tokens as u64));
    let mut scratch = cpu.shelf.take_each(hands, SCRATCH + PIECE * tokens)?;
    let pieces = w.chunks(PIECE * row_bytes).zip(pieces);
    cpu.pool.share(&mut scratch, pieces, |scratch, pieces| {
        for (w, mut y) in pieces {
            piece::<P>(cpu, w, cols, &panel, scratch, &mut y);
        }
    });
    Ok(())
}

/// Vectors of scratch before the sums: a block of four rows, and the scales and zero points of its steps.
const SCRATCH: usize = ROWS * BLOCK + 2 * (BLOCK / 32);

/// At most `PIECE` rows times all tokens of the panel.
fn piece<P: Packed>(
    cpu: &Cpu,
    w: &[u8],
    cols: usize,
    panel: &[Eight],
    scratch: &mut Borrowed<'_>,
    y: &mut [&mut [f32]],
) {
    let tokens = y.len();
    let row_bytes = P::FORMAT.row_bytes(cols);
    let (wide, sums) = scratch.split_at_mut(SCRATCH);
    let (wide, scales) = wide.split_at_mut(ROWS * BLOCK);
    sums.as_flattened_mut().fill(0.0);
    let vectors = cols.div_ceil(8);
    for first in (0..vectors).step_by(BLOCK) {
        let width = BLOCK.min(vectors - first);
        let x = &panel[first * tokens..][..width * tokens];
        for (w, sums) in w.chunks(ROWS * row_bytes).zip(sums.chunks_mut(ROWS * tokens)) {
            let mut rows = 0;
            for (w, wide) in w.chunks(row_bytes).zip(wide.chunks_mut(width)) {
                let row = Row::<P>::new(w, cols);
                let scales = &mut scales[..scale_vectors::<P>(8 * BLOCK)];
                cpu.level.run(Widen { row, cols, first: first / 4, wide, scales });
                rows += 1;
            }
            cpu.level.run(Tiles { w: &wide[..rows * width], x, width, sums, tokens });
        }
    }
    cpu.level.run(Finish { sums, y });
}

/// Widens a block of columns of one row, from step `first` on, zeros beyond `cols`. `first` is a multiple
/// of the steps in a block of the format.
pub(crate) struct Widen<'a, P: Packed> {
    pub(crate) row: Row<'a, P>,
    pub(crate) cols: usize,
    pub(crate) first: usize,
    pub(crate) wide: &'a mut [Eight],
    /// Working memory for the scales.
    pub(crate) scales: &'a mut [Eight],
}

impl<P: Packed> Job for Widen<'_, P> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Widen { row, cols, first, wide, scales } = self;
        let steps = wide.len().div_ceil(4);
        row.scales(simd, first, scales);
        let blocks = &row.blocks[(first / P::PARTS).min(row.blocks.len())..];
        let (whole, rest) = wide.as_chunks_mut::<4>();
        if P::PARTS == 1 {
            for (i, (wide, block)) in whole.iter_mut().zip(blocks).enumerate() {
                let head = P::head(simd, block, row.high, first + i);
                let vectors = P::widen(simd, block, &head, 0, scale::<P>(scales, i));
                for v in 0..4 {
                    simd.store(vectors[v], &mut wide[v]);
                }
            }
        } else {
            for (wide, block) in whole.chunks_mut(P::PARTS).zip(blocks) {
                let head = P::head(simd, block, row.high, 0);
                for (part, wide) in wide.iter_mut().enumerate() {
                    let vectors = P::widen(simd, block, &head, part, NO_SCALE);
                    for v in 0..4 {
                        simd.store(vectors[v], &mut wide[v]);
                    }
                }
            }
        }
        // The tail lies in this block if the row ends in it.
        let tail = cols / STEP - first;
        if !cols.is_multiple_of(STEP) && tail < steps {
            let rest = if rest.is_empty() { &mut whole[tail][..] } else { rest };
            for (to, from) in rest.iter_mut().zip(row.tail(simd, scale::<P>(scales, tail))) {
                *to = from;
            }
        }
    }
}

/// Up to four rows times all tokens, one block of columns. `sums` are `[row][token]`.
struct Tiles<'a> {
    w: &'a [Eight],
    x: &'a [Eight],
    width: usize,
    sums: &'a mut [Eight],
    tokens: usize,
}

impl Job for Tiles<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Tiles { w, x, width, sums, tokens } = self;
        let row = |r: usize| &w[r * width..][..width];
        let rows = w.len() / width;
        let mut t = 0;
        while t < tokens {
            let token = |i: usize| &x[(t + i) * width..][..width];
            let here = TOKENS.min(tokens - t);
            if rows == ROWS {
                let w = [row(0), row(1), row(2), row(3)];
                match here {
                    1 => add_tile(simd, w, [token(0)], sums, tokens, t),
                    2 => add_tile(simd, w, [token(0), token(1)], sums, tokens, t),
                    _ => add_tile(simd, w, [token(0), token(1), token(2)], sums, tokens, t),
                }
            } else {
                for (r, sums) in (0..rows).zip(sums.chunks_mut(tokens)) {
                    for i in 0..here {
                        add_tile(simd, [row(r)], [token(i)], sums, tokens, t + i);
                    }
                }
            }
            t += here;
        }
    }
}

/// Adds the products of `R` rows and `T` tokens to `sums[r][t..]`.
#[inline(always)]
fn add_tile<S: Simd, const R: usize, const T: usize>(
    simd: S,
    w: [&[Eight]; R],
    x: [&[Eight]; T],
    sums: &mut [Eight],
    tokens: usize,
    t: usize,
) {
    let mut tile_sums = [[simd.zero(); T]; R];
    for r in 0..R {
        for i in 0..T {
            tile_sums[r][i] = simd.load(&sums[r * tokens + t + i]);
        }
    }
    tile(simd, w, x, &mut tile_sums);
    for r in 0..R {
        for i in 0..T {
            simd.store(tile_sums[r][i], &mut sums[r * tokens + t + i]);
        }
    }
}

/// Sums the lanes: `y[t][r]` from `sums[r][t]`.
struct Finish<'a, 'y> {
    sums: &'a [Eight],
    y: &'a mut [&'y mut [f32]],
}

impl Job for Finish<'_, '_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let tokens = self.y.len();
        for (r, sums) in self.sums.chunks(tokens).enumerate() {
            for (y, sums) in self.y.chunks_mut(4).zip(sums.chunks(4)) {
                let mut lanes = [simd.zero(); 4];
                for (i, sums) in sums.iter().enumerate() {
                    lanes[i] = simd.load(sums);
                }
                for (y, sum) in y.iter_mut().zip(simd.sum4(lanes)) {
                    if let Some(y) = y.get_mut(r) {
                        *y = sum;
                    }
                }
            }
        }
    }
}

/// Copies `x` into vectors, zeros beyond its end.
fn pad(x: &[f32], to: &mut [Eight]) {
    let (to, rest) = to.as_flattened_mut()[..x.len().next_multiple_of(8)].split_at_mut(x.len());
    to.copy_from_slice(x);
    rest.fill(0.0);
}

/// Copies tokens into blocks of columns, `[block][token][vector]`, padded with zeros.
fn fill_panel(x: &[f32], cols: usize, panel: &mut [Eight]) {
    let tokens = x.len() / cols;
    for (t, x) in x.chunks(cols).enumerate() {
        for (block, x) in x.chunks(8 * BLOCK).enumerate() {
            let width = x.len().div_ceil(8);
            pad(x, &mut panel[block * BLOCK * tokens + t * width..][..width]);
        }
    }
}
