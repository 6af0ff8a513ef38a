//! Activations as whole numbers.
//!
//! A block of 256 columns has a scale, its largest magnitude over 32767; a number is `x` over the scale, rounded to
//! nearest. Blocks whose largest magnitude is below 2⁻¹¹⁰ are zeros; those that hold an infinity or no number get
//! a scale that is none, and so does what is made of them.

use super::{BLOCK, CHUNK};
use crate::cpu::Cpu;
use crate::cpu::simd::{Eight, IntJob, IntLevel, Ints};

/// Sums of so many columns go with the least weights.
const GROUP: usize = 16;

/// Where column `c` of a chunk is in its 128 numbers. Each step of 32 columns is four groups: the even ones of its first
/// 16 columns, the odd ones of them, then those of its other 16.
pub(crate) const fn place(c: usize) -> usize {
    let (step, half, byte) = (c / 32, c / 16 % 2, c % 16);
    (2 * half + byte % 2) * 32 + step * 8 + byte / 2
}

/// Rows of activations.
#[derive(Clone, Copy)]
pub(crate) struct Operand<'a> {
    pub(crate) tokens: usize,
    pub(crate) blocks: usize,
    /// `[token][block]` of numbers.
    numbers: &'a [[i16; BLOCK]],
    /// `[token][block]` of scales.
    scales: &'a [f32],
    /// `[token][block]` of sums of 16 columns each.
    sums: &'a [[i32; BLOCK / GROUP]],
}

/// Vectors that hold so many tokens.
pub(crate) fn eights(tokens: usize, cols: usize) -> usize {
    let blocks = tokens * cols.div_ceil(BLOCK);
    blocks * (BLOCK * 2 + BLOCK / GROUP * 4) / size_of::<Eight>() + blocks.div_ceil(8)
}

impl<'a> Operand<'a> {
    /// Rounds tokens into `room`, which is [`eights`] long.
    pub(crate) fn round(
        cpu: &Cpu,
        level: IntLevel,
        x: &[f32],
        cols: usize,
        room: &'a mut [Eight],
    ) -> Operand<'a> {
        let (tokens, blocks) = (x.len() / cols, cols.div_ceil(BLOCK));
        let all = tokens * blocks;
        let (numbers, room) = room.split_at_mut(all * BLOCK * 2 / size_of::<Eight>());
        let (sums, scales) = room.split_at_mut(all * (BLOCK / GROUP * 4) / size_of::<Eight>());
        let numbers: &mut [[i16; BLOCK]] = bytemuck::cast_slice_mut(numbers);
        let sums: &mut [[i32; BLOCK / GROUP]] = bytemuck::cast_slice_mut(sums);
        let scales = &mut scales.as_flattened_mut()[..all];

        let mut hands = vec![(); cpu.pool.hands(8 * x.len() as u64)];
        let pieces = numbers.chunks_mut(blocks).zip(sums.chunks_mut(blocks)).zip(scales.chunks_mut(blocks));
        let pieces = x.chunks(cols).zip(pieces);
        cpu.pool.share(&mut hands, pieces, |(), pieces| {
            for (x, ((numbers, sums), scales)) in pieces {
                level.run(Round { x, numbers, sums, scales });
            }
        });
        Operand { tokens, blocks, numbers, scales, sums }
    }

    /// The numbers of some blocks of a token.
    #[inline(always)]
    pub(crate) fn numbers(&self, token: usize, first: usize, count: usize) -> &'a [[i16; BLOCK]] {
        &self.numbers[token * self.blocks + first..][..count]
    }

    /// Their scales.
    #[inline(always)]
    pub(crate) fn scales(&self, token: usize, first: usize, count: usize) -> &'a [f32] {
        &self.scales[token * self.blocks + first..][..count]
    }

    /// Their sums of 16 columns each.
    #[inline(always)]
    pub(crate) fn sums(&self, token: usize, first: usize, count: usize) -> &'a [[i32; BLOCK / GROUP]] {
        &self.sums[token * self.blocks + first..][..count]
    }
}

