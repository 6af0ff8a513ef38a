//! Eight lanes as an array, for processors without AVX2. The compiler makes of it what it can.

use super::{Eight, Job, Simd};
use half::{bf16, f16};

/// Plain Rust; every processor has it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Portable;

impl Simd for Portable {
    type V = Eight;
    type Bytes = [u8; 32];

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
    fn load_u8(self, from: &[u8; 8]) -> Eight {
        from.map(f32::from)
    }

    // As binary16: the exponent has one bit more, in front, and its bias is 15, not 7.
    #[inline(always)]
    fn load_e4m3(self, from: &[u8; 16]) -> (Eight, Eight) {
        let number = |b: u8| match b & 0x7f {
            0x7f => f32::NAN,
            size => f16::from_bits(u16::from(b & 0x80) << 8 | u16::from(size) << 7).to_f32(),
        };
        (std::array::from_fn(|i| number(from[i])), std::array::from_fn(|i| number(from[8 + i])))
    }

    #[inline(always)]
    fn load_nibbles(self, from: &[u8; 8]) -> (Eight, Eight) {
        (from.map(|b| f32::from(b & 15)), from.map(|b| f32::from(b >> 4)))
    }

    #[inline(always)]
    fn look_up(self, table: &[f32; 16], from: &[u8; 8]) -> (Eight, Eight) {
        (from.map(|b| table[usize::from(b & 15)]), from.map(|b| table[usize::from(b >> 4)]))
    }

    #[inline(always)]
    fn splat_f16(self, from: [u8; 2]) -> Eight {
        [f16::from_le_bytes(from).to_f32(); 8]
    }

    #[inline(always)]
    fn over_127(self, v: Eight) -> Eight {
        v.map(|x| x / 127.0)
    }

    #[inline(always)]
    fn load_bytes(self, from: &[u8; 32]) -> [u8; 32] {
        *from
    }

    #[inline(always)]
    fn nibbles(self, from: &[u8; 16]) -> [u8; 32] {
        std::array::from_fn(|i| if i < 16 { from[i] & 15 } else { from[i - 16] >> 4 })
    }

    #[inline(always)]
    fn pairs(self, from: &[u8; 8]) -> [u8; 32] {
        std::array::from_fn(|i| from[i % 8] >> (i / 8 * 2) & 3)
    }

    #[inline(always)]
    fn spread(self, bits: u32, value: u8) -> [u8; 32] {
        std::array::from_fn(|i| (bits >> i & 1) as u8 * value)
    }

    #[inline(always)]
    fn shift_right(self, v: [u8; 32], by: usize, mask: u8) -> [u8; 32] {
        v.map(|b| b >> by & mask)
    }

    #[inline(always)]
    fn shift_left(self, v: [u8; 32], by: usize) -> [u8; 32] {
        v.map(|b| b << by)
    }

    #[inline(always)]
    fn or(self, a: [u8; 32], b: [u8; 32]) -> [u8; 32] {
        std::array::from_fn(|i| a[i] | b[i])
    }

    #[inline(always)]
    fn codes(self, v: [u8; 32]) -> [Eight; 4] {
        std::array::from_fn(|i| std::array::from_fn(|j| f32::from(v[8 * i + j])))
    }

    #[inline(always)]
    fn prefetch<T>(self, _: &[T], _: usize) {}
}
