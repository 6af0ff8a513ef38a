//! Layer shards: one file per unit of a model, laid out for streaming.
//!
//! A shard is a valid safetensors file, so that any reader can open it, with more order than the format
//! asks for:
//!
//! - the data starts at a multiple of 4096 bytes and the file's length is one, so that direct reads fit;
//! - tensors come in the order of use, each at a multiple of 256 bytes; `__pad.N` tensors fill the holes;
//! - plain tensors keep their type and shape, quantised ones are `U8 [rows, row_bytes]`;
//! - `__metadata__` names the unit, the recipe, the source and the number format and shape of each tensor;
//! - behind the last tensor comes `__sums`, `U64 [tensors]`: the checksum of each tensor.
//!
//! Everything in front of the data is known before the first weight is, so a shard is written and hashed
//! in one go, and equal input gives equal bytes.
//!
//! The checksum of a tensor is the wrapping sum over its rows of `xxh3_64(row, seed = row index)`. It does
//! not depend on how the rows are cut into reads, see [`RowSums`].

mod blocks;
mod layout;
mod scan;
mod spread;
mod sums;
#[cfg(test)]
mod tests;
mod writer;

pub use layout::{ALIGNMENT, Geometry, ShardTag, TENSOR_ALIGNMENT, TensorSpec, file_bytes};
pub use spread::{Folders, PART_HEAD, Piece, ShardFile, Spread, dealt};
pub use sums::{RowSums, row_checksum};
pub use writer::{ShardWriter, accept, accept_in};

pub(crate) use scan::scan;
pub(crate) use spread::in_parts;

/// Hexadecimal form of a tensor's checksum, as it stands in `airllm.json`.
pub fn checksum_hex(sum: u64) -> String {
    format!("{sum:016x}")
}

/// Reads the hexadecimal form of a tensor's checksum: exactly 16 digits in lower case.
pub fn parse_checksum(hex: &str) -> Option<u64> {
    let digits = hex.len() == 16 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if digits { u64::from_str_radix(hex, 16).ok() } else { None }
}
