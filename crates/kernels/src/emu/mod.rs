//! The CUDA kernels on the host.

#[cfg(target_endian = "big")]
compile_error!("weights and buffers are little endian, and are computed with as they are");

mod buffer;
#[cfg(test)]
mod kernels;
mod launch;

use crate::launch::Ready;
pub use crate::launch::Rung;
use crate::shape::{self, Counter};
use crate::{Error, Memory, Result};
pub use buffer::{EmuBuf, EmuView};
use std::ops::Range;

/// Runs the very CUDA kernels of the folder `kernels`, compiled for the host: a fiber for each thread of a block, block
/// after block, on the thread that calls. For tests: everything about a kernel shows but its speed.
///
/// It has memory of its own, as a GPU has: [`host_view`](Memory::host_view) is `None`. A result is a function of the
/// operands alone, as [`Ops`](crate::Ops) asks, and so it does not depend on the [`Order`] of threads either: where it
/// does, a kernel lacks a barrier. A kernel whose threads wait for each other forever fails with
/// [`Error::Kernel`], which says who waits where.
///
/// A product's rows must start at multiples of 16 bytes in formats whose rows are whole multiples of 16, and numbers at
/// multiples of four; other views are refused with [`Error::Argument`]. So are heads for whose queries and values the
/// 48 KiB of a block's shared memory do not do (`head_dim` above 11520; in prompts `head_dim + 4 · value_dim` above 7928).
///
/// ```
/// use airllm_kernels::{Emu, Memory, Ops, Order};
///
/// let emu = Emu::new(Order::Random(7));
/// let mut y = emu.alloc(8)?;
/// let mut x = emu.alloc(8)?;
/// emu.write(&mut x, 0, &[1f32.to_le_bytes(), 2f32.to_le_bytes()].concat())?;
/// emu.add(&mut y, &x, 2)?;
///
/// let mut out = [0u8; 8];
/// emu.read(&y, 0, &mut out)?;
/// assert_eq!(out, [1f32.to_le_bytes(), 2f32.to_le_bytes()].concat()[..]);
/// # Ok::<(), airllm_kernels::Error>(())
/// ```
#[derive(Debug, Default)]
pub struct Emu {
    order: Order,
    rung: Rung,
    counter: Counter,
    ready: Ready<EmuBuf>,
}

/// The order in which threads of a block, and blocks, take turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// By their numbers.
    #[default]
    Forward,
    /// From the last to the first.
    Reverse,
    /// Drawn anew for each block and each turn; the same seed gives the same order.
    Random(u64),
}

impl Emu {
    /// Threads in this order, with the kernels that a GPU is given.
    pub fn new(order: Order) -> Emu {
        Emu::with(order, Rung::Production)
    }

    /// Threads in this order, with kernels from this rung.
    pub fn with(order: Order, rung: Rung) -> Emu {
        Emu { order, rung, counter: Counter::default(), ready: Ready::default() }
    }
}

impl Memory for Emu {
    type Buf = EmuBuf;
    type Fence = ();
    type View<'a> = EmuView<'a>;

    fn copies(&self) -> bool {
        true
    }

    fn alloc(&self, bytes: usize) -> Result<EmuBuf> {
        self.ready.forget();
        EmuBuf::zeroed(bytes).ok_or(Error::OutOfMemory { bytes, device: "emu" })
    }

    fn len(&self, buf: &EmuBuf) -> usize {
        buf.bytes().len()
    }

    fn write(&self, dst: &mut EmuBuf, offset: usize, bytes: &[u8]) -> Result<()> {
        self.ready.forget();
        let end = offset.saturating_add(bytes.len());
        shape::need("write", "buffer", end, dst.bytes().len())?;
        dst.bytes_mut()[offset..end].copy_from_slice(bytes);
        Ok(())
    }

    fn read(&self, src: &EmuBuf, offset: usize, out: &mut [u8]) -> Result<()> {
        let end = offset.saturating_add(out.len());
        shape::need("read", "buffer", end, src.bytes().len())?;
        out.copy_from_slice(&src.bytes()[offset..end]);
        Ok(())
    }

    fn view<'a>(&'a self, buf: &'a EmuBuf, range: Range<usize>) -> Result<EmuView<'a>> {
        shape::range("view", &range, buf.bytes().len())?;
        Ok(EmuView::new(&buf.bytes()[range]))
    }

    fn host_view<'a>(&'a self, _: &'a [u8]) -> Option<EmuView<'a>> {
        None
    }

    unsafe fn upload(&self, dst: &EmuBuf, offset: usize, bytes: &[u8], _: Option<&()>) -> Result<()> {
        shape::need("upload", "buffer", offset.saturating_add(bytes.len()), dst.bytes().len())?;
        // SAFETY: the range lies in the buffer, and all work there was is done: the caller promises that nothing else
        // reads or writes these bytes. Host bytes and buffers of this device never overlap.
        unsafe { dst.fill(offset, bytes) };
        Ok(())
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
