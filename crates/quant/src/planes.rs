//! Formats in bit planes: `q6`, `q5`, `q4`, `q3`, `q2`. The choice of scales and codes, and the bytes.

#![allow(clippy::needless_range_loop, reason = "loops over lanes become vectors")]

use crate::{Error, Result};
use airllm_format::{Layout, NumFormat};
use half::f16;

/// Weights that share a scale of four bits.
pub(crate) const GROUP: usize = 16;
/// Groups that share an f16.
pub(crate) const GROUPS: usize = 16;
/// Weights whose bits lie together in each plane.
const STEP: usize = 32;
/// Groups and blocks of weights below this are zeros: it is less than half of the least number.
const NOTHING: f32 = 1.0 / (1u64 << 30) as f32;

pub(crate) type Group = [f32; GROUP];

/// How a format packs its codes.
#[derive(Clone, Copy)]
pub(crate) struct Kind {
    /// Bits of a code in the first plane, 4 or 2.
    low: usize,
    /// Bits of a code in the second plane: 2, 1, or 0 where there is none.
    high: usize,
}

/// Steps of `d` that a group's scale can be, and how the search goes about it.
pub(crate) struct Search {
    pub(crate) least: f32,
    pub(crate) most: f32,
    /// Parts of the range of a group that are tried as the range of the codes.
    ranges: &'static [f32],
    /// What `d` is tried to be, over the scale of largest magnitude.
    spans: &'static [f32],
}

const SIGNED: Search =
    Search { least: -8.0, most: 7.0, ranges: &[0.55, 0.7, 0.85, 1.0], spans: &[-8.0, 7.0, -8.4, 7.4] };
const UNSIGNED: Search =
    Search { least: 0.0, most: 15.0, ranges: &[0.92, 1.02], spans: &[14.3, 15.0, 15.4, 16.0] };

/// A block of 256 weights.
pub(crate) struct Block {
    error: f32,
    pub(crate) d: f16,
    /// Scales in steps of `d`.
    pub(crate) scales: Group,
    /// Codes, zero being 0.
    pub(crate) codes: [Group; GROUPS],
}

impl Block {
    pub(crate) fn new(d: f16, scales: Group, codes: [Group; GROUPS]) -> Block {
        Block { error: 0.0, d, scales, codes }
    }
}

impl Kind {
    pub(crate) fn of(format: NumFormat) -> Result<Kind> {
        match format.layout() {
            Layout::Planes { low, high } => Ok(Kind { low, high }),
            _ => Err(Error::Unsupported { format }),
        }
    }

    /// The code that stands for zero.
    fn zero(self) -> u8 {
        1 << (self.low + self.high - 1)
    }

    /// Least and largest code, counted from zero.
    pub(crate) fn ends(self) -> (f32, f32) {
        let zero = f32::from(self.zero());
        (-zero, zero - 1.0)
    }

