//! GPTQ and AWQ: integers with scales and zero points, packed in columns.
//!
//! Both hold a matrix `[out, in]` transposed, in 32-bit words:
//!
//! | | GPTQ | AWQ (GEMM) |
//! |---|---|---|
//! | `qweight` | `[in·bits/32, out]`, a word holds consecutive inputs of one output, lowest bits first | `[in, out/8]`, a word holds eight outputs of one input |
//! | `qzeros` | `[groups, out·bits/32]`, outputs in order, one less than meant in the first version | `[groups, out/8]` |
//! | `scales` | `[groups, out]` f16 | `[groups, out]` f16 |
//! | `g_idx` | `[in]`, the group of each input | |
//!
//! AWQ puts the outputs 0, 2, 4, 6, 1, 3, 5, 7 of eight into a word, lowest bits first. In both,
//! `weight = scale · (code − zero)`, and an f16 times a small integer is exact in f32.

use super::part::{Part, TILE};
use super::scheme::Scheme;
use super::stored::{floats, interleave, spread};
use crate::{Error, Result};
use airllm_format::safetensors::Dtype;
use airllm_format::{LayerSource, NumFormat, Repo};
use std::ops::Range;
use std::sync::Arc;

/// Inputs that are repacked at once: what the smallest group has, and whole words of either layout.
const STEP: usize = 32;

