//! The triangular factor of a [`Hessian`](crate::Hessian): how errors of columns are made up for by later ones.

#![allow(clippy::needless_range_loop, reason = "loops over lanes become vectors")]

use crate::planes::GROUP;
use crate::work::share;
use crate::{Error, Result};
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt::factor::{LltError, cholesky_in_place, cholesky_in_place_scratch};
use faer::linalg::matmul::matmul;
use faer::linalg::matmul::triangular::{BlockStructure, matmul as triangular};
use faer::linalg::triangular_solve::solve_lower_triangular_in_place as solve;
use faer::prelude::{IntoConst, Reborrow, ReborrowMut};
use faer::{Accum, MatMut, MatRef, Par};

/// Columns that are rounded together: a block of the formats in planes.
pub(crate) const SPAN: usize = 256;

/// `H = (U + I)·D·(U + I)ᵀ`, `U` strictly upper triangular and `D` diagonal.
///
/// Errors `e` of a row of weights cost `e·H·eᵀ = Σ D[k]·z[k]²` with `z = e·(U + I)`. Column by column, an error of
/// column `j` moves what column `k` should be by `e[j]·U[j, k]`; if all columns are rounded to what they then should be, only the
/// rounding itself is left in `z`. Made by [`Hessian::factor`](crate::Hessian::factor).
#[derive(Debug, Clone)]
pub struct Feedback {
    cols: usize,
    width: usize,
    damping: f64,
    /// `D`.
    importance: Vec<f32>,
    /// What makes `D` relative to its largest number.
    relative: f32,
    /// The diagonal of `H`, damping included, times tokens.
    squares: Vec<f32>,
    /// What makes these, and what lies below the diagonals of `blocks`, comparable to the relative `D`.
    scale: f32,
    /// `U` of each diagonal block, column after column. What lies on the diagonal and below is no part of it.
    blocks: Vec<Vec<f32>>,
    /// The same of each 256 columns on the diagonal.
    spans: Vec<Span>,
}

/// 256 columns; beyond the last column of a row all is 0.
#[derive(Debug, Clone)]
pub(crate) struct Span {
    /// `U`, row after row.
    pub(crate) rows: Vec<[f32; SPAN]>,
    /// The relative `D`.
    pub(crate) importance: [f32; SPAN],
    /// Parts of these.
    pub(crate) parts: Vec<Part>,
    /// `(U + I)·D·(U + I)ᵀ`: what errors cost if later columns make up for them.
    pub(crate) ahead: Products,
    /// `H`, in the unit of the relative `D`: what errors cost if all other columns stay as they are.
    pub(crate) whole: Products,
}

/// What errors of 256 columns cost.
#[derive(Debug, Clone)]
pub(crate) struct Products {
    /// Row after row.
    pub(crate) rows: Vec<[f32; SPAN]>,
    /// The factors of each 16 columns by themselves.
    pub(crate) parts: Vec<Part>,
}

/// `U` and `D` of 16 columns.
#[derive(Debug, Clone, Default)]
pub(crate) struct Part {
    /// `U`, row after row.
    pub(crate) rows: [[f32; GROUP]; GROUP],
    /// The relative `D`.
    pub(crate) importance: [f32; GROUP],
}

impl Feedback {
    /// Numbers of an input: columns of the weights.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The damping that was enough, in parts of the mean of the diagonal.
    pub fn damping(&self) -> f64 {
        self.damping
    }

    /// `D`: what a squared error of each column costs that no other column makes up for.
    pub fn importance(&self) -> &[f32] {
        &self.importance
    }

    /// `e·H·eᵀ` of a row of errors: with the mean of a text's products, the mean squared error of the output,
    /// and what the damping adds.
    ///
    /// Computed in f64, by `cols²` operations. NaN if `off` has another length than the factor has columns.
    pub fn error(&self, off: &[f32]) -> f64 {
        if off.len() != self.cols {
            return f64::NAN;
        }
        let mut total = 0.0;
        for (b, block) in self.blocks.iter().enumerate() {
            let start = b * self.width;
            let n = self.width.min(self.cols - start);
            let off = &off[start..][..n];
            for (k, column) in block.chunks_exact(n).enumerate() {
                let (u, e) = (column[..k].as_chunks::<8>(), off[..k].as_chunks::<8>());
                let mut sums = [0f64; 8];
                for (u, e) in u.0.iter().zip(e.0) {
                    for l in 0..8 {
                        sums[l] += f64::from(u[l]) * f64::from(e[l]);
                    }
                }
                let last = u.1.iter().zip(e.1).map(|(&u, &e)| f64::from(u) * f64::from(e));
                let moved = sums.iter().sum::<f64>() + last.sum::<f64>();
                let z = f64::from(off[k]) + moved;
                total += f64::from(self.importance[start + k]) * z * z;
            }
        }
        total
    }

