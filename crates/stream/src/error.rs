//! What can go wrong between the disk and a lease.

use std::sync::Arc;

/// Errors of the stream.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The source could not deliver; tried again before this was said.
    #[error("{0}")]
    Source(Arc<airllm_format::Error>),
    /// The device refused.
    #[error("{0}")]
    Device(Arc<airllm_kernels::Error>),
    /// The system gave no memory.
    #[error("no memory for {bytes} bytes of {what}: {reason}")]
    Memory {
        /// Bytes asked for.
        bytes: usize,
        /// What they were for.
        what: &'static str,
        /// The system's answer.
        reason: String,
    },
    /// A row does not fit a slot of the ring.
    #[error("{tensor}: one row needs a slot of {need} bytes, slots have {have}")]
    SlotTooSmall {
        /// The tensor, as `unit.tensor`.
        tensor: String,
        /// Smallest slot that works.
        need: usize,
        /// Slot size given.
        have: usize,
    },
    /// Bytes are not what was written: the file changed after it was prepared.
    #[error("{file}: {tensor} is damaged: checksum {found:016x}, the manifest says {expected:016x}")]
    Checksum {
        /// The file.
        file: String,
        /// The tensor, as `unit.tensor`.
        tensor: String,
        /// The manifest's value.
        expected: u64,
        /// The value of the bytes read.
        found: u64,
    },
    /// A tensor was asked for that is not the next one of the pass.
    #[error("tensor {found} was asked for, the next one of the pass is {expected}")]
    OutOfOrder {
        /// The next one.
        expected: String,
        /// The one asked for.
        found: String,
    },
    /// A tensor or unit was asked for on demand that is not the next one of those requested.
    #[error("{found} was asked for, the next one of those requested is {expected}")]
    NotNext {
        /// The next one.
        expected: String,
        /// The one asked for.
        found: String,
    },
    /// A row index beyond the tensor.
    #[error("{tensor}: row {row} was asked for, there are {rows}")]
    Row {
        /// The tensor, as `unit.tensor`.
        tensor: String,
        /// The row asked for.
        row: usize,
        /// Rows there are.
        rows: usize,
    },
    /// A unit was requested that cannot be.
    #[error("unit {unit} was requested, {why}")]
    Request {
        /// The unit's name, or its index where there is none.
        unit: String,
        /// What is wrong with that.
        why: &'static str,
    },
    /// The catalog contradicts itself or its source.
    #[error("catalog: {0}")]
    Catalog(String),
    /// The reader threads have ended.
    #[error("the stream was stopped")]
    Stopped,
}

impl From<airllm_format::Error> for Error {
    fn from(error: airllm_format::Error) -> Self {
        Self::Source(Arc::new(error))
    }
}

impl From<airllm_kernels::Error> for Error {
    fn from(error: airllm_kernels::Error) -> Self {
        Self::Device(Arc::new(error))
    }
}

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
