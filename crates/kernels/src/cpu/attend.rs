//! Causal grouped-query attention.
//!
//! A piece of work is one key/value head and a few neighbouring queries, so that keys and values are
//! fetched once for all query heads that share them. Each query head is summed in an order of its own:
//! scores as in a matrix product, the softmax in f32 with the largest score subtracted, eight running
//! sums for its total, the values one position after the other. So a result does not depend on which
//! queries came along, and nothing beyond a query's own position is ever added to it.

#![allow(clippy::needless_range_loop, reason = "iterators over vectors would not stay in registers")]

use super::Cpu;
use super::simd::{Eight, Job, Simd};
use super::tile::{ROWS, TOKENS, tile};
use crate::{Attend, Result};

/// Query heads in a piece of work, where a group is not larger.
const HEADS: usize = 12;
/// Vectors of the output that are summed at once.
const WIDTH: usize = 4;

/// Sizes already checked.
pub(crate) fn attend(
    cpu: &Cpu,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    out: &mut [f32],
    shape: &Attend,
    flops: u64,
) -> Result<()> {
    let Attend { first, n, start, heads, kv_heads, head_dim, .. } = *shape;
    let row = heads * head_dim;
    if n == 0 || row == 0 {
        return Ok(());
    }
    let group = heads / kv_heads;
    let queries = (HEADS / group).max(1);
    let q = &q[first * row..][..n * row];
    let out = &mut out[first * row..][..n * row];

    // Pieces in the order of queries, so that those that start last are the longest by little.
    let mut pieces: Vec<Piece<'_>> = Vec::with_capacity(n.div_ceil(queries) * kv_heads);
    for (i, out) in out.chunks_mut(queries * row).enumerate() {
        let from = pieces.len();
        let start = start + i * queries;
        pieces.extend((0..kv_heads).map(|kv| Piece { kv, start, out: Vec::new() }));
        for out in out.chunks_mut(row) {
            for (piece, out) in pieces[from..].iter_mut().zip(out.chunks_mut(group * head_dim)) {
                piece.out.push(out);
            }
        }
    }
    let longest = start + n;
    let sizes = Sizes::of(shape, queries.min(n) * group, longest);
    let hands = cpu.pool.hands(flops);
    let mut scratch = cpu.shelf.take_each(hands, sizes.total())?;
    let pieces = pieces.into_iter();
    cpu.pool.share(&mut scratch, pieces, |scratch, pieces| {
        for piece in pieces {
            let q = &q[(piece.start - start) * row..];
            cpu.level.run(Heads { q, k, v, shape, piece, sizes, scratch });
        }
    });
    Ok(())
}

/// Some neighbouring queries of the query heads that share a key/value head.
struct Piece<'a> {
    kv: usize,
    /// Position of the first query.
    start: usize,
    /// Per query, the outputs of the group's heads.
    out: Vec<&'a mut [f32]>,
}

/// Vectors of working memory of one piece.
#[derive(Clone, Copy)]
struct Sizes {
    /// Vectors of a head.
    width: usize,
    /// Query heads, padded.
    q: usize,
    /// Vectors of one query head's scores.
    scores_row: usize,
    scores: usize,
    /// Keys and values, padded, where a head is not whole vectors; else none.
    padded: usize,
}

impl Sizes {
    fn of(shape: &Attend, heads: usize, longest: usize) -> Sizes {
        let width = shape.head_dim.div_ceil(8);
        let scores_row = longest.div_ceil(8);
        Sizes {
            width,
            q: heads * width,
            scores_row,
            scores: heads * scores_row,
            padded: if shape.head_dim.is_multiple_of(8) { 0 } else { longest * width },
        }
    }

    fn total(&self) -> usize {
        self.q + self.scores + 2 * self.padded + TOKENS * self.width
    }
}

/// Keys or values of one head, in vectors.
#[derive(Clone, Copy)]
struct Cached<'a> {
    data: &'a [Eight],
    stride: usize,
    first: usize,
    width: usize,
}

