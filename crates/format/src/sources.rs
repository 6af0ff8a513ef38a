//! The [`LayerSource`](crate::LayerSource)s: files, memory, and one that fails on demand.

mod fault;
mod file;
mod fill;
mod memory;
mod method;
mod probe;

pub use fault::FaultSource;
pub use file::FileSource;
pub use memory::MemorySource;
pub use method::{QueuedReads, ReadMethod};
pub use probe::{Probe, Rate};
