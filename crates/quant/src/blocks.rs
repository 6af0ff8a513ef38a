//! GGUF blocks of 32 weights: `q8_0`, `q5_1`, `q5_0`, `q4_1`, `q4_0`.

use airllm_format::NumFormat;
use half::f16;

/// Weights in a block.
const BLOCK: usize = 32;

/// How a block is made: `scale ‖ least weight? ‖ fifth bits? ‖ codes`.
#[derive(Clone, Copy)]
struct Kind {
    /// Bits of a code.
    bits: u32,
    /// Whether codes count from a stored least weight; otherwise from the middle of the codes.
    min: bool,
}

impl Kind {
    fn of(format: NumFormat) -> Kind {
        match format {
            NumFormat::Q8_0 => Kind { bits: 8, min: false },
            NumFormat::Q5_1 => Kind { bits: 5, min: true },
            NumFormat::Q5_0 => Kind { bits: 5, min: false },
            NumFormat::Q4_1 => Kind { bits: 4, min: true },
            _ => Kind { bits: 4, min: false },
        }
    }

    /// The code that stands for zero, or for the least weight.
    fn zero(self) -> i32 {
        if self.min || self.bits == 8 { 0 } else { 1 << (self.bits - 1) }
    }

    /// Scale, least weight and codes of 32 weights.
    fn choose(self, weights: &[f32]) -> (f16, f16, [i32; BLOCK]) {
        let (low, high) = match self.bits {
            8 => (-127, 127),
            bits => (0, (1 << bits) - 1),
        };
        let (mut min, scale);
        if self.min {
            let ends = |(min, max): (f32, f32), &w: &f32| (min.min(w), max.max(w));
            let (least, most) = weights.iter().fold((f32::MAX, f32::MIN), ends);
            min = f16::from_f32(least);
            // Rounded up, the least weight would lie above others.
            if min.to_f32() > least {
                min = below(min);
            }
            scale = f16::from_f32((most - min.to_f32()) / high as f32);
        } else {
            // The weight of largest magnitude lies at the end where the codes reach further.
            let largest = weights.iter().fold(0f32, |m, &w| if w.abs() > m.abs() { w } else { m });
            let end = if self.bits == 8 { largest.signum() * 127.0 } else { -self.zero() as f32 };
            min = f16::ZERO;
            scale = f16::from_f32(largest / end);
        }
        let divisor = scale.to_f32();
        let mut codes = [self.zero(); BLOCK];
        if divisor != 0.0 {
            for (code, w) in codes.iter_mut().zip(weights) {
                let steps = ((w - min.to_f32()) / divisor).round_ties_even() as i32;
                *code = (steps + self.zero()).clamp(low, high);
            }
        }
        (scale, min, codes)
    }
}

/// The number of binary16 next to a finite one, on the side of −∞.
fn below(x: f16) -> f16 {
    match x.to_bits() {
        0 => f16::from_bits(0x8001),
        bits @ 0x8000.. => f16::from_bits(bits + 1),
        bits => f16::from_bits(bits - 1),
    }
}

/// Packs whole blocks.
pub(crate) fn pack(format: NumFormat, weights: &[f32], row: &mut [u8]) {
    let kind = Kind::of(format);
    let bytes = format.row_bytes(BLOCK);
    for (weights, block) in weights.chunks_exact(BLOCK).zip(row.chunks_exact_mut(bytes)) {
        let (scale, min, codes) = kind.choose(weights);
        let (head, mut rest) = block.split_at_mut(2);
        head.copy_from_slice(&scale.to_le_bytes());
        if kind.min {
            let (head, after) = rest.split_at_mut(2);
            head.copy_from_slice(&min.to_le_bytes());
            rest = after;
        }
        if kind.bits == 5 {
            let (head, after) = rest.split_at_mut(4);
            let fifth = codes.iter().enumerate().fold(0u32, |bits, (i, &c)| bits | (c as u32 >> 4) << i);
            head.copy_from_slice(&fifth.to_le_bytes());
            rest = after;
        }
        for (j, to) in rest.iter_mut().enumerate() {
            *to = match kind.bits {
                8 => codes[j] as u8,
                _ => codes[j] as u8 & 15 | (codes[j + 16] as u8) << 4,
            };
        }
    }
}

/// Widens whole blocks.
pub(crate) fn unpack(format: NumFormat, row: &[u8], weights: &mut [f32]) {
    let kind = Kind::of(format);
    let bytes = format.row_bytes(BLOCK);
    for (weights, block) in weights.chunks_exact_mut(BLOCK).zip(row.chunks_exact(bytes)) {
        let (scale, mut rest) = take_half(block);
        let mut min = f16::ZERO;
        if kind.min {
            (min, rest) = take_half(rest);
        }
        let (scale, min) = (scale.to_f32(), min.to_f32());
        let mut fifth = 0;
        if let (5, Some((head, after))) = (kind.bits, rest.split_first_chunk::<4>()) {
            (fifth, rest) = (u32::from_le_bytes(*head), after);
        }
        for (j, w) in weights.iter_mut().enumerate() {
            let code = match kind.bits {
                8 => i32::from(rest[j] as i8),
                _ if j < 16 => i32::from(rest[j] & 15),
                _ => i32::from(rest[j - 16] >> 4),
            };
            let code = code + ((fifth >> j & 1) as i32) * 16;
            *w = scale * (code - kind.zero()) as f32 + min;
        }
    }
}

/// A binary16 at the start of a block, and what follows.
pub(crate) fn take_half(bytes: &[u8]) -> (f16, &[u8]) {
    match bytes.split_first_chunk::<2>() {
        Some((half, rest)) => (f16::from_le_bytes(*half), rest),
        None => (f16::ZERO, &[]),
    }
}
