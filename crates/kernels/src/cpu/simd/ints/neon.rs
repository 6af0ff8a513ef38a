//! Four registers of NEON, with its products of bytes where the processor has them.

use super::{IntJob, Ints};
use half::f16;
use std::arch::aarch64::*;
use std::arch::asm;

/// Proof that the processor has NEON, and its products of bytes if `DOT`: only [`Neon::detect`] makes one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Neon<const DOT: bool>(());

impl<const DOT: bool> Neon<DOT> {
    /// Asks the processor.
    pub(crate) fn detect() -> Option<Self> {
        let has = std::arch::is_aarch64_feature_detected!("neon")
            && (!DOT || std::arch::is_aarch64_feature_detected!("dotprod"));
        has.then_some(Neon(()))
    }

    /// `sum[i] + Σ_j a[4i + j] · b[4i + j]`, all signed.
    #[inline(always)]
    fn add_fours(self, sum: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
        if DOT {
            let mut sum = sum;
            // The intrinsic is not stable yet.
            // SAFETY: `self` proves the feature; the instruction touches nothing but its operands.
            unsafe {
                asm!(
                    ".arch_extension dotprod",
                    "sdot {0:v}.4s, {1:v}.16b, {2:v}.16b",
                    inout(vreg) sum, in(vreg) a, in(vreg) b,
                    options(pure, nomem, nostack, preserves_flags)
                );
            }
            return sum;
        }
        // SAFETY: `self` proves NEON.
        unsafe {
            let low = vpaddlq_s16(vmull_s8(vget_low_s8(a), vget_low_s8(b)));
            let high = vpaddlq_s16(vmull_high_s8(a, b));
            vaddq_s32(sum, vpaddq_s32(low, high))
        }
    }
}

#[target_feature(enable = "neon")]
fn enter<J: IntJob, const DOT: bool>(simd: Neon<DOT>, job: J) -> J::Out {
    job.run(simd)
}

impl<const DOT: bool> Ints for Neon<DOT> {
    type Bytes = [uint8x16_t; 4];
    type Words = [int16x8_t; 4];
    type Sums = [int32x4_t; 4];
    type Floats = [float32x4_t; 4];
    type Eight = [i16; 8];

    #[inline(always)]
    fn enter<J: IntJob>(self, job: J) -> J::Out {
        // SAFETY: `self` proves that the processor has the features that `enter` is compiled for.
        unsafe { enter(self, job) }
    }

    #[inline(always)]
    fn bytes(self, from: &[u8; 64]) -> Self::Bytes {
        // SAFETY: `self` proves NEON; the reference is to 64 readable bytes.
        unsafe {
            let at = from.as_ptr();
            [vld1q_u8(at), vld1q_u8(at.add(16)), vld1q_u8(at.add(32)), vld1q_u8(at.add(48))]
        }
    }

    #[inline(always)]
    fn quarters(self, [a, b, c, d]: [&[u8; 16]; 4]) -> Self::Bytes {
        // SAFETY: `self` proves NEON; the references are to 16 readable bytes each.
        unsafe { [vld1q_u8(a.as_ptr()), vld1q_u8(b.as_ptr()), vld1q_u8(c.as_ptr()), vld1q_u8(d.as_ptr())] }
    }

    #[inline(always)]
    fn lanes(self, from: &[u8; 16], by: [u8; 4], mask: u8) -> Self::Bytes {
        // SAFETY: `self` proves NEON; the reference is to 16 readable bytes.
        unsafe {
            let (all, mask) = (vld1q_u8(from.as_ptr()), vdupq_n_u8(mask));
            let mut out = [all; 4];
            for k in 0..4 {
                out[k] = vandq_u8(vshlq_u8(all, vdupq_n_s8(-(by[k] as i8))), mask);
            }
            out
        }
    }

    #[inline(always)]
    fn pairs(self, from: &[u8; 32]) -> [Self::Bytes; 2] {
        // SAFETY: `self` proves NEON; the reference is to 32 readable bytes, 8 of which are read at `8k`.
        unsafe {
            let mask = vdupq_n_u8(3);
            let mut out = [[mask; 4]; 2];
            for k in 0..4 {
                let eight = vld1_u8(from.as_ptr().add(8 * k));
                let twice = vcombine_u8(eight, eight);
                let low = vcombine_s8(vdup_n_s8(0), vdup_n_s8(-2));
                let high = vcombine_s8(vdup_n_s8(-4), vdup_n_s8(-6));
                out[0][k] = vandq_u8(vshlq_u8(twice, low), mask);
                out[1][k] = vandq_u8(vshlq_u8(twice, high), mask);
            }
            out
        }
    }

