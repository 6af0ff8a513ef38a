//! Unsigned codes with an f32 scale and an integer zero point a group: `a8`, `a4`, `a4g64`, `a4g128`.

use crate::{Error, Result, row};
use airllm_format::NumFormat;

/// The parts of a row.
struct Parts<'a> {
    codes: &'a mut [u8],
    scales: &'a mut [u8],
    zeros: &'a mut [u8],
}

/// What a format of this kind can hold.
#[derive(Clone, Copy)]
struct Kind {
    format: NumFormat,
    /// Bits of a code: 4 or 8.
    bits: usize,
    /// Bytes of a zero point.
    zero_bytes: usize,
}

impl Kind {
    fn of(format: NumFormat) -> Result<Kind> {
        match format {
            NumFormat::A8 => Ok(Kind { format, bits: 8, zero_bytes: 2 }),
            NumFormat::A4 | NumFormat::A4G64 | NumFormat::A4G128 => {
                Ok(Kind { format, bits: 4, zero_bytes: 1 })
            }
            _ => Err(Error::Unsupported { format }),
        }
    }

    fn largest_code(self) -> u8 {
        ((1u16 << self.bits) - 1) as u8
    }

    /// Takes a row apart; what lies after the zero points is set to zero.
    fn parts(self, cols: usize, row: &mut [u8]) -> Parts<'_> {
        let groups = self.format.groups(cols);
        let (codes, rest) = row.split_at_mut(self.format.code_bytes(cols));
        let (scales, rest) = rest.split_at_mut(4 * groups);
        let (zeros, rest) = rest.split_at_mut(self.zero_bytes * groups);
        rest.fill(0);
        Parts { codes, scales, zeros }
    }
}

/// Makes an `a8`, `a4`, `a4g64` or `a4g128` row of codes, scales and zero points as they are: nothing is
/// rounded, `weight[c] = scales[g] · (codes[c] − zeros[g])` with `g = c / group`.
///
/// `codes` is one code a weight, `scales` and `zeros` one number a group (the last group may not be full).
/// Codes are at most 15 (255 for `a8`), zero points at most 16 (256): files of GPTQ's first version store
/// a zero point less one, so that they may mean 16.
///
/// # Errors
///
/// [`Error::RowBytes`], [`Error::Count`] and [`Error::OutOfRange`] for operands that do not fit;
/// [`Error::Unsupported`] for another format. After an error `row` holds anything.
pub fn affine_row(
    format: NumFormat,
    codes: &[u8],
    scales: &[f32],
    zeros: &[u16],
    row: &mut [u8],
) -> Result<()> {
    let kind = Kind::of(format)?;
    let cols = codes.len();
    row::check_length(format, cols, row.len())?;
    row::check_count(format, cols, "scales", format.groups(cols), scales.len())?;
    row::check_count(format, cols, "zero points", format.groups(cols), zeros.len())?;
    let limit = usize::from(kind.largest_code());
    if let Some(position) = codes.iter().position(|&c| usize::from(c) > limit) {
        let found = codes[position].into();
        return Err(Error::OutOfRange { format, what: "code", position, found, limit });
    }
    let limit = limit + 1;
    if let Some(position) = zeros.iter().position(|&z| usize::from(z) > limit) {
        let found = zeros[position].into();
        return Err(Error::OutOfRange { format, what: "zero point", position, found, limit });
    }

    let parts = kind.parts(cols, row);
    if kind.bits == 4 {
        row::pack_nibbles(codes, parts.codes);
    } else {
        let (to, rest) = parts.codes.split_at_mut(cols);
        to.copy_from_slice(codes);
        rest.fill(0);
    }
    for (to, scale) in parts.scales.chunks_exact_mut(4).zip(scales) {
        to.copy_from_slice(&scale.to_le_bytes());
    }
    for (to, zero) in parts.zeros.chunks_exact_mut(kind.zero_bytes).zip(zeros) {
        to.copy_from_slice(&zero.to_le_bytes()[..kind.zero_bytes]);
    }
    Ok(())
}

/// Rounds weights to the codes between the least and the largest of each group.
pub(crate) fn pack(format: NumFormat, weights: &[f32], row: &mut [u8]) -> Result<()> {
    let largest = Kind::of(format)?.largest_code();
    let groups = format.groups(weights.len());
    let mut codes = Vec::with_capacity(weights.len());
    let (mut scales, mut zeros) = (Vec::with_capacity(groups), Vec::with_capacity(groups));
    for weights in weights.chunks(format.group()) {
        let (scale, zero) = range(weights, f32::from(largest));
        let code = |w: &f32| ((w / scale).round_ties_even() + zero).clamp(0.0, f32::from(largest)) as u8;
        codes.extend(weights.iter().map(code));
        scales.push(scale);
        zeros.push(zero as u16);
    }
    affine_row(format, &codes, &scales, &zeros, row)
}

/// The scale and the zero point that bring the weights and 0 within the codes 0 to `largest`.
fn range(weights: &[f32], largest: f32) -> (f32, f32) {
    let (min, max) = weights.iter().fold((0f32, 0f32), |(min, max), &w| (min.min(w), max.max(w)));
    // Divided first: the difference may be beyond the range of f32.
    let scale = (max / largest - min / largest).max(f32::from_bits(1));
    (scale, (-min / scale).round_ties_even().min(largest))
}

/// Widens a row whose length is right.
pub(crate) fn unpack(format: NumFormat, row: &[u8], weights: &mut [f32]) -> Result<()> {
    let kind = Kind::of(format)?;
    let (codes, rest) = row.split_at(format.code_bytes(weights.len()));
    let (scales, zeros) = rest.split_at(4 * format.groups(weights.len()));
    let params = scales.as_chunks::<4>().0.iter().zip(zeros.chunks_exact(kind.zero_bytes));
    for (g, (weights, (scale, zero))) in weights.chunks_mut(format.group()).zip(params).enumerate() {
        let scale = f32::from_le_bytes(*scale);
        let zero = zero.iter().rev().fold(0u16, |z, &byte| z << 8 | u16::from(byte));
        for (c, w) in weights.iter_mut().enumerate() {
            let c = g * format.group() + c;
            let code = if kind.bits == 4 { row::nibble(codes, c) } else { codes[c] };
            *w = scale * (f32::from(code) - f32::from(zero));
        }
    }
    Ok(())
}