impl<'a> Cached<'a> {
    /// Row-major `[_, kv_heads, head_dim]` numbers as they are, or copied to `padded`.
    fn new(data: &'a [f32], shape: &Attend, kv: usize, len: usize, padded: &'a mut [Eight]) -> Self {
        let Attend { kv_heads, head_dim, .. } = *shape;
        let width = head_dim.div_ceil(8);
        if head_dim.is_multiple_of(8) {
            let stride = kv_heads * width;
            return Cached { data: data.as_chunks().0, stride, first: kv * width, width };
        }
        let rows = data.chunks(kv_heads * head_dim).take(len);
        for (to, row) in padded.chunks_mut(width).zip(rows) {
            copy_padded(&row[kv * head_dim..][..head_dim], to);
        }
        Cached { data: padded, stride: width, first: 0, width }
    }

    #[inline(always)]
    fn row(&self, j: usize) -> &'a [Eight] {
        &self.data[j * self.stride + self.first..][..self.width]
    }
}

struct Heads<'a, 'b> {
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    shape: &'a Attend,
    piece: Piece<'b>,
    sizes: Sizes,
    scratch: &'a mut [Eight],
}

impl Job for Heads<'_, '_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Heads { q, k, v, shape, mut piece, sizes, scratch } = self;
        let Attend { heads, kv_heads, head_dim, scale, .. } = *shape;
        let Sizes { width, scores_row, .. } = sizes;
        let group = heads / kv_heads;
        let rows = piece.out.len() * group;
        let len = piece.start + piece.out.len();
        // Positions that a row sees.
        let seen = |row: usize| piece.start + row / group + 1;

        let (queries, scratch) = scratch.split_at_mut(sizes.q);
        let (scores, scratch) = scratch.split_at_mut(sizes.scores);
        let (padded_k, scratch) = scratch.split_at_mut(sizes.padded);
        let (padded_v, result) = scratch.split_at_mut(sizes.padded);
        let k = Cached::new(k, shape, piece.kv, len, padded_k);
        let v = Cached::new(v, shape, piece.kv, len, padded_v);
        for (row, to) in queries.chunks_mut(width).take(rows).enumerate() {
            let head = piece.kv * group + row % group;
            copy_padded(&q[(row / group * heads + head) * head_dim..][..head_dim], to);
        }

        let flat = scores.as_flattened_mut();
        score(simd, &queries[..rows * width], k, len, flat, 8 * scores_row);
        let mut row = 0;
        while row < rows {
            let here = if rows - row >= TOKENS { TOKENS } else { 1 };
            let result = &mut result[..here * width];
            let mut totals = [0f32; TOKENS];
            for (i, total) in totals.iter_mut().enumerate().take(here) {
                let scores = &mut scores[(row + i) * scores_row..][..scores_row];
                *total = softmax(simd, scores, seen(row + i), scale);
            }
            let flat = scores.as_flattened();
            let weights = |i: usize| &flat[(row + i) * 8 * scores_row..][..seen(row + i)];
            if here == TOKENS {
                mix(simd, [weights(0), weights(1), weights(2)], v, result);
            } else {
                mix(simd, [weights(0)], v, result);
            }
            for (i, (sums, total)) in result.chunks(width).zip(totals).enumerate() {
                let (query, head) = ((row + i) / group, (row + i) % group);
                let out = &mut piece.out[query][head * head_dim..][..head_dim];
                let factor = 1.0 / total;
                for (out, sum) in out.iter_mut().zip(sums.as_flattened()) {
                    *out = sum * factor;
                }
            }
            row += here;
        }
    }
}

