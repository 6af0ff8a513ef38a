//! GPUs of NVIDIA, through the driver alone.
//!
//! The driver's library is looked for when a device is first asked for (`api`); nothing else of CUDA is needed to build
//! or to run. What the driver gives is owned by small types that give it back (`handles`). A device has two queues: one
//! that computes and one that copies beside it (`memory`); its memory is cut from chunks within a budget (`pool`).

#[cfg(target_endian = "big")]
compile_error!("weights and buffers are little endian, and are computed with as they are");

mod api;
mod devices;
mod handles;
mod health;
mod launch;
mod measure;
mod memory;
mod pool;
mod ring;
mod shared;
#[cfg(test)]
mod tests;
mod verbs;

use crate::launch::Ready;
use crate::shape::Counter;
use crate::{Cpu, Result};
use devices::Device;
pub use devices::{CudaVersion, DeviceInfo, Unusable, devices};
pub use memory::{CudaBuf, CudaFence, CudaView};
use shared::Shared;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// What to use of which device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CudaSettings {
    /// The device's number, as [`devices`] tells it.
    pub ordinal: usize,
    /// Bytes of device memory to take in all, those of the driver for this program among them. `None`: all that is free,
    /// less a margin.
    pub vram: Option<u64>,
    /// Threads for verbs that are computed on the host, beside the device; 0: none, and views of host memory are not
    /// possible.
    pub host_threads: usize,
}

/// A GPU of NVIDIA: computes with the kernels of the folder `kernels`.
///
/// Calls return before their work is done; the host waits in [`read`](crate::Memory::read) and in
/// [`wait`](crate::Memory::wait), and where more is written than the queue has taken yet. Work is queued by one thread at
/// a time, by any thread.
///
/// All that the device's memory is used for stays within [`CudaSettings::vram`]. On the host 5 MiB are page-locked, and
/// up to 32 MiB for what is read at once.
///
/// A kernel that fails is found out by the next call that waits; its error names the kernels that may have been it, and
/// every call after it fails with the same error.
///
/// ```no_run
/// use airllm_kernels::{Cuda, CudaSettings, Memory};
///
/// let cuda = Cuda::open(&CudaSettings { vram: Some(4 << 30), ..CudaSettings::default() })?;
/// let mut buf = cuda.alloc(1 << 20)?;
/// cuda.write(&mut buf, 8, b"bytes")?;
/// let mut out = [0; 6];
/// cuda.read(&buf, 7, &mut out)?;
/// assert_eq!(&out, b"\0bytes");
/// # Ok::<(), airllm_kernels::Error>(())
/// ```
#[derive(Debug)]
pub struct Cuda {
    shared: Arc<Shared>,
    device: Device,
    driver: CudaVersion,
    beside: Option<Cpu>,
    counter: Counter,
    ready: Ready<CudaBuf>,
}

/// What a device's memory is used for, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceMemory {
    /// All there is, by the driver.
    pub total: u64,
    /// What no program has, by the driver.
    pub free: u64,
    /// Most that is taken: `overhead` and `chunks` are never more.
    pub budget: u64,
    /// What the driver takes for this program: the context and the kernels, as measured on opening, and a sixteenth of
    /// that, up to 16 MiB, for what it may take later.
    pub overhead: u64,
    /// What was got from the driver for buffers.
    pub chunks: u64,
    /// What buffers have of that.
    pub used: u64,
    /// The most that `overhead` and `chunks` have been.
    pub peak: u64,
    /// The most that `used` has been.
    pub peak_used: u64,
}

impl Cuda {
    /// Opens a device: retains its primary context and loads the kernels.
    ///
    /// # Errors
    ///
    /// [`Error::Unusable`](crate::Error::Unusable) with the reason where there is no device that can be used, or the
    /// budget does not hold the context; [`Error::Device`](crate::Error::Device) where the driver fails.
    pub fn open(settings: &CudaSettings) -> Result<Cuda> {
        let (api, driver) = devices::driver()?;
        let device = Device::get(api, settings.ordinal)?;
        if let Some(why) = device.unusable(driver) {
            return Err(why.into());
        }
        let shared = Arc::new(Shared::open(api, &device, settings.vram)?);
        let beside = (settings.host_threads > 0).then(|| Cpu::new(settings.host_threads));
        Ok(Cuda { shared, device, driver, beside, counter: Counter::default(), ready: Ready::default() })
    }

    /// The device's name, as `NVIDIA H100 80GB HBM3`.
    pub fn name(&self) -> &str {
        &self.device.name
    }

    /// The device's compute capability, as (9, 0).
    pub fn capability(&self) -> (u32, u32) {
        self.device.capability
    }

    /// How many multiprocessors the device has.
    pub fn multiprocessors(&self) -> u32 {
        self.device.multiprocessors
    }

    /// The version of CUDA that the driver supports.
    pub fn driver(&self) -> CudaVersion {
        self.driver
    }

    /// What the device's memory is used for.
    pub fn memory(&self) -> Result<DeviceMemory> {
        self.shared.enter()?;
        self.shared.memory()
    }

    /// How often the host has waited for the device: for what it reads, for fences that were not done, for room to write.
    pub fn host_waits(&self) -> u64 {
        self.shared.host_waits.load(Relaxed)
    }
}