    pub(crate) fn span(&self, s: usize) -> &Span {
        &self.spans[s]
    }

    /// The first of the columns whose errors reach columns `256s ..`.
    pub(crate) fn reach(&self, s: usize) -> usize {
        s * SPAN / self.width * self.width
    }

    /// `U[reach .. 256s, 256s ..]`: how the columns before move 256 columns, or those that are left.
    pub(crate) fn before(&self, s: usize) -> MatRef<'_, f32> {
        let (first, start) = (s * SPAN, self.reach(s));
        let n = self.width.min(self.cols - start);
        let block = MatRef::from_column_major_slice(&self.blocks[first / self.width], n, n);
        block.submatrix(0, first - start, first - start, SPAN.min(self.cols - first))
    }

    /// `alpha · of · H[.., 256s ..]`, but for the square on the diagonal: adds to `to`, whose rows are those of `of`.
    pub(crate) fn slopes(&self, s: usize, of: MatRef<'_, f32>, mut to: MatMut<'_, f32>) {
        let (first, start) = (s * SPAN, self.reach(s));
        let n = self.width.min(self.cols - start);
        let block = MatRef::from_column_major_slice(&self.blocks[first / self.width], n, n);
        let count = SPAN.min(self.cols - first);
        let (at, end) = (first - start, first - start + count);
        if at > 0 {
            let sums = block.submatrix(at, 0, count, at).transpose();
            matmul(&mut to, Accum::Add, of.subcols(start, at), sums, self.scale, Par::Seq);
        }
        if end < n {
            let sums = block.submatrix(end, at, n - end, count);
            matmul(&mut to, Accum::Add, of.subcols(start + end, n - end), sums, self.scale, Par::Seq);
        }
    }

    /// Factors the upper triangles of `blocks` with a damping that is enough. The numbers are the mean of the
    /// diagonal, the damping to begin with, and the tokens summed up.
    pub(crate) fn damped(
        cols: usize,
        width: usize,
        mut blocks: Vec<Vec<f32>>,
        (mean, asked, tokens): (f64, f64, f64),
        threads: usize,
    ) -> Result<Feedback> {
        let mut damping = asked;
        let mut squares = vec![0f32; cols];
        for (b, block) in blocks.iter_mut().enumerate() {
            let n = width.min(cols - b * width);
            // Seen from its last column a block is lower triangular; that is factored. The other triangle and
            // `diagonal` keep what is needed to begin again.
            block.reverse();
            mirror(block, n);
            let diagonal: Vec<f32> = block.iter().copied().step_by(n + 1).collect();
            loop {
                let add = (damping * mean) as f32;
                block.iter_mut().step_by(n + 1).zip(&diagonal).for_each(|(to, v)| *to = v + add);
                let Err(at) = lower(block, n, threads) else { break };
                if damping >= 1.0 {
                    let column = b * width + n - 1 - at;
                    return Err(Error::Indefinite { column, mean, damping });
                }
                damping = (damping * 10.0).clamp(1e-3, 1.0);
                restore(block, n);
            }
            let add = (damping * mean) as f32;
            for (to, v) in squares[b * width..][..n].iter_mut().rev().zip(&diagonal) {
                *to = v + add;
            }
            for (k, column) in block.chunks_exact_mut(n).enumerate() {
                let scale = 1.0 / column[k];
                column[k] *= column[k];
                column[k + 1..].iter_mut().for_each(|v| *v *= scale);
            }
            block.reverse();
        }
        let mut feedback = Feedback::of(cols, width, blocks, squares, tokens, threads)?;
        feedback.damping = damping;
        Ok(feedback)
    }

    /// From blocks with `U` above the diagonal and `D · tokens` on it.
    pub(crate) fn of(
        cols: usize,
        width: usize,
        blocks: Vec<Vec<f32>>,
        squares: Vec<f32>,
        tokens: f64,
        threads: usize,
    ) -> Result<Feedback> {
        let mut importance = Vec::with_capacity(cols);
        for block in &blocks {
            let n = width.min(cols - importance.len());
            importance.extend(block.iter().step_by(n + 1).map(|v| (f64::from(*v) / tokens) as f32));
        }
        let largest = importance.iter().fold(0f32, |m, &v| m.max(v));
        let relative = 1.0 / largest;
        let spans = vec![Span::empty(); cols.div_ceil(SPAN)];
        let scale = (1.0 / (tokens * f64::from(largest))) as f32;
        let mut feedback =
            Feedback { cols, width, damping: 0.0, importance, relative, squares, scale, blocks, spans };
        let mut spans = std::mem::take(&mut feedback.spans);
        share(spans.iter_mut().enumerate().collect(), threads, |(s, span)| span.fill(&feedback, s));
        feedback.spans = spans;
        Ok(feedback)
    }
}