/// Where in an AWQ word the code of each of its eight outputs is.
const AWQ_NIBBLE: [u32; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

/// A matrix of one of these layouts.
#[derive(Debug, Clone)]
pub(crate) struct Affine {
    layout: Layout,
    bits: usize,
    /// Added to a stored zero point.
    zero_offset: u8,
    rows: usize,
    cols: usize,
    /// Inputs that share a scale, where they are neighbours.
    group: usize,
    order: Order,
    codes: Part,
    zeros: Part,
    scales: Part,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    Gptq,
    Awq,
}

/// How groups lie.
#[derive(Debug, Clone)]
enum Order {
    /// Neighbours share a scale.
    Plain,
    /// They do once the columns are sorted: to which place each column goes then.
    Sorted(Arc<[u32]>),
    /// The group of each column.
    Scattered(Arc<[u32]>),
}

impl Affine {
    /// Checks the tensors of a module whose codes are `codes`, for a matrix of `rows` and `cols`. Of the
    /// order of the inputs, if there is one, the content is read; `sorted` says that columns may be put
    /// into the order of their groups.
    pub(crate) fn find(
        repo: &Repo,
        scheme: &Scheme,
        codes: Part,
        module: &str,
        (rows, cols): (usize, usize),
        sorted: bool,
    ) -> Result<Affine> {
        let (layout, bits, group, zero_offset) = match *scheme {
            Scheme::Gptq { bits, group, zero_offset } => (Layout::Gptq, bits, group, zero_offset),
            Scheme::Awq { group } => (Layout::Awq, 4, group, 0),
            _ => {
                return Err(codes.refuse(
                    "is packed as GPTQ and AWQ do it, but config.json has no quantization_config of either",
                ));
            }
        };
        let pack = 32 / bits;
        if !cols.is_multiple_of(STEP) || !rows.is_multiple_of(pack) {
            let what = format!(
                "packs a matrix of {rows} x {cols}; rows were expected to be a multiple of {pack}, columns of {STEP}"
            );
            return Err(codes.refuse(what));
        }
        let group = group.unwrap_or(cols);
        let groups = cols.div_ceil(group);
        let shape = match layout {
            Layout::Gptq => [cols / pack, rows],
            Layout::Awq => [cols, rows / pack],
        };
        codes.expect(&[Dtype::I32, Dtype::U32], &[&shape])?;
        let zeros = Part::need(repo, &format!("{module}.qzeros"), &codes)?;
        zeros.expect(&[Dtype::I32, Dtype::U32], &[&[groups, rows / pack]])?;
        let scales = Part::need(repo, &format!("{module}.scales"), &codes)?;
        scales.expect(&[Dtype::F16, Dtype::Bf16, Dtype::F32], &[&[groups, rows]])?;
        let mut it = Affine {
            layout,
            bits,
            zero_offset,
            rows,
            cols,
            group,
            order: Order::Plain,
            codes,
            zeros,
            scales,
        };
        if let Some(index) = Part::find(repo, &format!("{module}.g_idx")).filter(|_| layout == Layout::Gptq) {
            index.expect(&[Dtype::I32, Dtype::U32], &[&[cols]])?;
            it.order = order(repo, &index, group, groups, sorted)?;
        }
        Ok(it)
    }

    /// The format that holds the weights exactly. Where neighbours do not share a group, nor would once they
    /// are sorted, that is f32, which is eight times as large.
    pub(crate) fn format(&self) -> NumFormat {
        match (&self.order, self.bits) {
            (Order::Scattered(_), _) => NumFormat::F32,
            (_, 8) => NumFormat::A8,
            _ if self.group.is_multiple_of(128) => NumFormat::A4G128,
            _ if self.group.is_multiple_of(64) => NumFormat::A4G64,
            _ => NumFormat::A4,
        }
    }

    /// Which column of the checkpoint each column of the rows is, where they are sorted.
    pub(crate) fn columns(&self) -> Option<Vec<u32>> {
        let Order::Sorted(places) = &self.order else { return None };
        let mut columns = vec![0; places.len()];
        for (column, &place) in (0..).zip(&**places) {
            columns[place as usize] = column;
        }
        Some(columns)
    }

    /// Bytes of memory that its tables take.
    pub(crate) fn tables(&self) -> usize {
        match &self.order {
            Order::Plain => 0,
            Order::Sorted(table) | Order::Scattered(table) => 4 * table.len(),
        }
    }

    pub(crate) fn parts(&self) -> Vec<&Part> {
        vec![&self.codes, &self.zeros, &self.scales]
    }

    /// Fills `out` with rows `rows` in [`format`](Self::format).
    pub(crate) fn rows(
        &self,
        files: &dyn LayerSource,
        rows: Range<usize>,
        raw: &mut Vec<u8>,
        out: &mut [u8],
    ) -> airllm_format::Result<()> {
        let row = self.format().row_bytes(self.cols);
        let groups = self.cols.div_ceil(self.group);
        // As many rows as can have the words of one step and all their scales in a tile.
        let most = (TILE / (4 * STEP).max(4 * groups)).max(1);
        for (first, out) in rows.clone().step_by(most).zip(out.chunks_mut(most * row)) {
            self.tile(files, first..(first + most).min(rows.end), raw, out)?;
        }
        Ok(())
    }

    fn tile(
        &self,
        files: &dyn LayerSource,
        rows: Range<usize>,
        raw: &mut Vec<u8>,
        out: &mut [u8],
    ) -> airllm_format::Result<()> {
        let pack = 32 / self.bits;
        // The words that hold these rows, and those rows' places in them.
        let words = rows.start / pack..rows.end.div_ceil(pack);
        let groups = self.cols.div_ceil(self.group);
        self.scales.window(files, (self.scales.width(), self.rows), 0..groups, rows.clone(), raw)?;
        let scales = floats(&self.scales, raw)?;
        self.zeros.window(files, (4, self.rows / pack), 0..groups, words.clone(), raw)?;
        let zeros = self.zero_points(raw, &rows, &words);

        let format = self.format();
        let (n, size) = (rows.len(), format.row_bytes(self.cols));
        if matches!(self.order, Order::Sorted(_)) {
            // Codes are put one by one into zeros.
            out.fill(0);
        }
        let (word_cols, width, per_step) = match self.layout {
            Layout::Gptq => (rows.clone(), self.rows, STEP / pack),
            Layout::Awq => (words.clone(), self.rows / pack, STEP),
        };
        let wide = word_cols.len();
        // Whole rows of words may be read for a part of them.
        let steps = (TILE / (per_step * 4 * wide)).clamp(1, self.cols / STEP);
        for step in (0..self.cols / STEP).step_by(steps) {
            let last = (step + steps).min(self.cols / STEP);
            let lines = step * per_step..last * per_step;
            self.codes.window(files, (4, width), lines, word_cols.clone(), raw)?;
            let raw = raw.as_chunks::<4>().0;
            let lines = raw.chunks_exact(per_step * wide).zip(step..last);
            // Few rows at a time, so that the words of a line and the bytes of a row stay in the cache.
            let few = if matches!(self.order, Order::Sorted(_)) { 4 } else { 16 };
            for block in (0..n).step_by(few) {
                let block = block..(block + few).min(n);
                match (self.layout, &self.order, self.bits) {
                    (Layout::Gptq, Order::Plain, 4) => {
                        for (words, step) in lines.clone() {
                            for row in block.clone() {
                                let four = std::array::from_fn(|line| words[line * wide + row]);
                                let to = row * size + step * STEP / 2;
                                out[to..to + STEP / 2].copy_from_slice(&interleave(four));
                            }
                        }
                    }
                    (Layout::Awq, ..) => {
                        for (words, step) in lines.clone() {
                            // Words of eight outputs, of which the first and the last may not all be wanted.
                            let before = rows.start - word_cols.start * pack;
                            for word in (block.start + before) / 8..(block.end - 1 + before) / 8 + 1 {
                                let eight = outputs(words, wide, word);
                                for (output, codes) in eight.iter().enumerate() {
                                    let row = (word * 8 + output).wrapping_sub(before);
                                    if block.contains(&row) {
                                        let to = row * size + step * STEP / 2;
                                        out[to..to + STEP / 2].copy_from_slice(codes);
                                    }
                                }
                            }
                        }
                    }
                    _ => {
                        for (words, step) in lines.clone() {
                            for row in block.clone() {
                                let code = self.step(words, wide, row);
                                self.write(&code, step, (&scales, &zeros), (row, n), &mut out[row * size..]);
                            }
                        }
                    }
                }
            }
        }
        if format != NumFormat::F32 {
            self.write_scales(format, &scales, &zeros, n, out);
        }
        Ok(())
    }

    /// The codes of [`STEP`] inputs of one row of a GPTQ tile whose lines have `wide` words.
    fn step(&self, words: &[[u8; 4]], wide: usize, row: usize) -> [u8; STEP] {
        let mut code = [0; STEP];
        if self.bits == 8 {
            for (line, to) in code.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                *to = words[line * wide + row];
            }
        } else {
            for (line, to) in code.as_chunks_mut::<8>().0.iter_mut().enumerate() {
                *to = spread(words[line * wide + row]).to_le_bytes();
            }
        }
        code
    }

    /// Zero points `[groups, rows]` from the words that hold them.
    fn zero_points(&self, raw: &[u8], rows: &Range<usize>, words: &Range<usize>) -> Vec<u16> {
        let (pack, mask) = (32 / self.bits, (1u32 << self.bits) - 1);
        let zero = |line: &[[u8; 4]], row: usize| {
            let word = u32::from_le_bytes(line[row / pack - words.start]);
            let place = match self.layout {
                Layout::Gptq => (row % pack) as u32,
                Layout::Awq => AWQ_NIBBLE[row % pack],
            };
            // At most 256: a stored 255 means that in the first version.
            (word >> (place * self.bits as u32) & mask) as u16 + u16::from(self.zero_offset)
        };
        let lines = raw.as_chunks::<4>().0.chunks_exact(words.len().max(1));
        lines.flat_map(|line| rows.clone().map(move |row| zero(line, row))).collect()
    }

    /// What follows the codes of all rows of a tile, and the codes that a last group lacks.
    fn write_scales(&self, format: NumFormat, scales: &[f32], zeros: &[u16], n: usize, out: &mut [u8]) {
        let (size, groups) = (format.row_bytes(self.cols), format.groups(self.cols));
        for (row, out) in out.chunks_exact_mut(size).enumerate() {
            let (codes, rest) = out.split_at_mut(format.code_bytes(self.cols));
            codes[self.cols * self.bits / 8..].fill(0);
            rest.fill(0);
            let (to_scales, to_zeros) = rest.split_at_mut(4 * groups);
            for group in 0..groups {
                let from = group * format.group() / self.group * n + row;
                to_scales[4 * group..][..4].copy_from_slice(&scales[from].to_le_bytes());
                match format {
                    NumFormat::A8 => {
                        to_zeros[2 * group..][..2].copy_from_slice(&zeros[from].to_le_bytes());
                    }
                    _ => to_zeros[group] = zeros[from] as u8,
                }
            }
        }
    }

    /// Puts the codes of one step into a row of f32, into sorted columns, or as bytes.
    fn write(
        &self,
        code: &[u8; STEP],
        step: usize,
        (scales, zeros): (&[f32], &[u16]),
        (row, n): (usize, usize),
        out: &mut [u8],
    ) {
        let first = step * STEP;
        match (&self.order, self.bits) {
            (Order::Scattered(groups), _) => {
                let to = out[first * 4..].as_chunks_mut::<4>().0.iter_mut();
                for ((to, &code), &group) in to.zip(code).zip(&groups[first..]) {
                    let at = group as usize * n + row;
                    *to = (scales[at] * (f32::from(code) - f32::from(zeros[at]))).to_le_bytes();
                }
            }
            (Order::Sorted(places), 4) => {
                for (&place, &code) in places[first..].iter().zip(code) {
                    let (group, of) = (place as usize / 32, place as usize % 32);
                    out[16 * group + of % 16] |= code << (of / 16 * 4);
                }
            }
            (Order::Sorted(places), _) => {
                for (&place, &code) in places[first..].iter().zip(code) {
                    out[place as usize] = code;
                }
            }
            (Order::Plain, _) => out[first..first + STEP].copy_from_slice(code),
        }
    }
}

