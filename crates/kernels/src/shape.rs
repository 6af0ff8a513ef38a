//! Size checks and declared work of every verb, the same for all devices.
//!
//! Sizes are multiplied saturating: a product that does not fit cannot be satisfied by any buffer, so
//! it is refused like every other size that is too large.

use crate::{Attend, Columns, Error, Heads, Matrix, Place, Result, Rope, Tokens, Work};
use airllm_format::NumFormat;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Sums of declared work, counted by several threads.
#[derive(Debug, Default)]
pub struct Counter {
    bytes: AtomicU64,
    flops: AtomicU64,
    calls: AtomicU64,
}

impl Counter {
    pub(crate) fn count(&self, work: Work) {
        self.bytes.fetch_add(work.bytes, Relaxed);
        self.flops.fetch_add(work.flops, Relaxed);
        self.calls.fetch_add(work.calls, Relaxed);
    }

    pub(crate) fn total(&self) -> Work {
        Work {
            bytes: self.bytes.load(Relaxed),
            flops: self.flops.load(Relaxed),
            calls: self.calls.load(Relaxed),
        }
    }
}

/// Refuses an operand of fewer than `expected` bytes.
pub(crate) fn need(verb: &'static str, operand: &'static str, expected: usize, found: usize) -> Result<()> {
    if found >= expected {
        return Ok(());
    }
    Err(Error::Shape { verb, operand, expected, found })
}

/// Refuses a byte range that does not lie within `found` bytes.
pub(crate) fn range(verb: &'static str, range: &Range<usize>, found: usize) -> Result<()> {
    if range.start > range.end {
        return Err(Error::Argument {
            verb,
            what: format!("the range {}..{} ends before it starts", range.start, range.end),
        });
    }
    need(verb, "buffer", range.end, found)
}

pub(crate) fn decode(rows: &Matrix<usize>, y: usize) -> Result<Work> {
    const VERB: &str = "decode";
    whole_blocks(VERB, rows)?;
    need(VERB, "rows", matrix_bytes(rows), rows.data)?;
    need(VERB, "y", f32s(&[rows.rows, rows.cols]), y)?;
    let out = f32s(&[rows.rows, rows.cols]);
    Ok(work(&[matrix_bytes(rows), out], &[rows.rows, rows.cols]))
}

pub(crate) fn matmul(w: &Matrix<usize>, x: usize, tokens: Tokens, y: usize, out: Columns) -> Result<Work> {
    const VERB: &str = "matmul";
    whole_blocks(VERB, w)?;
    need(VERB, "w", matrix_bytes(w), w.data)?;
    need(VERB, "x", f32s(&[tokens.end(), w.cols]), x)?;
    if out.first.saturating_add(w.rows) > out.stride {
        return Err(Error::Argument {
            verb: VERB,
            what: format!(
                "{} rows from column {} on do not fit into output rows of {}",
                w.rows, out.first, out.stride
            ),
        });
    }
    need(VERB, "y", f32s(&[tokens.end(), out.stride]), y)?;
    let n = tokens.n;
    let moved = [matrix_bytes(w), f32s(&[n, w.cols]), f32s(&[n, w.rows])];
    Ok(work(&moved, &[2, n, w.rows, w.cols]))
}

pub(crate) fn rms_norm(x: usize, weight: usize, n: usize, dim: usize, y: usize) -> Result<Work> {
    const VERB: &str = "rms_norm";
    need(VERB, "x", f32s(&[n, dim]), x)?;
    need(VERB, "weight", f32s(&[dim]), weight)?;
    need(VERB, "y", f32s(&[n, dim]), y)?;
    Ok(work(&[f32s(&[2, n, dim]), f32s(&[dim])], &[4, n, dim]))
}

pub(crate) fn rms_norm_rows(x: usize, weight: usize, rows: usize, dim: usize) -> Result<Work> {
    const VERB: &str = "rms_norm_rows";
    need(VERB, "x", f32s(&[rows, dim]), x)?;
    need(VERB, "weight", f32s(&[dim]), weight)?;
    Ok(work(&[f32s(&[2, rows, dim]), f32s(&[dim])], &[4, rows, dim]))
}

pub(crate) fn add_bias(y: usize, bias: usize, n: usize, dim: usize) -> Result<Work> {
    const VERB: &str = "add_bias";
    need(VERB, "y", f32s(&[n, dim]), y)?;
    need(VERB, "bias", f32s(&[dim]), bias)?;
    Ok(work(&[f32s(&[2, n, dim]), f32s(&[dim])], &[n, dim]))
}

