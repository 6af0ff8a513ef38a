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
    type Eight = [i16; 8];

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
    fn flip(self, v: [u8; 64]) -> [u8; 64] {
        v.map(|b| b ^ 0x80)
    }

    #[inline(always)]
    fn eight(self, from: [i16; 8]) -> [i16; 8] {
        from
    }

    #[inline(always)]
    fn nibbles(self, from: [u8; 4], bias: i16) -> [i16; 8] {
        from_fn(|i| i16::from(from[i / 2] >> (i % 2 * 4) & 15) - bias)
    }

    #[inline(always)]
    fn groups(self, from: [i16; 8]) -> [[i16; 32]; 2] {
        from_fn(|h| from_fn(|i| from[i / 8 * 2 + h]))
    }

    #[inline(always)]
    fn split(self, from: [i16; 8]) -> [i16; 32] {
        from_fn(|i| from[i / 4])
    }

    #[inline(always)]
    fn pair(self, x: i32) -> [i16; 32] {
        from_fn(|i| (x >> (i % 2 * 16)) as i16)
    }

    #[inline(always)]
    fn columns(self, rows: [[i16; 32]; 4]) -> [[i16; 32]; 4] {
        from_fn(|j| from_fn(|i| rows[i % 8 / 2][i / 8 * 8 + 2 * j + i % 2]))
    }

    #[inline(always)]
    fn dot_bytes<const WIDE: bool>(self, sum: [i32; 16], codes: [u8; 64], x: [u8; 64]) -> [i32; 16] {
        let product = |i: usize| i32::from(codes[i]) * i32::from(x[i] as i8);
        let four = |i: usize| product(i) + product(i + 1) + product(i + 2) + product(i + 3);
        from_fn(|i| sum[i].wrapping_add(four(4 * i)))
    }

    #[inline(always)]
    fn pack(self, a: [i32; 16], b: [i32; 16]) -> [i16; 32] {
        let word = |x: i32| x.clamp(-0x8000, 0x7fff) as i16;
        from_fn(|i| word(if i % 8 < 4 { a[i / 8 * 4 + i % 4] } else { b[i / 8 * 4 + i % 4] }))
    }

    #[inline(always)]
    fn fold(self, rows: [[i32; 16]; 4]) -> [i32; 16] {
        from_fn(|i| {
            let (row, at) = (&rows[i % 4], i / 4 * 4);
            let (first, second) = (row[at].wrapping_add(row[at + 1]), row[at + 2].wrapping_add(row[at + 3]));
            first.wrapping_add(second)
        })
    }

    #[inline(always)]
    fn shift_sums(self, v: [i32; 16]) -> [i32; 16] {
        v.map(|x| x << 8)
    }

    #[inline(always)]
    fn sums(self, from: &[i32; 16]) -> [i32; 16] {
        *from
    }

    #[inline(always)]
    fn spread_sums(self, from: &[i32; 4]) -> [i32; 16] {
        from_fn(|i| from[i / 4])
    }

    #[inline(always)]
    fn bytes_of(self, rows: [[u8; 4]; 4]) -> [i32; 16] {
        from_fn(|i| i32::from(rows[i % 4][i / 4]))
    }

    #[inline(always)]
    fn halves_of(self, rows: [u64; 4]) -> [f32; 16] {
        from_fn(|i| f16::from_bits((rows[i % 4] >> (i / 4 * 16)) as u16).to_f32())
    }

    #[inline(always)]
    fn row_halves(self, rows: [u16; 4]) -> [f32; 16] {
        from_fn(|i| f16::from_bits(rows[i % 4]).to_f32())
    }

    #[inline(always)]
    fn mul_add(self, a: [f32; 16], b: [f32; 16], c: [f32; 16]) -> [f32; 16] {
        from_fn(|i| a[i].mul_add(b[i], c[i]))
    }

    #[inline(always)]
    fn prefetch<T>(self, _: &[T], _: usize) {}
}
