//! What can go wrong on a device.

/// Errors of devices. Every variant says which verb, what it expected and what it found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An operand has the wrong size.
    #[error("{verb}: {operand} holds {found} bytes, {expected} are needed")]
    Shape {
        /// The verb that was called.
        verb: &'static str,
        /// Which of its operands.
        operand: &'static str,
        /// Bytes needed.
        expected: usize,
        /// Bytes there.
        found: usize,
    },
    /// A parameter that no size could satisfy.
    #[error("{verb}: {what}")]
    Argument {
        /// The verb that was called.
        verb: &'static str,
        /// What is wrong with the parameter, with its value.
        what: String,
    },
    /// The device has no memory left.
    #[error("no memory for {bytes} bytes on {device}")]
    OutOfMemory {
        /// Bytes asked for.
        bytes: usize,
        /// Name of the device.
        device: &'static str,
    },
    /// The device may take no more memory.
    #[error(
        "no memory for {bytes} bytes in one piece on {device}: {left} of its budget of {budget} bytes are not in use"
    )]
    Budget {
        /// Bytes asked for.
        bytes: usize,
        /// Name of the device.
        device: &'static str,
        /// Bytes of the budget that nothing uses, in however many pieces.
        left: u64,
        /// Bytes that the device may take in all.
        budget: u64,
    },
    /// The driver of a device failed.
    #[error("{call}: {what}")]
    Device {
        /// Its function.
        call: &'static str,
        /// Name and text of its error; where kernels may have failed, their names.
        what: String,
    },
    /// There is no CUDA device to use.
    #[cfg(feature = "cuda")]
    #[error(transparent)]
    Unusable(#[from] crate::Unusable),
    /// A kernel did not run to its end.
    #[error("{verb}: kernel {kernel}: {what}")]
    Kernel {
        /// The verb that was called.
        verb: &'static str,
        /// The kernel's name.
        kernel: String,
        /// What went wrong.
        what: String,
    },
}

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
