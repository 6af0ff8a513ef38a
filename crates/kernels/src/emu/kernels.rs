//! Kernels that no verb of this device launches: against f64, in company and alone, in several orders of threads.

mod attention;
mod products;
mod rows;

use super::{Emu, Order};
use crate::launch::{Grid, Launcher, Params};

const ORDERS: [Order; 3] = [Order::Forward, Order::Reverse, Order::Random(3)];

/// Runs a kernel, which must end.
///
/// # Safety
///
/// As `Emu::launch`.
unsafe fn launch<P: Params>(
    order: Order,
    kernel: &str,
    params: &P,
    blocks: [usize; 2],
    threads: u32,
    shared: usize,
) {
    let grid = Grid { blocks, threads, shared };
    // SAFETY: the caller vouches for it.
    unsafe { Emu::new(order).launch("test", kernel, params, grid) }.unwrap();
}

/// Bytes at a multiple of 16, as a device's buffers are.
struct Bytes {
    words: Vec<u128>,
    len: usize,
}

impl Bytes {
    /// All bits set: a NaN in every format.
    fn new(len: usize) -> Bytes {
        Bytes { words: vec![u128::MAX; len.div_ceil(16)], len }
    }

    fn of(bytes: &[u8]) -> Bytes {
        let mut all = Bytes::new(bytes.len());
        all.bytes_mut().copy_from_slice(bytes);
        all
    }

    fn bytes(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.words)[..self.len]
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.words)[..self.len]
    }

    fn start(&self) -> *const u8 {
        self.words.as_ptr().cast()
    }

    fn start_mut(&mut self) -> *mut u8 {
        self.words.as_mut_ptr().cast()
    }
}

/// Numbers drawn from about N(0, 1), the same on every machine (SplitMix64; twelve uniform ones are added).
fn normal(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut uniform = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1u32 << 24) as f32
    };
    (0..count).map(|_| (0..12).map(|_| uniform()).sum::<f32>() - 6.0).collect()
}

/// The normalised mean square error.
fn error(expected: &[f64], found: &[f32]) -> f64 {
    assert_eq!(expected.len(), found.len());
    let square = |(expected, &found): (&f64, &f32)| (expected - f64::from(found)).powi(2);
    let errors: f64 = expected.iter().zip(found).map(square).sum();
    errors / expected.iter().map(|x| x * x).sum::<f64>()
}

fn bits(numbers: &[f32]) -> Vec<u32> {
    numbers.iter().map(|x| x.to_bits()).collect()
}
