//! Causal grouped-query attention.
//!
//! A piece of work is one key/value head and a few neighbouring queries, so that keys and values are
//! fetched once for all query heads that share them. Each query head is summed in an order of its own:
//! scores as in a matrix product, the softmax in f32 with the largest score subtracted, eight running
//! sums for its total, the values one position after the other. So a result does not depend on which
//! queries came along, and nothing that a query does not see is ever added to it. Where a window hides
//! the oldest positions, work begins at the multiple of eight at or before the first one seen, so that
//! each position keeps its lane. A cache of fewer bits is widened in blocks of positions, which changes no order.

#![allow(clippy::needless_range_loop, reason = "iterators over vectors would not stay in registers")]

use super::cache::{Cached, Rows, Stored, copy_padded};
use super::simd::{Eight, Job, Simd};
use super::tile::{ROWS, TOKENS, tile};
use super::{Cpu, CpuBuf};
use crate::{Attend, KvFormat, Result, alibi_slope};
use std::ops::Range;

/// Query heads in a piece of work, where a group is not larger.
const HEADS: usize = 12;
/// Vectors of the output that are summed at once.
const WIDTH: usize = 4;

/// Sizes already checked.
pub(crate) fn attend(
    cpu: &Cpu,
    q: &[f32],
    [k, v]: [&CpuBuf; 2],
    out: &mut [f32],
    shape: &Attend,
    flops: u64,
) -> Result<()> {
    let Attend { first, n, start, heads, kv_heads, head_dim, value_dim, .. } = *shape;
    let (row, out_row) = (heads * head_dim, heads * value_dim);
    if n == 0 || row == 0 || out_row == 0 {
        return Ok(());
    }
    let [k, v] = [k, v].map(|buf| match shape.cache {
        KvFormat::F32 => Stored::F32(buf.floats()),
        KvFormat::F16 => Stored::F16(buf.bytes()),
        KvFormat::Q8 => Stored::Q8(buf.bytes()),
        KvFormat::Q4 => Stored::Q4(buf.bytes()),
    });
    let group = heads / kv_heads;
    let queries = (HEADS / group).max(1);
    let q = &q[first * row..][..n * row];
    let out = &mut out[first * out_row..][..n * out_row];

    // Pieces in the order of queries, so that those that start last are the longest by little.
    let mut pieces: Vec<Piece<'_>> = Vec::with_capacity(n.div_ceil(queries) * kv_heads);
    for (i, out) in out.chunks_mut(queries * out_row).enumerate() {
        let from = pieces.len();
        let start = start + i * queries;
        pieces.extend((0..kv_heads).map(|kv| Piece { kv, start, out: Vec::new() }));
        for out in out.chunks_mut(out_row) {
            for (piece, out) in pieces[from..].iter_mut().zip(out.chunks_mut(group * value_dim)) {
                piece.out.push(out);
            }
        }
    }
    let longest = match shape.window {
        0 => start + n,
        // The window of the first query, as many more as there are queries, and up to a multiple of eight.
        window => (start + n).min(window.saturating_add(queries + 7)),
    };
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
    /// Vectors of a head of queries and keys.
    width: usize,
    /// Vectors of a head of values.
    out: usize,
    /// Query heads, padded.
    q: usize,
    /// Vectors of one query head's scores.
    scores_row: usize,
    scores: usize,
    /// Query heads' sums of values.
    sums: usize,
    /// Sums of weights, one a query head.
    totals: usize,
    /// A block of keys or values, where they are not vectors in the cache.
    panel: usize,
}

impl Sizes {
    fn of(shape: &Attend, heads: usize, longest: usize) -> Sizes {
        let (width, out) = (shape.head_dim.div_ceil(8), shape.value_dim.div_ceil(8));
        let scores_row = longest.div_ceil(8);
        let panel = |dim: usize| Cached::panel(shape.cache, dim);
        Sizes {
            width,
            out,
            q: heads * width,
            scores_row,
            scores: heads * scores_row,
            sums: heads * out,
            totals: heads.div_ceil(8),
            panel: panel(shape.head_dim).max(panel(shape.value_dim)),
        }
    }

    fn total(&self) -> usize {
        self.q + self.scores + self.sums + self.totals + self.panel
    }
}

