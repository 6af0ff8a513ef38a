//! bitsandbytes: NF4 and FP4 blocks, and LLM.int8() rows.
//!
//! 4 bits: `weight` holds two codes a byte, the first in the high bits, of the matrix as one long run;
//! every `blocksize` of them share an `absmax`. `weight.quant_map` has the sixteen values that codes mean;
//! `weight.quant_state.bitsandbytes__nf4` (or `__fp4`) is JSON with the shape. With double quantisation
//! `absmax` are bytes: `nested_quant_map[absmax] · nested_absmax + nested_offset`.
//!
//! 8 bits: `weight` `[out, in]` of i8, and `SCB` `[out]`; a weight is `code · SCB / 127`.
//!
//! Dettmers et al., "LLM.int8()", 2022, and "QLoRA", 2023.

use super::part::{Part, TILE};
use super::stored::{floats, interleave};
use crate::Result;
use airllm_format::safetensors::Dtype;
use airllm_format::{LayerSource, NumFormat, Repo};
use airllm_quant::NF4;
use serde_json::Value;
use std::ops::Range;
use std::path::Path;

/// A matrix of 4-bit codes.
#[derive(Debug, Clone)]
pub(crate) struct FourBit {
    codes: Part,
    absmax: Part,
    nested: Option<Nested>,
    /// What codes mean.
    values: [f32; 16],
    cols: usize,
    block: usize,
}

/// How `absmax` was made smaller.
#[derive(Debug, Clone)]
struct Nested {
    absmax: Part,
    values: Part,
    offset: f32,
    block: usize,
}

impl FourBit {
    /// Checks the tensors of the matrix `codes`, which is to be of `rows` and `cols`; `None` if it is not
    /// stored so. The small tables are read.
    pub(crate) fn find(repo: &Repo, codes: &Part, rows: usize, cols: usize) -> Result<Option<FourBit>> {
        let name = |end: &str| format!("{}.{end}", codes.name);
        let state = ["quant_state.bitsandbytes__nf4", "quant_state.bitsandbytes__fp4"];
        let Some(state) = state.into_iter().find_map(|end| Part::find(repo, &name(end))) else {
            return Ok(None);
        };
        if state.bytes > 1 << 16 {
            return Err(state.refuse(format!("has {} bytes, a short JSON text was expected", state.bytes)));
        }
        let json = airllm_format::parse_json(&state.all(repo.source())?, Path::new(&*state.name))?;
        let number = |key: &str| -> Result<usize> {
            let value = json.get(key).and_then(Value::as_u64).filter(|n| (1..1 << 24).contains(n));
            let value = value.ok_or_else(|| state.refuse(format!("has no {key} that is a size: {json}")))?;
            Ok(value as usize)
        };
        let shape = json.get("shape").and_then(Value::as_array).cloned().unwrap_or_default();
        let shape: Vec<usize> = shape.iter().filter_map(Value::as_u64).map(|n| n as usize).collect();
        if shape != [rows, cols] {
            return Err(state.refuse(format!("has the shape {shape:?}, expected [{rows}, {cols}]")));
        }
        let (numbers, block) = (rows * cols, number("blocksize")?);
        if codes.bytes != numbers.div_ceil(2) as u64 {
            let what =
                format!("has {} bytes, expected {} for {rows} x {cols} codes", codes.bytes, numbers / 2);
            return Err(codes.refuse(what));
        }
        let blocks = numbers.div_ceil(block);
        let absmax = Part::need(repo, &name("absmax"), codes)?;
        let table = Part::need(repo, &name("quant_map"), codes)?;
        table.expect(&[Dtype::F32], &[&[16]])?;
        let table = floats(&table, &table.all(repo.source())?)?;
        let values: [f32; 16] = std::array::from_fn(|i| table[i]);
        let nested = match json.get("nested_blocksize") {
            None => {
                absmax.expect(&[Dtype::F32], &[&[blocks]])?;
                None
            }
            Some(_) => {
                absmax.expect(&[Dtype::U8], &[&[blocks]])?;
                let block = number("nested_blocksize")?;
                let inner = Part::need(repo, &name("nested_absmax"), codes)?;
                inner.expect(&[Dtype::F32], &[&[blocks.div_ceil(block)]])?;
                let values = Part::need(repo, &name("nested_quant_map"), codes)?;
                values.expect(&[Dtype::F32], &[&[256]])?;
                let offset = json.get("nested_offset").and_then(Value::as_f64);
                let offset =
                    offset.ok_or_else(|| state.refuse(format!("has no nested_offset: {json}")))? as f32;
                Some(Nested { absmax: inner, values, offset, block })
            }
        };
        Ok(Some(FourBit { codes: codes.clone(), absmax, nested, values, cols, block }))
    }

    /// The format that holds the weights exactly: NF4 where every group of a row lies in one block and
    /// codes mean what they mean there; else f32, as nothing narrower has any value times any scale.
    pub(crate) fn format(&self) -> NumFormat {
        let group = NumFormat::Nf4.group();
        let fits = self.cols.is_multiple_of(group) && self.block.is_multiple_of(group);
        let same = self.values.map(f32::to_bits) == NF4.map(f32::to_bits);
        if fits && same { NumFormat::Nf4 } else { NumFormat::F32 }
    }

    pub(crate) fn parts(&self) -> Vec<&Part> {
        vec![&self.codes, &self.absmax]
    }