pub(crate) fn add(y: usize, x: usize, len: usize) -> Result<Work> {
    const VERB: &str = "add";
    need(VERB, "y", f32s(&[len]), y)?;
    need(VERB, "x", f32s(&[len]), x)?;
    Ok(work(&[f32s(&[3, len])], &[len]))
}

pub(crate) fn gated(gate: usize, up: usize, len: usize) -> Result<Work> {
    const VERB: &str = "gated";
    need(VERB, "gate", f32s(&[len]), gate)?;
    need(VERB, "up", f32s(&[len]), up)?;
    Ok(work(&[f32s(&[3, len])], &[5, len]))
}

pub(crate) fn reorder(x: usize, order: usize, n: usize, dim: usize, y: usize) -> Result<Work> {
    const VERB: &str = "reorder";
    need(VERB, "x", f32s(&[n, dim]), x)?;
    need(VERB, "order", f32s(&[dim]), order)?;
    need(VERB, "y", f32s(&[n, dim]), y)?;
    Ok(work(&[f32s(&[2, n, dim]), f32s(&[dim])], &[0]))
}

pub(crate) fn scale_rows(y: usize, factors: &[f32], dim: usize) -> Result<Work> {
    const VERB: &str = "scale_rows";
    need(VERB, "y", f32s(&[factors.len(), dim]), y)?;
    Ok(work(&[f32s(&[2, factors.len(), dim])], &[factors.len(), dim]))
}

pub(crate) fn scatter_add(x: usize, rows: &[u32], factors: &[f32], dim: usize, y: usize) -> Result<Work> {
    const VERB: &str = "scatter_add";
    if rows.len() != factors.len() {
        let what = format!("{} factors for {} rows", factors.len(), rows.len());
        return Err(Error::Argument { verb: VERB, what });
    }
    need(VERB, "x", f32s(&[rows.len(), dim]), x)?;
    need(VERB, "y", f32s(&[past(rows), dim]), y)?;
    Ok(work(&[f32s(&[3, rows.len(), dim])], &[2, rows.len(), dim]))
}

pub(crate) fn place(x: usize, y: usize, shape: &Place) -> Result<Work> {
    const VERB: &str = "place";
    let Place { rows, repeat, width, from, to } = *shape;
    for columns in [from, to] {
        if columns.first.saturating_add(width) > columns.stride {
            let what = format!(
                "{width} columns from column {} on do not fit into rows of {}",
                columns.first, columns.stride
            );
            return Err(Error::Argument { verb: VERB, what });
        }
    }
    if repeat == 0 {
        return Err(Error::Argument { verb: VERB, what: "each row is written from 0 times".into() });
    }
    // Rows of nothing are no rows.
    let rows = if width == 0 { 0 } else { rows };
    need(VERB, "x", f32s(&[rows.div_ceil(repeat), from.stride]), x)?;
    need(VERB, "y", f32s(&[rows, to.stride]), y)?;
    Ok(work(&[f32s(&[2, rows, width])], &[0]))
}

pub(crate) fn rope(x: usize, table: usize, shape: &Rope) -> Result<Work> {
    const VERB: &str = "rope";
    if !shape.rotary.is_multiple_of(2) || shape.rotary > shape.head_dim {
        return Err(Error::Argument {
            verb: VERB,
            what: format!(
                "rotary is {}; it must be even and at most the head's {} numbers",
                shape.rotary, shape.head_dim
            ),
        });
    }
    need(VERB, "x", f32s(&[shape.n, shape.heads, shape.head_dim]), x)?;
    need(VERB, "table", f32s(&[shape.n, shape.rotary]), table)?;
    let turned = [shape.n, shape.heads, shape.rotary];
    let moved = [f32s(&turned), f32s(&turned), f32s(&[shape.n, shape.rotary])];
    Ok(work(&moved, &[3, shape.n, shape.heads, shape.rotary]))
}

pub(crate) fn store(x: usize, first: usize, n: usize, shape: Heads, cache: usize, at: usize) -> Result<Work> {
    const VERB: &str = "store";
    let row = shape.row_bytes();
    need(VERB, "x", f32s(&[first.saturating_add(n), shape.heads, shape.dim]), x)?;
    need(VERB, "cache", at.saturating_add(n).saturating_mul(row), cache)?;
    Ok(work(&[f32s(&[n, shape.heads, shape.dim]), n.saturating_mul(row)], &[0]))
}

