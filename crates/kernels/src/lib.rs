//! The verbs of a transformer forward and the devices that compute them.
//!
//! Two traits say what a device is: [`Memory`] (allocation, copies, fences) is all that the streaming
//! engine sees of it, [`Ops`] (some ten verbs over rows of f32) is all that a model sees. Devices:
//!
//! - [`Cpu`] computes from host memory, with AVX2 where the processor has it;
//! - [`Trace`] computes nothing, but checks and logs every call;
//! - `Cuda`, with the feature `cuda`, is a GPU of NVIDIA; the driver is looked for when it is opened;
//! - `Emu`, with the feature `emu`, runs the CUDA kernels on the host, thread by thread. For tests.
//!
//! [`mod@conformance`] holds the cases that every device must pass.
//!
//! ```
//! use airllm_kernels::{Cpu, Memory, Ops};
//!
//! let cpu = Cpu::new(1);
//! let mut y = cpu.alloc(8)?;
//! let mut x = cpu.alloc(8)?;
//! cpu.write(&mut x, 0, &[1f32.to_le_bytes(), 2f32.to_le_bytes()].concat())?;
//! cpu.add(&mut y, &x, 2)?;
//! cpu.add(&mut y, &x, 2)?;
//!
//! let mut out = [0u8; 8];
//! cpu.read(&y, 0, &mut out)?;
//! assert_eq!(out, [2f32.to_le_bytes(), 4f32.to_le_bytes()].concat()[..]);
//! # Ok::<(), airllm_kernels::Error>(())
//! ```
//!
//! What is absent: files, models, and any choice between devices.

#[cfg(any(feature = "emu", feature = "cuda", test))]
#[cfg_attr(not(feature = "emu"), allow(dead_code, unused_imports))]
mod abi;
pub mod conformance;
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(feature = "emu")]
mod emu;
mod error;
mod image;
#[cfg(any(feature = "emu", feature = "cuda"))]
mod launch;
mod memory;
mod ops;
mod shape;
mod trace;

pub use cpu::{Cpu, CpuBuf};
#[cfg(feature = "cuda")]
pub use cuda::{
    Cuda, CudaBuf, CudaFence, CudaSettings, CudaVersion, CudaView, DeviceInfo, DeviceMemory, Unusable,
    devices,
};
#[cfg(feature = "emu")]
pub use emu::{Emu, EmuBuf, EmuView, Order, Rung};
pub use error::{Error, Result};
pub use image::Kernels;
#[cfg(any(feature = "emu", feature = "cuda"))]
pub use launch::scratch_bytes;
pub use memory::Memory;
pub use ops::{
    Activation, Attend, Columns, Heads, KvFormat, Matrix, Ops, Place, Regime, Rope, RopeKind, Tokens, Work,
    alibi_slope,
};
pub use trace::{Event, Extent, Trace};