struct Heads<'a, 'b> {
    q: &'a [f32],
    k: Stored<'a>,
    v: Stored<'a>,
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
        let Attend { heads, kv_heads, head_dim, value_dim, .. } = *shape;
        let Sizes { width, scores_row, .. } = sizes;
        let group = heads / kv_heads;
        let rows = piece.out.len() * group;
        // The first position that the query at a position sees.
        let oldest = |position: usize| match shape.window {
            0 => 0,
            window => (position + 1).saturating_sub(window),
        };
        let base = oldest(piece.start) / 8 * 8;
        let len = piece.start + piece.out.len() - base;
        let position = |row: usize| piece.start + row / group;
        // Where a row's positions begin and end, counted from `base`.
        let span = |row: usize| (oldest(position(row)) - base, position(row) + 1 - base);

        let (queries, scratch) = scratch.split_at_mut(sizes.q);
        let (scores, scratch) = scratch.split_at_mut(sizes.scores);
        let (result, scratch) = scratch.split_at_mut(sizes.sums);
        let (totals, panel) = scratch.split_at_mut(sizes.totals);
        let totals = totals.as_flattened_mut();
        let cached = |data, dim| Cached { data, heads: kv_heads, dim, head: piece.kv, base, len };
        let (k, v) = (cached(k, head_dim), cached(v, value_dim));
        for (row, to) in queries.chunks_mut(width).take(rows).enumerate() {
            let head = piece.kv * group + row % group;
            copy_padded(&q[(row / group * heads + head) * head_dim..][..head_dim], to);
        }

        let flat = scores.as_flattened_mut();
        for from in (0..len).step_by(k.block()) {
            score(simd, &queries[..rows * width], k.rows(simd, from, panel), flat, 8 * scores_row);
        }
        for (row, total) in totals.iter_mut().enumerate().take(rows) {
            let scores = &mut scores[row * scores_row..][..scores_row];
            let bias = Bias::new(shape, piece.kv * group + row % group, position(row) - base);
            *total = softmax(simd, scores, span(row), shape, bias);
        }
        let flat = scores.as_flattened();
        let weights = |row: usize| {
            let (from, to) = span(row);
            Weights { from, list: &flat[row * 8 * scores_row..][..to] }
        };
        let result = &mut result[..rows * sizes.out];
        result.as_flattened_mut().fill(0.0);
        for from in (0..len).step_by(v.block()) {
            let v = v.rows(simd, from, panel);
            let mut row = 0;
            while row < rows {
                let result = &mut result[row * sizes.out..];
                if rows - row >= TOKENS {
                    mix(simd, [weights(row), weights(row + 1), weights(row + 2)], v, result);
                    row += TOKENS;
                } else {
                    mix(simd, [weights(row)], v, result);
                    row += 1;
                }
            }
        }
        for (row, (sums, total)) in result.chunks(sizes.out).zip(totals).enumerate() {
            let out = &mut piece.out[row / group][row % group * value_dim..][..value_dim];
            let factor = 1.0 / *total;
            for (out, sum) in out.iter_mut().zip(sums.as_flattened()) {
                *out = sum * factor;
            }
        }
    }
}

