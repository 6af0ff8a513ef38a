//! The table of tensors, checked.

use crate::safetensors::{Dtype, TensorInfo};
use crate::{Error, NumFormat, Result};
use std::collections::HashSet;
use std::path::Path;

/// A row of the table as it is written.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) name: String,
    /// Innermost first.
    pub(super) sizes: Vec<u64>,
    pub(super) kind: u32,
    /// Counted from the start of the data.
    pub(super) offset: u64,
}

/// Number in files, name, and what it is here. Types without that are refused by their name.
const TYPES: [(u32, &str, Option<Dtype>); 36] = [
    (0, "F32", Some(Dtype::F32)),
    (1, "F16", Some(Dtype::F16)),
    (2, "Q4_0", Some(Dtype::Packed(NumFormat::Q4_0))),
    (3, "Q4_1", Some(Dtype::Packed(NumFormat::Q4_1))),
    (6, "Q5_0", Some(Dtype::Packed(NumFormat::Q5_0))),
    (7, "Q5_1", Some(Dtype::Packed(NumFormat::Q5_1))),
    (8, "Q8_0", Some(Dtype::Packed(NumFormat::Q8_0))),
    (9, "Q8_1", None),
    (10, "Q2_K", Some(Dtype::Packed(NumFormat::Q2K))),
    (11, "Q3_K", Some(Dtype::Packed(NumFormat::Q3K))),
    (12, "Q4_K", Some(Dtype::Packed(NumFormat::Q4K))),
    (13, "Q5_K", Some(Dtype::Packed(NumFormat::Q5K))),
    (14, "Q6_K", Some(Dtype::Packed(NumFormat::Q6K))),
    (15, "Q8_K", None),
    (16, "IQ2_XXS", None),
    (17, "IQ2_XS", None),
    (18, "IQ3_XXS", None),
    (19, "IQ1_S", None),
    (20, "IQ4_NL", None),
    (21, "IQ3_S", None),
    (22, "IQ2_S", None),
    (23, "IQ4_XS", None),
    (24, "I8", Some(Dtype::I8)),
    (25, "I16", Some(Dtype::I16)),
    (26, "I32", Some(Dtype::I32)),
    (27, "I64", Some(Dtype::I64)),
    (28, "F64", Some(Dtype::F64)),
    (29, "IQ1_M", None),
    (30, "BF16", Some(Dtype::Bf16)),
    (31, "Q4_0_4_4", None),
    (32, "Q4_0_4_8", None),
    (33, "Q4_0_8_8", None),
    (34, "TQ1_0", None),
    (35, "TQ2_0", None),
    (39, "MXFP4", None),
    (40, "NVFP4", None),
];

const READ: &str = "F32, F16, BF16, Q8_0, Q6_K, Q5_K, Q5_1, Q5_0, Q4_K, Q4_1, Q4_0, Q3_K and Q2_K are read";

/// Checks the rows; gives the tensors in the order of their bytes.
pub(super) fn check(
    rows: Vec<Row>,
    data_start: u64,
    alignment: u64,
    file_len: u64,
    path: &Path,
) -> Result<Vec<TensorInfo>> {
    let mut names = HashSet::new();
    let mut tensors = Vec::with_capacity(rows.len());
    for row in rows {
        let tensor = check_row(row, data_start, alignment, file_len)
            .map_err(|(name, what)| Error::malformed(path, format!("tensor `{name}`: {what}")))?;
        if !names.insert(tensor.name.clone()) {
            return Err(Error::malformed(path, format!("tensor `{}` is there twice", tensor.name)));
        }
        tensors.push(tensor);
    }
    tensors.sort_by(|a, b| (a.start, &a.name).cmp(&(b.start, &b.name)));
    for (a, b) in tensors.iter().zip(tensors.iter().skip(1)) {
        if a.start + a.bytes > b.start {
            return Err(Error::malformed(
                path,
                format!(
                    "tensor `{}` begins at byte {} of the data, but `{}` before it ends at {}",
                    b.name,
                    b.start - data_start,
                    a.name,
                    a.start + a.bytes - data_start
                ),
            ));
        }
    }
    Ok(tensors)
}

/// Checks what can be said about one tensor alone.
fn check_row(
    row: Row,
    data_start: u64,
    alignment: u64,
    file_len: u64,
) -> Result<TensorInfo, (String, String)> {
    let Row { name, sizes, kind, offset } = row;
    match place(&sizes, kind, offset, data_start, alignment, file_len) {
        Ok((dtype, shape, start, bytes)) => Ok(TensorInfo { name, dtype, shape, start, bytes }),
        Err(what) => Err((name, what)),
    }
}

type Place = (Dtype, Vec<usize>, u64, u64);

fn place(
    sizes: &[u64],
    kind: u32,
    offset: u64,
    data_start: u64,
    alignment: u64,
    file_len: u64,
) -> Result<Place, String> {
    let dtype = match TYPES.iter().find(|(id, _, _)| *id == kind) {
        Some((_, _, Some(dtype))) => *dtype,
        Some((_, name, None)) => return Err(format!("stored as {name}; {READ}")),
        None => return Err(format!("stored as type {kind}, which is not known; {READ}")),
    };
    if sizes.contains(&0) {
        return Err(format!("sizes {sizes:?} leave no numbers"));
    }
    let block = dtype.block();
    let cols = sizes.first().copied().unwrap_or(1);
    if !cols.is_multiple_of(block) {
        return Err(format!("rows of {cols} numbers are no whole blocks of {dtype}, which have {block}"));
    }
    let bytes = sizes
        .iter()
        .try_fold(1u64, |n, size| n.checked_mul(*size))
        .and_then(|n| (n / block).checked_mul(dtype.bits() / 8))
        .ok_or_else(|| format!("sizes {sizes:?} are more than 2^64 bytes"))?;
    let shape = sizes
        .iter()
        .rev()
        .map(|&size| usize::try_from(size))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| format!("sizes {sizes:?} are too large for this machine"))?;
    if !offset.is_multiple_of(alignment) {
        return Err(format!("its offset {offset} is no multiple of the alignment, {alignment}"));
    }
    let data = file_len.saturating_sub(data_start);
    match offset.checked_add(bytes) {
        Some(end) if end <= data => Ok((dtype, shape, data_start + offset, bytes)),
        _ => Err(format!("{bytes} bytes at {offset} of the data, of which the file has {data}: truncated")),
    }
}
