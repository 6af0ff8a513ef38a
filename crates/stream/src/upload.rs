//! Leases for devices that cannot compute from host memory: copy, then lend the copy.

use crate::{Error, Result};
use airllm_kernels::Memory;

/// Two device buffers in turn, so that a copy may run while the last one is still computed with.
pub struct Uploads<M: Memory> {
    buffers: [Option<Upload<M>>; 2],
    turn: usize,
}

struct Upload<M: Memory> {
    buffer: M::Buf,
    bytes: usize,
    /// Passed when the work that reads the buffer is over.
    free: Option<M::Fence>,
}

impl<M: Memory> Uploads<M> {
    /// No buffers yet; they are made, and grown, by use.
    pub fn new() -> Self {
        Self { buffers: [None, None], turn: 0 }
    }

    /// Copies `bytes` to the device and lends the copy to `f`.
    pub fn lend<E, F>(&mut self, device: &M, bytes: &[u8], f: F) -> Result<(), E>
    where
        E: From<Error>,
        F: FnOnce(M::View<'_>) -> Result<(), E>,
    {
        self.turn = 1 - self.turn;
        let place = &mut self.buffers[self.turn];
        if let Some(upload) = place
            && let Some(fence) = upload.free.take()
        {
            device.wait(&fence).map_err(Error::from)?;
        }
        let upload = match place {
            Some(upload) if upload.bytes >= bytes.len() => upload,
            place => {
                let buffer = device.alloc(bytes.len()).map_err(Error::from)?;
                place.insert(Upload { buffer, bytes: bytes.len(), free: None })
            }
        };
        device.write(&mut upload.buffer, 0, bytes).map_err(Error::from)?;
        f(device.view(&upload.buffer, 0..bytes.len()).map_err(Error::from)?)?;
        upload.free = Some(device.fence().map_err(Error::from)?);
        Ok(())
    }
}
