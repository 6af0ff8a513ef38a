//! Products of integers: vectors of 64 bytes, on whatever the processor has.
//!
//! Every operation is one of integers, exact, or one of f32 that rounds once, and is defined lane by lane. So all
//! implementations give the same bits.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;

#[cfg(target_arch = "x86_64")]
use avx2::{Avx2, AvxVnni};
#[cfg(target_arch = "x86_64")]
use avx512::Avx512;
#[cfg(target_arch = "aarch64")]
use neon::Neon;
use portable::Portable;

/// A kernel over any [`Ints`]. What [`Job`](super::Job) says of inlining holds here too.
pub(crate) trait IntJob {
    type Out;
    fn run<S: Ints>(self, simd: S) -> Self::Out;
}

/// An instruction set, as a token whose existence proves that the processor has it.
///
/// Vectors of 64 bytes are four *quarters* of 16.
pub(crate) trait Ints: Copy + Send + Sync + 'static {
    /// 64 bytes.
    type Bytes: Copy;
    /// 32 i16.
    type Words: Copy;
    /// 16 i32.
    type Sums: Copy;
    /// 16 f32.
    type Floats: Copy;

    /// Runs a kernel with this instruction set switched on.
    fn enter<J: IntJob>(self, job: J) -> J::Out;

    fn bytes(self, from: &[u8; 64]) -> Self::Bytes;
    /// Four quarters from four places.
    fn quarters(self, from: [&[u8; 16]; 4]) -> Self::Bytes;
    /// The same 16 bytes in each quarter, of quarter `k` the bits shifted right by `by[k]`, then masked: as
    /// 64-bit words, so that the mask must leave no bit that came from a neighbour.
    fn lanes(self, from: &[u8; 16], by: [u8; 4], mask: u8) -> Self::Bytes;
    /// Two bits of each: quarter `k` of the first has bits 0 and 1 of bytes `8k..8k + 8`, then bits 2 and 3 of
    /// them; quarter `k` of the second bits 4 and 5, then 6 and 7.
    fn pairs(self, from: &[u8; 32]) -> [Self::Bytes; 2];
    /// `value` where a bit is set: quarter `k` of the first has the bits of bytes `4k` and `4k + 1`, the second those
    /// of the next two.
    fn bits(self, from: &[u8; 16], value: u8) -> [Self::Bytes; 2];
    /// Each byte shifted right by up to 7 bits, then masked. `mask` must have no bit that the shift empties.
    fn shift_right(self, v: Self::Bytes, by: usize, mask: u8) -> Self::Bytes;
    /// Each byte shifted left. The bits that would leave it must be 0.
    fn shift_left(self, v: Self::Bytes, by: usize) -> Self::Bytes;
    fn or(self, a: Self::Bytes, b: Self::Bytes) -> Self::Bytes;
    /// Quarters 0 and 2 of `a`, then of `b`; and their quarters 1 and 3.
    fn unzip(self, a: Self::Bytes, b: Self::Bytes) -> [Self::Bytes; 2];
    /// Quarters `a0 b0 a2 b2`, and `a1 b1 a3 b3`.
    fn transpose(self, a: Self::Bytes, b: Self::Bytes) -> [Self::Bytes; 2];

    /// Unsigned bytes at even places, then those at odd ones.
    fn unsigned(self, v: Self::Bytes) -> [Self::Words; 2];
    /// Signed bytes at even places, then those at odd ones.
    fn signed(self, v: Self::Bytes) -> [Self::Words; 2];
    /// Quarter `k` of the first is `from[2k]` eight times, of the second `from[2k + 1]`.
    fn groups(self, from: &[i16; 8]) -> [Self::Words; 2];
    fn splat_words(self, x: i16) -> Self::Words;
    fn words(self, from: &[i16; 32]) -> Self::Words;
    fn store_words(self, v: Self::Words, to: &mut [i16; 32]);
    /// `a − b`, which must fit.
    fn sub_words(self, a: Self::Words, b: Self::Words) -> Self::Words;
    /// `a · b`, which must fit.
    fn mul_words(self, a: Self::Words, b: Self::Words) -> Self::Words;

    /// `sum[i] + a[2i] · b[2i] + a[2i + 1] · b[2i + 1]`, which must fit.
    fn dot(self, sum: Self::Sums, a: Self::Words, b: Self::Words) -> Self::Sums;
    /// `a[i] · b[i]`, which must fit.
    fn mul_sums(self, a: &[i16; 16], b: &[i32; 16]) -> Self::Sums;
    fn add_sums(self, a: Self::Sums, b: Self::Sums) -> Self::Sums;
    fn no_sums(self) -> Self::Sums;
    /// To nearest, ties to even.
    fn floats(self, v: Self::Sums) -> Self::Floats;

    fn splat(self, x: f32) -> Self::Floats;
    /// Each number four times.
    fn spread(self, from: &[f32; 4]) -> Self::Floats;
    fn load(self, from: &[f32; 16]) -> Self::Floats;
    fn store(self, v: Self::Floats, to: &mut [f32; 16]);
    fn mul(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `sum + a · b`, rounded twice.
    fn add_product(self, sum: Self::Floats, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// One little-endian binary16.
    fn half(self, from: [u8; 2]) -> f32;
    /// Four little-endian binary16.
    fn halves(self, from: &[u8; 8]) -> [f32; 4];
    /// Of each byte `b` the two numbers in the halves of `(b | b << by) & mask`, less `bias`.
    fn double(self, from: &[u8; 8], by: u32, mask: u32, bias: i16) -> [i16; 16];
    /// Asks for the cache line that is `at` bytes after the start of `from`, inside of it or beyond.
    fn prefetch<T>(self, from: &[T], at: usize);

    /// The sum of the lanes: lane `i` and lane `i + 8`, then neighbours, then pairs, then fours.
    #[inline(always)]
    fn sum(self, v: Self::Floats) -> f32 {
        let mut lanes = [0.0; 16];
        self.store(v, &mut lanes);
        let (first, second) = lanes.split_at(8);
        let mut eight = [0.0; 8];
        for i in 0..8 {
            eight[i] = first[i] + second[i];
        }
        let [a, b, c, d, e, f, g, h] = eight;
        ((a + b) + (c + d)) + ((e + f) + (g + h))
    }
}

/// The instruction set for products of integers that a device uses.
#[derive(Debug, Clone, Copy)]
pub(crate) enum IntLevel {
    Portable(Portable),
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    #[cfg(target_arch = "x86_64")]
    AvxVnni(AvxVnni),
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
    #[cfg(target_arch = "aarch64")]
    Neon(Neon),
}

impl IntLevel {
    pub(crate) const PORTABLE: IntLevel = IntLevel::Portable(Portable);

    /// All that this processor has, the best one last.
    pub(crate) fn all() -> Vec<IntLevel> {
        let mut levels = vec![IntLevel::PORTABLE];
        #[cfg(target_arch = "x86_64")]
        {
            levels.extend(Avx2::detect().map(IntLevel::Avx2));
            levels.extend(AvxVnni::detect().map(IntLevel::AvxVnni));
            levels.extend(Avx512::detect().map(IntLevel::Avx512));
        }
        #[cfg(target_arch = "aarch64")]
        levels.extend(Neon::detect().map(IntLevel::Neon));
        levels
    }

    /// The best that this processor has.
    pub(crate) fn detect() -> IntLevel {
        IntLevel::all().pop().unwrap_or(IntLevel::PORTABLE)
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            IntLevel::Portable(_) => "portable",
            #[cfg(target_arch = "x86_64")]
            IntLevel::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            IntLevel::AvxVnni(_) => "avx-vnni",
            #[cfg(target_arch = "x86_64")]
            IntLevel::Avx512(_) => "avx512-vnni",
            #[cfg(target_arch = "aarch64")]
            IntLevel::Neon(_) => "neon",
        }
    }

    pub(crate) fn run<J: IntJob>(self, job: J) -> J::Out {
        match self {
            IntLevel::Portable(simd) => simd.enter(job),
            #[cfg(target_arch = "x86_64")]
            IntLevel::Avx2(simd) => simd.enter(job),
            #[cfg(target_arch = "x86_64")]
            IntLevel::AvxVnni(simd) => simd.enter(job),
            #[cfg(target_arch = "x86_64")]
            IntLevel::Avx512(simd) => simd.enter(job),
            #[cfg(target_arch = "aarch64")]
            IntLevel::Neon(simd) => simd.enter(job),
        }
    }
}

#[cfg(test)]
mod tests;