/// `scores[row][j] = q[row] · k[j]` for all `j < len`.
#[inline(always)]
fn score<S: Simd>(simd: S, q: &[Eight], k: Cached<'_>, len: usize, scores: &mut [f32], stride: usize) {
    let width = k.width;
    let rows = q.len() / width;
    let q = |row: usize| &q[row * width..][..width];
    let mut j = 0;
    while j < len {
        // Short of four keys, the last one stands in for the missing; its copies are not kept.
        let keys: [&[Eight]; ROWS] = std::array::from_fn(|i| k.row((j + i).min(len - 1)));
        let here = ROWS.min(len - j);
        let mut row = 0;
        while row < rows {
            let mut keep = |row: usize, sums: [f32; 4]| {
                scores[row * stride + j..][..here].copy_from_slice(&sums[..here]);
            };
            if rows - row >= TOKENS {
                let mut sums = [[simd.zero(); TOKENS]; ROWS];
                tile(simd, keys, [q(row), q(row + 1), q(row + 2)], &mut sums);
                for t in 0..TOKENS {
                    keep(row + t, simd.sum4([sums[0][t], sums[1][t], sums[2][t], sums[3][t]]));
                }
                row += TOKENS;
            } else {
                let mut sums = [[simd.zero()]; ROWS];
                tile(simd, keys, [q(row)], &mut sums);
                keep(row, simd.sum4([sums[0][0], sums[1][0], sums[2][0], sums[3][0]]));
                row += 1;
            }
        }
        j += here;
    }
}

/// Replaces the first `seen` scores by `exp(scale · score − max)` and returns their sum. NaN in, NaN out.
#[inline(always)]
fn softmax<S: Simd>(simd: S, scores: &mut [Eight], seen: usize, scale: f32) -> f32 {
    let scores = &mut scores[..seen.div_ceil(8)];
    let factor = simd.splat(scale);
    for eight in scores.iter_mut() {
        simd.store(simd.mul(simd.load(eight), factor), eight);
    }
    // e to the power of this is 0, so the padding adds nothing.
    scores.as_flattened_mut()[seen..].fill(f32::NEG_INFINITY);
    let mut largest = simd.splat(f32::NEG_INFINITY);
    for eight in scores.iter() {
        largest = simd.max(simd.load(eight), largest);
    }
    let mut lanes = [0f32; 8];
    simd.store(largest, &mut lanes);
    let largest = lanes.into_iter().fold(f32::NEG_INFINITY, f32::max);
    // Where all scores are −∞ the difference is NaN, and so is the result: there is no weight to give.
    let shift = simd.splat(largest);
    let mut sum = simd.zero();
    for eight in scores.iter_mut() {
        let weights = simd.exp(simd.sub(simd.load(eight), shift));
        sum = simd.add(sum, weights);
        simd.store(weights, eight);
    }
    simd.sum(sum)
}

/// `result[r] = Σ_j weights[r][j] · v[j]` for `R` rows, none shorter than the first.
#[inline(always)]
fn mix<S: Simd, const R: usize>(simd: S, weights: [&[f32]; R], v: Cached<'_>, result: &mut [Eight]) {
    let mut at = 0;
    while at < v.width {
        if v.width - at >= WIDTH {
            mix_part::<S, R, WIDTH>(simd, weights, v, at, result);
            at += WIDTH;
        } else {
            mix_part::<S, R, 1>(simd, weights, v, at, result);
            at += 1;
        }
    }
}

/// Vectors `at..at + D` of [`mix`].
#[inline(always)]
fn mix_part<S: Simd, const R: usize, const D: usize>(
    simd: S,
    weights: [&[f32]; R],
    v: Cached<'_>,
    at: usize,
    result: &mut [Eight],
) {
    let common = weights[0].len();
    let mut sums = [[simd.zero(); D]; R];
    for j in 0..common {
        let v = &v.row(j)[at..at + D];
        for r in 0..R {
            let weight = simd.splat(weights[r][j]);
            for d in 0..D {
                sums[r][d] = simd.mul_add(weight, simd.load(&v[d]), sums[r][d]);
            }
        }
    }
    for r in 0..R {
        for (j, &weight) in weights[r].iter().enumerate().skip(common) {
            let v = &v.row(j)[at..at + D];
            for d in 0..D {
                sums[r][d] = simd.mul_add(simd.splat(weight), simd.load(&v[d]), sums[r][d]);
            }
        }
        for d in 0..D {
            simd.store(sums[r][d], &mut result[r * v.width + at + d]);
        }
    }
}

/// Copies numbers into vectors, zeros beyond their end.
#[inline(always)]
fn copy_padded(from: &[f32], to: &mut [Eight]) {
    let (to, rest) = to.as_flattened_mut().split_at_mut(from.len());
    to.copy_from_slice(from);
    rest.fill(0.0);
}
