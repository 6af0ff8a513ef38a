//! Which devices there are, and why one cannot be used.

use super::api::{Api, CUdevice, Outcome};
use super::handles::Context;
use crate::{Error, Kernels, Result};
use cudarc::driver::sys::CUdevice_attribute as Attribute;
use std::ffi::{CStr, c_int};
use std::fmt;

/// Oldest version of CUDA whose drivers load the kernels: they are compiled by CUDA 13.
pub(super) const NEEDED: CudaVersion = CudaVersion { major: 13, minor: 0 };
/// Oldest compute capability that the kernels are compiled for.
const LEAST_CAPABILITY: (u32, u32) = (7, 5);

/// A version of CUDA, as drivers tell it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct CudaVersion {
    /// The 12 of 12.4.
    pub major: u32,
    /// The 4 of 12.4.
    pub minor: u32,
}

impl CudaVersion {
    /// From the driver's number, as 12040.
    fn from_number(number: c_int) -> CudaVersion {
        let number = number.max(0) as u32;
        CudaVersion { major: number / 1000, minor: number % 1000 / 10 }
    }
}

impl fmt::Display for CudaVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Why no device of CUDA can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unusable {
    /// The driver's library cannot be loaded.
    #[error("no CUDA driver is installed")]
    NoDriver,
    /// The driver's library lacks a function.
    #[error("the CUDA driver lacks the function {function}; CUDA {NEEDED} is needed")]
    Incomplete {
        /// Its name.
        function: &'static str,
    },
    /// The driver is older than the kernels.
    #[error("the driver supports CUDA {found}, {needed} is needed")]
    DriverTooOld {
        /// The driver's version.
        found: CudaVersion,
        /// The oldest that does.
        needed: CudaVersion,
    },
    /// There is a driver, but no device.
    #[error("the CUDA driver finds no device")]
    NoDevice,
    /// No device has this number.
    #[error("there is no CUDA device {ordinal}: devices are numbered from 0, and there are {count}")]
    NoSuchDevice {
        /// The number asked for.
        ordinal: usize,
        /// How many there are.
        count: usize,
    },
    /// The device is older than the kernels.
    #[error("{name} has compute capability {}.{}, 7.5 or above is needed", found.0, found.1)]
    Capability {
        /// The device's name.
        name: String,
        /// Its compute capability.
        found: (u32, u32),
    },
    /// This program was built without kernels, or with those of other sources.
    #[error("{why}")]
    KernelsNotBuilt {
        /// Which, and how to build them.
        why: &'static str,
    },
    /// The budget does not hold what the driver itself takes.
    #[error(
        "a budget of {budget} bytes is too small: the driver itself takes {overhead} of the device's memory"
    )]
    Budget {
        /// Bytes allowed.
        budget: u64,
        /// Bytes of the context, and of the kernels in it.
        overhead: u64,
    },
    /// The driver refuses to start, for a reason of its own.
    #[error("the CUDA driver cannot be used: {call}: {what}")]
    Driver {
        /// Its function.
        call: &'static str,
        /// What it said.
        what: String,
    },
}

/// A device that the driver knows.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct DeviceInfo {
    /// Its number, for [`CudaSettings::ordinal`](super::CudaSettings::ordinal).
    pub ordinal: usize,
    /// Its name.
    pub name: String,
    /// Its compute capability, as (8, 6).
    pub capability: (u32, u32),
    /// How many multiprocessors it has.
    pub multiprocessors: u32,
    /// Bytes of its memory.
    pub total: u64,
    /// Bytes of it that no program has; unknown where the device lets no context be made.
    pub free: Option<u64>,
    /// The version of CUDA that the driver supports.
    pub driver: CudaVersion,
    /// Why it cannot be used, if so.
    pub unusable: Option<Unusable>,
}

/// All devices that the driver knows, also those that cannot be used.
///
/// # Errors
///
/// [`Error::Unusable`] where there is no driver, or no device.
pub fn devices() -> Result<Vec<DeviceInfo>> {
    let (api, driver) = driver()?;
    let infos = (0..count(api)?).map(|ordinal| {
        let device = Device::get(api, ordinal)?;
        let free = Context::retain(api, device.raw).ok().and_then(|context| {
            let free = context.memory().ok().map(|(free, _)| free);
            context.leave();
            free
        });
        let unusable = device.unusable(driver).or_else(|| image().err());
        let Device { name, capability, multiprocessors, total, .. } = device;
        Ok(DeviceInfo { ordinal, name, capability, multiprocessors, total, free, driver, unusable })
    });
    infos.collect()
}

