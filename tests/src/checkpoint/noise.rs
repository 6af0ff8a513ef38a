//! Random weights at the speed of a copy.

use super::{Dtype, Tensor};
use std::io::{self, Write};

/// Elements of the block. A prime: rows of any length fall on it at ever new places, so no two rows of
/// a matrix are alike.
const BLOCK: usize = 1_048_583;

/// A source of random weights.
pub(super) struct Noise {
    dtype: Dtype,
    random: Random,
    /// Unit variance, mean zero.
    normal: Vec<f32>,
    /// The block scaled and encoded for the last (mean, deviation).
    encoded: Option<((f32, f32), Vec<u8>)>,
}

impl Noise {
    pub(super) fn new(seed: u64, dtype: Dtype) -> Self {
        let mut random = Random(seed);
        // The sum of four uniform numbers: bell-shaped, and bounded at 3.5 deviations.
        let normal = (0..BLOCK)
            .map(|_| {
                let bits = random.next();
                let sum: f32 = (0..4).map(|i| ((bits >> (16 * i)) & 0xffff) as f32 / 65535.0 - 0.5).sum();
                sum * 3f32.sqrt()
            })
            .collect();
        Self { dtype, random, normal, encoded: None }
    }

    /// Writes all of a tensor.
    pub(super) fn write(&mut self, tensor: &Tensor, out: &mut impl Write) -> io::Result<()> {
        let scale = (tensor.mean, tensor.deviation);
        if self.encoded.as_ref().is_none_or(|(at, _)| *at != scale) {
            let values = self.normal.iter().map(|v| scale.0 + scale.1 * v);
            self.encoded = Some((scale, self.dtype.encode(values)));
        }
        let block: &[u8] = self.encoded.as_ref().map_or(&[], |(_, block)| block);
        let width = self.dtype.bytes();
        let mut left = tensor.elements();
        while left > 0 {
            let start = (self.random.next() % BLOCK as u64) as usize;
            let run = left.min((BLOCK - start) as u64) as usize;
            out.write_all(&block[start * width..(start + run) * width])?;
            left -= run as u64;
        }
        Ok(())
    }
}

/// SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): tiny, and good enough for weights.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
