//! Single rows for devices that cannot compute from host memory: written to the device, then lent.

use crate::{Error, Result};
use airllm_kernels::Memory;

/// A buffer of the device, as large as the most that was lent from it. One does: a write comes behind the work that was
/// queued before it, and so behind what reads the rows before these.
pub struct Staging<M: Memory>(Option<M::Buf>);

impl<M: Memory> Staging<M> {
    /// No buffer yet; it is made, and grown, by use.
    pub fn new() -> Self {
        Self(None)
    }

    /// Copies `bytes` to the device and lends the copy to `f`.
    pub fn lend<E, F>(&mut self, device: &M, bytes: &[u8], f: F) -> Result<(), E>
    where
        E: From<Error>,
        F: FnOnce(M::View<'_>) -> Result<(), E>,
    {
        let buffer = match self.0.take() {
            Some(buffer) if device.len(&buffer) >= bytes.len() => buffer,
            // The smaller one goes first.
            smaller => {
                drop(smaller);
                device.alloc(bytes.len()).map_err(Error::from)?
            }
        };
        let buffer = self.0.insert(buffer);
        device.write(buffer, 0, bytes).map_err(Error::from)?;
        f(device.view(buffer, 0..bytes.len()).map_err(Error::from)?)
    }
}
