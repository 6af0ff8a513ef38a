//! GGUF blocks of 256 weights: eight steps that share their parameters.
//!
//! A weight is `scale · code + offset`, the offset being `−zero · scale` or minus the least weight. Codes
//! have at most 6 bits and scales 19, and where a code is wide the scale is narrow: as in blocks of 32,
//! only the last sum rounds, and once.

use super::{Packed, STEP, Scale, scaled};
use crate::cpu::simd::{Eight, Simd};
use airllm_format::NumFormat;

/// Scales and offsets of the parts of a block, of 16 or (the first half of the lists) 32 columns.
#[derive(Clone, Copy)]
pub(crate) struct Head {
    scales: [Eight; 2],
    offsets: [Eight; 2],
}

impl Head {
    const NONE: Head = Head { scales: [[0.0; 8]; 2], offsets: [[0.0; 8]; 2] };

    /// 32 columns that share their parameters.
    #[inline(always)]
    fn whole<S: Simd>(&self, simd: S, codes: S::Bytes, part: usize) -> [S::V; 4] {
        let (scale, offset) = (simd.splat(self.scales[0][part]), simd.splat(self.offsets[0][part]));
        scaled(simd, simd.codes(codes), scale, offset)
    }

    /// 32 columns, 16 of which share their parameters.
    #[inline(always)]
    fn halves<S: Simd>(&self, simd: S, codes: S::Bytes, part: usize) -> [S::V; 4] {
        let [a, b, c, d] = simd.codes(codes);
        let (scales, offsets) = (self.scales.as_flattened(), self.offsets.as_flattened());
        let (scale, offset) = (simd.splat(scales[2 * part]), simd.splat(offsets[2 * part]));
        let (a, b) = (simd.mul_add(a, scale, offset), simd.mul_add(b, scale, offset));
        let (scale, offset) = (simd.splat(scales[2 * part + 1]), simd.splat(offsets[2 * part + 1]));
        [a, b, simd.mul_add(c, scale, offset), simd.mul_add(d, scale, offset)]
    }
}

macro_rules! kquant {
    ($name:ident, $bytes:literal, $kind:ident,
     |$simd:ident, $block:ident| $head:expr, |$part:ident| $codes:expr) => {
        #[derive(Clone, Copy)]
        pub(crate) struct $name;

        impl Packed for $name {
            const FORMAT: NumFormat = NumFormat::$name;
            const PARTS: usize = 256 / STEP;
            type Block = [u8; $bytes];
            const EMPTY: Self::Block = [0; $bytes];
            type Head = Head;
            const NO_HEAD: Head = Head::NONE;

            #[inline(always)]
            fn blocks(codes: &[u8]) -> &[Self::Block] {
                codes.as_chunks::<$bytes>().0
            }

            #[inline(always)]
            fn head<S: Simd>($simd: S, $block: &Self::Block, _: &[u8], _: usize) -> Head {
                $head
            }

            #[inline(always)]
            fn widen<S: Simd>(
                $simd: S,
                $block: &Self::Block,
                head: &Head,
                $part: usize,
                _: Scale,
            ) -> [S::V; 4] {
                head.$kind($simd, $codes, $part)
            }
        }
    };
}

