//! Devices that launch the kernels of the folder `kernels`: what differs between them is a [`Launcher`], what does
//! not, the verbs, is written once in `ops`.

mod attention;
mod ops;
mod product;
mod ready;

use crate::shape::Counter;
use crate::{Cpu, Error, Memory, Result, abi};
#[cfg(all(test, feature = "emu"))]
pub(crate) use product::{MatrixTile, matrix_tiles};
#[cfg(all(test, feature = "emu"))]
pub(crate) use ready::Form;
pub use ready::Ready;

/// Structures that kernels take.
///
/// # Safety
///
/// The type has the size, alignment and fields of a structure in `abi.h`.
pub unsafe trait Params: Copy {}

macro_rules! params {
    ($($name:ident)*) => {$(
        // SAFETY: `abi.rs` lists the fields of `abi.h` in their order, with the types that C has for them.
        unsafe impl Params for abi::$name {}
    )*};
}

params!(
    Product Spread Prepare PromptProduct Decode Norm NormAdd LayerNorm Pick Route Lora Turn Attention Cached Store Gated
    Flat Rows Scatter Gather Reorder Placing
);

/// How many blocks and threads run a kernel.
#[derive(Debug, Clone, Copy)]
pub struct Grid {
    /// Blocks in both directions.
    pub blocks: [usize; 2],
    /// Threads in a block.
    pub threads: u32,
    /// Bytes of shared memory beside what the kernel declares.
    pub shared: usize,
}

impl Grid {
    /// A thread for each of `count` things.
    pub fn flat(count: usize) -> Grid {
        let threads = abi::FLAT_THREADS;
        Grid { blocks: [count.div_ceil(threads as usize), 1], threads, shared: 0 }
    }

    /// The grid as launches take it; `None` where there is nothing to run.
    pub fn checked(self) -> Result<Option<[u32; 2]>, String> {
        /// Most blocks in the two directions, on every device.
        const MOST: [usize; 2] = [(1 << 31) - 1, 65_535];
        if self.blocks.contains(&0) {
            return Ok(None);
        }
        if self.blocks[0] > MOST[0] || self.blocks[1] > MOST[1] {
            return Err(format!("{:?} blocks are more than a launch can have", self.blocks));
        }
        Ok(Some([self.blocks[0] as u32, self.blocks[1] as u32]))
    }
}

/// Which kernels do the work, where there are several for a verb.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Rung {
    /// Those that a GPU is given.
    #[default]
    Production,
    /// The first ones of their ladders, which the others are compared with.
    Naive,
}

/// Where the bytes of a view lie.
#[derive(Debug, Clone, Copy)]
pub enum Where<'a> {
    /// So many bytes from this address of the device on.
    Device(*const u8, usize),
    /// In host memory: their verb is computed there.
    Host(&'a [u8]),
}

impl Where<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Device(_, len) => *len,
            Self::Host(bytes) => bytes.len(),
        }
    }
}

/// Host bytes on their way to kernels.
pub trait Staged {
    /// Where kernels find them.
    fn address(&self) -> *const u8;
}

/// A device that launches kernels.
///
/// Work is queued: what is launched, staged and freed takes place in the order of the calls.
pub trait Launcher: Memory {
    /// What [`stage`](Launcher::stage) answers.
    type Staged: Staged;

    /// Launches a kernel. A grid without blocks is no launch.
    ///
    /// # Safety
    ///
    /// `params` are what the kernel of this name takes. Every pointer in them leads to as much memory as the kernel
    /// touches for the sizes in them, which nobody else writes, nor reads where the kernel writes, until it has run.
    unsafe fn launch<P: Params>(
        &self,
        verb: &'static str,
        kernel: &str,
        params: &P,
        grid: Grid,
    ) -> Result<()>;

    /// Where a buffer lies.
    fn address(&self, buf: &Self::Buf) -> *mut u8;

    /// Where a view lies.
    fn locate<'a>(&self, view: Self::View<'a>) -> Where<'a>
    where
        Self: 'a;

    /// Makes at most [`STAGED`] bytes readable for kernels that are launched while the answer lives. The caller keeps
    /// `bytes` as they are until then.
    fn stage(&self, bytes: &[u8]) -> Result<Self::Staged>;

    /// Memory for the kernels of one verb. What it holds is undefined.
    fn temporary(&self, bytes: usize) -> Result<Self::Buf>;

    /// Who computes products with views in host memory.
    fn beside(&self) -> Option<&Cpu>;

    /// The tokens of the last product, as its kernel took them. Whoever writes to a buffer in another way than by a verb
    /// [forgets](Ready::forget) them.
    fn ready(&self) -> &Ready<Self::Buf>;

    /// Which kernels to use.
    fn rung(&self) -> Rung {
        Rung::Production
    }

    /// Declared work.
    fn counter(&self) -> &Counter;
}

/// Most bytes that are staged at once.
pub const STAGED: usize = 1 << 20;

/// The numbers of a buffer.
fn floats<D: Launcher>(device: &D, buf: &D::Buf) -> *mut f32 {
    device.address(buf).cast()
}

/// Where a view starts that lies on the device, at a multiple of `to`.
fn aligned(verb: &'static str, operand: &str, view: Where<'_>, to: usize) -> Result<*const u8> {
    let what = match view {
        // A view of nothing is never read.
        Where::Device(start, len) if len == 0 || start.addr().is_multiple_of(to) => return Ok(start),
        Where::Device(start, _) => {
            let beyond = start.addr() % to;
            format!("{operand} starts {beyond} bytes after a multiple of {to}, and must start at one")
        }
        Where::Host(_) => format!("{operand} lies in host memory, and must lie on the device"),
    };
    Err(Error::Argument { verb, what })
}

/// Where a vector of weights lies that kernels read: on the device, or staged from the host.
enum Vector<S> {
    There(*const u8),
    Staged(S),
}

impl<S: Staged> Vector<S> {
    fn floats(&self) -> *const f32 {
        match self {
            Self::There(start) => start.cast(),
            Self::Staged(staged) => staged.address().cast(),
        }
    }
}

/// A vector of `dim` numbers, which the caller has seen to be there.
fn vector<D: Launcher>(
    device: &D,
    verb: &'static str,
    operand: &str,
    place: Where<'_>,
    dim: usize,
) -> Result<Vector<D::Staged>> {
    match place {
        Where::Host(bytes) if device.beside().is_some() && dim * 4 <= STAGED => {
            Ok(Vector::Staged(device.stage(&bytes[..dim * 4])?))
        }
        place => Ok(Vector::There(aligned(verb, operand, place, 4)?)),
    }
}

/// Launches a kernel of a verb that may change any buffer.
///
/// # Safety
///
/// As [`Launcher::launch`] asks.
unsafe fn run<D: Launcher, P: Params>(
    device: &D,
    verb: &'static str,
    kernel: &str,
    params: &P,
    grid: Grid,
) -> Result<()> {
    device.ready().forget();
    // SAFETY: the caller vouches for it.
    unsafe { device.launch(verb, kernel, params, grid) }
}

/// Most bytes of device memory that verbs take beside their operands: for products with `cols` columns of `tokens` tokens,
/// which are made ready for their kernels, and for attention, which keeps sums of parts of the context.
pub fn scratch_bytes(tokens: usize, cols: usize) -> usize {
    let padded = cols.next_multiple_of(abi::SLICE);
    // Two parts of two bytes, or one of four, and a factor for each token.
    tokens.saturating_mul(padded.saturating_mul(4).saturating_add(256)).saturating_add(attention::SCRATCH)
}
