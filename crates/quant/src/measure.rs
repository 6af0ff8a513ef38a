//! How far two lists of numbers are apart.

use crate::{Result, pack_row, unpack_row};
use airllm_format::NumFormat;

/// Normalised mean square error: `Σ (a − b)² / Σ a²`, in f64, `a` being the reference.
///
/// 0 for equal lists, 1 for a `b` of zeros. Infinite when the lengths differ, or when `a` is all zeros
/// and `b` is not: there is no scale to measure by. NaN where a number is NaN.
pub fn nmse(a: &[f32], b: &[f32]) -> f64 {
    if a.len() != b.len() {
        return f64::INFINITY;
    }
    let (mut error, mut power) = (0f64, 0f64);
    for (&a, &b) in a.iter().zip(b) {
        let (a, b) = (f64::from(a), f64::from(b));
        error += (a - b) * (a - b);
        power += a * a;
    }
    match (error == 0.0, power == 0.0) {
        (true, _) => 0.0,
        (false, true) => f64::INFINITY,
        (false, false) => error / power,
    }
}

/// What storing a row in `format` costs: the [`nmse`] between `weights` and what comes back.
///
/// # Errors
///
/// As [`pack_row`].
pub fn loss(format: NumFormat, weights: &[f32]) -> Result<f64> {
    let mut row = vec![0u8; format.row_bytes(weights.len())];
    pack_row(format, weights, &mut row)?;
    let mut back = vec![0f32; weights.len()];
    unpack_row(format, &row, &mut back)?;
    Ok(nmse(weights, &back))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nmse_of_known_lists() {
        assert_eq!(nmse(&[], &[]), 0.0);
        assert_eq!(nmse(&[1.0, -2.0], &[1.0, -2.0]), 0.0);
        assert_eq!(nmse(&[3.0, 4.0], &[0.0, 0.0]), 1.0);
        assert_eq!(nmse(&[0.0], &[1e-3]), f64::INFINITY);
        assert_eq!(nmse(&[1.0], &[1.0, 1.0]), f64::INFINITY);
        assert!(nmse(&[1.0, f32::NAN], &[1.0, 1.0]).is_nan());
    }
}
