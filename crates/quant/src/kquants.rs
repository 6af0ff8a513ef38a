//! GGUF blocks of 256 weights: `q6_k`, `q5_k`, `q4_k`, `q3_k`, `q2_k`.
//!
//! A block has one or two f16 numbers, which scale the small integers that scale its parts of 16 or 32
//! weights. Bytes and bits are described at the crate; here they are put into and taken out of lists.

use crate::blocks::take_half;
use airllm_format::NumFormat;
use half::f16;

/// Weights in a block.
const BLOCK: usize = 256;

/// What a block holds, as integers. Parts beyond those of the format are 0.
struct Block {
    /// What `scales` are multiplied by.
    d: f16,
    /// What `mins` are multiplied by.
    dmin: f16,
    scales: [i32; 16],
    mins: [i32; 16],
    codes: [i32; BLOCK],
}

/// Ranges of the integers of a format.
struct Kind {
    /// Weights in a part.
    part: usize,
    /// Codes run from −`zero` to `top` − `zero`.
    top: i32,
    zero: i32,
    /// The largest scale of a part.
    scale: i32,
    /// The largest least weight of a part; 0 where the format has none.
    min: i32,
}

impl Kind {
    fn of(format: NumFormat) -> Kind {
        match format {
            NumFormat::Q6K => Kind { part: 16, top: 63, zero: 32, scale: 127, min: 0 },
            NumFormat::Q5K => Kind { part: 32, top: 31, zero: 0, scale: 63, min: 63 },
            NumFormat::Q4K => Kind { part: 32, top: 15, zero: 0, scale: 63, min: 63 },
            NumFormat::Q3K => Kind { part: 16, top: 7, zero: 4, scale: 31, min: 0 },
            _ => Kind { part: 16, top: 3, zero: 0, scale: 15, min: 15 },
        }
    }

    /// Rounds 256 weights: least and largest weight of each part (or its largest magnitude), then the
    /// scales of the parts over the largest of them, then codes under the rounded scales.
    fn choose(&self, weights: &[f32]) -> Block {
        let (mut scales, mut mins) = ([0f32; 16], [0f32; 16]);
        for (p, part) in weights.chunks_exact(self.part).enumerate() {
            if self.min > 0 {
                let ends = |(min, max): (f32, f32), &w: &f32| (min.min(w), max.max(w));
                let (min, max) = part.iter().fold((0f32, 0f32), ends);
                (scales[p], mins[p]) = ((max - min) / self.top as f32, -min);
            } else {
                let largest = part.iter().fold(0f32, |m, &w| if w.abs() > m.abs() { w } else { m });
                scales[p] = -largest / self.zero as f32;
            }
        }
        let (d, scales) = small(&scales, self.scale);
        let (dmin, mins) = small(&mins, self.min.max(1));
        let mut codes = [0; BLOCK];
        for (c, (code, &w)) in codes.iter_mut().zip(weights).enumerate() {
            let p = c / self.part;
            let (scale, min) = (d.to_f32() * scales[p] as f32, dmin.to_f32() * mins[p] as f32);
            let steps = if scale == 0.0 { 0.0 } else { ((w + min) / scale).round_ties_even() };
            *code = (steps as i32).clamp(-self.zero, self.top - self.zero);
        }
        Block { d, dmin, scales, mins, codes }
    }
}

/// Integers of magnitude at most `top` and the f16 that brings them nearest to `numbers`.
fn small(numbers: &[f32; 16], top: i32) -> (f16, [i32; 16]) {
    let largest = numbers.iter().fold(0f32, |m, x| m.max(x.abs()));
    let unit = f16::from_f32(largest / top as f32);
    let divisor = unit.to_f32();
    if divisor == 0.0 {
        return (unit, [0; 16]);
    }
    (unit, numbers.map(|x| ((x / divisor).round_ties_even() as i32).clamp(-top, top)))
}

