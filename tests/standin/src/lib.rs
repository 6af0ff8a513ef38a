//! A stand-in for the CUDA driver: `libcuda.so` and `libcuda.so.1` without a GPU, for tests.
//!
//! Launches run the `.cu` files of the repository on the host, as the `Emu` device does; everything else (contexts, memory,
//! streams, events, graphs) is modelled as CUDA promises it and no better: lazily, with NaN in new memory, so that a missing
//! wait or a buffer that is used too early gives a wrong answer every time. `driver/standin.h` says exactly what is
//! promised, and lists the switches.
//!
//! The unmodified device code runs on it: whoever depends on this package with the feature `emu` has the folder of the
//! libraries on the library path of its tests, where `cudarc` finds them before those of a real driver.
//!
//! ```no_run
//! # #[cfg(feature = "emu")] {
//! // One test at a time has the driver, with switches of its own.
//! let standin = airllm_standin::Standin::with("MEMORY=100000000 ORDER=reverse");
//! // ... opens the CUDA device, works with it, drops it ...
//! assert_eq!(standin.calls("cuCtxSynchronize"), 0);
//! assert!(standin.peak() <= 100_000_000);
//! # }
//! ```

#[cfg(feature = "emu")]
mod driver;

#[cfg(feature = "emu")]
pub use driver::{Standin, folder};