/// The codes of [`STEP`] inputs of the eight outputs of an AWQ word, from lines of `wide` words.
fn outputs(words: &[[u8; 4]], wide: usize, word: usize) -> [[u8; STEP / 2]; 8] {
    // Number `j` has the bytes `j` of all outputs.
    let byte = |j: usize| spread(words[j * wide + word]) | spread(words[(STEP / 2 + j) * wide + word]) << 4;
    let first = transpose(std::array::from_fn(byte));
    let second = transpose(std::array::from_fn(|j| byte(8 + j)));
    AWQ_NIBBLE.map(|nibble| {
        let mut codes = [0; STEP / 2];
        codes[..8].copy_from_slice(&first[nibble as usize].to_le_bytes());
        codes[8..].copy_from_slice(&second[nibble as usize].to_le_bytes());
        codes
    })
}

/// Byte `j` of number `i` becomes byte `i` of number `j`: blocks of four, two and one are swapped across the
/// diagonal.
fn transpose(mut x: [u64; 8]) -> [u64; 8] {
    for (apart, bits, low) in
        [(4, 32, 0x0000_0000_ffff_ffff), (2, 16, 0x0000_ffff_0000_ffff), (1, 8, 0x00ff_00ff_00ff_00ff_u64)]
    {
        for i in (0..8).filter(|i| i & apart == 0) {
            let swap = (x[i] >> bits ^ x[i + apart]) & low;
            x[i] ^= swap << bits;
            x[i + apart] ^= swap;
        }
    }
    x
}