/// Packs whole blocks.
pub(crate) fn pack(format: NumFormat, weights: &[f32], row: &mut [u8]) {
    let kind = Kind::of(format);
    row.fill(0);
    let bytes = format.row_bytes(BLOCK);
    for (weights, to) in weights.chunks_exact(BLOCK).zip(row.chunks_exact_mut(bytes)) {
        let block = kind.choose(weights);
        match format {
            NumFormat::Q6K => put_q6(&block, to),
            NumFormat::Q5K | NumFormat::Q4K => put_q45(&block, to),
            NumFormat::Q3K => put_q3(&block, to),
            _ => put_q2(&block, to),
        }
    }
}

/// Widens whole blocks.
pub(crate) fn unpack(format: NumFormat, row: &[u8], weights: &mut [f32]) {
    let part = Kind::of(format).part;
    let bytes = format.row_bytes(BLOCK);
    for (weights, from) in weights.chunks_exact_mut(BLOCK).zip(row.chunks_exact(bytes)) {
        let block = match format {
            NumFormat::Q6K => take_q6(from),
            NumFormat::Q5K | NumFormat::Q4K => take_q45(from, format == NumFormat::Q5K),
            NumFormat::Q3K => take_q3(from),
            _ => take_q2(from),
        };
        let (d, dmin) = (block.d.to_f32(), block.dmin.to_f32());
        for (p, (weights, codes)) in weights.chunks_mut(part).zip(block.codes.chunks(part)).enumerate() {
            let (scale, min) = (d * block.scales[p] as f32, dmin * block.mins[p] as f32);
            for (w, &code) in weights.iter_mut().zip(codes) {
                *w = scale * code as f32 - min;
            }
        }
    }
}

/// Where a code of two bits lies: byte and shift. 128 codes share 32 bytes.
fn quarter(c: usize) -> (usize, usize) {
    (c / 128 * 32 + c % 32, c % 128 / 32 * 2)
}

/// `q6_k`: 128 bytes of low four bits, 64 of high two, 16 scales, `d`.
fn put_q6(block: &Block, to: &mut [u8]) {
    for (c, code) in block.codes.iter().enumerate() {
        let code = (code + 32) as u8;
        let (at, shift) = low_q6(c);
        to[at] |= (code & 15) << shift;
        let (at, shift) = quarter(c);
        to[128 + at] |= (code >> 4) << shift;
    }
    for (to, &scale) in to[192..].iter_mut().zip(&block.scales) {
        *to = scale as u8;
    }
    to[208..210].copy_from_slice(&block.d.to_le_bytes());
}

/// Where the low bits of a `q6_k` code lie: 128 codes share 64 bytes.
fn low_q6(c: usize) -> (usize, usize) {
    (c / 128 * 64 + c % 64, c % 128 / 64 * 4)
}

fn take_q6(from: &[u8]) -> Block {
    let (d, _) = take_half(&from[208..]);
    let code = |c| {
        let ((low, low_shift), (high, high_shift)) = (low_q6(c), quarter(c));
        let code = from[low] >> low_shift & 15 | (from[128 + high] >> high_shift & 3) << 4;
        i32::from(code) - 32
    };
    Block {
        d,
        dmin: f16::ZERO,
        scales: std::array::from_fn(|p| i32::from(from[192 + p] as i8)),
        mins: [0; 16],
        codes: std::array::from_fn(code),
    }
}

/// `q5_k` and `q4_k`: `d`, `dmin`, 12 bytes of six-bit scales and mins, for `q5_k` 32 bytes of fifth bits,
/// 128 bytes of low four bits.
fn put_q45(block: &Block, to: &mut [u8]) {
    to[..2].copy_from_slice(&block.d.to_le_bytes());
    to[2..4].copy_from_slice(&block.dmin.to_le_bytes());
    for p in 0..8 {
        let (scale, min) = (block.scales[p] as u8, block.mins[p] as u8);
        let six = &mut to[4..16];
        if p < 4 {
            six[p] |= scale;
            six[p + 4] |= min;
        } else {
            six[p + 4] |= scale & 15 | (min & 15) << 4;
            six[p - 4] |= (scale >> 4) << 6;
            six[p] |= (min >> 4) << 6;
        }
    }
    let low = to.len() - 128;
    let (fifth, low) = to[16..].split_at_mut(low - 16);
    for (c, &code) in block.codes.iter().enumerate() {
        low[c / 64 * 32 + c % 32] |= (code as u8 & 15) << (c % 64 / 32 * 4);
        if let Some(to) = fifth.get_mut(c % 32) {
            *to |= (code as u8 >> 4) << (c / 32);
        }
    }
}

