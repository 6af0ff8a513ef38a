//! Benches on a GPU, and what they share: the device, weights that follow each other, times.
//!
//! Each is a function, so that `cargo bench` has them by their names and the bundle for other machines as one program.
//! Options of all of them: `--json FILE`, `--vram BYTES`; `AIRLLM_BENCH_QUICK` makes everything small. Where no GPU can be
//! used, they say so in a line and end.

pub mod attention;
mod cublas;
mod driver;
pub mod gemm;
pub mod gemv;
pub mod overlap;
pub mod pcie;
mod products;
pub mod token;

use crate::{Row, median, quick, report_on};
use airllm_format::NumFormat;
use airllm_kernels::{Cuda, CudaBuf, CudaSettings, CudaView, Matrix, Memory};
use std::path::{Path, PathBuf};

/// The value behind a flag of the command line.
pub(crate) fn option(flag: &str) -> Option<String> {
    let args: Vec<String> = std::env::args().collect();
    args.iter().position(|arg| arg == flag).and_then(|at| args.get(at + 1)).cloned()
}

/// The first GPU; where none is usable, that is said in a line, and the bench is over.
pub(crate) fn open() -> Option<Cuda> {
    let vram = option("--vram").map(|text| text.parse().expect("--vram: expected a number of bytes"));
    match Cuda::open(&CudaSettings { ordinal: 0, vram, host_threads: 0 }) {
        Ok(cuda) => {
            println!("{}, CUDA {}", cuda.name(), cuda.driver());
            Some(cuda)
        }
        Err(error) => {
            println!("skipped: {error}");
            None
        }
    }
}

/// Prints and writes.
pub(crate) fn finish(cuda: &Cuda, name: &str, rows: &[Row]) {
    let command = format!("cargo bench --bench {name}");
    report_on(Some(cuda.name()), name, &command, rows, option("--json").as_deref().map(Path::new));
}

/// A folder for files: `AIRLLM_BENCH_SCRATCH`, or that of the system for such.
pub(crate) fn scratch() -> PathBuf {
    std::env::var_os("AIRLLM_BENCH_SCRATCH").map_or_else(std::env::temp_dir, PathBuf::from)
}

/// Rounds of which the median counts.
pub(crate) fn rounds() -> usize {
    if quick() { 1 } else { 9 }
}

/// Bytes that device buffers may still take.
pub(crate) fn room(cuda: &Cuda) -> u64 {
    let memory = cuda.memory().expect("the device's memory");
    (memory.budget - memory.overhead).saturating_sub(memory.used).min(memory.free)
}

/// Random bytes, the same for the same seed.
pub(crate) fn random(bytes: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut words = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut out: Vec<u8> = (0..bytes.div_ceil(8)).flat_map(|_| words()).collect();
    out.truncate(bytes);
    out
}

/// Random numbers between -1 and 1, as a device holds them.
pub(crate) fn numbers(cuda: &Cuda, count: usize, seed: u64) -> CudaBuf {
    const BLOCK: usize = 1 << 20;
    let words = random(count.min(BLOCK) * 4, seed);
    let number = |word: &[u8; 4]| i32::from_le_bytes(*word) as f32 / -(i32::MIN as f32);
    let block: Vec<u8> = words.as_chunks().0.iter().flat_map(|word| number(word).to_le_bytes()).collect();
    filled(cuda, count * 4, &block)
}

/// A buffer that holds a block over and over.
pub(crate) fn filled(cuda: &Cuda, bytes: usize, block: &[u8]) -> CudaBuf {
    let mut buf = cuda.alloc(bytes).expect("room on the device");
    let mut at = 0;
    while at < bytes {
        let part = &block[..block.len().min(bytes - at)];
        cuda.write(&mut buf, at, part).expect("the buffer is that large");
        at += part.len();
    }
    buf
}

/// Packed rows of random weights.
pub(crate) fn packed(format: NumFormat, rows: usize, cols: usize) -> Vec<u8> {
    let row_bytes = format.row_bytes(cols);
    let mut out = vec![0; rows * row_bytes];
    for (seed, row) in out.chunks_mut(row_bytes).enumerate() {
        let words = random(cols * 4, seed as u64 + 1);
        let weight = |word: &[u8; 4]| i32::from_le_bytes(*word) as f32 / -(i32::MIN as f32) * 0.05;
        let weights: Vec<f32> = words.as_chunks().0.iter().map(weight).collect();
        airllm_quant::pack_row(format, &weights, row).expect("finite weights of the right size");
    }
    out
}

/// Equal matrices one after the other, more than any cache holds before the first comes again.
pub(crate) struct Weights {
    buf: CudaBuf,
    format: NumFormat,
    rows: usize,
    cols: usize,
    count: usize,
    next: usize,
}

impl Weights {
    /// Several times the cache of any GPU, where there is room.
    const POOL: u64 = 768 << 20;

    /// `None` where not even one fits.
    pub(crate) fn new(cuda: &Cuda, format: NumFormat, rows: usize, cols: usize) -> Option<Weights> {
        let bytes = rows * format.row_bytes(cols);
        let pool = if quick() { 1 } else { Self::POOL.min(room(cuda) / 2) };
        let count = (pool as usize).div_ceil(bytes).max(2);
        if (count * bytes) as u64 > room(cuda) / 10 * 9 {
            return None;
        }
        let block = packed(format, rows.min(64), cols);
        Some(Weights { buf: filled(cuda, count * bytes, &block), format, rows, cols, count, next: 0 })
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Bytes of one.
    pub(crate) fn bytes(&self) -> usize {
        self.rows * self.format.row_bytes(self.cols)
    }

    /// The one whose turn it is.
    pub(crate) fn next<'a>(&'a mut self, cuda: &'a Cuda) -> Matrix<CudaView<'a>> {
        let at = self.next * self.bytes();
        self.next = (self.next + 1) % self.count;
        let data = cuda.view(&self.buf, at..at + self.bytes()).expect("a part of the buffer");
        Matrix { data, format: self.format, rows: self.rows, cols: self.cols }
    }
}

/// Milliseconds of one of `calls` calls: the median of several rounds, after one that warms up.
pub(crate) fn milliseconds(cuda: &Cuda, calls: usize, mut call: impl FnMut()) -> f64 {
    let mut round = || {
        let work = || {
            (0..calls).for_each(|_| call());
            Ok(())
        };
        cuda.time(work).expect("the device works").1 / calls as f64
    };
    round();
    median(&mut (0..rounds()).map(|_| round()).collect::<Vec<_>>())
}