pub(crate) fn attend(q: usize, k: usize, v: usize, out: usize, shape: &Attend) -> Result<Work> {
    const VERB: &str = "attend";
    let Attend { first, n, start, heads, kv_heads, head_dim, value_dim, window, .. } = *shape;
    if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
        return Err(Error::Argument {
            verb: VERB,
            what: format!("{kv_heads} key/value heads do not divide {heads} query heads"),
        });
    }
    let rows = first.saturating_add(n);
    let cached = start.saturating_add(n);
    need(VERB, "q", f32s(&[rows, heads, head_dim]), q)?;
    let row = |dim: usize| Heads { heads: kv_heads, dim, cache: shape.cache }.row_bytes();
    need(VERB, "k", cached.saturating_mul(row(head_dim)), k)?;
    need(VERB, "v", cached.saturating_mul(row(value_dim)), v)?;
    need(VERB, "out", f32s(&[rows, heads, value_dim]), out)?;
    if n == 0 {
        return Ok(work(&[], &[0]));
    }
    let both = head_dim.saturating_add(value_dim);
    let (first_seen, last_seen) = (in_window(start as u64 + 1, window), in_window(cached as u64, window));
    // Exact without a window; with one, counts grow by one a query until they stay the same.
    let growing = last_seen - first_seen;
    let seen = (n as u64).saturating_mul(last_seen).saturating_sub(triangle(growing));
    let read = (cached as u64).min(last_seen.saturating_add(n as u64)) as usize;
    let stored = [row(head_dim), row(value_dim)].map(|row| read.saturating_mul(row));
    let mut work = work(&[f32s(&[n, heads, both]), stored[0], stored[1]], &[0]);
    work.flops = seen.saturating_mul((heads as u64).saturating_mul(2 * (both as u64) + 5));
    Ok(work)
}

/// How many of the `past` positions up to a query, its own included, it sees.
fn in_window(past: u64, window: usize) -> u64 {
    if window == 0 { past } else { past.min(window as u64) }
}

pub(crate) fn gather(x: usize, rows: &[u32], dim: usize, y: usize) -> Result<Work> {
    const VERB: &str = "gather";
    need(VERB, "x", f32s(&[past(rows), dim]), x)?;
    need(VERB, "y", f32s(&[rows.len(), dim]), y)?;
    Ok(work(&[f32s(&[2, rows.len(), dim])], &[0]))
}

/// One more than the largest index.
fn past(rows: &[u32]) -> usize {
    rows.iter().max().map_or(0, |&row| row as usize + 1)
}

/// A matrix of which only the size in bytes is known.
pub(crate) fn sized<V>(m: &Matrix<V>, bytes: usize) -> Matrix<usize> {
    Matrix { data: bytes, format: m.format, rows: m.rows, cols: m.cols }
}

/// Refuses rows that are not whole blocks of their format.
fn whole_blocks<V>(verb: &'static str, m: &Matrix<V>) -> Result<()> {
    let block = m.format.multiple();
    if m.cols.is_multiple_of(block) {
        return Ok(());
    }
    let what = format!("rows of {} columns cannot be {}: that comes in blocks of {block}", m.cols, m.format);
    Err(Error::Argument { verb, what })
}

/// Bytes of all rows, at most `usize::MAX`.
fn matrix_bytes<V>(m: &Matrix<V>) -> usize {
    m.rows.saturating_mul(row_bytes(m.format, m.cols))
}

fn row_bytes(format: NumFormat, cols: usize) -> usize {
    // Beyond this the format's own arithmetic could wrap.
    if cols > usize::MAX / 64 { usize::MAX } else { format.row_bytes(cols) }
}

/// Bytes of an f32 array of these dimensions, at most `usize::MAX`. A dimension of 0 makes it empty.
fn f32s(dims: &[usize]) -> usize {
    if dims.contains(&0) {
        return 0;
    }
    dims.iter().fold(4usize, |bytes, &d| bytes.saturating_mul(d))
}

fn triangle(n: u64) -> u64 {
    n.saturating_mul(n.saturating_add(1)) / 2
}

fn work(moved: &[usize], flops: &[usize]) -> Work {
    Work {
        bytes: moved.iter().fold(0u64, |sum, &b| sum.saturating_add(b as u64)),
        flops: flops.iter().fold(1u64, |product, &f| product.saturating_mul(f as u64)),
        calls: 1,
    }
}