    #[inline(always)]
    fn bits(self, from: &[u8; 16], value: u8) -> [Self::Bytes; 2] {
        // SAFETY: `self` proves NEON.
        unsafe {
            let masks = vreinterpretq_u8_u64(vdupq_n_u64(0x8040_2010_0804_0201));
            let value = vdupq_n_u8(value);
            let mut out = [[value; 4]; 2];
            for k in 0..4 {
                for h in 0..2 {
                    let (a, b) = (from[4 * k + 2 * h], from[4 * k + 2 * h + 1]);
                    let both = vcombine_u8(vdup_n_u8(a), vdup_n_u8(b));
                    out[h][k] = vandq_u8(vtstq_u8(both, masks), value);
                }
            }
            out
        }
    }

    #[inline(always)]
    fn shift_right(self, v: Self::Bytes, by: usize, mask: u8) -> Self::Bytes {
        // SAFETY: `self` proves NEON.
        unsafe {
            let (by, mask) = (vdupq_n_s8(-(by as i8)), vdupq_n_u8(mask));
            let mut out = v;
            for k in 0..4 {
                out[k] = vandq_u8(vshlq_u8(v[k], by), mask);
            }
            out
        }
    }

    #[inline(always)]
    fn shift_left(self, v: Self::Bytes, by: usize) -> Self::Bytes {
        // SAFETY: `self` proves NEON.
        unsafe {
            let by = vdupq_n_s8(by as i8);
            [vshlq_u8(v[0], by), vshlq_u8(v[1], by), vshlq_u8(v[2], by), vshlq_u8(v[3], by)]
        }
    }

    #[inline(always)]
    fn or(self, a: Self::Bytes, b: Self::Bytes) -> Self::Bytes {
        // SAFETY: `self` proves NEON.
        unsafe { [vorrq_u8(a[0], b[0]), vorrq_u8(a[1], b[1]), vorrq_u8(a[2], b[2]), vorrq_u8(a[3], b[3])] }
    }

    #[inline(always)]
    fn unzip(self, a: Self::Bytes, b: Self::Bytes) -> [Self::Bytes; 2] {
        [[a[0], a[2], b[0], b[2]], [a[1], a[3], b[1], b[3]]]
    }

    #[inline(always)]
    fn transpose(self, a: Self::Bytes, b: Self::Bytes) -> [Self::Bytes; 2] {
        [[a[0], b[0], a[2], b[2]], [a[1], b[1], a[3], b[3]]]
    }

    #[inline(always)]
    fn unsigned(self, v: Self::Bytes) -> [Self::Words; 2] {
        // SAFETY: `self` proves NEON.
        unsafe {
            let mut out = [[vdupq_n_s16(0); 4]; 2];
            for k in 0..4 {
                let both = vreinterpretq_u16_u8(v[k]);
                out[0][k] = vreinterpretq_s16_u16(vandq_u16(both, vdupq_n_u16(0xff)));
                out[1][k] = vreinterpretq_s16_u16(vshrq_n_u16::<8>(both));
            }
            out
        }
    }

    #[inline(always)]
    fn splat_words(self, x: i16) -> Self::Words {
        // SAFETY: `self` proves NEON.
        unsafe { [vdupq_n_s16(x); 4] }
    }

    #[inline(always)]
    fn words(self, from: &[i16; 32]) -> Self::Words {
        // SAFETY: `self` proves NEON; the reference is to 32 readable numbers.
        unsafe {
            let at = from.as_ptr();
            [vld1q_s16(at), vld1q_s16(at.add(8)), vld1q_s16(at.add(16)), vld1q_s16(at.add(24))]
        }
    }

    #[inline(always)]
    fn store_words(self, v: Self::Words, to: &mut [i16; 32]) {
        // SAFETY: `self` proves NEON; the reference is to 32 writable numbers.
        unsafe {
            for k in 0..4 {
                vst1q_s16(to.as_mut_ptr().add(8 * k), v[k]);
            }
        }
    }

    #[inline(always)]
    fn sub_words(self, a: Self::Words, b: Self::Words) -> Self::Words {
        // SAFETY: `self` proves NEON.
        unsafe {
            [vsubq_s16(a[0], b[0]), vsubq_s16(a[1], b[1]), vsubq_s16(a[2], b[2]), vsubq_s16(a[3], b[3])]
        }
    }

    #[inline(always)]
    fn mul_words(self, a: Self::Words, b: Self::Words) -> Self::Words {
        // SAFETY: `self` proves NEON.
        unsafe {
            [vmulq_s16(a[0], b[0]), vmulq_s16(a[1], b[1]), vmulq_s16(a[2], b[2]), vmulq_s16(a[3], b[3])]
        }
    }

    #[inline(always)]
    fn dot(self, sum: Self::Sums, a: Self::Words, b: Self::Words) -> Self::Sums {
        // SAFETY: `self` proves NEON.
        unsafe {
            let mut out = sum;
            for k in 0..4 {
                let low = vmull_s16(vget_low_s16(a[k]), vget_low_s16(b[k]));
                out[k] = vaddq_s32(sum[k], vpaddq_s32(low, vmull_high_s16(a[k], b[k])));
            }
            out
        }
    }

