//! The choice of a device: which there are, which one computes, how fast it is.

use crate::{Error, Result, hardware};
use airllm_kernels::{Cuda, CudaSettings, KvFormat, Ops};
use airllm_stream::plan::Gpu;
use serde::Serialize;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// The device that computes.
///
/// Parsed from `auto`, `cpu`, `cuda` (the first) and `cuda:N`.
///
/// ```
/// use airllm::Device;
/// assert_eq!("cuda:1".parse::<Device>()?, Device::Cuda(1));
/// assert_eq!(Device::Cuda(0).to_string(), "cuda:0");
/// # Ok::<(), airllm::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Device {
    /// The first GPU that can be used; the processor where there is none.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// A GPU of NVIDIA, by its number.
    Cuda(usize),
}

impl FromStr for Device {
    type Err = Error;

    fn from_str(text: &str) -> Result<Device> {
        let device = match (text, text.strip_prefix("cuda:")) {
            ("auto", _) => Some(Device::Auto),
            ("cpu", _) => Some(Device::Cpu),
            ("cuda", _) => Some(Device::Cuda(0)),
            (_, Some(number)) if number.bytes().all(|b| b.is_ascii_digit()) => {
                number.parse().ok().map(Device::Cuda)
            }
            _ => None,
        };
        device.ok_or_else(|| Error::Argument {
            what: format!("{text:?} is not a device: expected auto, cpu, cuda or cuda:N"),
        })
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Auto => f.write_str("auto"),
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

/// The device that a plan counts with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct DeviceReport {
    /// What it is called on the command line: `cpu`, `cuda:0`.
    pub device: String,
    /// The device's own name, as `NVIDIA H100 80GB HBM3`; of the processor the instructions that are used.
    pub name: String,
    /// Why no GPU computes, where one might have been chosen.
    pub why_not_gpu: Option<String>,
    /// Bytes of a GPU's memory that the driver takes for this program.
    pub overhead: u64,
}

impl DeviceReport {
    /// Whether it is a GPU.
    pub fn is_gpu(&self) -> bool {
        self.device != "cpu"
    }
}

/// A device that is ready to compute.
pub(crate) enum Opened {
    Cpu,
    Cuda(Arc<Cuda>),
}

/// What was chosen, and what is known of it.
pub(crate) struct Chosen {
    pub(crate) opened: Opened,
    pub(crate) report: DeviceReport,
    /// Its rates, where it is a GPU.
    pub(crate) gpu: Option<Gpu>,
    /// Bytes of a GPU's memory that may be taken.
    pub(crate) vram: Option<u64>,
}

impl Chosen {
    /// Refuses a format of caches that the device does not have.
    pub(crate) fn check_cache(&self, cache: KvFormat) -> Result<()> {
        let caches = match &self.opened {
            Opened::Cpu => &KvFormat::ALL[..],
            Opened::Cuda(cuda) => cuda.caches(),
        };
        if caches.contains(&cache) {
            return Ok(());
        }
        let there: Vec<&str> = caches.iter().map(|cache| cache.name()).collect();
        let what = format!(
            "a key/value cache of {cache} was asked for, {} has {}: choose one of these, or the processor as the device",
            self.report.device,
            there.join(", ")
        );
        Err(Error::Argument { what })
    }

    /// Opens the device that was asked for. `threads` compute beside a GPU.
    ///
    /// # Errors
    /// A GPU that was named, or whose memory was given a budget, and that cannot be used.
    pub(crate) fn new(device: Device, vram: Option<u64>, threads: usize) -> Result<Chosen> {
        let number = match (device, vram) {
            (Device::Cpu, None) => return Ok(Chosen::cpu(None)),
            (Device::Cpu, Some(_)) => {
                let what =
                    "a budget of GPU memory (vram) was given, and the processor as the device: leave out one";
                return Err(Error::Argument { what: what.to_owned() });
            }
            (Device::Cuda(number), _) => number,
            (Device::Auto, vram) => match (first_usable(), vram) {
                (Ok(number), _) => number,
                (Err(why), None) => return Ok(Chosen::cpu(Some(why))),
                (Err(why), Some(_)) => {
                    let asked =
                        "a budget of GPU memory (vram) was given, and there is no GPU to use".to_owned();
                    return Err(Error::NoGpu { asked, why });
                }
            },
        };
        match (Chosen::cuda(number, vram, threads), device, vram) {
            (Ok(chosen), ..) => Ok(chosen),
            // Nobody has asked for it.
            (Err(error), Device::Auto, None) => Ok(Chosen::cpu(Some(error.to_string()))),
            (Err(error), ..) => {
                Err(Error::NoGpu { asked: Device::Cuda(number).to_string(), why: error.to_string() })
            }
        }
    }

    fn cpu(why_not_gpu: Option<String>) -> Chosen {
        let name = hardware::instructions().to_owned();
        let report = DeviceReport { device: Device::Cpu.to_string(), name, why_not_gpu, overhead: 0 };
        Chosen { opened: Opened::Cpu, report, gpu: None, vram: None }
    }

