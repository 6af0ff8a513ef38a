//! The CPU as a device.

#[cfg(target_endian = "big")]
compile_error!("weights and buffers are little endian, and are computed with as they are");

mod attend;
mod cache;
mod integer;
mod lines;
mod matmul;
mod ops;
mod packed;
mod pool;
mod rows;
mod simd;
mod tile;

use crate::shape::{self, Counter};
use crate::{Error, Memory, Result};
use lines::{Lines, Shelf};
use pool::Pool;
use simd::{IntLevel, Level, Portable};
use std::ops::Range;

/// The CPU: computes from host memory, on a pool of threads of its own, with AVX2, FMA and F16C where
/// the processor has them.
///
/// Products with weights in whole codes are sums of integers: codes are taken as they are, activations are rounded
/// to 16 bits under the largest magnitude of 32 columns ([`Ops::in_integers`](crate::Ops::in_integers),
/// [`conformance::INTEGERS`](crate::conformance::INTEGERS)), with AVX-512-VNNI, AVX-VNNI, AVX2 or NEON. Weights of other
/// formats are widened to f32, and activations stay what they are; [`floats`](Cpu::floats) does so with all.
///
/// A result is the same bit for bit on every call, whatever the number of threads, however the rows of
/// a matrix are cut into calls and however many tokens share one: each number is summed in one fixed
/// order, and speed comes from working on several of them at once. Between instruction sets results in f32
/// differ by rounding; products in integers do not.
///
/// Working memory is kept from call to call. It holds at most 192 tokens of a product's input, of two bytes a number (96
/// of four, where products are in f32), and per thread the numbers of 32 rows (152 KiB) and their sums with these tokens
/// (96 KiB), or the attention scores of 12 query
/// heads (one group, where that is more), their sums and, where heads are not whole vectors of eight f32 in the cache, 32 of
/// them.
///
/// ```
/// use airllm_format::NumFormat;
/// use airllm_kernels::{Columns, Cpu, Matrix, Memory, Ops, Tokens};
///
/// let cpu = Cpu::new(2);
/// let weights: Vec<u8> = [1f32, 2.0, 3.0, 4.0].iter().flat_map(|w| w.to_le_bytes()).collect();
/// let mut x = cpu.alloc(8)?;
/// cpu.write(&mut x, 0, &[10f32.to_le_bytes(), 1f32.to_le_bytes()].concat())?;
///
/// let mut y = cpu.alloc(8)?;
/// let data = cpu.host_view(&weights).unwrap();
/// let w = Matrix { data, format: NumFormat::F32, rows: 2, cols: 2 };
/// cpu.matmul(w, &x, Tokens::few(1), &mut y, Columns { stride: 2, first: 0 })?;
///
/// let mut out = [0u8; 8];
/// cpu.read(&y, 0, &mut out)?;
/// assert_eq!(out, [12f32.to_le_bytes(), 34f32.to_le_bytes()].concat()[..]);
/// # Ok::<(), airllm_kernels::Error>(())
/// ```
#[derive(Debug)]
pub struct Cpu {
    level: Level,
    /// For products in integers; `None`: all products in f32.
    ints: Option<IntLevel>,
    pool: Pool,
    shelf: Shelf,
    counter: Counter,
}

/// Host memory of the [`Cpu`] device, 64-byte aligned.
#[derive(Debug)]
pub struct CpuBuf {
    lines: Lines,
    bytes: usize,
}

impl Cpu {
    /// The best instructions this processor has, on `threads` threads, the caller's being one of them.
    ///
    /// 0 stands for [`Cpu::own_threads`]. Where the system refuses to
    /// start threads there are fewer; [`threads`](Cpu::threads) says how many.
    pub fn new(threads: usize) -> Cpu {
        Cpu::with(Level::detect(), Some(IntLevel::detect()), threads)
    }

