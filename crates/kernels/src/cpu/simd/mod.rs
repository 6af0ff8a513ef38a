//! Eight f32 lanes, on whatever the processor has.
//!
//! Kernels are written once, over [`Simd`], and compiled for each implementation. Which one runs is
//! decided when the device is opened and never changes, so neither do the results.
//!
//! The only `unsafe` code of the CPU device is here: intrinsics, and the call that enters code
//! compiled for them. Both rest on one fact: a value of [`Avx2`], and of the tokens in [`ints`], exists only where the processor was
//! asked and said yes.

#[cfg(target_arch = "x86_64")]
mod avx2;
mod ints;
mod portable;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;
pub(crate) use ints::{IntJob, IntLevel, Ints};
pub(crate) use portable::Portable;

/// Eight numbers in memory.
pub(crate) type Eight = [f32; 8];

/// A kernel: code over any [`Simd`]. `run` must be `#[inline(always)]`, and so must everything it calls
/// that handles vectors, so that all of it is compiled for the instructions it is entered with. Closures
/// and `array::map` are functions of their own: they must not handle vectors.
pub(crate) trait Job {
    type Out;
    fn run<S: Simd>(self, simd: S) -> Self::Out;
}

/// An instruction set, as a token whose existence proves that the processor has it.
pub(crate) trait Simd: Copy + Send + Sync + 'static {
    /// Eight f32.
    type V: Copy;
    /// 32 bytes.
    type Bytes: Copy;

    /// Runs a kernel with this instruction set switched on.
    fn enter<J: Job>(self, job: J) -> J::Out;

    fn splat(self, x: f32) -> Self::V;
    fn load(self, from: &Eight) -> Self::V;
    fn store(self, v: Self::V, to: &mut Eight);
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a · b + c`, rounded once or twice, but always the same way.
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `a` where `a > b`, else `b`: a NaN in `a` is passed over.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// `bound` where `v > bound`, else `v`: NaN stays NaN.
    fn at_most(self, v: Self::V, bound: f32) -> Self::V;
    /// `bound` where `v < bound`, else `v`: NaN stays NaN.
    fn at_least(self, v: Self::V, bound: f32) -> Self::V;
    /// Bits of each lane shifted left by 23: an integer becomes an exponent.
    fn exponent(self, v: Self::V) -> Self::V;
    /// The sum of the lanes of each vector, as `((0+1) + (2+3)) + ((4+5) + (6+7))`.
    fn sum4(self, v: [Self::V; 4]) -> [f32; 4];

    /// Little-endian f32, at any address.
    fn load_f32(self, from: &[u8; 32]) -> Self::V;
    /// Little-endian binary16.
    fn load_f16(self, from: &[u8; 16]) -> Self::V;
    /// Little-endian bfloat16.
    fn load_bf16(self, from: &[u8; 16]) -> Self::V;
    /// Signed bytes.
    fn load_i8(self, from: &[u8; 8]) -> Self::V;
    /// Unsigned bytes.
    fn load_u8(self, from: &[u8; 8]) -> Self::V;
    /// 16 numbers of float8 `e4m3fn`, each divided by 256; 0x7f and 0xff are NaN.
    fn load_e4m3(self, from: &[u8; 16]) -> (Self::V, Self::V);
    /// The low four bits of each byte, and the high four bits, as 0 to 15.
    fn load_nibbles(self, from: &[u8; 8]) -> (Self::V, Self::V);
    /// What `table` has for the low four bits of each byte, and for the high four bits.
    fn look_up(self, table: &[f32; 16], from: &[u8; 8]) -> (Self::V, Self::V);
    /// One little-endian binary16, eight times.
    fn splat_f16(self, from: [u8; 2]) -> Self::V;
    /// `v / 127`, rounded as a division is, for 0 and for magnitudes of 1e-30 to 1e30.
    fn over_127(self, v: Self::V) -> Self::V;

    fn load_bytes(self, from: &[u8; 32]) -> Self::Bytes;
    /// The low four bits of each byte, then the high four bits of each.
    fn nibbles(self, from: &[u8; 16]) -> Self::Bytes;
    /// Bits 0 and 1 of each byte, then bits 2 and 3 of each, then 4 and 5, then 6 and 7.
    fn pairs(self, from: &[u8; 8]) -> Self::Bytes;
    /// `value` in byte `i` where bit `i` is set, 0 in the others.
    fn spread(self, bits: u32, value: u8) -> Self::Bytes;
    /// Each byte shifted right by up to 7 bits, then masked. `mask` must have no bit that the shift empties.
    fn shift_right(self, v: Self::Bytes, by: usize, mask: u8) -> Self::Bytes;
    /// Each byte shifted left. The bits that would leave it must be 0.
    fn shift_left(self, v: Self::Bytes, by: usize) -> Self::Bytes;
    fn or(self, a: Self::Bytes, b: Self::Bytes) -> Self::Bytes;
    /// Unsigned bytes as f32.
    fn codes(self, v: Self::Bytes) -> [Self::V; 4];

    /// Asks for the cache line that is `at` bytes after the start of `from`, inside of it or beyond.
    fn prefetch<T>(self, from: &[T], at: usize);

    #[inline(always)]
    fn zero(self) -> Self::V {
        self.splat(0.0)
    }

    /// The sum of the lanes, in the order of [`sum4`](Simd::sum4).
    #[inline(always)]
    fn sum(self, v: Self::V) -> f32 {
        let mut lanes = [0.0; 8];
        self.store(v, &mut lanes);
        let [a, b, c, d, e, f, g, h] = lanes;
        ((a + b) + (c + d)) + ((e + f) + (g + h))
    }

    /// eˣ within 2 units in the last place; 0 and infinity beyond the range of f32; NaN for NaN.
    ///
    /// `x = n·ln 2 + r` with `|r| ≤ ln 2 / 2`; eʳ is its Taylor polynomial of degree 7, whose remainder
    /// is below 6e-9; 2ⁿ is multiplied in two halves, so that neither leaves the range on the way.
    #[inline(always)]
    fn exp(self, x: Self::V) -> Self::V {
        // Nine bits of ln 2, so that n·HIGH is exact without a fused multiply, and the rest.
        const HIGH: f32 = 355.0 / 512.0;
        const LOW: f32 = (std::f64::consts::LN_2 - 355.0 / 512.0) as f32;
        // Adding this leaves the nearest integer in the low bits of the sum.
        const ROUND: f32 = 12_582_912.0;
        let round = self.splat(ROUND);
        let x = self.at_least(self.at_most(x, 89.0), -104.5);
        let n = self.mul(x, self.splat(std::f32::consts::LOG2_E));
        let n = self.sub(self.add(n, round), round);
        let r = self.mul_add(n, self.splat(-HIGH), x);
        let r = self.mul_add(n, self.splat(-LOW), r);

        let mut p = self.splat(1.0 / 5040.0);
        for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5] {
            p = self.mul_add(p, r, self.splat(c));
        }
        let p = self.mul_add(self.mul(r, r), p, r);
        let p = self.add(p, self.splat(1.0));

        let half = self.sub(self.add(self.mul(n, self.splat(0.5)), round), round);
        let bias = self.splat(ROUND + 127.0);
        let first = self.exponent(self.add(half, bias));
        let second = self.exponent(self.add(self.sub(n, half), bias));
        self.mul(self.mul(p, first), second)
    }
}

/// The instruction set that a device uses.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Level {
    Portable(Portable),
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
}

impl Level {
    /// The best that this processor has.
    pub(crate) fn detect() -> Level {
        #[cfg(target_arch = "x86_64")]
        if let Some(avx2) = Avx2::detect() {
            return Level::Avx2(avx2);
        }
        Level::Portable(Portable)
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Level::Portable(_) => "portable",
            #[cfg(target_arch = "x86_64")]
            Level::Avx2(_) => "avx2",
        }
    }

    pub(crate) fn run<J: Job>(self, job: J) -> J::Out {
        match self {
            Level::Portable(simd) => simd.enter(job),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2(simd) => simd.enter(job),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Exp(Eight);

    impl Job for Exp {
        type Out = Eight;
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> Eight {
            let mut out = [0.0; 8];
            simd.store(simd.exp(simd.load(&self.0)), &mut out);
            out
        }
    }

    /// Distance from the true value, in units in the last place of the true value.
    fn ulps(found: f32, x: f32) -> f64 {
        let truth = f64::from(x).exp();
        let ulp = 2f64.powi((truth.log2().floor() as i32).max(-126) - 23);
        ((f64::from(found) - truth) / ulp).abs()
    }

    #[test]
    fn exp_is_within_two_ulps() {
        for level in [Level::Portable(Portable), Level::detect()] {
            let mut worst = (0.0, 0.0);
            let mut x = -104.0f32;
            while x < 88.7 {
                let lanes = std::array::from_fn(|i| x + i as f32 * 1e-4);
                for (found, x) in level.run(Exp(lanes)).into_iter().zip(lanes) {
                    if x < 88.72 && ulps(found, x) > worst.0 {
                        worst = (ulps(found, x), x);
                    }
                }
                x += 8e-4;
            }
            assert!(worst.0 <= 2.0, "{}: {} ulps at {}", level.name(), worst.0, worst.1);
        }
    }

    #[test]
    fn exp_of_the_extremes() {
        let inf = f32::INFINITY;
        for level in [Level::Portable(Portable), Level::detect()] {
            let found = level.run(Exp([f32::NAN, inf, -inf, 0.0, -0.0, 89.0, -200.0, 1e30]));
            assert!(found[0].is_nan());
            assert_eq!(found[1..], [inf, 0.0, 1.0, 1.0, inf, 0.0, inf]);
        }
    }

    struct Over127(Eight);

    impl Job for Over127 {
        type Out = Eight;
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> Eight {
            let mut out = [0.0; 8];
            simd.store(simd.over_127(simd.load(&self.0)), &mut out);
            out
        }
    }

    #[test]
    fn over_127_is_a_division() {
        let mut bits = 1u32;
        for level in [Level::Portable(Portable), Level::detect()] {
            for i in 0..100_000 {
                // Any fraction, exponents over all of the range that is promised.
                bits = bits.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let exponent = 127 - 99 + i % 199;
                let start = f32::from_bits(exponent << 23 | bits >> 9);
                let numbers: Eight = std::array::from_fn(|j| start * (j as f32 * 18.0 - 128.0));
                let found = level.run(Over127(numbers));
                assert_eq!(found, numbers.map(|x| x / 127.0), "{} {start:e}", level.name());
            }
            assert_eq!(level.run(Over127([0.0; 8])), [0.0; 8]);
        }
    }

    struct Sums([Eight; 4]);

    impl Job for Sums {
        type Out = ([f32; 4], [f32; 4]);
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> Self::Out {
            let v = self.0.map(|lanes| simd.load(&lanes));
            (simd.sum4(v), v.map(|v| simd.sum(v)))
        }
    }

    #[test]
    fn sums_agree_bit_for_bit() {
        let lanes = |seed: usize| std::array::from_fn(|i| ((seed * 8 + i) as f32 * 1.7).sin() * 1e3);
        let four = std::array::from_fn(lanes);
        for level in [Level::Portable(Portable), Level::detect()] {
            let (four_at_once, one_by_one) = level.run(Sums(four));
            assert_eq!(four_at_once, one_by_one);
        }
    }
}
