//! What can be wrong with a row of weights.

use airllm_format::NumFormat;

/// Errors of this crate. Each says what was expected and what was found.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A weight is NaN or infinite: no format here stores it, and a model that holds it is broken.
    #[error("weight {position} of the row is {value}; only finite numbers can be stored as {format}")]
    NotFinite {
        /// The format asked for.
        format: NumFormat,
        /// Index in the row.
        position: usize,
        /// NaN or an infinity.
        value: f32,
    },
    /// A weight is finite but too large for the format.
    #[error("weight {position} of the row is {value}; {format} reaches only to {limit}")]
    TooLarge {
        /// The format asked for.
        format: NumFormat,
        /// Index in the row.
        position: usize,
        /// The weight.
        value: f32,
        /// The largest magnitude that the format holds.
        limit: f32,
    },
    /// The packed row has the wrong length.
    #[error("a {format} row of {cols} weights is {expected} bytes long, the buffer has {found}")]
    RowBytes {
        /// The format asked for.
        format: NumFormat,
        /// Weights in the row.
        cols: usize,
        /// Bytes needed.
        expected: usize,
        /// Bytes there.
        found: usize,
    },
    /// A format that has a name but no packing.
    #[error("rows cannot be packed as {format}")]
    Unsupported {
        /// The format asked for.
        format: NumFormat,
    },
}

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