/// The driver and its version.
pub(super) fn driver() -> Result<(&'static Api, CudaVersion)> {
    let api = Api::get()?;
    let mut number = 0;
    // SAFETY: the pointer leads to the number.
    done(api, unsafe { api.cuDriverGetVersion(&mut number) })?;
    Ok((api, CudaVersion::from_number(number)))
}

/// The kernels of this build, for the driver to load.
pub(super) fn image() -> Result<&'static [u8], Unusable> {
    Kernels::of_this_build().image().map_err(|why| Unusable::KernelsNotBuilt { why })
}

fn count(api: &Api) -> Result<usize> {
    let mut count = 0;
    // SAFETY: the pointer leads to the number.
    done(api, unsafe { api.cuDeviceGetCount(&mut count) })?;
    match usize::try_from(count) {
        Ok(count) if count > 0 => Ok(count),
        _ => Err(Unusable::NoDevice.into()),
    }
}

/// What the driver says of a device without a context.
#[derive(Debug)]
pub(super) struct Device {
    pub(super) raw: CUdevice,
    pub(super) name: String,
    pub(super) capability: (u32, u32),
    pub(super) multiprocessors: u32,
    pub(super) total: u64,
    /// Most bytes of shared memory that a block can ask for.
    pub(super) shared: usize,
}

impl Device {
    pub(super) fn get(api: &Api, ordinal: usize) -> Result<Device> {
        let count = count(api)?;
        if ordinal >= count {
            return Err(Unusable::NoSuchDevice { ordinal, count }.into());
        }
        let (mut raw, mut total, mut name) = (0, 0, [0u8; 256]);
        let attribute = |attribute, raw| {
            let mut value = 0;
            // SAFETY: the pointer leads to the number; the device is one that the driver gave.
            done(api, unsafe { api.cuDeviceGetAttribute(&mut value, attribute, raw) })?;
            Ok::<_, Error>(value.max(0) as u32)
        };
        // SAFETY: the pointers lead to a number, to room for 255 characters and a number. The device in the latter
        // calls is the one that the first gave.
        unsafe {
            done(api, api.cuDeviceGet(&mut raw, ordinal as c_int))?;
            done(api, api.cuDeviceGetName(name.as_mut_ptr().cast(), name.len() as c_int - 1, raw))?;
            done(api, api.cuDeviceTotalMem_v2(&mut total, raw))?;
        }
        let name = CStr::from_bytes_until_nul(&name).unwrap_or_default().to_string_lossy().into_owned();
        let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, raw)?;
        let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, raw)?;
        Ok(Device {
            raw,
            name,
            capability: (major, minor),
            multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, raw)?,
            total: total as u64,
            shared: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, raw)?
                as usize,
        })
    }

    /// Why kernels cannot run on it, if they were there.
    pub(super) fn unusable(&self, driver: CudaVersion) -> Option<Unusable> {
        if driver < NEEDED {
            return Some(Unusable::DriverTooOld { found: driver, needed: NEEDED });
        }
        let found = self.capability;
        (found < LEAST_CAPABILITY).then(|| Unusable::Capability { name: self.name.clone(), found })
    }
}

/// An error where a call that needs no context failed.
fn done(api: &Api, outcome: Outcome) -> Result<()> {
    match outcome.code {
        0 => Ok(()),
        code => Err(Error::Device { call: outcome.call, what: api.text(code) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_one_line_that_says_what_is_needed() {
        let device = |capability| Device {
            raw: 0,
            name: "Old".into(),
            capability,
            multiprocessors: 1,
            total: 1,
            shared: 1,
        };
        let why = |capability, driver| {
            device(capability).unusable(CudaVersion::from_number(driver)).map(|why| why.to_string())
        };
        assert_eq!(why((7, 5), 13000), None);
        assert_eq!(why((12, 0), 13020), None);
        assert_eq!(why((9, 0), 12040).unwrap(), "the driver supports CUDA 12.4, 13.0 is needed");
        assert_eq!(why((7, 0), 13000).unwrap(), "Old has compute capability 7.0, 7.5 or above is needed");
        assert_eq!(why((6, 9), 14000).unwrap(), "Old has compute capability 6.9, 7.5 or above is needed");
        let lacks = Unusable::Incomplete { function: "cuLaunchKernel" }.to_string();
        assert_eq!(lacks, "the CUDA driver lacks the function cuLaunchKernel; CUDA 13.0 is needed");
    }
}
