//! Single rows for devices that cannot compute from host memory: written to the device, then lent.

use crate::{Error, Result};
use airllm_kernels::Memory;

/// Two device buffers in turn, so that rows may be written while the last ones are still computed with. Each is as
/// large as the most that was lent from it.
pub struct Staging<M: Memory> {
    buffers: [Option<Stage<M>>; 2],
    turn: usize,
}

struct Stage<M: Memory> {
    buffer: M::Buf,
    bytes: usize,
    /// Passed when the work that reads the buffer is over.
    free: Option<M::Fence>,
}

impl<M: Memory> Staging<M> {
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
        if let Some(stage) = place
            && let Some(fence) = stage.free.take()
        {
            device.wait(&fence).map_err(Error::from)?;
        }
        let stage = match place {
            Some(stage) if stage.bytes >= bytes.len() => stage,
            place => {
                let buffer = device.alloc(bytes.len()).map_err(Error::from)?;
                place.insert(Stage { buffer, bytes: bytes.len(), free: None })
            }
        };
        device.write(&mut stage.buffer, 0, bytes).map_err(Error::from)?;
        f(device.view(&stage.buffer, 0..bytes.len()).map_err(Error::from)?)?;
        stage.free = Some(device.fence().map_err(Error::from)?);
        Ok(())
    }
}
