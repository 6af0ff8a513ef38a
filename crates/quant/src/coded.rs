//! Codes with an f32 scale and no zero point: `i8`, `f8`, `nf4`.

use crate::{Result, row};
use airllm_format::NumFormat;
use half::f16;

/// The 16 values of NormalFloat, as bitsandbytes has them (QLoRA; Dettmers et al. 2023, appendix E).
pub const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// Makes an `i8` row of codes and the row's scale as LLM.int8() has them (`SCB` in its files): nothing is
/// rounded, `weight[c] = codes[c] · scb / 127`, rounded to f32 after either step.
///
/// # Errors
///
/// [`Error::RowBytes`](crate::Error::RowBytes) if `row` has the wrong length.
pub fn i8_row(codes: &[i8], scb: f32, row: &mut [u8]) -> Result<()> {
    const FORMAT: NumFormat = NumFormat::I8;
    row::check_length(FORMAT, codes.len(), row.len())?;
    row.fill(0);
    let (to, scale) = row.split_at_mut(FORMAT.code_bytes(codes.len()));
    for (to, &code) in to.iter_mut().zip(codes) {
        *to = code as u8;
    }
    if let Some(to) = scale.first_chunk_mut::<4>() {
        *to = scb.to_le_bytes();
    }
    Ok(())
}

/// Makes an `f8` row of `e4m3fn` bytes and a scale per 128 of them: nothing is rounded,
/// `weight[c] = scales[c / 128] · codes[c]`.
///
/// # Errors
///
/// [`Error::RowBytes`](crate::Error::RowBytes) and [`Error::Count`](crate::Error::Count) for operands that
/// do not fit.
pub fn f8_row(codes: &[u8], scales: &[f32], row: &mut [u8]) -> Result<()> {
    const FORMAT: NumFormat = NumFormat::F8;
    let cols = codes.len();
    row::check_length(FORMAT, cols, row.len())?;
    row::check_count(FORMAT, cols, "scales", FORMAT.groups(cols), scales.len())?;
    row.fill(0);
    row[..cols].copy_from_slice(codes);
    put_scales(scales, &mut row[FORMAT.code_bytes(cols)..]);
    Ok(())
}

/// Makes an `nf4` row of codes 0 to 15, one a byte, and the largest magnitude of each 64 weights: nothing
/// is rounded, `weight[c] = NF4[codes[c]] · absmax[c / 64]` (see [`NF4`]).
///
/// # Errors
///
/// [`Error::RowBytes`](crate::Error::RowBytes), [`Error::Count`](crate::Error::Count) and
/// [`Error::OutOfRange`](crate::Error::OutOfRange) for operands that do not fit.
pub fn nf4_row(codes: &[u8], absmax: &[f32], row: &mut [u8]) -> Result<()> {
    const FORMAT: NumFormat = NumFormat::Nf4;
    let cols = codes.len();
    row::check_length(FORMAT, cols, row.len())?;
    row::check_count(FORMAT, cols, "scales", FORMAT.groups(cols), absmax.len())?;
    if let Some(position) = codes.iter().position(|&c| c > 15) {
        let found = codes[position].into();
        return Err(crate::Error::OutOfRange { format: FORMAT, what: "code", position, found, limit: 15 });
    }
    let (to, scales) = row.split_at_mut(FORMAT.code_bytes(cols));
    row::pack_nibbles(codes, to);
    scales.fill(0);
    put_scales(absmax, scales);
    Ok(())
}

fn put_scales(scales: &[f32], to: &mut [u8]) {
    for (to, scale) in to.chunks_exact_mut(4).zip(scales) {
        to.copy_from_slice(&scale.to_le_bytes());
    }
}

fn largest(weights: &[f32]) -> f32 {
    weights.iter().fold(0f32, |m, w| m.max(w.abs()))
}

pub(crate) fn pack_i8(weights: &[f32], row: &mut [u8]) -> Result<()> {
    let scb = largest(weights);
    let code = |w: &f32| if scb == 0.0 { 0 } else { (w / scb * 127.0).round_ties_even() as i8 };
    i8_row(&weights.iter().map(code).collect::<Vec<_>>(), scb, row)
}

pub(crate) fn unpack_i8(row: &[u8], weights: &mut [f32]) {
    let (codes, scale) = row.split_at(NumFormat::I8.code_bytes(weights.len()));
    let scb = scale.first_chunk().map_or(0.0, |scale| f32::from_le_bytes(*scale));
    for (w, &code) in weights.iter_mut().zip(codes) {
        *w = f32::from(code as i8) * scb / 127.0;
    }
}

pub(crate) fn pack_f8(weights: &[f32], row: &mut [u8]) -> Result<()> {
    let mut codes = Vec::with_capacity(weights.len());
    let mut scales = Vec::new();
    for weights in weights.chunks(NumFormat::F8.group()) {
        let scale = (largest(weights) / 448.0).max(f32::from_bits(1));
        codes.extend(weights.iter().map(|w| to_e4m3(w / scale)));
        scales.push(scale);
    }
    f8_row(&codes, &scales, row)
}

