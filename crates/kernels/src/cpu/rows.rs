//! Verbs that treat each token, or each number, by itself.

use super::simd::{Eight, Job, Simd};
use crate::{Activation, RopeKind};

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
        let factor = norm_factor(self.x, self.eps);
        let weight = self.weight.as_chunks::<4>().0;
        for ((y, &x), &weight) in self.y.iter_mut().zip(self.x).zip(weight) {
            *y = x * factor * f32::from_le_bytes(weight);
        }
    }
}

/// `1 / sqrt(mean(x²) + eps)`, in f64, so that wide rows and large outliers lose nothing.
#[inline(always)]
fn norm_factor(x: &[f32], eps: f32) -> f32 {
    let (whole, rest) = x.as_chunks::<8>();
    let mut sums = [0f64; 8];
    for x in whole {
        for (sum, &x) in sums.iter_mut().zip(x) {
            *sum += f64::from(x) * f64::from(x);
        }
    }
    for (sum, &x) in sums.iter_mut().zip(rest) {
        *sum += f64::from(x) * f64::from(x);
    }
    let mean = sums.iter().sum::<f64>() / x.len() as f64;
    (1.0 / (mean + f64::from(eps)).sqrt()) as f32
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

/// `x = x / sqrt(mean(x²) + eps) · weight` in place.
pub(crate) struct NormRow<'a> {
    pub(crate) x: &'a mut [f32],
    pub(crate) weight: &'a [u8],
    pub(crate) eps: f32,
}

impl Job for NormRow<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let factor = norm_factor(self.x, self.eps);
        for (x, &weight) in self.x.iter_mut().zip(self.weight.as_chunks::<4>().0) {
            *x = *x * factor * f32::from_le_bytes(weight);
        }
    }
}

/// `y[c] = x[order[c]]` for one token; `order` are little-endian f32.
pub(crate) struct Reorder<'a> {
    pub(crate) x: &'a [f32],
    pub(crate) order: &'a [u8],
    pub(crate) y: &'a mut [f32],
}

impl Job for Reorder<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        for (y, &from) in self.y.iter_mut().zip(self.order.as_chunks::<4>().0) {
            // A place that is none reads as NaN, so that it is noticed.
            *y = self.x.get(f32::from_le_bytes(from) as usize).copied().unwrap_or(f32::NAN);
        }
    }
}

/// `y *= factor`.
pub(crate) struct Scale<'a> {
    pub(crate) y: &'a mut [f32],
    pub(crate) factor: f32,
}

impl Job for Scale<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        self.y.iter_mut().for_each(|y| *y *= self.factor);
    }
}

/// `gate = f(gate) · up`.
pub(crate) struct Gated<'a> {
    pub(crate) gate: &'a mut [f32],
    pub(crate) up: &'a [f32],
    pub(crate) f: Activation,
}

impl Job for Gated<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (gates, last_gates) = self.gate.as_chunks_mut::<8>();
        let (ups, last_ups) = self.up.as_chunks::<8>();
        for (gate, up) in gates.iter_mut().zip(ups) {
            gated(simd, gate, up, self.f);
        }
        // The rest goes the same way, so that a number's place does not change its result.
        let (mut gate, mut up) = ([0f32; 8], [0f32; 8]);
        gate[..last_gates.len()].copy_from_slice(last_gates);
        for (to, &from) in up.iter_mut().zip(last_ups) {
            *to = from;
        }
        gated(simd, &mut gate, &up, self.f);
        last_gates.copy_from_slice(&gate[..last_gates.len()]);
    }
}

#[inline(always)]
fn gated<S: Simd>(simd: S, gate: &mut Eight, up: &Eight, f: Activation) {
    let x = simd.load(gate);
    // Both are x · sigmoid(z): tanh(a) = 2 · sigmoid(2a) − 1.
    let z = match f {
        Activation::Silu => x,
        Activation::GeluTanh => {
            let cube = simd.mul(simd.mul(x, x), simd.mul(x, simd.splat(0.044_715)));
            simd.mul(simd.add(x, cube), simd.splat(2.0 * 0.797_884_6))
        }
    };
    let below = simd.add(simd.splat(1.0), simd.exp(simd.sub(simd.zero(), z)));
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
