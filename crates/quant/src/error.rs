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
    /// A row of a format in blocks ends within a block.
    #[error("a row of {cols} weights cannot be {format}: that comes in whole blocks of {block}")]
    PartBlock {
        /// The format asked for.
        format: NumFormat,
        /// Weights in the row.
        cols: usize,
        /// Weights in a block.
        block: usize,
    },
    /// A row is to be made of scales or zero points that are too few or too many.
    #[error("a {format} row of {cols} weights has {expected} {what}, not {found}")]
    Count {
        /// The format asked for.
        format: NumFormat,
        /// Weights in the row.
        cols: usize,
        /// What was counted.
        what: &'static str,
        /// How many are needed.
        expected: usize,
        /// How many there are.
        found: usize,
    },
    /// A row is to be made of a code or a zero point that the format cannot hold.
    #[error("{what} {position} of the row is {found}; {format} reaches only to {limit}")]
    OutOfRange {
        /// The format asked for.
        format: NumFormat,
        /// "code" or "zero point".
        what: &'static str,
        /// Index in the row.
        position: usize,
        /// The number.
        found: usize,
        /// The largest that the format holds.
        limit: usize,
    },
    /// An importance that errors cannot be weighed by.
    #[error("importance {position} of the row is {value}; expected 0 or more, and finite")]
    Importance {
        /// Index in the row.
        position: usize,
        /// What was found.
        value: f32,
    },
    /// Inputs of a layer that are not whole tokens.
    #[error("{found} numbers are no whole number of inputs of {cols}")]
    Inputs {
        /// Numbers of an input.
        cols: usize,
        /// Numbers there.
        found: usize,
    },
    /// An input of a layer is NaN or infinite.
    #[error("input {column} of token {token} is {value}; only finite inputs say anything about errors")]
    Input {
        /// Which of the tokens that were given together.
        token: usize,
        /// Which of its numbers.
        column: usize,
        /// NaN or an infinity.
        value: f32,
    },
    /// A damping that cannot be.
    #[error("the damping is {found}; expected 0 or more, and finite")]
    Damping {
        /// What was asked for.
        found: f64,
    },
    /// Products of inputs that no damping makes positive definite.
    #[error(
        "the products of inputs are not positive definite at column {column}, though {damping} times the mean {mean} of the diagonal was added"
    )]
    Indefinite {
        /// The column.
        column: usize,
        /// The mean of the diagonal, summed over the tokens.
        mean: f64,
        /// The last damping that was tried.
        damping: f64,
    },
    /// Weights or bytes that are not whole rows, or not as many rows as the other.
    #[error("{weights} weights and {bytes} bytes are not the same number of {format} rows of {cols} weights")]
    Rows {
        /// The format asked for.
        format: NumFormat,
        /// Weights in a row.
        cols: usize,
        /// Weights there.
        weights: usize,
        /// Bytes there.
        bytes: usize,
    },
    /// What is wrong with one row of several.
    #[error("row {row}: {error}")]
    Row {
        /// Which of the rows that were given together.
        row: usize,
        /// What is wrong with it.
        #[source]
        error: Box<Error>,
    },
    /// A format that rows cannot be made in this way.
    #[error("{format} rows cannot be made this way")]
    Unsupported {
        /// The format asked for.
        format: NumFormat,
    },
}

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