    /// With few codes it matters which end reaches further, so scales have signs there.
    pub(crate) fn search(self) -> &'static Search {
        if self.low + self.high <= 4 { &SIGNED } else { &UNSIGNED }
    }

    /// What is added to a scale where it is stored.
    fn bias(self) -> f32 {
        -self.search().least
    }

    /// The codes of least squared error under a scale, and that error.
    #[inline]
    fn round(self, weights: &Group, importance: &Group, scale: f32) -> (f32, Group) {
        // Adding this leaves the nearest integer, ties to even.
        const ROUND: f32 = 12_582_912.0;
        let (least, most) = self.ends();
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        let (mut codes, mut errors) = ([0f32; GROUP], [0f32; GROUP]);
        for i in 0..GROUP {
            let code = (weights[i] * inverse).clamp(least, most);
            codes[i] = (code + ROUND) - ROUND;
            let off = weights[i] - scale * codes[i];
            errors[i] = importance[i] * (off * off);
        }
        (sum(errors), codes)
    }

    /// The scale of least squared error of a group, were it stored exactly; 0 for nothing but zeros.
    fn scale(self, weights: &Group, importance: &Group) -> f32 {
        let largest = weights.iter().fold(0f32, |m, &w| if w.abs() > m.abs() { w } else { m });
        if largest.abs() < NOTHING {
            return 0.0;
        }
        let (least, most) = self.ends();
        let search = self.search();
        let ends = [largest / least, largest / most];
        // Without signs, only the end that the largest weight is nearer to is left.
        let ends = if search.least < 0.0 { &ends[..] } else { &ends[usize::from(largest > 0.0)..][..1] };
        let mut best = (f32::INFINITY, 0.0);
        for end in ends {
            for range in search.ranges {
                let mut scale = end * range;
                for _ in 0..2 {
                    let (error, codes) = self.round(weights, importance, scale);
                    if error < best.0 {
                        best = (error, scale);
                    }
                    let (cross, power) = products(weights, importance, &codes);
                    if power <= 0.0 || cross * end <= 0.0 {
                        break;
                    }
                    scale = cross / power;
                }
            }
        }
        best.1
    }

    /// Scales and codes of 256 weights.
    pub(crate) fn fit(self, weights: &[Group; GROUPS], importance: &[Group; GROUPS]) -> Block {
        let empty = (f16::ZERO, [0.0; GROUP], [[0.0; GROUP]; GROUPS]);
        let mut best = Block { error: f32::INFINITY, d: empty.0, scales: empty.1, codes: empty.2 };
        let mut wanted = [0f32; GROUPS];
        for g in 0..GROUPS {
            wanted[g] = self.scale(&weights[g], &importance[g]);
        }
        let largest = wanted.iter().fold(0f32, |m, &s| if s.abs() > m.abs() { s } else { m });
        if largest == 0.0 {
            return best;
        }
        for span in self.search().spans {
            let mut d = largest / span;
            for _ in 0..2 {
                let near = stored(d);
                let mut block = self.under(weights, importance, &wanted, near);
                if let Some(away) = away(near) {
                    let other = self.under(weights, importance, &wanted, away);
                    if other.error < block.error {
                        block = other;
                    }
                }
                let (mut cross, mut power) = (0f32, 0f32);
                for g in 0..GROUPS {
                    let (c, p) = products(&weights[g], &importance[g], &block.codes[g]);
                    cross += block.scales[g] * c;
                    power += block.scales[g] * block.scales[g] * p;
                }
                if block.error < best.error {
                    best = block;
                }
                if power <= 0.0 {
                    break;
                }
                d = cross / power;
            }
        }
        best
    }

    /// The best of the scales next to those that are wanted, or next to the same with the other sign: turned
    /// around, a group may fit the steps of `d` better.
    fn under(self, weights: &[Group; GROUPS], importance: &[Group; GROUPS], wanted: &Group, d: f16) -> Block {
        let Search { least, most, .. } = *self.search();
        let mut block = Block { error: 0.0, d, scales: [0.0; GROUP], codes: [[0.0; GROUP]; GROUPS] };
        let step = d.to_f32();
        for g in 0..GROUPS {
            let middle = (wanted[g] / step).clamp(least, most).round_ties_even();
            let mut error = f32::INFINITY;
            for scale in [middle, middle - 1.0, middle + 1.0, -middle, -middle - 1.0, 1.0 - middle] {
                if !(least..=most).contains(&scale) {
                    continue;
                }
                let (e, codes) = self.round(&weights[g], &importance[g], step * scale);
                if e < error {
                    (error, block.scales[g], block.codes[g]) = (e, scale, codes);
                }
            }
            block.error += error;
        }
        block
    }

    /// Puts the codes of a step into the planes.
    fn put(self, codes: &[u8; STEP], low: &mut [u8], high: &mut [u8]) {
        match self.low {
            4 => (0..16).for_each(|j| low[j] = codes[j] & 15 | codes[j + 16] << 4),
            _ => put_quarters(codes, 0, low),
        }
        match self.high {
            2 => put_quarters(codes, 4, high),
            1 => (0..4).for_each(|j| {
                high[j] = (0..8).fold(0, |bits, i| bits | (codes[8 * j + i] >> self.low & 1) << i);
            }),
            _ => {}
        }
    }

    /// The code of column `c` of a step.
    fn get(self, low: &[u8], high: &[u8], c: usize) -> u8 {
        let quarter = |plane: &[u8]| plane[c % 8] >> (c / 8 * 2) & 3;
        let first = match self.low {
            4 => low[c % 16] >> (c / 16 * 4) & 15,
            _ => quarter(low),
        };
        let second = match self.high {
            2 => quarter(high),
            1 => high[c / 8] >> (c % 8) & 1,
            _ => 0,
        };
        first | second << self.low
    }
}

/// Two bits of each code, from `shift` on: byte `j` holds those of columns `j`, `j + 8`, `j + 16`, `j + 24`.
fn put_quarters(codes: &[u8; STEP], shift: usize, to: &mut [u8]) {
    for (j, to) in to.iter_mut().enumerate() {
        *to = (0..4).fold(0, |bits, k| bits | (codes[8 * k + j] >> shift & 3) << (2 * k));
    }
}

/// `Σ v·w·code` and `Σ v·code²`.
fn products(weights: &Group, importance: &Group, codes: &Group) -> (f32, f32) {
    let (mut cross, mut power) = ([0f32; GROUP], [0f32; GROUP]);
    for i in 0..GROUP {
        let weighted = importance[i] * codes[i];
        cross[i] = weighted * weights[i];
        power[i] = weighted * codes[i];
    }
    (sum(cross), sum(power))
}

