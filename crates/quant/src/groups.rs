//! One group of weights: the choice of its scale and codes.

use half::f16;

/// Weights in a q8 group.
pub(crate) const Q8: usize = 64;
/// Weights in a q4 group.
pub(crate) const Q4: usize = 32;

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

/// Codes 0 to 15 (zero is 8) and their scale, for finite weights of magnitude at most `7 · 65504`, whose
/// squared errors count as much as `importance` says.
pub(crate) fn q4(weights: &[f32; Q4], importance: &[f32; Q4]) -> (f16, [u8; Q4]) {
    let largest = weights.iter().fold(0f32, |m, &w| if w.abs() > m.abs() { w } else { m });
    if largest == 0.0 {
        return (f16::ZERO, [8; Q4]);
    }
    let mut best = (f32::INFINITY, f16::ZERO, [0i8; Q4]);
    for end in [-8.0, 7.0] {
        let mut scale = largest / end;
        for _ in 0..2 {
            let Some(stored) = stored_scale(scale) else { break };
            let codes = q4_codes(weights, stored.to_f32());
            let error = squared_error(weights, importance, &codes, stored.to_f32());
            if error < best.0 {
                best = (error, stored, codes);
            }
            scale = least_squares(weights, importance, &codes);
        }
    }
    (best.1, best.2.map(|c| (c + 8) as u8))
}

/// The f16 next to `scale`, not zero; `None` where there is none.
fn stored_scale(scale: f32) -> Option<f16> {
    let stored = f16::from_f32(scale);
    let smallest = f16::from_bits(1);
    match stored {
        s if !s.is_finite() => None,
        s if s != f16::ZERO => Some(s),
        _ if scale < 0.0 => Some(-smallest),
        _ => Some(smallest),
    }
}

fn q4_codes(weights: &[f32; Q4], scale: f32) -> [i8; Q4] {
    weights.map(|w| (w / scale).round_ties_even().clamp(-8.0, 7.0) as i8)
}

fn squared_error(weights: &[f32; Q4], importance: &[f32; Q4], codes: &[i8; Q4], scale: f32) -> f32 {
    let each = weights.iter().zip(codes).zip(importance);
    each.map(|((&w, &c), v)| v * (w - scale * f32::from(c)).powi(2)).sum()
}

/// The scale that brings `scale · codes` nearest to the weights; 0 where all codes are 0.
fn least_squares(weights: &[f32; Q4], importance: &[f32; Q4], codes: &[i8; Q4]) -> f32 {
    let (mut cross, mut power) = (0f32, 0f32);
    for ((&w, &c), v) in weights.iter().zip(codes).zip(importance) {
        cross += v * (w * f32::from(c));
        power += v * (f32::from(c) * f32::from(c));
    }
    if power == 0.0 { 0.0 } else { cross / power }
}
