//! Activations as whole numbers.
//!
//! A step of 32 columns has a scale, its largest magnitude over 32639, so that the higher of a number's two bytes is one;
//! a number is `x` over the scale, rounded to nearest. Where sums of products could leave 32 bits (`q6_k`, magnitudes that are
//! more than half of the largest on average), the scale is twice that. Steps whose largest magnitude is below 2⁻¹¹⁰ are zeros; those that hold an infinity or no number get
//! a scale that is none, and so does what is made of them.

use super::{CHUNK, Coded, STEP, Zero};
use crate::cpu::Cpu;
use crate::cpu::simd::{Eight, IntJob, IntLevel, Ints};
use bytemuck::{Pod, Zeroable};
use std::marker::PhantomData;

/// The largest magnitude of a number.
const MOST: f32 = 32639.0;

/// A step of one token.
struct Rounded {
    numbers: [i32; STEP],
    scale: f32,
}

/// Rounds step `at` of a token, zeros beyond its end.
#[inline(always)]
fn step<C: Coded>(x: &[f32], at: usize) -> Rounded {
    let rest = x.get(at * STEP..).unwrap_or_default();
    match rest.first_chunk() {
        Some(x) => round_within(x, C::LIMIT),
        None => {
            let mut padded = [0.0; STEP];
            padded[..rest.len()].copy_from_slice(rest);
            round_within(&padded, C::LIMIT)
        }
    }
}

/// Magnitudes add up to `limit` at most; half of the largest possible sum is within it.
#[inline(always)]
fn round_within(x: &[f32; STEP], limit: i32) -> Rounded {
    let rounded = round(x, MOST);
    if limit < MOST as i32 * STEP as i32 && rounded.numbers.iter().map(|x| x.abs()).sum::<i32>() > limit {
        return round(x, MOST / 2.0);
    }
    rounded
}

#[inline(always)]
fn round(x: &[f32; STEP], most: f32) -> Rounded {
    const INFINITE: u32 = 0x7f80_0000;
    const TINY: f32 = f32::from_bits((127 - 110) << 23);
    // Adding this leaves the nearest integer in the low bits of the sum.
    const ROUND: f32 = 12_582_912.0;
    // Without signs, numbers are in the order of their bits, and what is none is above all.
    let largest = x.iter().fold(0, |most, x| most.max(x.to_bits() & 0x7fff_ffff));
    if largest >= INFINITE || f32::from_bits(largest) < TINY {
        let scale = if largest >= INFINITE { f32::NAN } else { 0.0 };
        return Rounded { numbers: [0; STEP], scale };
    }
    let factor = most / f32::from_bits(largest);
    let mut numbers = [0; STEP];
    for (to, x) in numbers.iter_mut().zip(x) {
        *to = (x * factor + ROUND).to_bits().wrapping_sub(ROUND.to_bits()) as i32;
    }
    Rounded { numbers, scale: f32::from_bits(largest) / most }
}

impl Rounded {
    #[inline(always)]
    fn half(&self, half: usize) -> &[i32; STEP / 2] {
        &self.numbers.as_chunks().0[half]
    }

    /// The sums of its activations that least weights are multiplied with.
    #[inline(always)]
    fn least<C: Coded>(&self) -> [f32; 2] {
        let sum = |half| self.half(half).iter().sum::<i32>();
        let sums = if C::LEAST == 2 { [sum(0), sum(1)] } else { [sum(0) + sum(1), 0] };
        [sums[0] as f32 * self.scale, sums[1] as f32 * self.scale]
    }
}

/// A chunk of one token for products of bytes: a number is 256 times its `high`, and its `low`. Bytes are those of the first
/// 16 columns of each step, then those of the others.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Planes {
    pub(super) high: [[u8; 64]; 2],
    pub(super) low: [[u8; 64]; 2],
    pub(super) scales: [f32; 4],
    /// What zeros add to the sum of a step: minus the sum of its numbers, times the zero.
    pub(super) zeros: [i32; 4],
    pub(super) least: [[f32; 4]; 2],
    /// The same as `zeros` for each four bytes, where these are multiplied with factors: of `high`, then of `low`.
    pub(super) starts: [[[i32; 16]; 2]; 2],
}

/// Vectors that hold the planes of so many tokens.
pub(super) fn planes_room(tokens: usize, cols: usize) -> usize {
    tokens * cols.div_ceil(CHUNK) * (size_of::<Planes>() / size_of::<Eight>())
}

