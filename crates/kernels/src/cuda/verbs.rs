//! What the verbs, which are written once for all devices that launch kernels, need of this one.

use super::memory::Lies;
use super::{Cuda, CudaBuf, CudaView};
use crate::launch::{Grid, Launcher, Params, Ready, Staged, Where};
use crate::shape::Counter;
use crate::{Cpu, Error, Result};

impl Staged for CudaBuf {
    fn address(&self) -> *const u8 {
        CudaBuf::address(self)
    }
}

impl Launcher for Cuda {
    type Staged = CudaBuf;

    unsafe fn launch<P: Params>(
        &self,
        verb: &'static str,
        kernel: &str,
        params: &P,
        grid: Grid,
    ) -> Result<()> {
        let failed = |what: String| Error::Kernel { verb, kernel: kernel.into(), what };
        let Some(blocks) = grid.checked().map_err(failed)? else { return Ok(()) };
        // SAFETY: the caller vouches for the kernel's parameter and for all memory in it. Memory that kernels use is
        // that of buffers: work on it is queued in the order of the calls, and uploads come after the fences that
        // their callers pass.
        unsafe { self.queue(verb, kernel, params, blocks, grid.threads, grid.shared) }
    }

    fn address(&self, buf: &CudaBuf) -> *mut u8 {
        buf.address()
    }

    fn locate<'a>(&self, view: CudaView<'a>) -> Where<'a>
    where
        Self: 'a,
    {
        match view.lies() {
            Lies::Device(start, len, _) => Where::Device(start as usize as *const u8, len),
            Lies::Host(bytes) => Where::Host(bytes),
        }
    }

    fn stage(&self, bytes: &[u8]) -> Result<CudaBuf> {
        self.staged(bytes)
    }

    fn temporary(&self, bytes: usize) -> Result<CudaBuf> {
        self.scratch(bytes)
    }

    fn beside(&self) -> Option<&Cpu> {
        self.beside.as_ref()
    }

    fn ready(&self) -> &Ready<CudaBuf> {
        &self.ready
    }

    fn counter(&self) -> &Counter {
        &self.counter
    }
}