impl Span {
    fn empty() -> Span {
        let rows = vec![[0.0; SPAN]; SPAN];
        let parts = vec![Part::default(); SPAN / GROUP];
        let none = Products { rows: rows.clone(), parts: parts.clone() };
        Span { rows, importance: [0.0; SPAN], parts, ahead: none.clone(), whole: none }
    }

    fn fill(&mut self, feedback: &Feedback, s: usize) {
        let (first, start) = (s * SPAN, feedback.reach(s));
        let (n, count) = (feedback.width.min(feedback.cols - start), SPAN.min(feedback.cols - first));
        let block = &feedback.blocks[first / feedback.width];
        // Rows of `(U + I)·√D`.
        let mut roots = vec![0f32; SPAN * SPAN];
        for k in 0..count {
            let column = &block[(first - start + k) * n + first - start..][..count];
            self.importance[k] = feedback.importance[first + k] * feedback.relative;
            let root = self.importance[k].sqrt();
            for (j, &u) in column[..k].iter().enumerate() {
                self.rows[j][k] = u;
                roots[j * SPAN + k] = u * root;
            }
            roots[k * SPAN + k] = root;
            self.whole.rows[k][k] = feedback.squares[first + k] * feedback.scale;
            for (j, sum) in column.iter().enumerate().skip(k + 1) {
                self.whole.rows[j][k] = sum * feedback.scale;
                self.whole.rows[k][j] = sum * feedback.scale;
            }
        }
        let roots = MatRef::from_row_major_slice(&roots, SPAN, SPAN);
        let to = MatMut::from_row_major_slice_mut(self.ahead.rows.as_flattened_mut(), SPAN, SPAN);
        matmul(to, Accum::Replace, roots, roots.transpose(), 1.0, Par::Seq);
        for (g, part) in self.parts.iter_mut().enumerate() {
            for i in 0..GROUP {
                let k = g * GROUP + i;
                part.importance[i] = self.importance[k];
                part.rows[i].copy_from_slice(&self.rows[k][g * GROUP..][..GROUP]);
            }
        }
        for products in [&mut self.ahead, &mut self.whole] {
            for (g, part) in products.parts.iter_mut().enumerate() {
                let square = |i: usize| &products.rows[g * GROUP + i][g * GROUP..][..GROUP];
                *part = Part::of(std::array::from_fn(|i| std::array::from_fn(|k| square(i)[k])));
            }
        }
    }
}

impl Part {
    /// The factor of products. A column that rounding leaves no more of than its errors counts as 0.
    fn of(products: [[f32; GROUP]; GROUP]) -> Part {
        let (mut part, mut rest) = (Part::default(), products);
        for k in (0..GROUP).rev() {
            let pivot = rest[k][k];
            if pivot <= products[k][k] * 1e-5 {
                continue;
            }
            part.importance[k] = pivot;
            for i in 0..k {
                part.rows[i][k] = rest[i][k] / pivot;
            }
            for i in 0..k {
                for j in 0..k {
                    rest[i][j] -= part.rows[i][k] * rest[j][k];
                }
            }
        }
        part
    }