/// The planes of some tokens, `[token][chunk]`, in `room`.
pub(super) fn planes<'a, C: Coded>(
    cpu: &Cpu,
    level: IntLevel,
    x: &[f32],
    cols: usize,
    room: &'a mut [Eight],
) -> &'a [Planes] {
    let planes: &mut [Planes] = bytemuck::cast_slice_mut(room);
    let mut hands = vec![(); cpu.pool.hands(8 * x.len() as u64)];
    let pieces = x.chunks(cols).zip(planes.chunks_mut(cols.div_ceil(CHUNK)));
    cpu.pool.share(&mut hands, pieces, |(), pieces| {
        for (x, to) in pieces {
            level.run(Split::<C> { x, to, format: PhantomData });
        }
    });
    planes
}

struct Split<'a, C> {
    x: &'a [f32],
    to: &'a mut [Planes],
    format: PhantomData<C>,
}

impl<C: Coded> IntJob for Split<'_, C> {
    type Out = ();

    #[inline(always)]
    fn run<S: Ints>(self, _: S) {
        let Split { x, to, .. } = self;
        for (chunk, to) in to.iter_mut().enumerate() {
            for k in 0..4 {
                let step = step::<C>(x, 4 * chunk + k);
                split::<C>(&step, k, to);
            }
        }
    }
}

#[inline(always)]
fn split<C: Coded>(step: &Rounded, k: usize, to: &mut Planes) {
    let zero = match C::ZERO {
        Zero::None => 0,
        Zero::All(zero) => -i32::from(zero),
    };
    for h in 0..2 {
        let numbers = step.half(h);
        let (mut high, mut low) = ([0i32; 16], [0i32; 16]);
        for i in 0..16 {
            high[i] = (numbers[i] + 128) >> 8;
            low[i] = numbers[i] - (high[i] << 8);
            to.high[h][16 * k + i] = high[i] as u8;
            to.low[h][16 * k + i] = low[i] as u8;
        }
        if C::FACTORS {
            for i in 0..4 {
                let four =
                    |of: &[i32; 16]| zero * (of[4 * i] + of[4 * i + 1] + of[4 * i + 2] + of[4 * i + 3]);
                to.starts[0][h][4 * k + i] = four(&high);
                to.starts[1][h][4 * k + i] = four(&low);
            }
        }
    }
    to.scales[k] = step.scale;
    to.zeros[k] = zero * step.numbers.iter().sum::<i32>();
    [to.least[0][k], to.least[1][k]] = step.least::<C>();
}

/// Where pair `p` of a step has its two columns: pairs come as [`numbers`](super::numbers) orders them.
pub(super) const fn pair(p: usize) -> [usize; 2] {
    let (half, odd, j) = (p / 8, p / 4 % 2, p % 4);
    let first = 16 * half + 4 * j + odd;
    [first, first + 2]
}

/// Tokens for products of words, each with its steps in the order of running sums: first those that are first
/// in their chunk.
#[derive(Clone, Copy)]
pub(super) struct Words<'a> {
    pub(super) tokens: usize,
    pub(super) chunks: usize,
    /// `[token][step in the chunk][chunk]`: pairs of numbers.
    pub(super) pairs: &'a [[i32; 16]],
    pub(super) scales: &'a [f32],
    pub(super) least: &'a [[f32; 2]],
}

/// Vectors that hold the words of so many tokens.
pub(super) fn words_room(tokens: usize, cols: usize) -> usize {
    let steps = 4 * tokens * cols.div_ceil(CHUNK);
    2 * steps + steps.div_ceil(8) + (2 * steps).div_ceil(8)
}

impl<'a> Words<'a> {
    /// Rounds tokens into `room`, which is [`words_room`] long.
    pub(super) fn round<C: Coded>(
        cpu: &Cpu,
        level: IntLevel,
        x: &[f32],
        cols: usize,
        room: &'a mut [Eight],
    ) -> Words<'a> {
        let (tokens, chunks) = (x.len() / cols, cols.div_ceil(CHUNK));
        let steps = 4 * tokens * chunks;
        let (pairs, room) = room.split_at_mut(2 * steps);
        let (scales, least) = room.split_at_mut(steps.div_ceil(8));
        let pairs: &mut [[i32; 16]] = bytemuck::cast_slice_mut(pairs);
        let scales = &mut scales.as_flattened_mut()[..steps];
        let least = &mut least.as_flattened_mut().as_chunks_mut::<2>().0[..steps];

