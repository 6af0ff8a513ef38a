//! Verbs that treat each token, or each number, by itself.

use super::simd::{Eight, Job, Simd};
use crate::RopeKind;

/// `y = x / sqrt(mean(x²) + eps) · weight` for one token; `weight` are little-endian f32.
pub(crate) struct RmsNorm<'a> {
    pub(crate) x: &'a [f32],
    pub(crate) weight: &'a [u8],
    pub(crate) eps: f32,
    pub(crate) y: &'a mut [f32],
}

impl Job for RmsNorm<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        // In f64, so that wide rows and large outliers lose nothing.
        let (whole, rest) = self.x.as_chunks::<8>();
        let mut sums = [0f64; 8];
        for x in whole {
            for (sum, &x) in sums.iter_mut().zip(x) {
                *sum += f64::from(x) * f64::from(x);
            }
        }
        for (sum, &x) in sums.iter_mut().zip(rest) {
            *sum += f64::from(x) * f64::from(x);
        }
        let mean = sums.iter().sum::<f64>() / self.x.len() as f64;
        let factor = (1.0 / (mean + f64::from(self.eps)).sqrt()) as f32;
        let weight = self.weight.as_chunks::<4>().0;
        for ((y, &x), &weight) in self.y.iter_mut().zip(self.x).zip(weight) {
            *y = x * factor * f32::from_le_bytes(weight);
        }
    }
}

/// `y += bias` for one token; `bias` are little-endian f32.
pub(crate) struct AddBias<'a> {
    pub(crate) y: &'a mut [f32],
    pub(crate) bias: &'a [u8],
}

impl Job for AddBias<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        for (y, &bias) in self.y.iter_mut().zip(self.bias.as_chunks::<4>().0) {
            *y += f32::from_le_bytes(bias);
        }
    }
}

/// `y += x`.
pub(crate) struct Add<'a> {
    pub(crate) y: &'a mut [f32],
    pub(crate) x: &'a [f32],
}

impl Job for Add<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        for (y, &x) in self.y.iter_mut().zip(self.x) {
            *y += x;
        }
    }
}

/// `gate = gate / (1 + e^−gate) · up`.
pub(crate) struct SiluMul<'a> {
    pub(crate) gate: &'a mut [f32],
    pub(crate) up: &'a [f32],
}

impl Job for SiluMul<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (gates, last_gates) = self.gate.as_chunks_mut::<8>();
        let (ups, last_ups) = self.up.as_chunks::<8>();
        for (gate, up) in gates.iter_mut().zip(ups) {
            silu_mul(simd, gate, up);
        }
        // The rest goes the same way, so that a number's place does not change its result.
        let (mut gate, mut up) = ([0f32; 8], [0f32; 8]);
        gate[..last_gates.len()].copy_from_slice(last_gates);
        for (to, &from) in up.iter_mut().zip(last_ups) {
            *to = from;
        }
        silu_mul(simd, &mut gate, &up);
        last_gates.copy_from_slice(&gate[..last_gates.len()]);
    }
}

#[inline(always)]
fn silu_mul<S: Simd>(simd: S, gate: &mut Eight, up: &Eight) {
    let x = simd.load(gate);
    let below = simd.add(simd.splat(1.0), simd.exp(simd.sub(simd.zero(), x)));
    simd.store(simd.mul(simd.div(x, below), simd.load(up)), gate);
}

/// Turns the heads of one token; `table` are the cosines, then the sines.
pub(crate) struct Turn<'a> {
    pub(crate) x: &'a mut [f32],
    pub(crate) table: &'a [f32],
    pub(crate) head_dim: usize,
    pub(crate) kind: RopeKind,
}

impl Job for Turn<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let (cosines, sines) = self.table.split_at(self.table.len() / 2);
        for head in self.x.chunks_exact_mut(self.head_dim) {
            let head = &mut head[..self.table.len()];
            match self.kind {
                RopeKind::Half => {
                    let (first, second) = head.split_at_mut(cosines.len());
                    let pairs = first.iter_mut().zip(second);
                    for ((a, b), (&cos, &sin)) in pairs.zip(cosines.iter().zip(sines)) {
                        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                    }
                }
                RopeKind::Interleaved => {
                    let pairs = head.as_chunks_mut::<2>().0.iter_mut();
                    for ([a, b], (&cos, &sin)) in pairs.zip(cosines.iter().zip(sines)) {
                        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                    }
                }
            }
        }
    }
}