    /// Fills `out` with rows `rows` in [`format`](Self::format).
    pub(crate) fn rows(
        &self,
        files: &dyn LayerSource,
        rows: Range<usize>,
        raw: &mut Vec<u8>,
        out: &mut [u8],
    ) -> airllm_format::Result<()> {
        let (format, cols) = (self.format(), self.cols);
        let size = format.row_bytes(cols);
        let step = (TILE / cols).max(1);
        for (first, out) in rows.clone().step_by(step).zip(out.chunks_mut(step * size)) {
            let numbers = first * cols..(first + step).min(rows.end) * cols;
            let blocks = numbers.start / self.block..numbers.end.div_ceil(self.block);
            let scales = self.scales(files, blocks.clone(), raw)?;
            raw.resize(numbers.end.div_ceil(2) - numbers.start / 2, 0);
            self.codes.read(files, numbers.start as u64 / 2, raw)?;
            let code = |number: usize| {
                let byte = raw[number / 2 - numbers.start / 2];
                if number.is_multiple_of(2) { byte >> 4 } else { byte & 15 }
            };
            let scale = |number: usize| scales[number / self.block - blocks.start];
            for (row, out) in numbers.clone().step_by(cols).zip(out.chunks_exact_mut(size)) {
                if format == NumFormat::F32 {
                    for (number, to) in (row..).zip(out.as_chunks_mut::<4>().0) {
                        *to = (self.values[code(number) as usize] * scale(number)).to_le_bytes();
                    }
                    continue;
                }
                let (to_codes, rest) = out.split_at_mut(format.code_bytes(cols));
                // Rows are whole bytes here, in which the first code has the high bits.
                let codes = raw[(row - numbers.start) / 2..].as_chunks::<4>().0.as_chunks::<4>().0;
                for (codes, to) in codes.iter().zip(to_codes.as_chunks_mut::<16>().0) {
                    *to = interleave(codes.map(|four| four.map(|byte| byte.rotate_left(4))));
                }
                rest.fill(0);
                for (number, to) in (row..row + cols).step_by(format.group()).zip(rest.as_chunks_mut::<4>().0)
                {
                    *to = scale(number).to_le_bytes();
                }
            }
        }
        Ok(())
    }

    /// The scales of some blocks.
    fn scales(
        &self,
        files: &dyn LayerSource,
        blocks: Range<usize>,
        raw: &mut Vec<u8>,
    ) -> airllm_format::Result<Vec<f32>> {
        let width = self.absmax.width();
        raw.resize(blocks.len() * width, 0);
        self.absmax.read(files, (blocks.start * width) as u64, raw)?;
        let Some(nested) = &self.nested else { return floats(&self.absmax, raw) };
        let values = floats(&nested.values, &nested.values.all(files)?)?;
        let lines = blocks.start / nested.block..blocks.end.div_ceil(nested.block);
        let mut outer = vec![0; lines.len() * 4];
        nested.absmax.read(files, lines.start as u64 * 4, &mut outer)?;
        let outer = floats(&nested.absmax, &outer)?;
        let scale = |(block, &byte): (usize, &u8)| {
            values[usize::from(byte)] * outer[block / nested.block - lines.start] + nested.offset
        };
        Ok(blocks.zip(&*raw).map(scale).collect())
    }
}

/// A matrix of 8-bit codes with one scale a row.
#[derive(Debug, Clone)]
pub(crate) struct Int8 {
    codes: Part,
    scales: Part,
    cols: usize,
}

impl Int8 {
    /// Checks the tensors of a module whose codes are `codes`, for a matrix of `rows` and `cols`.
    pub(crate) fn find(repo: &Repo, codes: &Part, module: &str, rows: usize, cols: usize) -> Result<Int8> {
        codes.expect(&[Dtype::I8], &[&[rows, cols]])?;
        let scales = Part::need(repo, &format!("{module}.SCB"), codes)?;
        scales.expect(&[Dtype::F32], &[&[rows]])?;
        // 0 says that rows are rows; other numbers are tilings for one generation of devices.
        if let Some(layout) = Part::find(repo, &format!("{module}.weight_format")) {
            let bytes = if layout.bytes <= 8 { layout.all(repo.source())? } else { vec![1] };
            if bytes.iter().any(|&b| b != 0) {
                return Err(layout.refuse("says that the codes are tiled, expected 0, which is row by row"));
            }
        }
        Ok(Int8 { codes: codes.clone(), scales, cols })
    }

    pub(crate) fn parts(&self) -> Vec<&Part> {
        vec![&self.codes, &self.scales]
    }

    /// Fills `out` with rows `rows` in [`NumFormat::I8`].
    pub(crate) fn rows(
        &self,
        files: &dyn LayerSource,
        rows: Range<usize>,
        raw: &mut Vec<u8>,
        out: &mut [u8],
    ) -> airllm_format::Result<()> {
        let (format, cols) = (NumFormat::I8, self.cols);
        let size = format.row_bytes(cols);
        let step = (TILE / cols).max(1);
        for (first, out) in rows.clone().step_by(step).zip(out.chunks_mut(step * size)) {
            let last = (first + step).min(rows.end);
            raw.resize((last - first) * 4, 0);
            self.scales.read(files, first as u64 * 4, raw)?;
            let scales = floats(&self.scales, raw)?;
            raw.resize((last - first) * cols, 0);
            self.codes.read(files, (first * cols) as u64, raw)?;
            for ((codes, scale), out) in raw.chunks_exact(cols).zip(scales).zip(out.chunks_exact_mut(size)) {
                let (to_codes, rest) = out.split_at_mut(format.code_bytes(cols));
                to_codes[..cols].copy_from_slice(codes);
                to_codes[cols..].fill(0);
                rest.fill(0);
                rest[..4].copy_from_slice(&scale.to_le_bytes());
            }
        }
        Ok(())
    }
}
