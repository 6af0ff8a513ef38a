//! Four registers of NEON.

use super::{IntJob, Ints};
use half::f16;
use std::arch::aarch64::*;

/// Proof that the processor has NEON: only [`Neon::detect`] makes one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Neon(());

impl Neon {
    /// Asks the processor.
    pub(crate) fn detect() -> Option<Neon> {
        std::arch::is_aarch64_feature_detected!("neon").then_some(Neon(()))
    }
}

#[target_feature(enable = "neon")]
fn enter<J: IntJob>(simd: Neon, job: J) -> J::Out {
    job.run(simd)
}

impl Ints for Neon {
    type Bytes = [uint8x16_t; 4];
    type Words = [int16x8_t; 4];
    type Sums = [int32x4_t; 4];
    type Floats = [float32x4_t; 4];

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
    fn signed(self, v: Self::Bytes) -> [Self::Words; 2] {
        // SAFETY: `self` proves NEON.
        unsafe {
            let mut out = [[vdupq_n_s16(0); 4]; 2];
            for k in 0..4 {
                let both = vreinterpretq_s16_u8(v[k]);
                out[0][k] = vshrq_n_s16::<8>(vshlq_n_s16::<8>(both));
                out[1][k] = vshrq_n_s16::<8>(both);
            }
            out
        }
    }

    #[inline(always)]
    fn groups(self, from: &[i16; 8]) -> [Self::Words; 2] {
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
    fn mul_sums(self, a: &[i16; 16], b: &[i32; 16]) -> Self::Sums {
        // SAFETY: `self` proves NEON; the references are to 16 readable numbers each, 4 of which are read at `4k`.
        unsafe {
            let mut out = [vdupq_n_s32(0); 4];
            for k in 0..4 {
                let a = vmovl_s16(vld1_s16(a.as_ptr().add(4 * k)));
                out[k] = vmulq_s32(a, vld1q_s32(b.as_ptr().add(4 * k)));
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
    fn add_product(self, sum: Self::Floats, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        let p = self.mul(a, b);
        // SAFETY: `self` proves NEON.
        unsafe {
            [
                vaddq_f32(sum[0], p[0]),
                vaddq_f32(sum[1], p[1]),
                vaddq_f32(sum[2], p[2]),
                vaddq_f32(sum[3], p[3]),
            ]
        }
    }

    #[inline(always)]
    fn half(self, from: [u8; 2]) -> f32 {
        f16::from_le_bytes(from).to_f32()
    }

    #[inline(always)]
    fn halves(self, from: &[u8; 8]) -> [f32; 4] {
        std::array::from_fn(|i| f16::from_le_bytes([from[2 * i], from[2 * i + 1]]).to_f32())
    }

    #[inline(always)]
    fn double(self, from: &[u8; 8], by: u32, mask: u32, bias: i16) -> [i16; 16] {
        let wide = from.map(|b| (u32::from(b) | u32::from(b) << by) & mask);
        std::array::from_fn(|i| (wide[i / 2] >> (i % 2 * 16)) as i16 - bias)
    }

    #[inline(always)]
    fn prefetch<T>(self, _: &[T], _: usize) {}
}
