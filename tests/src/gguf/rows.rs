//! Numbers as GGUF files store them. Rounding is plain: nearest, no search for better scales.

use half::{bf16, f16};

/// A type of tensors that can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// bfloat16.
    Bf16,
    /// Blocks of 32: an f16 scale, 32 signed bytes.
    Q8_0,
    /// Blocks of 32: an f16 scale, 32 codes of 4 bits less 8.
    Q4_0,
    /// Blocks of 256: two f16 factors, eight 6-bit scales and minima, 256 codes of 4 bits.
    Q4K,
    /// Blocks of 256: 256 codes of 6 bits less 32, sixteen signed scales, an f16 factor.
    Q6K,
}

impl Kind {
    /// Its number in files.
    pub const fn id(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q8_0 => 8,
            Self::Q4K => 12,
            Self::Q6K => 14,
            Self::Bf16 => 30,
        }
    }

    /// Numbers of a block.
    pub const fn block(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Q8_0 | Self::Q4_0 => 32,
            Self::Q4K | Self::Q6K => 256,
        }
    }

    /// The bytes of whole blocks of numbers.
    pub fn encode(self, numbers: &[f32]) -> Vec<u8> {
        let blocks = numbers.chunks_exact(self.block());
        match self {
            Self::F32 => numbers.iter().flat_map(|n| n.to_le_bytes()).collect(),
            Self::F16 => numbers.iter().flat_map(|n| f16::from_f32(*n).to_le_bytes()).collect(),
            Self::Bf16 => numbers.iter().flat_map(|n| bf16::from_f32(*n).to_le_bytes()).collect(),
            Self::Q8_0 => blocks.flat_map(q8_0).collect(),
            Self::Q4_0 => blocks.flat_map(q4_0).collect(),
            Self::Q4K => blocks.flat_map(q4_k).collect(),
            Self::Q6K => blocks.flat_map(q6_k).collect(),
        }
    }
}

fn largest(numbers: &[f32]) -> f32 {
    numbers.iter().fold(0.0, |most, n| most.max(n.abs()))
}

/// The nearest multiple of `step`, counted in steps, within a range.
fn steps(number: f32, step: f32, least: f32, most: f32) -> f32 {
    if step == 0.0 { 0.0f32.clamp(least, most) } else { (number / step).round().clamp(least, most) }
}

fn q8_0(block: &[f32]) -> Vec<u8> {
    let scale = f16::from_f32(largest(block) / 127.0);
    let codes = block.iter().map(|n| steps(*n, scale.to_f32(), -127.0, 127.0) as i8 as u8);
    scale.to_le_bytes().into_iter().chain(codes).collect()
}

/// Low halves of the bytes are the first 16 numbers, high ones the others.
fn q4_0(block: &[f32]) -> Vec<u8> {
    let scale = f16::from_f32(largest(block) / 7.0);
    let code = |n: f32| (steps(n, scale.to_f32(), -8.0, 7.0) + 8.0) as u8;
    let codes = (0..16).map(|i| code(block[i]) | code(block[i + 16]) << 4);
    scale.to_le_bytes().into_iter().chain(codes).collect()
}

/// A number is `d * scale * code - dmin * minimum`, scales and minima for each 32.
fn q4_k(block: &[f32]) -> Vec<u8> {
    let parts: Vec<&[f32]> = block.chunks_exact(32).collect();
    let minima: Vec<f32> = parts.iter().map(|p| -p.iter().fold(0.0f32, |least, n| least.min(*n))).collect();
    let spans: Vec<f32> = parts
        .iter()
        .zip(&minima)
        .map(|(p, min)| p.iter().fold(0.0f32, |m, n| m.max(n + min)) / 15.0)
        .collect();
    let d = f16::from_f32(largest(&spans) / 63.0);
    let dmin = f16::from_f32(largest(&minima) / 63.0);
    let scales: Vec<u8> = spans.iter().map(|s| steps(*s, d.to_f32(), 0.0, 63.0) as u8).collect();
    let mins: Vec<u8> = minima.iter().map(|m| steps(*m, dmin.to_f32(), 0.0, 63.0) as u8).collect();
    let mut packed = [0u8; 12];
    for i in 0..4 {
        // Six bits of the first four; of the last four, four bits here and two above those of the first.
        packed[i] = scales[i] | (scales[i + 4] >> 4) << 6;
        packed[i + 4] = mins[i] | (mins[i + 4] >> 4) << 6;
        packed[i + 8] = (scales[i + 4] & 15) | (mins[i + 4] & 15) << 4;
    }
    let code = |part: usize, i: usize| {
        let step = d.to_f32() * f32::from(scales[part]);
        steps(parts[part][i] + dmin.to_f32() * f32::from(mins[part]), step, 0.0, 15.0) as u8
    };
    let mut out = [d.to_le_bytes(), dmin.to_le_bytes()].concat();
    out.extend(packed);
    for pair in 0..4 {
        out.extend((0..32).map(|i| code(2 * pair, i) | code(2 * pair + 1, i) << 4));
    }
    out
}

/// A number is `d * scale * (code - 32)`, scales for each 16.
fn q6_k(block: &[f32]) -> Vec<u8> {
    let parts: Vec<&[f32]> = block.chunks_exact(16).collect();
    let spans: Vec<f32> = parts.iter().map(|part| largest(part) / 31.0).collect();
    let d = f16::from_f32(largest(&spans) / 127.0);
    let scales: Vec<i8> = spans.iter().map(|s| steps(*s, d.to_f32(), 0.0, 127.0) as i8).collect();
    let codes: Vec<u8> = block
        .iter()
        .enumerate()
        .map(|(i, n)| (steps(*n, d.to_f32() * f32::from(scales[i / 16]), -32.0, 31.0) + 32.0) as u8)
        .collect();
    let (mut low, mut high) = (vec![0u8; 128], vec![0u8; 64]);
    for half in 0..2 {
        for i in 0..32 {
            let code = |quarter: usize| codes[half * 128 + quarter * 32 + i];
            low[half * 64 + i] = (code(0) & 15) | (code(2) & 15) << 4;
            low[half * 64 + 32 + i] = (code(1) & 15) | (code(3) & 15) << 4;
            high[half * 32 + i] = code(0) >> 4 | code(1) >> 4 << 2 | code(2) >> 4 << 4 | code(3) >> 4 << 6;
        }
    }
    let mut out = [low, high].concat();
    out.extend(scales.iter().map(|scale| *scale as u8));
    out.extend(d.to_le_bytes());
    out
}
