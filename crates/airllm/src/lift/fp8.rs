//! 8-bit floats with scales: one for the tensor, one a row, or one a block (DeepSeek-V3's 128 x 128).
//!
//! `weight` is `[out, in]` of e4m3; its scale, `weight_scale_inv` or `weight_scale`, is multiplied with,
//! whichever its name. Our rows have a scale for every 128 columns, so blocks of whole groups fit exactly.

use super::part::{Part, TILE};
use super::scheme::Scheme;
use super::stored::floats;
use crate::Result;
use airllm_format::safetensors::Dtype;
use airllm_format::{LayerSource, NumFormat, Repo};
use std::ops::Range;

/// Side of a block where nothing says otherwise.
const BLOCK: usize = 128;

/// A matrix stored so.
#[derive(Debug, Clone)]
pub(crate) struct Fp8 {
    codes: Part,
    scales: Part,
    cols: usize,
    /// Rows and columns that share a scale.
    block: [usize; 2],
    /// Scales in a row of them.
    across: usize,
}

impl Fp8 {
    /// Checks the tensors of the matrix `codes`, which is to be of `rows` and `cols`.
    pub(crate) fn find(repo: &Repo, scheme: &Scheme, codes: Part, rows: usize, cols: usize) -> Result<Fp8> {
        codes.expect(&[Dtype::F8E4M3], &[&[rows, cols]])?;
        let inverse = Part::find(repo, &format!("{}_scale_inv", codes.name));
        let scales = match inverse {
            Some(scales) => scales,
            None => Part::need(repo, &format!("{}_scale", codes.name), &codes)?,
        };
        let [high, wide] = match scheme {
            Scheme::Fp8 { block: Some(block) } => *block,
            _ => [BLOCK; 2],
        };
        let (down, across) = (rows.div_ceil(high), cols.div_ceil(wide));
        let plain = [Dtype::F32, Dtype::Bf16, Dtype::F16];
        let shapes: [&[usize]; 5] = [&[], &[1], &[rows], &[rows, 1], &[down, across]];
        scales.expect(&plain, &shapes)?;
        let (block, across) = match scales.shape[..] {
            [] | [1] => ([rows, cols], 1),
            [_] => ([1, cols], 1),
            [all, 1] if all == rows => ([1, cols], 1),
            _ => ([high, wide], across),
        };
        let group = NumFormat::F8.group();
        if block[1] < cols && !block[1].is_multiple_of(group) {
            let what = format!("has a scale every {} columns, a multiple of {group} was expected", block[1]);
            return Err(scales.refuse(what));
        }
        Ok(Fp8 { codes, scales, cols, block, across })
    }

    pub(crate) fn parts(&self) -> Vec<&Part> {
        vec![&self.codes, &self.scales]
    }

    /// Fills `out` with rows `rows` in [`NumFormat::F8`].
    pub(crate) fn rows(
        &self,
        files: &dyn LayerSource,
        rows: Range<usize>,
        raw: &mut Vec<u8>,
        out: &mut [u8],
    ) -> airllm_format::Result<()> {
        let (format, cols) = (NumFormat::F8, self.cols);
        let size = format.row_bytes(cols);
        let step = (TILE / cols.max(4 * self.across)).max(1);
        for (first, out) in rows.clone().step_by(step).zip(out.chunks_mut(step * size)) {
            let last = (first + step).min(rows.end);
            let lines = first / self.block[0]..(last - 1) / self.block[0] + 1;
            raw.resize(lines.len() * self.across * self.scales.width(), 0);
            self.scales.read(files, (lines.start * self.across * self.scales.width()) as u64, raw)?;
            let scales = floats(&self.scales, raw)?;
            raw.resize((last - first) * cols, 0);
            self.codes.read(files, (first * cols) as u64, raw)?;
            let pairs = raw.chunks_exact(cols).zip(out.chunks_exact_mut(size));
            for (row, (codes, out)) in (first..last).zip(pairs) {
                let line = &scales[(row / self.block[0] - lines.start) * self.across..][..self.across];
                let (to_codes, rest) = out.split_at_mut(format.code_bytes(cols));
                to_codes[..cols].copy_from_slice(codes);
                to_codes[cols..].fill(0);
                rest.fill(0);
                let groups = rest.as_chunks_mut::<4>().0.iter_mut().take(format.groups(cols));
                for (group, to) in groups.enumerate() {
                    *to = line[group * format.group() / self.block[1]].to_le_bytes();
                }
            }
        }
        Ok(())
    }
}
