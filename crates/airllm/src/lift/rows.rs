//! The producer of rows: spans, folds and formats.

use super::TensorPlan;
use super::part::TILE;
use airllm_format::{LayerSource, NumFormat, Result};
use airllm_model::arch::Fold;
use airllm_quant::{pack_row, unpack_row};
use std::ops::Range;

/// Room for what is on its way from the checkpoint to a row. Kept from one call to the next.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    /// Bytes as they were read.
    raw: Vec<u8>,
    /// Rows before they are converted.
    tile: Vec<u8>,
    /// One row, widened.
    weights: Vec<f32>,
}

impl TensorPlan {
    /// Fills `out` with rows `rows` in the format [`to`](Self::to), `row_bytes` each. `files` are those of
    /// the checkpoint, by the numbers that its [`Repo`](airllm_format::Repo) gives them.
    ///
    /// # Errors
    /// [`Malformed`](airllm_format::Error::Malformed) for weights that are no numbers or do not fit the format,
    /// with tensor and row; whatever reading says.
    pub(crate) fn rows(
        &self,
        files: &dyn LayerSource,
        rows: Range<usize>,
        scratch: &mut Scratch,
        out: &mut [u8],
    ) -> Result<()> {
        if rows.is_empty() {
            return Ok(());
        }
        if self.decl.is_vector() {
            return self.vector(files, scratch, out);
        }
        let (cols, row) = (self.decl.cols(), self.row_bytes());
        let as_is =
            self.decl.fold == Fold::None && self.stored.format() == self.to && self.adapters.is_empty();
        let mut rest = out;
        for piece in pieces(&self.decl.spans, rows) {
            let (out, after) = rest.split_at_mut((piece.len() * row).min(rest.len()));
            rest = after;
            if as_is {
                self.stored.rows(files, cols, piece, &mut scratch.raw, out)?;
            } else {
                self.converted(files, piece, scratch, out)?;
            }
        }
        Ok(())
    }

    /// Bytes of memory that [`rows`](Self::rows) takes besides `out`, at most.
    pub(crate) fn working(&self) -> usize {
        let (cols, row) = (self.decl.cols(), self.stored.format().row_bytes(self.decl.cols()));
        if self.decl.is_vector() {
            return row + 4 * cols;
        }
        // A tile, or a row where that is longer, but never more than there is; and a row that is cut.
        let tile = TILE.max(row).min(self.decl.rows() * row);
        tile + self.row_bytes() + 4 * cols + self.stored.working(cols)
    }

    /// Rows of the checkpoint's tensor, folded and packed.
    fn converted(
        &self,
        files: &dyn LayerSource,
        rows: Range<usize>,
        scratch: &mut Scratch,
        out: &mut [u8],
    ) -> Result<()> {
        let (cols, from) = (self.decl.cols(), self.stored.format());
        let (from_row, to_row) = (from.row_bytes(cols).max(1), self.row_bytes().max(1));
        let step = (TILE / from_row).max(1);
        let Scratch { raw, tile, weights } = scratch;
        weights.resize(cols, 0.0);
        // Adapters know the order of the checkpoint.
        let columns = self.stored.columns().filter(|_| !self.adapters.is_empty());
        let mut added = vec![0.0; if columns.is_some() { cols } else { 0 }];
        for (first, out) in rows.clone().step_by(step).zip(out.chunks_mut(step * to_row)) {
            let last = (first + step).min(rows.end);
            tile.resize((last - first) * from_row, 0);
            self.stored.rows(files, cols, first..last, raw, tile)?;
            let pairs = tile.chunks_exact(from_row).zip(out.chunks_exact_mut(to_row));
            for (row, (packed, out)) in (first..last).zip(pairs) {
                let done = unpack_row(from, packed, weights).and_then(|()| {
                    fold(self.decl.fold, weights);
                    for factors in self.adapters.iter().filter_map(|a| a.factors(&self.decl.hf)) {
                        let Some(columns) = &columns else {
                            factors.add_to(row, weights);
                            continue;
                        };
                        added.fill(0.0);
                        factors.add_to(row, &mut added);
                        weights.iter_mut().zip(columns).for_each(|(w, &col)| *w += added[col as usize]);
                    }
                    pack_row(self.to, weights, out)
                });
                done.map_err(|error| self.stored.main().bad_row(row, error))?;
            }
        }
        Ok(())
    }

    /// A vector, whose spans are of numbers and not of rows.
    fn vector(&self, files: &dyn LayerSource, scratch: &mut Scratch, out: &mut [u8]) -> Result<()> {
        let (from, part) = (self.stored.format(), self.stored.main());
        let Scratch { raw, tile, weights } = scratch;
        if self.decl.is_order {
            return self.stored.rows(files, self.decl.cols(), 0..1, raw, out);
        }
        weights.clear();
        for span in &self.decl.spans {
            tile.resize(from.row_bytes(span.len()), 0);
            part.read(files, from.row_bytes(span.start) as u64, tile)?;
            let before = weights.len();
            weights.resize(before + span.len(), 0.0);
            unpack_row(from, tile, &mut weights[before..]).map_err(|error| part.bad_row(0, error))?;
        }
        fold(self.decl.fold, weights);
        pack_row(NumFormat::F32, weights, out).map_err(|error| part.bad_row(0, error))
    }
}

/// The rows `rows` of a tensor made of `spans`, as runs of rows of the checkpoint's tensor.
fn pieces(spans: &[Range<usize>], rows: Range<usize>) -> impl Iterator<Item = Range<usize>> + '_ {
    let mut before = 0;
    spans.iter().filter_map(move |span| {
        let start = before;
        before += span.len();
        let (from, to) = (rows.start.max(start), rows.end.min(before));
        (from < to).then(|| span.start + from - start..span.start + to - start)
    })
}

/// The row of the checkpoint's tensor that is row `row` of a tensor made of `spans`.
pub(super) fn in_checkpoint(spans: &[Range<usize>], row: usize) -> usize {
    pieces(spans, row..row + 1).next().map_or(row, |piece| piece.start)
}

fn fold(fold: Fold, weights: &mut [f32]) {
    match fold {
        Fold::None => {}
        Fold::AddOne => weights.iter_mut().for_each(|w| *w += 1.0),
        Fold::NormaliseRows => {
            let length = weights.iter().map(|&w| f64::from(w) * f64::from(w)).sum::<f64>().sqrt() as f32;
            weights.iter_mut().for_each(|w| *w /= length.max(1e-7));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_spans() {
        let spans = [4..6, 0..3, 10..11];
        let of = |rows| pieces(&spans, rows).collect::<Vec<_>>();
        assert_eq!(of(0..6), [4..6, 0..3, 10..11]);
        assert_eq!(of(1..3), [5..6, 0..1]);
        assert_eq!(of(4..5), Vec::from_iter(Some(2..3)));
        assert!(of(3..3).is_empty());
    }

    #[test]
    fn folds() {
        let mut w = [3.0, 4.0];
        fold(Fold::NormaliseRows, &mut w);
        assert_eq!(w, [0.6, 0.8]);
        fold(Fold::AddOne, &mut w);
        assert_eq!(w, [1.6, 1.8]);
        let mut zero = [0.0; 3];
        fold(Fold::NormaliseRows, &mut zero);
        assert_eq!(zero, [0.0; 3]);
    }
}
