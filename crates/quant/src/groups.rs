//! One group of weights: the choice of its scale and codes.

use half::f16;

/// Weights in a q8 group.
pub(crate) const Q8: usize = 64;

/// Codes −127 to 127 and their scale, for finite weights of magnitude at most `127 · 65504`.
pub(crate) fn q8(weights: &[f32; Q8]) -> (f16, [i8; Q8]) {
    let largest = weights.iter().fold(0f32, |m, w| m.max(w.abs()));
    if largest == 0.0 {
        return (f16::ZERO, [0; Q8]);
    }
    // Rounded down to f16, the scale may leave the largest weight outside the codes: step up then.
    let mut scale = f16::from_f32(largest / 127.0);
    if scale == f16::ZERO || largest / scale.to_f32() >= 127.5 {
        scale = f16::from_bits(scale.to_bits() + 1);
    }
    let divisor = scale.to_f32();
    (scale, weights.map(|w| (w / divisor).round_ties_even() as i8))
}
