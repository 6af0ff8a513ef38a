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
    /// Eight i16.
    type Eight: Copy;

    /// Whether there are registers for two vectors of rows times six tokens, in integers and in f32.
    const MANY_REGISTERS: bool = false;

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
    /// The highest bit of each byte turned: signed ones become unsigned ones, 128 more.
    fn flip(self, v: Self::Bytes) -> Self::Bytes;
    /// Quarters 0 and 2 of `a`, then of `b`; and their quarters 1 and 3.
    fn unzip(self, a: Self::Bytes, b: Self::Bytes) -> [Self::Bytes; 2];
    /// Quarters `a0 b0 a2 b2`, and `a1 b1 a3 b3`.
    fn transpose(self, a: Self::Bytes, b: Self::Bytes) -> [Self::Bytes; 2];

    /// Unsigned bytes at even places, then those at odd ones.
    fn unsigned(self, v: Self::Bytes) -> [Self::Words; 2];
    fn eight(self, from: [i16; 8]) -> Self::Eight;
    /// The low, then the high four bits of each byte, less `bias`.
    fn nibbles(self, from: [u8; 4], bias: i16) -> Self::Eight;
    /// Quarter `k` of the first is `from[2k]` eight times, of the second `from[2k + 1]`.
    fn groups(self, from: Self::Eight) -> [Self::Words; 2];
    /// Quarter `k` is `from[2k]` four times, then `from[2k + 1]` four times.
    fn split(self, from: Self::Eight) -> Self::Words;
    fn splat_words(self, x: i16) -> Self::Words;
    /// Two words, in the halves of `x`, 16 times.
    fn pair(self, x: i32) -> Self::Words;
    fn words(self, from: &[i16; 32]) -> Self::Words;
    fn store_words(self, v: Self::Words, to: &mut [i16; 32]);
    /// `a − b`, which must fit.
    fn sub_words(self, a: Self::Words, b: Self::Words) -> Self::Words;
    /// `a · b`, which must fit.
    fn mul_words(self, a: Self::Words, b: Self::Words) -> Self::Words;
    /// Quarter `k` of vector `j` is pair `j` of quarter `k` of each of the four, one after the other.
    fn columns(self, rows: [Self::Words; 4]) -> [Self::Words; 4];

    /// `sum[i] + Σ_j codes[4i + j] · x[4i + j]`, codes unsigned and below 128 unless `WIDE`, `x` signed.
    fn dot_bytes<const WIDE: bool>(self, sum: Self::Sums, codes: Self::Bytes, x: Self::Bytes) -> Self::Sums;
    /// `sum[i] + a[2i] · b[2i] + a[2i + 1] · b[2i + 1]`, which must fit.
    fn dot(self, sum: Self::Sums, a: Self::Words, b: Self::Words) -> Self::Sums;
    /// Quarter `k` is that of `a`, then that of `b`; they must fit.
    fn pack(self, a: Self::Sums, b: Self::Sums) -> Self::Words;
    /// Number `4k + r` is the sum of quarter `k` of the `r`th.
    fn fold(self, rows: [Self::Sums; 4]) -> Self::Sums;
    /// Each number times 256.
    fn shift_sums(self, v: Self::Sums) -> Self::Sums;
    fn add_sums(self, a: Self::Sums, b: Self::Sums) -> Self::Sums;
    fn no_sums(self) -> Self::Sums;
    fn sums(self, from: &[i32; 16]) -> Self::Sums;
    /// Each number four times.
    fn spread_sums(self, from: &[i32; 4]) -> Self::Sums;
    /// Number `4k + r` is byte `k` of the `r`th.
    fn bytes_of(self, rows: [[u8; 4]; 4]) -> Self::Sums;
    /// To nearest, ties to even.
    fn floats(self, v: Self::Sums) -> Self::Floats;

    fn splat(self, x: f32) -> Self::Floats;
    /// Each number four times.
    fn spread(self, from: &[f32; 4]) -> Self::Floats;
    /// Number `4k + r` is the binary16 in bits `16k..` of the `r`th.
    fn halves_of(self, rows: [u64; 4]) -> Self::Floats;
    /// Number `4k + r` is the binary16 of the `r`th.
    fn row_halves(self, rows: [u16; 4]) -> Self::Floats;
    /// Number `4k + r` is the binary16 at `2 · STRIDE · k` of the `r`th. `STRIDE` is 10 at most.
    #[inline(always)]
    fn strided_halves<const STRIDE: usize>(self, rows: [&[u8; 64]; 4]) -> Self::Floats {
        let half = |row: &[u8; 64], k: usize| {
            u64::from(u16::from_le_bytes([row[2 * STRIDE * k], row[2 * STRIDE * k + 1]])) << (16 * k)
        };
        let four = |row| half(row, 0) | half(row, 1) | half(row, 2) | half(row, 3);
        self.halves_of([four(rows[0]), four(rows[1]), four(rows[2]), four(rows[3])])
    }
    fn load(self, from: &[f32; 16]) -> Self::Floats;
    fn store(self, v: Self::Floats, to: &mut [f32; 16]);
    fn mul(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a · b + c`, rounded once.
    fn mul_add(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    /// Asks for the cache line that is `at` bytes after the start of `from`, inside of it or beyond.
    fn prefetch<T>(self, from: &[T], at: usize);
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
    Neon(Neon<false>),
    #[cfg(target_arch = "aarch64")]
    NeonDot(Neon<true>),
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
        {
            levels.extend(Neon::detect().map(IntLevel::Neon));
            levels.extend(Neon::detect().map(IntLevel::NeonDot));
        }
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
            #[cfg(target_arch = "aarch64")]
            IntLevel::NeonDot(_) => "neon-dotprod",
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
            #[cfg(target_arch = "aarch64")]
            IntLevel::NeonDot(simd) => simd.enter(job),
        }
    }
}

#[cfg(test)]
mod tests;