    /// As [`new`](Cpu::new), but without any instruction that not every processor has. Slow; for
    /// comparison and for tests.
    pub fn portable(threads: usize) -> Cpu {
        Cpu::with(Level::Portable(Portable), Some(IntLevel::PORTABLE), threads)
    }

    /// As [`new`](Cpu::new), but with all products in f32, which rounds nothing but sums, in the time that takes. For
    /// comparison.
    pub fn floats(threads: usize) -> Cpu {
        Cpu::with(Level::detect(), None, threads)
    }

    /// As [`new`](Cpu::new), once for each instruction set for products of integers that this processor has,
    /// the best one last. For comparison and for tests.
    pub fn levels(threads: usize) -> Vec<Cpu> {
        IntLevel::all().into_iter().map(|ints| Cpu::with(Level::detect(), Some(ints), threads)).collect()
    }

    /// As many threads as pay: one for each physical core that the process may use, and no more than its control groups grant.
    pub fn own_threads() -> usize {
        pool::own_threads()
    }

    /// How many threads work on one verb.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// The instructions in use: for products of integers where they are in use (`"avx512-vnni"`, `"avx-vnni"`, `"avx2"`,
    /// `"neon-dotprod"`, `"neon"` or `"portable"`), else for f32 (`"avx2"` or `"portable"`).
    pub fn instructions(&self) -> &'static str {
        self.ints.map_or(self.level.name(), IntLevel::name)
    }

    fn with(level: Level, ints: Option<IntLevel>, threads: usize) -> Cpu {
        Cpu { level, ints, pool: Pool::new(threads), shelf: Shelf::default(), counter: Counter::default() }
    }
}

impl CpuBuf {
    fn bytes(&self) -> &[u8] {
        &self.lines.bytes()[..self.bytes]
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.lines.bytes_mut()[..self.bytes]
    }

    /// The whole numbers in the buffer.
    fn floats(&self) -> &[f32] {
        &self.lines.floats()[..self.bytes / 4]
    }

    fn floats_mut(&mut self) -> &mut [f32] {
        &mut self.lines.floats_mut()[..self.bytes / 4]
    }
}

impl Memory for Cpu {
    type Buf = CpuBuf;
    type Fence = ();
    type View<'a> = &'a [u8];

    fn copies(&self) -> bool {
        false
    }

    fn alloc(&self, bytes: usize) -> Result<CpuBuf> {
        match Lines::zeroed(bytes) {
            Some(lines) => Ok(CpuBuf { lines, bytes }),
            None => Err(Error::OutOfMemory { bytes, device: "cpu" }),
        }
    }

    fn len(&self, buf: &CpuBuf) -> usize {
        buf.bytes
    }

    fn write(&self, dst: &mut CpuBuf, offset: usize, bytes: &[u8]) -> Result<()> {
        let end = offset.saturating_add(bytes.len());
        shape::need("write", "buffer", end, dst.bytes)?;
        dst.bytes_mut()[offset..end].copy_from_slice(bytes);
        Ok(())
    }

    fn read(&self, src: &CpuBuf, offset: usize, out: &mut [u8]) -> Result<()> {
        let end = offset.saturating_add(out.len());
        shape::need("read", "buffer", end, src.bytes)?;
        out.copy_from_slice(&src.bytes()[offset..end]);
        Ok(())
    }

    fn view<'a>(&'a self, buf: &'a CpuBuf, range: Range<usize>) -> Result<&'a [u8]> {
        shape::range("view", &range, buf.bytes)?;
        Ok(&buf.bytes()[range])
    }

    fn host_view<'a>(&'a self, bytes: &'a [u8]) -> Option<&'a [u8]> {
        Some(bytes)
    }

    fn follow(&self, _: &()) -> Result<()> {
        Ok(())
    }

    fn fence(&self) -> Result<()> {
        Ok(())
    }

    fn wait(&self, _: &()) -> Result<()> {
        Ok(())
    }

    fn is_done(&self, _: &()) -> Result<bool> {
        Ok(true)
    }
}
