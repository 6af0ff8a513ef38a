//! Checkpoints and layer shards: bytes <-> named tensors.
#![forbid(unsafe_code)]

mod error;
mod number;
mod source;

pub use error::{Error, Result};
pub use number::NumFormat;
pub use source::LayerSource;
