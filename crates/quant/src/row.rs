//! Packing and unpacking of one row.

use crate::{Error, Result, affine, blocks, coded, groups, kquants, planes};
use airllm_format::NumFormat;
use half::{bf16, f16};

/// Packs one row of weights; `row` is `format.row_bytes(weights.len())` bytes and is filled whole.
///
/// The layout and the rounding are described at the [crate]. The result depends on the weights alone.
///
/// # Errors
///
/// [`Error::RowBytes`] if `row` has another length, [`Error::PartBlock`] where blocks would not be whole,
/// [`Error::NotFinite`] for NaN and infinities, [`Error::TooLarge`] for weights beyond the format's range.
/// After an error `row` holds anything.
pub fn pack_row(format: NumFormat, weights: &[f32], row: &mut [u8]) -> Result<()> {
    pack(format, weights, None, row)
}

/// Packs one row as [`pack_row`] does, but with the squared error of column `c` weighed by `importance[c]`,
/// say the mean square of what the column is multiplied with.
///
/// Only the ratios matter: importance of 1 everywhere, or of 2, gives what [`pack_row`] gives. All zeros count
/// as equal. It matters where scales are searched for by squared error, in `q6`, `q5`, `q4`, `q3` and `q2`.
///
/// # Errors
///
/// As [`pack_row`]; [`Error::Count`] for another number of importances than of weights,
/// [`Error::Importance`] for one that is negative, infinite or NaN.
pub fn pack_row_weighted(
    format: NumFormat,
    weights: &[f32],
    importance: &[f32],
    row: &mut [u8],
) -> Result<()> {
    check_count(format, weights.len(), "importances", weights.len(), importance.len())?;
    if let Some(position) = importance.iter().position(|v| !v.is_finite() || *v < 0.0) {
        return Err(Error::Importance { position, value: importance[position] });
    }
    let largest = importance.iter().fold(0f32, |m, &v| m.max(v));
    if largest == 0.0 {
        return pack_row(format, weights, row);
    }
    // At most 1, so that no sum of squares leaves the range of f32.
    let importance: Vec<f32> = importance.iter().map(|v| v / largest).collect();
    pack(format, weights, Some(&importance), row)
}

/// Packs a row; `importance` has as many numbers as there are weights.
fn pack(format: NumFormat, weights: &[f32], importance: Option<&[f32]>, row: &mut [u8]) -> Result<()> {
    check_length(format, weights.len(), row.len())?;
    check_values(format, weights)?;
    match format {
        NumFormat::F32 => {
            for (to, w) in row.chunks_exact_mut(4).zip(weights) {
                to.copy_from_slice(&w.to_le_bytes());
            }
        }
        NumFormat::F16 => {
            for (to, &w) in row.chunks_exact_mut(2).zip(weights) {
                to.copy_from_slice(&f16::from_f32(w).to_le_bytes());
            }
        }
        NumFormat::Bf16 => {
            for (to, &w) in row.chunks_exact_mut(2).zip(weights) {
                to.copy_from_slice(&bf16::from_f32(w).to_le_bytes());
            }
        }
        NumFormat::Q8 => pack_q8(weights, row),
        NumFormat::Q6 | NumFormat::Q5 | NumFormat::Q4 | NumFormat::Q3 | NumFormat::Q2 => {
            return planes::pack(format, weights, importance, row);
        }
        NumFormat::A8 | NumFormat::A4 | NumFormat::A4G64 | NumFormat::A4G128 => {
            return affine::pack(format, weights, row);
        }
        NumFormat::F8 => return coded::pack_f8(weights, row),
        NumFormat::I8 => return coded::pack_i8(weights, row),
        NumFormat::Nf4 => return coded::pack_nf4(weights, row),
        NumFormat::Q8_0 | NumFormat::Q5_1 | NumFormat::Q5_0 | NumFormat::Q4_1 | NumFormat::Q4_0 => {
            blocks::pack(format, weights, row);
        }
        NumFormat::Q6K | NumFormat::Q5K | NumFormat::Q4K | NumFormat::Q3K | NumFormat::Q2K => {
            kquants::pack(format, weights, row);
        }
        format => return Err(Error::Unsupported { format }),
    }
    Ok(())
}

/// Widens one packed row to f32; `row` is `format.row_bytes(weights.len())` bytes.
///
/// What a format stores is rounded to f32 at most as the [crate] says of it. NaN and infinities that a file holds come out as they are.
///
/// # Errors
///
/// [`Error::RowBytes`] if `row` has another length, [`Error::PartBlock`] where blocks would not be whole.
pub fn unpack_row(format: NumFormat, row: &[u8], weights: &mut [f32]) -> Result<()> {
    check_length(format, weights.len(), row.len())?;
    match format {
        NumFormat::F32 => {
            for (w, from) in weights.iter_mut().zip(row.as_chunks::<4>().0) {
                *w = f32::from_le_bytes(*from);
            }
        }
        NumFormat::F16 => {
            for (w, from) in weights.iter_mut().zip(row.as_chunks::<2>().0) {
                *w = f16::from_le_bytes(*from).to_f32();
            }
        }
        NumFormat::Bf16 => {
            for (w, from) in weights.iter_mut().zip(row.as_chunks::<2>().0) {
                *w = bf16::from_le_bytes(*from).to_f32();
            }
        }
        NumFormat::Q8 => unpack_q8(row, weights),
        NumFormat::Q6 | NumFormat::Q5 | NumFormat::Q4 | NumFormat::Q3 | NumFormat::Q2 => {
            return planes::unpack(format, row, weights);
        }
        NumFormat::A8 | NumFormat::A4 | NumFormat::A4G64 | NumFormat::A4G128 => {
            return affine::unpack(format, row, weights);
        }
        NumFormat::F8 => coded::unpack_f8(row, weights),
        NumFormat::I8 => coded::unpack_i8(row, weights),
        NumFormat::Nf4 => coded::unpack_nf4(row, weights),
        NumFormat::Q8_0 | NumFormat::Q5_1 | NumFormat::Q5_0 | NumFormat::Q4_1 | NumFormat::Q4_0 => {
            blocks::unpack(format, row, weights);
        }
        NumFormat::Q6K | NumFormat::Q5K | NumFormat::Q4K | NumFormat::Q3K | NumFormat::Q2K => {
            kquants::unpack(format, row, weights);
        }
        format => return Err(Error::Unsupported { format }),
    }
    Ok(())
}

