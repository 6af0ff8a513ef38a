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