/// The sum, in an order that vectors can follow.
fn sum(lanes: Group) -> f32 {
    let mut four = [0f32; 4];
    for i in 0..4 {
        four[i] = (lanes[i] + lanes[i + 4]) + (lanes[i + 8] + lanes[i + 12]);
    }
    (four[0] + four[1]) + (four[2] + four[3])
}

/// The f16 next to `d` that is neither zero nor infinite.
pub(crate) fn stored(d: f32) -> f16 {
    let most = f16::MAX.to_f32();
    match f16::from_f32(d.clamp(-most, most)) {
        s if s != f16::ZERO => s,
        _ if d < 0.0 => -f16::MIN_POSITIVE_SUBNORMAL,
        _ => f16::MIN_POSITIVE_SUBNORMAL,
    }
}

/// The next f16 after a subnormal one, away from zero. Where rounding is that coarse, the nearest may be so much
/// too small that the largest weight lies beyond the codes.
fn away(d: f16) -> Option<f16> {
    (d.to_f32().abs() < f16::MIN_POSITIVE.to_f32()).then(|| f16::from_bits(d.to_bits() + 1))
}

/// Bytes of the planes of a row, padding included.
fn sections(format: NumFormat, kind: Kind, cols: usize) -> (usize, usize) {
    let low = (4 * kind.low * cols.div_ceil(STEP)).next_multiple_of(16);
    (low, format.code_bytes(cols) - low)
}

/// Packs a row whose length and weights are right. `importance` has as many numbers, or is none.
pub(crate) fn pack(
    format: NumFormat,
    weights: &[f32],
    importance: Option<&[f32]>,
    row: &mut [u8],
) -> Result<()> {
    let kind = Kind::of(format)?;
    row.fill(0);
    const BLOCK: usize = GROUP * GROUPS;
    let cols = weights.len();
    for (b, weights) in weights.chunks(BLOCK).enumerate() {
        let mut here = [[0f32; GROUP]; GROUPS];
        here.as_flattened_mut()[..weights.len()].copy_from_slice(weights);
        let mut by = [[1f32; GROUP]; GROUPS];
        if let Some(importance) = importance {
            by.as_flattened_mut()[..weights.len()].copy_from_slice(&importance[b * BLOCK..][..weights.len()]);
        }
        put_block(format, kind, cols, b, &kind.fit(&here, &by), row);
    }
    Ok(())
}

/// Puts block `b` of a row of `cols` weights, of zeros until now, to its places.
pub(crate) fn put_block(format: NumFormat, kind: Kind, cols: usize, b: usize, block: &Block, row: &mut [u8]) {
    let (low, high) = sections(format, kind, cols);
    let (low, rest) = row.split_at_mut(low);
    let (high, rest) = rest.split_at_mut(high);
    let (scales, halves) = rest.split_at_mut(cols.div_ceil(STEP).next_multiple_of(2));
    halves[2 * b..][..2].copy_from_slice(&block.d.to_le_bytes());
    let first = b * GROUPS * GROUP / STEP;
    for (part, step) in (first..cols.div_ceil(STEP)).take(GROUPS * GROUP / STEP).enumerate() {
        let mut codes = [0u8; STEP];
        for (to, code) in codes.iter_mut().zip(block.codes[2 * part..].as_flattened()) {
            *to = (code + f32::from(kind.zero())) as u8;
        }
        let (low, high) = (&mut low[4 * kind.low * step..], &mut high[4 * kind.high * step..]);
        kind.put(&codes, &mut low[..4 * kind.low], &mut high[..4 * kind.high]);
        let scale = |g: usize| (block.scales[g] + kind.bias()) as u8;
        scales[step] = scale(2 * part) | scale(2 * part + 1) << 4;
    }
}

/// Widens a row whose length is right.
pub(crate) fn unpack(format: NumFormat, row: &[u8], weights: &mut [f32]) -> Result<()> {
    let kind = Kind::of(format)?;
    let (low, high) = sections(format, kind, weights.len());
    let (low, rest) = row.split_at(low);
    let (high, rest) = rest.split_at(high);
    let (scales, halves) = rest.split_at(weights.len().div_ceil(STEP).next_multiple_of(2));
    for (step, weights) in weights.chunks_mut(STEP).enumerate() {
        let (low, high) = (&low[4 * kind.low * step..], &high[4 * kind.high * step..]);
        let at = step * STEP / (GROUP * GROUPS) * 2;
        let d = f16::from_le_bytes([halves[at], halves[at + 1]]).to_f32();
        let scale = |nibble: u8| d * (f32::from(nibble) - kind.bias());
        let both = [scale(scales[step] & 15), scale(scales[step] >> 4)];
        for (c, w) in weights.iter_mut().enumerate() {
            let code = kind.get(low, high, c);
            *w = both[c / GROUP] * (f32::from(code) - f32::from(kind.zero()));
        }
    }
    Ok(())
}
