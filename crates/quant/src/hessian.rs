//! What the inputs of a layer say about the errors of its weights: sums of products of inputs.

use crate::work::share;
use crate::{Error, Feedback, Result};
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};

/// Columns of a matrix that one thread computes at a time.
const STRIPE: usize = 256;

/// Sums of products of a layer's inputs, `H = Σ x·xᵀ` over the tokens of a calibration text.
///
/// An output of the layer is `w·x`, so errors `e` of a row of weights make a squared error of `e·H·eᵀ` in all: `H` is
/// all that rounding has to know of the text. It has `cols·cols` numbers of 32 bits. Where that is too much memory,
/// only diagonal blocks of it are kept, as if columns of different blocks had nothing to do with each other.
///
/// ```
/// # use airllm_quant::Hessian;
/// let mut hessian = Hessian::new(3, 3);
/// hessian.add(&[1.0, 2.0, 0.0, 3.0, 4.0, 0.0], 1)?; // two tokens
/// assert_eq!(hessian.diagonal(), [5.0, 10.0, 0.0]);
/// let feedback = hessian.factor(0.01, 1)?;
/// assert_eq!(feedback.cols(), 3);
/// # Ok::<(), airllm_quant::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Hessian {
    cols: usize,
    width: usize,
    tokens: u64,
    /// The upper triangles of the diagonal blocks, column after column. What lies below is no part of it.
    blocks: Vec<Vec<f32>>,
}

/// Columns of diagonal blocks of about `width`: whole blocks of the formats in planes.
fn whole(cols: usize, width: usize) -> usize {
    width.clamp(1, cols.max(1)).next_multiple_of(STRIPE)
}

/// Columns of each diagonal block.
fn parts(cols: usize, width: usize) -> impl Iterator<Item = usize> {
    (0..cols).step_by(width).map(move |start| width.min(cols - start))
}

impl Hessian {
    /// No tokens yet, for inputs of `cols` numbers. Blocks have `width` columns, rounded up to a multiple of 256;
    /// `cols` or more is all of them.
    pub fn new(cols: usize, width: usize) -> Self {
        let width = whole(cols, width);
        let blocks = parts(cols, width).map(|n| vec![0.0; n * n]).collect();
        Hessian { cols, width, tokens: 0, blocks }
    }

    /// Bytes of memory that such sums and the [`Feedback`] made of them take, in the same place: `4 · cols²` where
    /// there is one block, and about 3 KiB a column. Besides, [`compensate`](crate::compensate) takes about 1.5 KiB a
    /// column for each thread.
    pub fn bytes(cols: usize, width: usize) -> u64 {
        let sums: u64 = parts(cols, whole(cols, width)).map(|n| 4 * (n as u64) * (n as u64)).sum();
        sums + (cols.div_ceil(STRIPE) * size_of::<f32>() * STRIPE * STRIPE * 3) as u64
    }

    /// Adds the products of inputs `x`, `[tokens, cols]` row after row, on so many threads.
    ///
    /// The sums do not depend on the number of threads; by how many tokens they come, in their last bits only. A
    /// few hundred tokens at a time are fastest.
    ///
    /// # Errors
    ///
    /// [`Error::Inputs`] for a length that is not whole tokens, [`Error::Input`] for NaN or an infinity.
    /// After an error nothing is added.
    pub fn add(&mut self, x: &[f32], threads: usize) -> Result<()> {
        let cols = self.cols;
        if x.is_empty() {
            return Ok(());
        }
        if cols == 0 || !x.len().is_multiple_of(cols) {
            return Err(Error::Inputs { cols, found: x.len() });
        }
        if let Some(at) = x.iter().position(|v| !v.is_finite()) {
            return Err(Error::Input { token: at / cols, column: at % cols, value: x[at] });
        }
        let tokens = x.len() / cols;
        let x = MatRef::from_row_major_slice(x, tokens, cols);
        let mut stripes = Vec::new();
        for (b, block) in self.blocks.iter_mut().enumerate() {
            let start = b * self.width;
            let n = self.width.min(cols - start);
            for (s, stripe) in block.chunks_mut(STRIPE * n).enumerate() {
                stripes.push((start, n, s * STRIPE, stripe));
            }
        }
        // The longest come first, so that threads end together.
        stripes.sort_by_key(|&(_, _, first, _)| std::cmp::Reverse(first));
        share(stripes, threads, |(start, n, first, stripe)| {
            let count = stripe.len() / n;
            let sums = MatMut::from_column_major_slice_mut(stripe, n, count);
            let rows = x.subcols(start, first + count).transpose();
            let sums = sums.subrows_mut(0, first + count);
            matmul(sums, Accum::Add, rows, x.subcols(start + first, count), 1.0, Par::Seq);
        });
        self.tokens += tokens as u64;
        Ok(())
    }

    /// Tokens added so far.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Numbers of an input.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The mean square of each input, 0 without tokens. It is the importance that
    /// [`pack_row_weighted`](crate::pack_row_weighted) takes.
    pub fn diagonal(&self) -> Vec<f32> {
        let tokens = self.tokens.max(1) as f32;
        self.sums().map(|v| v / tokens).collect()
    }

    fn sums(&self) -> impl Iterator<Item = f32> {
        let blocks = self.blocks.iter().zip(parts(self.cols, self.width));
        blocks.flat_map(|(block, n)| block.iter().copied().step_by(n + 1))
    }

    /// Factors the means of the products, `H / tokens`, in place, on so many threads. The factor does not depend on
    /// their number.
    ///
    /// `damping` times the mean of the diagonal is added to the diagonal first; 0.01 is usual. Where the sum is not
    /// positive definite in 32 bits, ten times more is tried, up to 1. Inputs that were never anything but 0 have no
    /// part in the factor but for that, so their weights are rounded by themselves. Without tokens, or if all
    /// inputs were 0, the factor is that of the unit matrix: nothing is known, and rounding is to nearest.
    ///
    /// # Errors
    ///
    /// [`Error::Damping`] for a damping that is negative, infinite or NaN; [`Error::Indefinite`] where not even 1
    /// helps, or where sums have left the range of f32.
    pub fn factor(mut self, damping: f64, threads: usize) -> Result<Feedback> {
        if !damping.is_finite() || damping < 0.0 {
            return Err(Error::Damping { found: damping });
        }
        let sums: Vec<f32> = self.sums().collect();
        let mean = sums.iter().map(|&v| f64::from(v)).sum::<f64>() / self.cols.max(1) as f64;
        if let Some(column) = sums.iter().position(|v| !v.is_finite()) {
            return Err(Error::Indefinite { column, mean, damping });
        }
        if mean == 0.0 {
            for (block, n) in self.blocks.iter_mut().zip(parts(self.cols, self.width)) {
                block.fill(0.0);
                block.iter_mut().step_by(n + 1).for_each(|v| *v = 1.0);
            }
            return Feedback::of(self.cols, self.width, self.blocks, vec![1.0; self.cols], 1.0, threads);
        }
        let tokens = self.tokens.max(1) as f64;
        Feedback::damped(self.cols, self.width, self.blocks, (mean, damping, tokens), threads)
    }
}