/// `scores[row][j] = q[row] · k[j]` for all `j` of a block.
#[inline(always)]
fn score<S: Simd>(simd: S, q: &[Eight], k: Rows<'_>, scores: &mut [f32], stride: usize) {
    let (width, end) = (k.width, k.end);
    let rows = q.len() / width;
    let q = |row: usize| &q[row * width..][..width];
    let mut j = k.from;
    while j < end {
        // Short of four keys, the last one stands in for the missing; its copies are not kept.
        let keys: [&[Eight]; ROWS] = std::array::from_fn(|i| k.row((j + i).min(end - 1)));
        let here = ROWS.min(end - j);
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

/// What ALiBi adds to the scores of a row.
#[derive(Clone, Copy)]
struct Bias {
    slope: f32,
    /// The query's position, counted as the scores are.
    position: usize,
}

impl Bias {
    #[inline(always)]
    fn new(shape: &Attend, head: usize, position: usize) -> Bias {
        Bias { slope: if shape.alibi { alibi_slope(head, shape.heads) } else { 0.0 }, position }
    }
}

/// Scales, caps and shifts the scores of one row as `shape` says.
#[inline(always)]
fn adjust<S: Simd>(simd: S, scores: &mut [Eight], shape: &Attend, bias: Bias) {
    let factor = simd.splat(shape.scale);
    for eight in scores.iter_mut() {
        simd.store(simd.mul(simd.load(eight), factor), eight);
    }
    if shape.softcap > 0.0 {
        // cap · tanh(s / cap) = cap · (1 − 2 / (1 + e^(2s / cap))).
        let (cap, one) = (simd.splat(shape.softcap), simd.splat(1.0));
        let (double, two) = (simd.splat(2.0 / shape.softcap), simd.splat(2.0));
        for eight in scores.iter_mut() {
            let below = simd.add(one, simd.exp(simd.mul(simd.load(eight), double)));
            simd.store(simd.mul(cap, simd.sub(one, simd.div(two, below))), eight);
        }
    }
    if shape.alibi {
        for (j, score) in scores.as_flattened_mut().iter_mut().enumerate() {
            *score += bias.slope * (j as f32 - bias.position as f32);
        }
    }
}

/// Replaces the scores of the positions `span` by `exp(score − max)`, others by 0, and returns their sum.
/// NaN in, NaN out.
#[inline(always)]
fn softmax<S: Simd>(
    simd: S,
    scores: &mut [Eight],
    (from, to): (usize, usize),
    shape: &Attend,
    bias: Bias,
) -> f32 {
    let scores = &mut scores[..to.div_ceil(8)];
    adjust(simd, scores, shape, bias);
    // e to the power of this is 0, so what is not seen adds nothing.
    scores.as_flattened_mut()[to..].fill(f32::NEG_INFINITY);
    scores.as_flattened_mut()[..from].fill(f32::NEG_INFINITY);
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

/// The weights of one row, of which those before `from` do not count.
#[derive(Clone, Copy)]
struct Weights<'a> {
    from: usize,
    list: &'a [f32],
}

/// `result[r] += Σ_j weights[r][j] · v[j]` for the `j` of a block and `R` rows, none that begins or ends before the first.
#[inline(always)]
fn mix<S: Simd, const R: usize>(simd: S, weights: [Weights<'_>; R], v: Rows<'_>, result: &mut [Eight]) {
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
    weights: [Weights<'_>; R],
    v: Rows<'_>,
    at: usize,
    result: &mut [Eight],
) {
    let mut sums = [[simd.zero(); D]; R];
    for r in 0..R {
        for d in 0..D {
            sums[r][d] = simd.load(&result[r * v.width + at + d]);
        }
    }
    let part = |range: Range<usize>| range.start.clamp(v.from, v.end)..range.end.clamp(v.from, v.end);
    // What all rows see goes together; before it and after it each row goes alone.
    let (begin, end) = (weights[R - 1].from, weights[0].list.len());
    let begin = begin.min(end);
    for r in 0..R {
        mix_row(simd, weights[r], part(weights[r].from..begin), v, at, &mut sums[r]);
    }
    for j in part(begin..end) {
        let v = &v.row(j)[at..at + D];
        for r in 0..R {
            let weight = simd.splat(weights[r].list[j]);
            for d in 0..D {
                sums[r][d] = simd.mul_add(weight, simd.load(&v[d]), sums[r][d]);
            }
        }
    }
    for r in 0..R {
        let rest = end.max(weights[r].from)..weights[r].list.len();
        mix_row(simd, weights[r], part(rest), v, at, &mut sums[r]);
        for d in 0..D {
            simd.store(sums[r][d], &mut result[r * v.width + at + d]);
        }
    }
}

/// Adds some positions to the sums of one row.
#[inline(always)]
fn mix_row<S: Simd, const D: usize>(
    simd: S,
    weights: Weights<'_>,
    positions: Range<usize>,
    v: Rows<'_>,
    at: usize,
    sums: &mut [S::V; D],
) {
    for j in positions {
        let v = &v.row(j)[at..at + D];
        for d in 0..D {
            sums[d] = simd.mul_add(simd.splat(weights.list[j]), simd.load(&v[d]), sums[d]);
        }
    }
}
