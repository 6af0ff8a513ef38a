//! Calibrating: a text runs through a checkpoint layer by layer, to see what rounding does to it and to round better.

mod differ;
mod layers;
mod sensitivity;
mod shards;
mod state;
mod target;
#[cfg(test)]
mod tests;
mod text;

pub(crate) use layers::Layers;
pub(crate) use sensitivity::measure;
pub(crate) use shards::Calibrated;
pub(crate) use state::Keep;
pub use target::{Target, Widths};
pub(crate) use target::{apply, choose};
pub use text::CalibrationText;
pub(crate) use text::Samples;

use std::collections::BTreeMap;

/// The format of each matrix, by unit and name in its shard.
pub(crate) type Formats = BTreeMap<(String, String), airllm_format::NumFormat>;

/// Bytes that sums of products take at most, where no budget says something else.
pub(crate) const MEMORY: u64 = 4 << 30;

/// Tokens of hidden states that go through a layer at once.
pub(crate) const BATCH_TOKENS: usize = 2048;

/// Tokens of calibration text that are taken, where nothing else is said.
pub(crate) const TOKENS: usize = 32_768;