    fn cuda(ordinal: usize, vram: Option<u64>, host_threads: usize) -> airllm_kernels::Result<Chosen> {
        let cuda = Cuda::open(&CudaSettings { ordinal, vram, host_threads })?;
        let gpu = Gpu { upload: cuda.measure_upload()?, memory: cuda.measure_memory()? };
        let memory = cuda.memory()?;
        let report = DeviceReport {
            device: Device::Cuda(ordinal).to_string(),
            name: cuda.name().to_owned(),
            why_not_gpu: None,
            overhead: memory.overhead,
        };
        let opened = Opened::Cuda(Arc::new(cuda));
        Ok(Chosen { opened, report, gpu: Some(gpu), vram: Some(memory.budget) })
    }
}

/// The first GPU that can be used, or why there is none.
fn first_usable() -> Result<usize, String> {
    let found = airllm_kernels::devices().map_err(|error| error.to_string())?;
    let usable = found.iter().find(|device| device.unusable.is_none());
    usable.map(|device| device.ordinal).ok_or_else(|| why_none(&found))
}

/// Why none of these can be used: all for the reason of the first, mostly.
fn why_none(found: &[airllm_kernels::DeviceInfo]) -> String {
    let why = found.iter().find_map(|device| device.unusable.as_ref());
    why.map_or_else(|| "there is none".to_owned(), ToString::to_string)
}

/// Bytes of memory that no program has, of the GPU that [`Builder::device`](crate::Builder::device) would use.
/// `None` where it is no GPU, or does not say.
pub fn available_vram(device: Device) -> Option<u64> {
    let found = airllm_kernels::devices().ok()?;
    let wanted = |info: &&airllm_kernels::DeviceInfo| match device {
        Device::Cpu => false,
        Device::Auto => info.unusable.is_none(),
        Device::Cuda(number) => info.ordinal == number,
    };
    found.iter().find(wanted)?.free
}

/// What there is to compute with.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Devices {
    /// The processor.
    pub cpu: CpuInfo,
    /// GPUs of NVIDIA, also those that cannot be used.
    pub cuda: Vec<CudaInfo>,
    /// Why none of them can be used, in one line.
    pub why_no_cuda: Option<String>,
}

/// The processor.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct CpuInfo {
    /// Its name, as the system tells it.
    pub name: Option<String>,
    /// The instructions in use: `avx512-vnni`, `avx-vnni`, `avx2`, `neon` or `portable`.
    pub instructions: &'static str,
    /// Threads that the system lets this process run at once.
    pub threads: usize,
    /// Bytes of memory.
    pub memory: Option<u64>,
    /// Bytes of it that are free for this process.
    pub free: Option<u64>,
}

/// A GPU of NVIDIA.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct CudaInfo {
    /// What it is called on the command line: `cuda:0`.
    pub device: String,
    /// Its name.
    pub name: String,
    /// Its compute capability, as `8.6`.
    pub capability: String,
    /// How many multiprocessors it has.
    pub multiprocessors: u32,
    /// Bytes of its memory.
    pub memory: u64,
    /// Bytes of it that no program has.
    pub free: Option<u64>,
    /// The version of CUDA that its driver supports.
    pub driver: String,
    /// Why it cannot be used, if so.
    pub why_not: Option<String>,
}

/// Lists what there is to compute with. Finding no GPU is an answer, not an error.
pub fn devices() -> Devices {
    let cpu = CpuInfo {
        name: hardware::processor(),
        instructions: hardware::instructions(),
        threads: hardware::cores(),
        memory: hardware::all_memory(),
        free: hardware::available_memory(),
    };
    let found = match airllm_kernels::devices() {
        Ok(found) => found,
        Err(error) => return Devices { cpu, cuda: Vec::new(), why_no_cuda: Some(error.to_string()) },
    };
    let none = found.iter().all(|device| device.unusable.is_some());
    let cuda = found.iter().map(|device| CudaInfo {
        device: Device::Cuda(device.ordinal).to_string(),
        name: device.name.clone(),
        capability: format!("{}.{}", device.capability.0, device.capability.1),
        multiprocessors: device.multiprocessors,
        memory: device.total,
        free: device.free,
        driver: device.driver.to_string(),
        why_not: device.unusable.as_ref().map(ToString::to_string),
    });
    Devices { cpu, cuda: cuda.collect(), why_no_cuda: none.then(|| why_none(&found)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for device in [Device::Auto, Device::Cpu, Device::Cuda(0), Device::Cuda(12)] {
            assert_eq!(device.to_string().parse::<Device>().unwrap(), device);
        }
        assert_eq!("cuda".parse::<Device>().unwrap(), Device::Cuda(0));
        for bad in ["", "gpu", "cuda:", "cuda:-1", "cuda:+1", "cuda: 1", "CPU", "cuda:99999999999999999999"] {
            let error = bad.parse::<Device>().unwrap_err().to_string();
            assert!(error.contains("expected auto, cpu, cuda or cuda:N"), "{bad}: {error}");
        }
    }

    #[test]
    fn vram_wants_a_gpu() {
        let error = Chosen::new(Device::Cpu, Some(1 << 30), 1).err().unwrap();
        assert_eq!(error.kind(), crate::ErrorKind::Usage, "{error}");
        assert!(Chosen::new(Device::Cpu, None, 1).unwrap().report.why_not_gpu.is_none());
        let devices = devices();
        assert!(devices.cpu.threads > 0 && !devices.cpu.instructions.is_empty());
        let Some(why) = devices.why_no_cuda else { return };
        // Where there is no GPU everything that wants one says so, and nothing else fails.
        let chosen = Chosen::new(Device::Auto, None, 1).unwrap();
        assert!(matches!(chosen.opened, Opened::Cpu) && chosen.gpu.is_none());
        assert_eq!(chosen.report.why_not_gpu.as_deref(), Some(&*why));
        assert!(!why.contains('\n') && available_vram(Device::Auto).is_none(), "{why}");
        for (device, vram) in [(Device::Auto, Some(1 << 30)), (Device::Cuda(0), None)] {
            let error = Chosen::new(device, vram, 1).err().unwrap();
            assert!(error.to_string().contains(&why) && matches!(error, Error::NoGpu { .. }), "{error}");
        }
    }
}