/// Rounds one token.
struct Round<'a> {
    x: &'a [f32],
    numbers: &'a mut [[i16; BLOCK]],
    sums: &'a mut [[i32; BLOCK / GROUP]],
    scales: &'a mut [f32],
}

impl IntJob for Round<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Ints>(self, _: S) {
        let Round { x, numbers, sums, scales } = self;
        for (((x, numbers), sums), scale) in x.chunks(BLOCK).zip(numbers).zip(sums).zip(scales) {
            match x.first_chunk() {
                Some(x) => round(x, numbers, sums, scale),
                None => {
                    let mut block = [0.0; BLOCK];
                    block[..x.len()].copy_from_slice(x);
                    round(&block, numbers, sums, scale);
                }
            }
        }
    }
}

/// Rounds a block.
#[inline(always)]
fn round(x: &[f32; BLOCK], to: &mut [i16; BLOCK], sums: &mut [i32; BLOCK / GROUP], scale: &mut f32) {
    const INFINITE: u32 = 0x7f80_0000;
    const TINY: f32 = f32::from_bits((127 - 110) << 23);
    // Adding this leaves the nearest integer in the low bits of the sum.
    const ROUND: f32 = 12_582_912.0;
    // Without signs, numbers are in the order of their bits, and what is none is above all.
    let largest = x.iter().fold(0, |most, x| most.max(x.to_bits() & 0x7fff_ffff));
    if largest >= INFINITE || f32::from_bits(largest) < TINY {
        *scale = if largest >= INFINITE { f32::NAN } else { 0.0 };
        to.fill(0);
        sums.fill(0);
        return;
    }
    *scale = f32::from_bits(largest) / 32767.0;
    let factor = 32767.0 / f32::from_bits(largest);
    let mut whole = [0i32; BLOCK];
    for (to, x) in whole.iter_mut().zip(x) {
        *to = (x * factor + ROUND).to_bits().wrapping_sub(ROUND.to_bits()) as i32;
    }
    for (sum, group) in sums.iter_mut().zip(whole.as_chunks::<GROUP>().0) {
        *sum = group.iter().sum();
    }
    for (to, whole) in to.as_chunks_mut::<CHUNK>().0.iter_mut().zip(whole.as_chunks::<CHUNK>().0) {
        for c in 0..CHUNK {
            to[place(c)] = whole[c] as i16;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_a_permutation() {
        let mut seen = [false; CHUNK];
        (0..CHUNK).for_each(|c| seen[place(c)] = true);
        assert_eq!(seen, [true; CHUNK]);
    }

    #[test]
    fn rounds_to_nearest_and_passes_on_what_is_no_number() {
        let mut x = [0.0f32; BLOCK];
        let (mut to, mut sums, mut scale) = ([0; BLOCK], [0; 16], 0.0);
        (x[0], x[1], x[2], x[255]) = (-4.0, 1.0, 4.0 * 2.5 / 32767.0, 4.0 * 3.5 / 32767.0);
        round(&x, &mut to, &mut sums, &mut scale);
        assert_eq!(scale, 4.0 / 32767.0);
        assert_eq!([to[place(0)], to[place(1)], to[place(2)], to[128 + place(127)]], [-32767, 8192, 2, 4]);
        assert_eq!((sums[0], sums[15]), (-32767 + 8192 + 2, 4));
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            x[7] = bad;
            round(&x, &mut to, &mut sums, &mut scale);
            assert!(scale.is_nan());
        }
        round(&[1e-35; BLOCK], &mut to, &mut sums, &mut scale);
        assert_eq!((scale, to), (0.0, [0; BLOCK]));
        round(&[1e38; BLOCK], &mut to, &mut sums, &mut scale);
        assert_eq!(to, [32767; BLOCK]);
    }
}
