//! Rounding of whole rows, each error made up for by the columns that follow.

use crate::feedback::{Feedback, SPAN};
use crate::planes::{Kind, put_block};
use crate::row::{check_length, check_values};
use crate::span::{Polish, Round, Rounded};
use crate::work::share;
use crate::{Error, Result, pack_row, unpack_row};
use airllm_format::NumFormat;
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};

/// Rows that are rounded together, so that the factor is read once for all of them. Fewer are filled up with
/// zeros: what a row becomes must not depend on the rows beside it.
const ROWS: usize = 64;
/// How often all columns are gone through again.
const AGAIN: usize = 2;

/// What [`compensate`] left of the weights' products.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Compensated {
    /// `e·H·eᵀ` summed over the rows, `e` being weights less what they were rounded to.
    pub error: f64,
    /// `w·H·wᵀ` summed over the rows: `error / energy` is the relative squared error of the outputs.
    pub energy: f64,
}

/// Rounds rows of weights to `format`, packed into `out` row after row, on so many threads. Rounding errors of
/// columns are made up for by the columns that follow, as the inputs that `feedback` was made of allow it.
///
/// `weights` are `[rows, feedback.cols()]`. What a row becomes depends on nothing but itself and `feedback`: neither on the other rows
/// nor on the number of threads. A row of zeros becomes codes of zero.
///
/// The formats in planes are rounded so; see the [crate] for how. All others are packed as [`pack_row`] does it, and
/// measured alike. `H` is what was factored: damping included, and without what diagonal blocks leave out.
///
/// # Errors
///
/// [`Error::Rows`] if weights and bytes are not the same number of rows, [`Error::PartBlock`] where blocks would
/// not be whole; [`Error::Row`] around what [`pack_row`] finds wrong with one. After an error `out` holds anything.
pub fn compensate(
    format: NumFormat,
    weights: &[f32],
    feedback: &Feedback,
    out: &mut [u8],
    threads: usize,
) -> Result<Compensated> {
    let cols = feedback.cols();
    let bytes = format.row_bytes(cols);
    check_length(format, cols, bytes)?;
    if cols == 0 && weights.is_empty() && out.is_empty() {
        return Ok(Compensated::default());
    }
    if cols == 0 || !weights.len().is_multiple_of(cols) || out.len() != weights.len() / cols * bytes {
        return Err(Error::Rows { format, cols, weights: weights.len(), bytes: out.len() });
    }
    for (row, weights) in weights.chunks_exact(cols).enumerate() {
        check_values(format, weights).map_err(|error| Error::Row { row, error: Box::new(error) })?;
    }
    let mut sums = vec![Ok((0f64, 0f64)); weights.len() / cols];
    let batches = weights.chunks(ROWS * cols).zip(out.chunks_mut(ROWS * bytes)).zip(sums.chunks_mut(ROWS));
    share(batches.collect(), threads, |((weights, out), sums)| {
        Batch::new(format, feedback, weights).run(out, sums);
    });
    let mut all = Compensated::default();
    for (row, sum) in sums.into_iter().enumerate() {
        let (error, energy) = sum.map_err(|error| Error::Row { row, error: Box::new(error) })?;
        all.error += error;
        all.energy += energy;
    }
    Ok(all)
}

/// Some rows on their way.
struct Batch<'a> {
    format: NumFormat,
    feedback: &'a Feedback,
    cols: usize,
    /// `[ROWS, cols]`.
    weights: Vec<f32>,
    /// Weights less what they were rounded to, `[ROWS, cols]`.
    errors: Vec<f32>,
}