        let mut hands = vec![(); cpu.pool.hands(8 * x.len() as u64)];
        let each = 4 * chunks;
        let pieces = pairs.chunks_mut(each).zip(scales.chunks_mut(each)).zip(least.chunks_mut(each));
        cpu.pool.share(&mut hands, x.chunks(cols).zip(pieces), |(), pieces| {
            for (x, ((pairs, scales), least)) in pieces {
                level.run(Join::<C> { x, pairs, scales, least, format: PhantomData });
            }
        });
        Words { tokens, chunks, pairs, scales, least }
    }
}

struct Join<'a, C> {
    x: &'a [f32],
    pairs: &'a mut [[i32; 16]],
    scales: &'a mut [f32],
    least: &'a mut [[f32; 2]],
    format: PhantomData<C>,
}

impl<C: Coded> IntJob for Join<'_, C> {
    type Out = ();

    #[inline(always)]
    fn run<S: Ints>(self, _: S) {
        let Join { x, pairs, scales, least, .. } = self;
        let chunks = scales.len() / 4;
        for at in 0..scales.len() {
            let step = step::<C>(x, at % chunks * 4 + at / chunks);
            for p in 0..16 {
                let [first, second] = pair(p);
                pairs[at][p] = step.numbers[first] & 0xffff | step.numbers[second] << 16;
            }
            scales[at] = step.scale;
            least[at] = step.least::<C>();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_a_permutation() {
        let mut seen = [false; STEP];
        (0..16).for_each(|p| pair(p).into_iter().for_each(|c| seen[c] = true));
        assert_eq!(seen, [true; STEP]);
    }

    #[test]
    fn rounds_to_nearest_and_passes_on_what_is_no_number() {
        let mut x = [0.0f32; STEP];
        (x[0], x[1], x[2], x[31]) = (-4.0, 2.0, 4.0 * 2.5 / 32639.0, 4.0 * 3.5 / 32639.0);
        let rounded = round(&x, MOST);
        assert_eq!(rounded.scale, 4.0 / 32639.0);
        assert_eq!([0, 1, 2, 31].map(|i| rounded.numbers[i]), [-32639, 16320, 2, 4]);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            x[7] = bad;
            assert!(round(&x, MOST).scale.is_nan());
        }
        let tiny = round(&[1e-35; STEP], MOST);
        assert_eq!((tiny.scale, tiny.numbers), (0.0, [0; STEP]));
        assert_eq!(round(&[1e38; STEP], MOST).numbers, [32639; STEP]);
    }

    #[test]
    fn sums_stay_within_their_limit() {
        let limit = i32::MAX / (32 * 128);
        for x in [[1.0; STEP], std::array::from_fn(|i| if i % 2 == 0 { -3.0 } else { 1.0 })] {
            let rounded = round_within(&x, limit);
            assert!(rounded.numbers.iter().map(|x| x.abs()).sum::<i32>() <= limit);
            assert_eq!(rounded.scale, x[0].abs() / (MOST / 2.0));
        }
        let mut x = [0.5; STEP];
        x[3] = 2.0;
        assert_eq!(round_within(&x, limit).numbers, round(&x, MOST).numbers);
    }

    #[test]
    fn planes_hold_the_numbers() {
        let x: [f32; STEP] =
            std::array::from_fn(|i| (i as f32 * 0.7).sin() * if i % 3 == 0 { 1.0 } else { -0.01 });
        let rounded = round(&x, MOST);
        let mut planes = Planes::zeroed();
        split::<crate::cpu::integer::Q4>(&rounded, 2, &mut planes);
        for (i, number) in rounded.numbers.into_iter().enumerate() {
            let byte = |of: &[[u8; 64]; 2]| i32::from(of[i / 16][32 + i % 16] as i8);
            assert_eq!(256 * byte(&planes.high) + byte(&planes.low), number);
        }
        let starts = |of: &[[i32; 16]; 2]| of.as_flattened().iter().sum::<i32>();
        assert_eq!(256 * starts(&planes.starts[0]) + starts(&planes.starts[1]), planes.zeros[2]);
        assert_eq!(planes.zeros[2], -8 * rounded.numbers.iter().sum::<i32>());
    }
}