pub(crate) fn unpack_f8(row: &[u8], weights: &mut [f32]) {
    const GROUP: usize = NumFormat::F8.group();
    let (codes, scales) = row.split_at(NumFormat::F8.code_bytes(weights.len()));
    let groups = weights.chunks_mut(GROUP).zip(codes.chunks(GROUP));
    for ((weights, codes), scale) in groups.zip(scales.as_chunks::<4>().0) {
        let scale = f32::from_le_bytes(*scale);
        for (w, &code) in weights.iter_mut().zip(codes) {
            *w = scale * from_e4m3(code);
        }
    }
}

/// A number of the float8 format `e4m3fn`: no infinities, 0x7f and 0xff are NaN.
pub(crate) fn from_e4m3(code: u8) -> f32 {
    if code & 0x7f == 0x7f {
        return f32::NAN;
    }
    // binary16 has one exponent bit more, in front; its bias is 15, not 7.
    let half = u16::from(code & 0x80) << 8 | u16::from(code & 0x7f) << 7;
    f16::from_bits(half).to_f32() * 256.0
}

/// The nearest number of `e4m3fn`, ties to even; the largest is 448.
fn to_e4m3(x: f32) -> u8 {
    let sign = if x.is_sign_negative() { 0x80 } else { 0 };
    let x = x.abs();
    let code = if x < 1.0 / 64.0 {
        // Below the normal numbers, steps of 2^-9. 8 of them are the smallest normal number, code 8.
        (x * 512.0).round_ties_even() as u32
    } else {
        let bits = x.to_bits();
        let rounded = bits + 0x7_ffff + (bits >> 20 & 1);
        (rounded >> 20).saturating_sub((127 - 7) << 3)
    };
    sign | code.min(0x7e) as u8
}

pub(crate) fn pack_nf4(weights: &[f32], row: &mut [u8]) -> Result<()> {
    let mut codes = Vec::with_capacity(weights.len());
    let mut absmax = Vec::new();
    for weights in weights.chunks(NumFormat::Nf4.group()) {
        let scale = largest(weights);
        let code = |w: &f32| if scale == 0.0 { 7 } else { nearest(w / scale) };
        codes.extend(weights.iter().map(code));
        absmax.push(scale);
    }
    nf4_row(&codes, &absmax, row)
}

/// The code of the nearest value.
fn nearest(x: f32) -> u8 {
    // All are looked at: vectors do that sooner than a loop stops.
    NF4.windows(2).filter(|pair| x > (pair[0] + pair[1]) / 2.0).count() as u8
}

pub(crate) fn unpack_nf4(row: &[u8], weights: &mut [f32]) {
    const GROUP: usize = NumFormat::Nf4.group();
    let (codes, scales) = row.split_at(NumFormat::Nf4.code_bytes(weights.len()));
    let groups = weights.chunks_mut(GROUP).zip(scales.as_chunks::<4>().0);
    for (g, (weights, scale)) in groups.enumerate() {
        let scale = f32::from_le_bytes(*scale);
        for (c, w) in weights.iter_mut().enumerate() {
            *w = NF4[usize::from(row::nibble(codes, g * GROUP + c))] * scale;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e4m3_values() {
        for (code, value) in [
            (0x00, 0.0),
            (0x01, 2f32.powi(-9)),
            (0x07, 7.0 * 2f32.powi(-9)),
            (0x08, 2f32.powi(-6)),
            (0x38, 1.0),
            (0x39, 1.125),
            (0xb8, -1.0),
            (0x7e, 448.0),
            (0xfe, -448.0),
        ] {
            assert_eq!(from_e4m3(code), value, "{code:#x}");
        }
        assert!(from_e4m3(0x7f).is_nan() && from_e4m3(0xff).is_nan());
    }

    #[test]
    fn every_e4m3_number_comes_back_and_what_lies_between_goes_to_the_nearest() {
        for code in (0..=0x7e).chain(0x80..=0xfe) {
            assert_eq!(to_e4m3(from_e4m3(code)), code);
        }
        for code in 0..0x7e {
            let (low, high) = (from_e4m3(code), from_e4m3(code + 1));
            let middle = (low + high) / 2.0;
            assert_eq!(to_e4m3(middle), code + (code & 1), "{middle}");
            assert_eq!(to_e4m3(f32::from_bits(middle.to_bits() - 1)), code);
            assert_eq!(to_e4m3(f32::from_bits(middle.to_bits() + 1)), code + 1);
        }
        assert_eq!(to_e4m3(1e9), 0x7e);
    }

    #[test]
    fn nf4_values_are_those_of_bitsandbytes() {
        let bits = [
            0xbf80_0000u32,
            0xbf32_39b1,
            0xbf06_6b30,
            0xbeca_32a0,
            0xbe91_a24d,
            0xbe3d_353f,
            0xbdba_7871,
            0,
            0x3da2_faff,
            0x3e24_cae3,
            0x3e7c_04dd,
            0x3ead_033a,
            0x3ee1_a4b8,
            0x3f10_07ab,
            0x3f39_13b3,
            0x3f80_0000,
        ];
        assert_eq!(NF4.map(f32::to_bits), bits);
        for (code, value) in NF4.into_iter().enumerate() {
            assert_eq!(usize::from(nearest(value)), code);
        }
    }
}