    /// How far columns are from where they cost least, and what that costs: `off` and `off·P·offᵀ` for the products `P` and
    /// the slope `off·P`.
    #[inline(always)]
    pub(crate) fn off(&self, slope: &[f32; GROUP]) -> ([f32; GROUP], f32) {
        let (mut off, mut cost) = (*slope, 0f32);
        for i in (0..GROUP).rev() {
            for k in i + 1..GROUP {
                off[i] -= self.rows[i][k] * off[k];
            }
        }
        for i in 0..GROUP {
            let by = self.importance[i];
            off[i] = if by > 0.0 { off[i] / by } else { 0.0 };
            cost += by * (off[i] * off[i]);
        }
        for i in 0..GROUP {
            for j in 0..i {
                off[i] -= off[j] * self.rows[j][i];
            }
        }
        (off, cost)
    }
}

/// Copies what lies below the diagonal to above it.
fn mirror(block: &mut [f32], n: usize) {
    for k in 0..n {
        for j in 0..k {
            block[k * n + j] = block[j * n + k];
        }
    }
}

/// Copies what lies above the diagonal to below it.
fn restore(block: &mut [f32], n: usize) {
    for k in 0..n {
        for j in 0..k {
            block[j * n + k] = block[k * n + j];
        }
    }
}

/// Cholesky: makes `A`, whose lower triangle is given column after column, `L` with `A = L·Lᵀ`; touches that triangle alone.
/// What is refused is the column of the first pivot that is not positive.
///
/// By blocks of [`SPAN`] columns, whose updates are cut in the same way whatever the number of threads.
fn lower(block: &mut [f32], n: usize, threads: usize) -> Result<(), usize> {
    let mut whole = MatMut::from_column_major_slice_mut(block, n, n);
    let mut corner = vec![0f32; SPAN * SPAN];
    let mut stack = MemBuffer::new(cholesky_in_place_scratch::<f32>(SPAN, Par::Seq, Default::default()));
    for first in (0..n).step_by(SPAN) {
        let width = SPAN.min(n - first);
        let panel = whole.rb_mut().submatrix_mut(first, first, n - first, width);
        let (mut place, below) = panel.split_at_row_mut(width);
        // On a copy, for what is factored in place has its other triangle overwritten.
        let mut top = MatMut::from_column_major_slice_mut(&mut corner[..width * width], width, width);
        top.copy_from_triangular_lower(place.rb());
        let stack = MemStack::new(&mut stack);
        match cholesky_in_place(top.rb_mut(), Default::default(), Par::Seq, stack, Default::default()) {
            Ok(_) => {}
            Err(LltError::NonPositivePivot { index }) => return Err(first + index),
        }
        if let Some(k) = (0..width).find(|&k| !(top[(k, k)].is_finite() && top[(k, k)] > 0.0)) {
            return Err(first + k);
        }
        place.copy_from_triangular_lower(top.rb());
        let top = top.into_const();
        let left = n - first - width;
        let mut jobs = Vec::new();
        let mut more = below;
        for start in (0..left).step_by(SPAN) {
            let (here, next) = more.split_at_row_mut(SPAN.min(left - start));
            jobs.push(here);
            more = next;
        }
        share(jobs, threads, |rows| solve(top, rows.transpose_mut(), Par::Seq));

        // `below` was cut up, so it is taken from the whole again.
        let (done, mut after) = whole.rb_mut().split_at_col_mut(first + width);
        let below = done.into_const().submatrix(first + width, first, left, width);
        let mut jobs = Vec::new();
        let mut more = after.rb_mut().subrows_mut(first + width, left);
        for start in (0..left).step_by(SPAN) {
            let (here, next) = more.split_at_col_mut(SPAN.min(left - start));
            jobs.push((start, here));
            more = next;
        }
        share(jobs, threads, |(start, stripe)| {
            let width = stripe.ncols();
            let (mut corner, mut under) = stripe.subrows_mut(start, left - start).split_at_row_mut(width);
            let from = below.subrows(start, width);
            let shape = (BlockStructure::TriangularLower, BlockStructure::Rectangular);
            triangular(
                corner.rb_mut(),
                shape.0,
                Accum::Add,
                from,
                shape.1,
                from.transpose(),
                shape.1,
                -1.0,
                Par::Seq,
            );
            let beneath = below.subrows(start + width, left - start - width);
            matmul(under.rb_mut(), Accum::Add, beneath, from.transpose(), -1.0, Par::Seq);
        });
    }
    Ok(())
}