    #[inline(always)]
    fn add_sums(self, a: Self::Sums, b: Self::Sums) -> Self::Sums {
        // SAFETY: `self` proves NEON.
        unsafe {
            [vaddq_s32(a[0], b[0]), vaddq_s32(a[1], b[1]), vaddq_s32(a[2], b[2]), vaddq_s32(a[3], b[3])]
        }
    }

    #[inline(always)]
    fn no_sums(self) -> Self::Sums {
        // SAFETY: `self` proves NEON.
        unsafe { [vdupq_n_s32(0); 4] }
    }

    #[inline(always)]
    fn floats(self, v: Self::Sums) -> Self::Floats {
        // SAFETY: `self` proves NEON.
        unsafe { [vcvtq_f32_s32(v[0]), vcvtq_f32_s32(v[1]), vcvtq_f32_s32(v[2]), vcvtq_f32_s32(v[3])] }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::Floats {
        // SAFETY: `self` proves NEON.
        unsafe { [vdupq_n_f32(x); 4] }
    }

    #[inline(always)]
    fn spread(self, from: &[f32; 4]) -> Self::Floats {
        // SAFETY: `self` proves NEON.
        unsafe { [vdupq_n_f32(from[0]), vdupq_n_f32(from[1]), vdupq_n_f32(from[2]), vdupq_n_f32(from[3])] }
    }

    #[inline(always)]
    fn load(self, from: &[f32; 16]) -> Self::Floats {
        // SAFETY: `self` proves NEON; the reference is to 16 readable numbers.
        unsafe {
            let at = from.as_ptr();
            [vld1q_f32(at), vld1q_f32(at.add(4)), vld1q_f32(at.add(8)), vld1q_f32(at.add(12))]
        }
    }

    #[inline(always)]
    fn store(self, v: Self::Floats, to: &mut [f32; 16]) {
        // SAFETY: `self` proves NEON; the reference is to 16 writable numbers.
        unsafe {
            for k in 0..4 {
                vst1q_f32(to.as_mut_ptr().add(4 * k), v[k]);
            }
        }
    }

    #[inline(always)]
    fn mul(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        // SAFETY: `self` proves NEON.
        unsafe {
            [vmulq_f32(a[0], b[0]), vmulq_f32(a[1], b[1]), vmulq_f32(a[2], b[2]), vmulq_f32(a[3], b[3])]
        }
    }

    #[inline(always)]
    fn flip(self, v: Self::Bytes) -> Self::Bytes {
        // SAFETY: `self` proves NEON.
        unsafe {
            let high = vdupq_n_u8(0x80);
            [veorq_u8(v[0], high), veorq_u8(v[1], high), veorq_u8(v[2], high), veorq_u8(v[3], high)]
        }
    }

    #[inline(always)]
    fn eight(self, from: [i16; 8]) -> [i16; 8] {
        from
    }

    #[inline(always)]
    fn nibbles(self, from: [u8; 4], bias: i16) -> [i16; 8] {
        std::array::from_fn(|i| i16::from(from[i / 2] >> (i % 2 * 4) & 15) - bias)
    }

    #[inline(always)]
    fn groups(self, from: [i16; 8]) -> [Self::Words; 2] {
        // SAFETY: `self` proves NEON.
        unsafe {
            let mut out = [[vdupq_n_s16(0); 4]; 2];
            for k in 0..4 {
                out[0][k] = vdupq_n_s16(from[2 * k]);
                out[1][k] = vdupq_n_s16(from[2 * k + 1]);
            }
            out
        }
    }

    #[inline(always)]
    fn split(self, from: [i16; 8]) -> Self::Words {
        // SAFETY: `self` proves NEON.
        unsafe {
            let mut out = [vdupq_n_s16(0); 4];
            for k in 0..4 {
                out[k] = vcombine_s16(vdup_n_s16(from[2 * k]), vdup_n_s16(from[2 * k + 1]));
            }
            out
        }
    }

    #[inline(always)]
    fn pair(self, x: i32) -> Self::Words {
        // SAFETY: `self` proves NEON.
        unsafe { [vreinterpretq_s16_s32(vdupq_n_s32(x)); 4] }
    }

    #[inline(always)]
    fn columns(self, rows: [Self::Words; 4]) -> [Self::Words; 4] {
        // SAFETY: `self` proves NEON.
        unsafe {
            let mut out = rows;
            for k in 0..4 {
                let pairs = |r: usize| vreinterpretq_s32_s16(rows[r][k]);
                let (even, odd) = (vtrn1q_s32(pairs(0), pairs(1)), vtrn2q_s32(pairs(0), pairs(1)));
                let (next_even, next_odd) = (vtrn1q_s32(pairs(2), pairs(3)), vtrn2q_s32(pairs(2), pairs(3)));
                let wide = |v| vreinterpretq_s64_s32(v);
                out[0][k] = vreinterpretq_s16_s64(vtrn1q_s64(wide(even), wide(next_even)));
                out[1][k] = vreinterpretq_s16_s64(vtrn1q_s64(wide(odd), wide(next_odd)));
                out[2][k] = vreinterpretq_s16_s64(vtrn2q_s64(wide(even), wide(next_even)));
                out[3][k] = vreinterpretq_s16_s64(vtrn2q_s64(wide(odd), wide(next_odd)));
            }
            out
        }
    }

    #[inline(always)]
    fn dot_bytes<const WIDE: bool>(self, sum: Self::Sums, codes: Self::Bytes, x: Self::Bytes) -> Self::Sums {
        let mut out = sum;
        // SAFETY: `self` proves NEON.
        unsafe {
            for k in 0..4 {
                let x = vreinterpretq_s8_u8(x[k]);
                if WIDE {
                    // Codes less 128 are signed; 128 times `x` is added again.
                    let less = vreinterpretq_s8_u8(veorq_u8(codes[k], vdupq_n_u8(0x80)));
                    let whole = vshlq_n_s32::<7>(self.add_fours(vdupq_n_s32(0), x, vdupq_n_s8(1)));
                    out[k] = vaddq_s32(self.add_fours(out[k], x, less), whole);
                } else {
                    out[k] = self.add_fours(out[k], x, vreinterpretq_s8_u8(codes[k]));
                }
            }
        }
        out
    }

    #[inline(always)]
    fn pack(self, a: Self::Sums, b: Self::Sums) -> Self::Words {
        // SAFETY: `self` proves NEON.
        unsafe {
            let mut out = [vdupq_n_s16(0); 4];
            for k in 0..4 {
                out[k] = vcombine_s16(vqmovn_s32(a[k]), vqmovn_s32(b[k]));
            }
            out
        }
    }

    #[inline(always)]
    fn fold(self, [a, b, c, d]: [Self::Sums; 4]) -> Self::Sums {
        // SAFETY: `self` proves NEON.
        unsafe {
            let mut out = a;
            for k in 0..4 {
                out[k] = vpaddq_s32(vpaddq_s32(a[k], b[k]), vpaddq_s32(c[k], d[k]));
            }
            out
        }
    }

    #[inline(always)]
    fn shift_sums(self, v: Self::Sums) -> Self::Sums {
        // SAFETY: `self` proves NEON.
        unsafe {
            [vshlq_n_s32::<8>(v[0]), vshlq_n_s32::<8>(v[1]), vshlq_n_s32::<8>(v[2]), vshlq_n_s32::<8>(v[3])]
        }
    }

    #[inline(always)]
    fn sums(self, from: &[i32; 16]) -> Self::Sums {
        // SAFETY: `self` proves NEON; the reference is to 16 readable numbers.
        unsafe {
            let at = from.as_ptr();
            [vld1q_s32(at), vld1q_s32(at.add(4)), vld1q_s32(at.add(8)), vld1q_s32(at.add(12))]
        }
    }

    #[inline(always)]
    fn spread_sums(self, from: &[i32; 4]) -> Self::Sums {
        // SAFETY: `self` proves NEON.
        unsafe { [vdupq_n_s32(from[0]), vdupq_n_s32(from[1]), vdupq_n_s32(from[2]), vdupq_n_s32(from[3])] }
    }

    #[inline(always)]
    fn bytes_of(self, rows: [[u8; 4]; 4]) -> Self::Sums {
        self.sums(&std::array::from_fn(|i| i32::from(rows[i % 4][i / 4])))
    }

    #[inline(always)]
    fn halves_of(self, rows: [u64; 4]) -> Self::Floats {
        self.load(&std::array::from_fn(|i| f16::from_bits((rows[i % 4] >> (i / 4 * 16)) as u16).to_f32()))
    }

    #[inline(always)]
    fn row_halves(self, rows: [u16; 4]) -> Self::Floats {
        self.load(&std::array::from_fn(|i| f16::from_bits(rows[i % 4]).to_f32()))
    }

    #[inline(always)]
    fn mul_add(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
        // SAFETY: `self` proves NEON.
        unsafe {
            [
                vfmaq_f32(c[0], a[0], b[0]),
                vfmaq_f32(c[1], a[1], b[1]),
                vfmaq_f32(c[2], a[2], b[2]),
                vfmaq_f32(c[3], a[3], b[3]),
            ]
        }
    }

    #[inline(always)]
    fn prefetch<T>(self, _: &[T], _: usize) {}
}