kquant!(
    Q6K,
    210,
    halves,
    |simd, block| {
        let d = simd.splat_f16([block[208], block[209]]);
        let (first, second) = eights(&block[192..208]);
        offset_by(simd, [simd.mul(simd.load_i8(first), d), simd.mul(simd.load_i8(second), d)], -32.0)
    },
    |part| {
        let low = chunk(&block[..128], part / 4 * 2 + part % 2);
        let high = chunk(&block[128..192], part / 4);
        let low = simd.shift_right(simd.load_bytes(low), part % 4 / 2 * 4, 15);
        let high = simd.shift_right(simd.load_bytes(high), part % 4 * 2, 3);
        simd.or(low, simd.shift_left(high, 4))
    }
);
kquant!(Q5K, 176, whole, |simd, block| six_bits(simd, block), |part| {
    let low = simd.load_bytes(chunk(&block[48..], part / 2));
    let fifth = simd.load_bytes(chunk(&block[16..48], 0));
    let fifth = simd.shift_left(simd.shift_right(fifth, part, 1), 4);
    simd.or(simd.shift_right(low, part % 2 * 4, 15), fifth)
});
kquant!(Q4K, 144, whole, |simd, block| six_bits(simd, block), |part| {
    simd.shift_right(simd.load_bytes(chunk(&block[16..], part / 2)), part % 2 * 4, 15)
});
kquant!(
    Q3K,
    110,
    halves,
    |simd, block| {
        // Six bits each: the low four of 16 numbers in 8 bytes, the high two in 4.
        let word = |at: usize| u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
        let (a, b, high) = (word(96), word(100), word(104));
        let bits = |low: u32, high: u32| (low & 0x0f0f_0f0f | (high & 0x0303_0303) << 4).to_le_bytes();
        let first = pair(bits(a, high), bits(b, high >> 2));
        let second = pair(bits(a >> 4, high >> 4), bits(b >> 4, high >> 6));
        let (d, middle) = (simd.splat_f16([block[108], block[109]]), simd.splat(32.0));
        let first = simd.mul(simd.sub(simd.load_u8(&first), middle), d);
        let second = simd.mul(simd.sub(simd.load_u8(&second), middle), d);
        offset_by(simd, [first, second], -4.0)
    },
    |part| {
        let high = simd.shift_right(simd.load_bytes(chunk(&block[..32], 0)), part, 1);
        let low = simd.load_bytes(chunk(&block[32..96], part / 4));
        simd.or(simd.shift_right(low, part % 4 * 2, 3), simd.shift_left(high, 2))
    }
);
kquant!(
    Q2K,
    84,
    halves,
    |simd, block| {
        let d = simd.splat_f16([block[80], block[81]]);
        let dmin = simd.sub(simd.zero(), simd.splat_f16([block[82], block[83]]));
        let (first, second) = eights(&block[..16]);
        let ((a, m), (b, n)) = (simd.load_nibbles(first), simd.load_nibbles(second));
        let mut head = Head::NONE;
        simd.store(simd.mul(a, d), &mut head.scales[0]);
        simd.store(simd.mul(b, d), &mut head.scales[1]);
        simd.store(simd.mul(m, dmin), &mut head.offsets[0]);
        simd.store(simd.mul(n, dmin), &mut head.offsets[1]);
        head
    },
    |part| simd.shift_right(simd.load_bytes(chunk(&block[16..80], part / 4)), part % 4 * 2, 3)
);

/// Scales, and offsets that are a multiple of them.
#[inline(always)]
fn offset_by<S: Simd>(simd: S, [first, second]: [S::V; 2], zero: f32) -> Head {
    let zero = simd.splat(zero);
    let mut head = Head::NONE;
    simd.store(first, &mut head.scales[0]);
    simd.store(second, &mut head.scales[1]);
    simd.store(simd.mul(first, zero), &mut head.offsets[0]);
    simd.store(simd.mul(second, zero), &mut head.offsets[1]);
    head
}

/// The parameters at the start of `q4_k` and `q5_k` blocks: two f16, then eight scales and eight least
/// weights of six bits in 12 bytes.
#[inline(always)]
fn six_bits<S: Simd>(simd: S, block: &[u8]) -> Head {
    let d = simd.splat_f16([block[0], block[1]]);
    let dmin = simd.sub(simd.zero(), simd.splat_f16([block[2], block[3]]));
    let word = |at: usize| u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
    let (scales, mins, both) = (word(4), word(8), word(12));
    let last = |low: u32, high: u32| (low & 0x0f0f_0f0f | high >> 2 & 0x3030_3030).to_le_bytes();
    let first = |low: u32| (low & 0x3f3f_3f3f).to_le_bytes();
    let mut head = Head::NONE;
    let six = pair(first(scales), last(both, scales));
    simd.store(simd.mul(simd.load_u8(&six), d), &mut head.scales[0]);
    let six = pair(first(mins), last(both >> 4, mins));
    simd.store(simd.mul(simd.load_u8(&six), dmin), &mut head.offsets[0]);
    head
}

#[inline(always)]
fn pair([a, b, c, d]: [u8; 4], [e, f, g, h]: [u8; 4]) -> [u8; 8] {
    [a, b, c, d, e, f, g, h]
}

#[inline(always)]
fn eights(bytes: &[u8]) -> (&[u8; 8], &[u8; 8]) {
    let parts = bytes.as_chunks::<8>().0;
    (&parts[0], &parts[1])
}

#[inline(always)]
fn chunk(bytes: &[u8], at: usize) -> &[u8; 32] {
    &bytes.as_chunks::<32>().0[at]
}