/// Refuses a row that is not as long as so many weights, or that does not end with a block.
pub(crate) fn check_length(format: NumFormat, cols: usize, found: usize) -> Result<()> {
    let block = format.multiple();
    if !cols.is_multiple_of(block) {
        return Err(Error::PartBlock { format, cols, block });
    }
    let expected = format.row_bytes(cols);
    if found == expected {
        return Ok(());
    }
    Err(Error::RowBytes { format, cols, expected, found })
}

/// Refuses another number of scales or zero points than the groups of a row have.
pub(crate) fn check_count(
    format: NumFormat,
    cols: usize,
    what: &'static str,
    expected: usize,
    found: usize,
) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(Error::Count { format, cols, what, expected, found })
}

/// Codes of four bits: byte `16k + j` holds those of columns `32k + j` and `32k + 16 + j`.
/// Columns beyond the last code get 0.
pub(crate) fn pack_nibbles(codes: &[u8], to: &mut [u8]) {
    to.fill(0);
    for (c, code) in codes.iter().enumerate() {
        to[c / 32 * 16 + c % 16] |= code << (c % 32 / 16 * 4);
    }
}

/// The code of a column, from what [`pack_nibbles`] made.
pub(crate) fn nibble(codes: &[u8], c: usize) -> u8 {
    codes[c / 32 * 16 + c % 16] >> (c % 32 / 16 * 4) & 15
}

pub(crate) fn check_values(format: NumFormat, weights: &[f32]) -> Result<()> {
    const HALF: f32 = 65_504.0;
    // Half a step above the largest number of a 16-bit format, rounding goes to infinity. Where a scale is
    // an f32, scale times code must stay below infinity on the way as well.
    let limit = match format {
        NumFormat::F32 => f32::MAX,
        NumFormat::F16 => HALF,
        NumFormat::Bf16 => bf16::MAX.to_f32(),
        NumFormat::Q8 | NumFormat::Q8_0 => 127.0 * HALF,
        NumFormat::Q6 => 31.0 * 15.0 * HALF,
        NumFormat::Q5 => 15.0 * 15.0 * HALF,
        NumFormat::Q4 => 7.0 * 7.0 * HALF,
        NumFormat::Q3 => 3.0 * 7.0 * HALF,
        NumFormat::Q2 => 7.0 * HALF,
        NumFormat::I8 => f32::MAX / 128.0,
        NumFormat::Q4_0 => 8.0 * HALF,
        NumFormat::Q5_0 => 16.0 * HALF,
        NumFormat::Q4_1 | NumFormat::Q5_1 => HALF,
        NumFormat::Q6K => 32.0 * 127.0 * HALF,
        NumFormat::Q5K | NumFormat::Q4K => 63.0 * HALF,
        NumFormat::Q3K => 4.0 * 31.0 * HALF,
        NumFormat::Q2K => 15.0 * HALF,
        _ => f32::MAX / 2.0,
    };
    match weights.iter().position(|w| !w.is_finite() || w.abs() > limit) {
        None => Ok(()),
        Some(position) if weights[position].is_finite() => {
            Err(Error::TooLarge { format, position, value: weights[position], limit })
        }
        Some(position) => Err(Error::NotFinite { format, position, value: weights[position] }),
    }
}

fn pack_q8(weights: &[f32], row: &mut [u8]) {
    let (codes, scales) = row.split_at_mut(NumFormat::Q8.code_bytes(weights.len()));
    scales.fill(0);
    let groups = weights.chunks(groups::Q8).zip(codes.as_chunks_mut::<{ groups::Q8 }>().0);
    for ((weights, to), scale_to) in groups.zip(scales.chunks_exact_mut(2)) {
        let mut padded = [0f32; groups::Q8];
        padded[..weights.len()].copy_from_slice(weights);
        let (scale, codes) = groups::q8(&padded);
        *to = codes.map(|c| c as u8);
        scale_to.copy_from_slice(&scale.to_le_bytes());
    }
}

fn unpack_q8(row: &[u8], weights: &mut [f32]) {
    let (codes, scales) = row.split_at(NumFormat::Q8.code_bytes(weights.len()));
    let groups = weights.chunks_mut(groups::Q8).zip(codes.as_chunks::<{ groups::Q8 }>().0);
    for ((weights, codes), scale) in groups.zip(scales.as_chunks::<2>().0) {
        let scale = f16::from_le_bytes(*scale).to_f32();
        for (w, &code) in weights.iter_mut().zip(codes) {
            *w = scale * f32::from(code as i8);
        }
    }
}
