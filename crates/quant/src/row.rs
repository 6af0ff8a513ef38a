//! Packing and unpacking of one row.

use crate::{Error, Result, groups};
use airllm_format::NumFormat;
use half::{bf16, f16};

/// Packs one row of weights; `row` is `format.row_bytes(weights.len())` bytes and is filled whole.
///
/// The layout and the rounding are described at the [crate]. The result depends on the weights alone.
///
/// # Errors
///
/// [`Error::RowBytes`] if `row` has another length, [`Error::NotFinite`] for NaN and infinities,
/// [`Error::TooLarge`] for weights beyond the format's range. After an error `row` holds anything.
pub fn pack_row(format: NumFormat, weights: &[f32], row: &mut [u8]) -> Result<()> {
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
        NumFormat::Q4 => pack_q4(weights, row),
        format => return Err(Error::Unsupported { format }),
    }
    Ok(())
}

/// Widens one packed row to f32; `row` is `format.row_bytes(weights.len())` bytes.
///
/// Exact: every packed value is an f32. NaN and infinities that a file holds come out as they are.
///
/// # Errors
///
/// [`Error::RowBytes`] if `row` has another length.
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
        NumFormat::Q4 => unpack_q4(row, weights),
        format => return Err(Error::Unsupported { format }),
    }
    Ok(())
}

fn check_length(format: NumFormat, cols: usize, found: usize) -> Result<()> {
    let expected = format.row_bytes(cols);
    if found == expected {
        return Ok(());
    }
    Err(Error::RowBytes { format, cols, expected, found })
}

fn check_values(format: NumFormat, weights: &[f32]) -> Result<()> {
    // Half a step above the largest number of a 16-bit format, rounding goes to infinity.
    let limit = match format {
        NumFormat::F16 => 65_504.0,
        NumFormat::Bf16 => bf16::MAX.to_f32(),
        NumFormat::Q8 => 127.0 * 65_504.0,
        NumFormat::Q4 => 7.0 * 65_504.0,
        _ => f32::MAX,
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

fn pack_q4(weights: &[f32], row: &mut [u8]) {
    let (codes, scales) = row.split_at_mut(NumFormat::Q4.code_bytes(weights.len()));
    scales.fill(0);
    let groups = weights.chunks(groups::Q4).zip(codes.as_chunks_mut::<16>().0);
    for ((weights, to), scale_to) in groups.zip(scales.chunks_exact_mut(2)) {
        let mut padded = [0f32; groups::Q4];
        padded[..weights.len()].copy_from_slice(weights);
        let (scale, codes) = groups::q4(&padded);
        for (j, to) in to.iter_mut().enumerate() {
            *to = codes[j] | codes[j + 16] << 4;
        }
        scale_to.copy_from_slice(&scale.to_le_bytes());
    }
}

fn unpack_q4(row: &[u8], weights: &mut [f32]) {
    let (codes, scales) = row.split_at(NumFormat::Q4.code_bytes(weights.len()));
    let groups = weights.chunks_mut(groups::Q4).zip(codes.as_chunks::<16>().0);
    for ((weights, codes), scale) in groups.zip(scales.as_chunks::<2>().0) {
        let scale = f16::from_le_bytes(*scale).to_f32();
        for (c, w) in weights.iter_mut().enumerate() {
            let code = if c < 16 { codes[c] & 15 } else { codes[c - 16] >> 4 };
            *w = scale * (f32::from(code) - 8.0);
        }
    }
}