/// How the groups of the inputs lie.
fn order(repo: &Repo, index: &Part, group: usize, groups: usize, sorted: bool) -> Result<Order> {
    let cols = index.shape.first().copied().unwrap_or(0);
    let bytes = index.all(repo.source())?;
    let of: Arc<[u32]> = bytes.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
    if let Some(col) = of.iter().position(|&g| g as usize >= groups) {
        let what = format!("column {col} is in group {}, there are {groups}", of[col] as i32);
        return Err(Error::from(index.wrong(what)));
    }
    if of.iter().enumerate().all(|(col, &g)| g as usize == col / group) {
        return Ok(Order::Plain);
    }
    let mut columns: Vec<u32> = (0..cols as u32).collect();
    columns.sort_by_key(|&col| of[col as usize]);
    let full = columns.iter().enumerate().all(|(place, &col)| of[col as usize] as usize == place / group);
    if !sorted || !full {
        return Ok(Order::Scattered(of));
    }
    let mut places = vec![0; cols];
    for (place, &col) in (0..).zip(&columns) {
        places[col as usize] = place;
    }
    Ok(Order::Sorted(places.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_transposed() {
        let at = |i: usize, j: usize| (i * 8 + j) as u8;
        let before: [u64; 8] = std::array::from_fn(|i| u64::from_le_bytes(std::array::from_fn(|j| at(i, j))));
        let after = transpose(before).map(u64::to_le_bytes);
        for (j, row) in after.iter().enumerate() {
            assert_eq!(*row, std::array::from_fn(|i| at(i, j)));
        }
    }
}
