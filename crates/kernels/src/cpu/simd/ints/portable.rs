//! Arrays, for processors without vectors that we know. The compiler makes of it what it can.

use super::{IntJob, Ints};
use half::f16;
use std::array::from_fn;

/// Plain Rust; every processor has it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Portable;

impl Ints for Portable {
    type Bytes = [u8; 64];
    type Words = [i16; 32];
    type Sums = [i32; 16];
    type Floats = [f32; 16];

    #[inline(always)]
    fn enter<J: IntJob>(self, job: J) -> J::Out {
        job.run(self)
    }

    #[inline(always)]
    fn bytes(self, from: &[u8; 64]) -> [u8; 64] {
        *from
    }

    #[inline(always)]
    fn quarters(self, from: [&[u8; 16]; 4]) -> [u8; 64] {
        from_fn(|i| from[i / 16][i % 16])
    }

    #[inline(always)]
    fn lanes(self, from: &[u8; 16], by: [u8; 4], mask: u8) -> [u8; 64] {
        from_fn(|i| from[i % 16] >> by[i / 16] & mask)
    }

    #[inline(always)]
    fn pairs(self, from: &[u8; 32]) -> [[u8; 64]; 2] {
        from_fn(|h| from_fn(|i| from[i / 16 * 8 + i % 8] >> (4 * h + i % 16 / 8 * 2) & 3))
    }

    #[inline(always)]
    fn bits(self, from: &[u8; 16], value: u8) -> [[u8; 64]; 2] {
        from_fn(|h| from_fn(|i| (from[i / 16 * 4 + 2 * h + i % 16 / 8] >> (i % 8) & 1) * value))
    }

    #[inline(always)]
    fn shift_right(self, v: [u8; 64], by: usize, mask: u8) -> [u8; 64] {
        v.map(|b| b >> by & mask)
    }

    #[inline(always)]
    fn shift_left(self, v: [u8; 64], by: usize) -> [u8; 64] {
        v.map(|b| b << by)
    }

    #[inline(always)]
    fn or(self, a: [u8; 64], b: [u8; 64]) -> [u8; 64] {
        from_fn(|i| a[i] | b[i])
    }

    #[inline(always)]
    fn unzip(self, a: [u8; 64], b: [u8; 64]) -> [[u8; 64]; 2] {
        let both = [a, b];
        from_fn(|h| from_fn(|i| both[i / 32][i / 16 % 2 * 32 + 16 * h + i % 16]))
    }

    #[inline(always)]
    fn transpose(self, a: [u8; 64], b: [u8; 64]) -> [[u8; 64]; 2] {
        let both = [a, b];
        from_fn(|h| from_fn(|i| both[i / 16 % 2][i / 32 * 32 + 16 * h + i % 16]))
    }

    #[inline(always)]
    fn unsigned(self, v: [u8; 64]) -> [[i16; 32]; 2] {
        from_fn(|h| from_fn(|i| i16::from(v[2 * i + h])))
    }

    #[inline(always)]
    fn signed(self, v: [u8; 64]) -> [[i16; 32]; 2] {
        from_fn(|h| from_fn(|i| i16::from(v[2 * i + h] as i8)))
    }

    #[inline(always)]
    fn groups(self, from: &[i16; 8]) -> [[i16; 32]; 2] {
        from_fn(|h| from_fn(|i| from[i / 8 * 2 + h]))
    }

    #[inline(always)]
    fn splat_words(self, x: i16) -> [i16; 32] {
        [x; 32]
    }

    #[inline(always)]
    fn words(self, from: &[i16; 32]) -> [i16; 32] {
        *from
    }

    #[inline(always)]
    fn store_words(self, v: [i16; 32], to: &mut [i16; 32]) {
        *to = v;
    }

    #[inline(always)]
    fn sub_words(self, a: [i16; 32], b: [i16; 32]) -> [i16; 32] {
        from_fn(|i| a[i].wrapping_sub(b[i]))
    }

    #[inline(always)]
    fn mul_words(self, a: [i16; 32], b: [i16; 32]) -> [i16; 32] {
        from_fn(|i| a[i].wrapping_mul(b[i]))
    }

    #[inline(always)]
    fn dot(self, sum: [i32; 16], a: [i16; 32], b: [i16; 32]) -> [i32; 16] {
        let product = |i: usize| i32::from(a[i]) * i32::from(b[i]);
        from_fn(|i| sum[i].wrapping_add(product(2 * i).wrapping_add(product(2 * i + 1))))
    }

    #[inline(always)]
    fn mul_sums(self, a: &[i16; 16], b: &[i32; 16]) -> [i32; 16] {
        from_fn(|i| i32::from(a[i]).wrapping_mul(b[i]))
    }

    #[inline(always)]
    fn add_sums(self, a: [i32; 16], b: [i32; 16]) -> [i32; 16] {
        from_fn(|i| a[i].wrapping_add(b[i]))
    }

    #[inline(always)]
    fn no_sums(self) -> [i32; 16] {
        [0; 16]
    }

    #[inline(always)]
    fn floats(self, v: [i32; 16]) -> [f32; 16] {
        v.map(|x| x as f32)
    }

    #[inline(always)]
    fn splat(self, x: f32) -> [f32; 16] {
        [x; 16]
    }

    #[inline(always)]
    fn spread(self, from: &[f32; 4]) -> [f32; 16] {
        from_fn(|i| from[i / 4])
    }

    #[inline(always)]
    fn load(self, from: &[f32; 16]) -> [f32; 16] {
        *from
    }

    #[inline(always)]
    fn store(self, v: [f32; 16], to: &mut [f32; 16]) {
        *to = v;
    }

    #[inline(always)]
    fn mul(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        from_fn(|i| a[i] * b[i])
    }

    #[inline(always)]
    fn add_product(self, sum: [f32; 16], a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        from_fn(|i| sum[i] + a[i] * b[i])
    }

    #[inline(always)]
    fn half(self, from: [u8; 2]) -> f32 {
        f16::from_le_bytes(from).to_f32()
    }

    #[inline(always)]
    fn halves(self, from: &[u8; 8]) -> [f32; 4] {
        from_fn(|i| f16::from_le_bytes([from[2 * i], from[2 * i + 1]]).to_f32())
    }

    #[inline(always)]
    fn double(self, from: &[u8; 8], by: u32, mask: u32, bias: i16) -> [i16; 16] {
        let wide = from.map(|b| (u32::from(b) | u32::from(b) << by) & mask);
        from_fn(|i| (wide[i / 2] >> (i % 2 * 16)) as i16 - bias)
    }

    #[inline(always)]
    fn prefetch<T>(self, _: &[T], _: usize) {}
}
