//! Eight lanes as an array, for processors without AVX2. The compiler makes of it what it can.

use super::{Eight, Job, Simd};
use half::{bf16, f16};

/// Plain Rust; every processor has it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Portable;

impl Simd for Portable {
    type V = Eight;

    #[inline(always)]
    fn enter<J: Job>(self, job: J) -> J::Out {
        job.run(self)
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Eight {
        [x; 8]
    }

    #[inline(always)]
    fn load(self, from: &Eight) -> Eight {
        *from
    }

    #[inline(always)]
    fn store(self, v: Eight, to: &mut Eight) {
        *to = v;
    }

    #[inline(always)]
    fn add(self, a: Eight, b: Eight) -> Eight {
        std::array::from_fn(|i| a[i] + b[i])
    }

    #[inline(always)]
    fn sub(self, a: Eight, b: Eight) -> Eight {
        std::array::from_fn(|i| a[i] - b[i])
    }

    #[inline(always)]
    fn mul(self, a: Eight, b: Eight) -> Eight {
        std::array::from_fn(|i| a[i] * b[i])
    }

    #[inline(always)]
    fn div(self, a: Eight, b: Eight) -> Eight {
        std::array::from_fn(|i| a[i] / b[i])
    }

    // Not `f32::mul_add`: without the instruction that is a slow library call.
    #[inline(always)]
    fn mul_add(self, a: Eight, b: Eight, c: Eight) -> Eight {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }

    #[inline(always)]
    fn max(self, a: Eight, b: Eight) -> Eight {
        std::array::from_fn(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn at_most(self, v: Eight, bound: f32) -> Eight {
        v.map(|x| if x > bound { bound } else { x })
    }

    #[inline(always)]
    fn at_least(self, v: Eight, bound: f32) -> Eight {
        v.map(|x| if x < bound { bound } else { x })
    }

    #[inline(always)]
    fn exponent(self, v: Eight) -> Eight {
        v.map(|x| f32::from_bits(x.to_bits() << 23))
    }

    #[inline(always)]
    fn sum4(self, v: [Eight; 4]) -> [f32; 4] {
        v.map(|v| self.sum(v))
    }

    #[inline(always)]
    fn load_f32(self, from: &[u8; 32]) -> Eight {
        std::array::from_fn(|i| f32::from_le_bytes(std::array::from_fn(|j| from[4 * i + j])))
    }

    #[inline(always)]
    fn load_f16(self, from: &[u8; 16]) -> Eight {
        std::array::from_fn(|i| f16::from_le_bytes([from[2 * i], from[2 * i + 1]]).to_f32())
    }

    #[inline(always)]
    fn load_bf16(self, from: &[u8; 16]) -> Eight {
        std::array::from_fn(|i| bf16::from_le_bytes([from[2 * i], from[2 * i + 1]]).to_f32())
    }

    #[inline(always)]
    fn load_i8(self, from: &[u8; 8]) -> Eight {
        from.map(|b| f32::from(b as i8))
    }

    #[inline(always)]
    fn load_nibbles(self, from: &[u8; 8]) -> (Eight, Eight) {
        (from.map(|b| f32::from(b & 15)), from.map(|b| f32::from(b >> 4)))
    }

    #[inline(always)]
    fn prefetch<T>(self, _: &[T], _: usize) {}
}