fn take_q45(from: &[u8], five: bool) -> Block {
    let (d, rest) = take_half(from);
    let (dmin, six) = take_half(rest);
    let (mut scales, mut mins) = ([0; 16], [0; 16]);
    for p in 0..8 {
        let (scale, min) = if p < 4 {
            (six[p] & 63, six[p + 4] & 63)
        } else {
            (six[p + 4] & 15 | (six[p - 4] >> 6) << 4, six[p + 4] >> 4 | (six[p] >> 6) << 4)
        };
        (scales[p], mins[p]) = (scale.into(), min.into());
    }
    let (fifth, low) = six[12..].split_at(if five { 32 } else { 0 });
    let code = |c: usize| {
        let high = fifth.get(c % 32).map_or(0, |byte| byte >> (c / 32) & 1);
        i32::from(low[c / 64 * 32 + c % 32] >> (c % 64 / 32 * 4) & 15 | high << 4)
    };
    let codes = std::array::from_fn(code);
    Block { d, dmin, scales, mins, codes }
}

/// `q3_k`: 32 bytes of high bits, 64 of low two, 12 of six-bit scales, `d`.
fn put_q3(block: &Block, to: &mut [u8]) {
    for (c, code) in block.codes.iter().enumerate() {
        let code = (code + 4) as u8;
        to[c % 32] |= (code >> 2) << (c / 32);
        let (at, shift) = quarter(c);
        to[32 + at] |= (code & 3) << shift;
    }
    for (p, scale) in block.scales.iter().enumerate() {
        let scale = (scale + 32) as u8;
        to[96 + p % 8] |= (scale & 15) << (p / 8 * 4);
        to[104 + p % 4] |= (scale >> 4) << (p / 4 * 2);
    }
    to[108..110].copy_from_slice(&block.d.to_le_bytes());
}

fn take_q3(from: &[u8]) -> Block {
    let (d, _) = take_half(&from[108..]);
    let code = |c| {
        let (at, shift) = quarter(c);
        let high = from[c % 32] >> (c / 32) & 1;
        i32::from(from[32 + at] >> shift & 3 | high << 2) - 4
    };
    let scale = |p: usize| {
        let (low, high) = (from[96 + p % 8] >> (p / 8 * 4) & 15, from[104 + p % 4] >> (p / 4 * 2) & 3);
        i32::from(low | high << 4) - 32
    };
    Block {
        d,
        dmin: f16::ZERO,
        scales: std::array::from_fn(scale),
        mins: [0; 16],
        codes: std::array::from_fn(code),
    }
}

/// `q2_k`: 16 bytes of four-bit scales and mins, 64 of codes, `d`, `dmin`.
fn put_q2(block: &Block, to: &mut [u8]) {
    for (to, (&scale, &min)) in to.iter_mut().zip(block.scales.iter().zip(&block.mins)) {
        *to = scale as u8 | (min as u8) << 4;
    }
    for (c, &code) in block.codes.iter().enumerate() {
        let (at, shift) = quarter(c);
        to[16 + at] |= (code as u8) << shift;
    }
    to[80..82].copy_from_slice(&block.d.to_le_bytes());
    to[82..84].copy_from_slice(&block.dmin.to_le_bytes());
}

fn take_q2(from: &[u8]) -> Block {
    let (d, rest) = take_half(&from[80..]);
    let (dmin, _) = take_half(rest);
    let code = |c| {
        let (at, shift) = quarter(c);
        i32::from(from[16 + at] >> shift & 3)
    };
    Block {
        d,
        dmin,
        scales: std::array::from_fn(|p| i32::from(from[p] & 15)),
        mins: std::array::from_fn(|p| i32::from(from[p] >> 4)),
        codes: std::array::from_fn(code),
    }
}