impl Batch<'_> {
    fn new<'a>(format: NumFormat, feedback: &'a Feedback, weights: &[f32]) -> Batch<'a> {
        let cols = feedback.cols();
        let mut padded = vec![0.0; ROWS * cols];
        padded[..weights.len()].copy_from_slice(weights);
        let errors = vec![0.0; ROWS * cols];
        Batch { format, feedback, cols, weights: padded, errors }
    }

    fn run(mut self, out: &mut [u8], sums: &mut [Result<(f64, f64)>]) {
        let bytes = self.format.row_bytes(self.cols);
        let mut out: Vec<&mut [u8]> = out.chunks_exact_mut(bytes).collect();
        if let Ok(kind) = Kind::of(self.format) {
            let mut rounded = Vec::new();
            self.forward(kind, out.len(), &mut rounded);
            for _ in 0..AGAIN {
                self.again(kind, out.len(), &mut rounded);
            }
            out.iter_mut().for_each(|out| out.fill(0));
            for (s, rounded) in rounded.chunks(out.len()).enumerate() {
                for (out, rounded) in out.iter_mut().zip(rounded) {
                    put_block(self.format, kind, self.cols, s, &rounded.block(), out);
                }
            }
        } else {
            for (row, out) in out.iter_mut().enumerate() {
                if let Err(error) = self.nearest(row, out) {
                    sums[row] = Err(error);
                }
            }
        }
        self.sum(&self.errors, sums, |sum| &mut sum.0);
        self.sum(&self.weights, sums, |sum| &mut sum.1);
    }

    /// Rounds columns in their order.
    fn forward(&mut self, kind: Kind, rows: usize, rounded: &mut Vec<Rounded>) {
        let mut moved = vec![[0f32; SPAN]; ROWS];
        let arch = pulp::Arch::new();
        for s in 0..self.cols.div_ceil(SPAN) {
            let (first, count) = self.place(s);
            self.feed(s, &self.errors, &mut moved);
            let span = self.feedback.span(s);
            for (row, moved) in moved.iter().enumerate().take(rows) {
                let at = row * self.cols + first;
                let mut weights = [0f32; SPAN];
                weights[..count].copy_from_slice(&self.weights[at..][..count]);
                let new = arch.dispatch(Round { kind, span, weights: &weights, moved });
                self.errors[at..][..count].copy_from_slice(&new.errors[..count]);
                rounded.push(new);
            }
        }
    }

    /// Improves each 256 columns, all others staying as they are.
    fn again(&mut self, kind: Kind, rows: usize, rounded: &mut [Rounded]) {
        let mut slopes = vec![[0f32; SPAN]; ROWS];
        let arch = pulp::Arch::new();
        for (s, rounded) in rounded.chunks_mut(rows).enumerate() {
            let (first, count) = self.place(s);
            slopes.as_flattened_mut().fill(0.0);
            let to = MatMut::from_row_major_slice_mut(slopes.as_flattened_mut(), ROWS, SPAN);
            self.feedback.slopes(s, matrix(&self.errors, self.cols), to.subcols_mut(0, count));
            let span = self.feedback.span(s);
            for (row, (rounded, slope)) in rounded.iter_mut().zip(&mut slopes).enumerate() {
                arch.dispatch(Polish { kind, span, rounded, slope });
                let at = row * self.cols + first;
                self.errors[at..][..count].copy_from_slice(&rounded.errors[..count]);
            }
        }
    }

    /// The first of 256 columns, and how many there are.
    fn place(&self, s: usize) -> (usize, usize) {
        (s * SPAN, SPAN.min(self.cols - s * SPAN))
    }

    fn nearest(&mut self, row: usize, out: &mut [u8]) -> Result<()> {
        let weights = &self.weights[row * self.cols..][..self.cols];
        let errors = &mut self.errors[row * self.cols..][..self.cols];
        pack_row(self.format, weights, out)?;
        unpack_row(self.format, out, errors)?;
        errors.iter_mut().zip(weights).for_each(|(e, w)| *e = w - *e);
        Ok(())
    }

    /// How `of`, `[ROWS, cols]`, move 256 columns from those before.
    fn feed(&self, s: usize, of: &[f32], moved: &mut [[f32; SPAN]]) {
        let (first, count) = self.place(s);
        let start = self.feedback.reach(s);
        moved.as_flattened_mut().fill(0.0);
        if first > start {
            let to = MatMut::from_row_major_slice_mut(moved.as_flattened_mut(), ROWS, SPAN);
            let of = matrix(of, self.cols).subcols(start, first - start);
            matmul(to.subcols_mut(0, count), Accum::Replace, of, self.feedback.before(s), 1.0, Par::Seq);
        }
    }

    /// Adds `v·H·vᵀ` for each row `v` of `of`, `[ROWS, cols]`.
    fn sum(&self, of: &[f32], sums: &mut [Result<(f64, f64)>], which: impl Fn(&mut (f64, f64)) -> &mut f64) {
        let mut left = vec![[0f32; SPAN]; ROWS];
        for s in 0..self.cols.div_ceil(SPAN) {
            let (first, count) = self.place(s);
            self.feed(s, of, &mut left);
            let to = MatMut::from_row_major_slice_mut(left.as_flattened_mut(), ROWS, SPAN);
            let here = matrix(of, self.cols).subcols(first, count);
            let rows = MatRef::from_row_major_slice(self.feedback.span(s).rows.as_flattened(), SPAN, SPAN);
            matmul(to, Accum::Add, here, rows.subrows(0, count), 1.0, Par::Seq);
            let importance = &self.feedback.importance()[first..][..count];
            for ((row, left), sum) in left.iter().enumerate().zip(&mut *sums) {
                let Ok(sum) = sum else { continue };
                for ((z, v), d) in left.iter().zip(&of[row * self.cols + first..]).zip(importance) {
                    let z = f64::from(z + v);
                    *which(sum) += f64::from(*d) * z * z;
                }
            }
        }
    }
}

/// `[ROWS, cols]`.
fn matrix(of: &[f32], cols: usize) -> MatRef<'_, f32> {
    MatRef::from_row_major_slice(of, ROWS, cols).as_dyn_stride()
}
