//! One pass over a shard that computes everything its bytes are checked against.

use super::sums::RowSums;
use crate::Result;
use crate::disk::{ReadAt, read_through};
use std::ops::Range;
use std::path::Path;
use xxhash_rust::xxh3::Xxh3;

/// What a pass over a file found.
pub(crate) struct Scan {
    /// `xxh3_128` of the whole file.
    pub(crate) xxh3: u128,
    /// The checksum of each tensor, in the order asked.
    pub(crate) sums: Vec<u64>,
    /// Length of the file.
    pub(crate) len: u64,
}

/// Reads a file of a length once; `path` is for messages. `tensors` are byte ranges in rising order with their bytes per row; `keep` receives
/// all bytes that are in none of them, with their offset; `progress` the size of each block read.
pub(crate) fn scan(
    file: (&impl ReadAt, u64),
    path: &Path,
    tensors: &[(Range<u64>, usize)],
    mut keep: impl FnMut(u64, &[u8]),
    mut progress: impl FnMut(u64),
) -> Result<Scan> {
    let mut hash = Xxh3::new();
    let mut sums: Vec<u64> = Vec::with_capacity(tensors.len());
    let mut waiting = tensors.iter();
    let mut current = waiting.next().map(|(range, row)| (range.clone(), RowSums::new(*row)));
    let mut at = 0u64;
    let len = read_through(file, path, |block| {
        hash.update(block);
        let mut rest = block;
        while !rest.is_empty() {
            let take = match &mut current {
                Some((range, row_sums)) if at >= range.start => {
                    let take = rest.len().min((range.end - at) as usize);
                    row_sums.update(&rest[..take]);
                    take
                }
                Some((range, _)) => rest.len().min((range.start - at) as usize),
                None => rest.len(),
            };
            if current.as_ref().is_none_or(|(range, _)| at < range.start) {
                keep(at, &rest[..take]);
            }
            at += take as u64;
            rest = &rest[take..];
            if let Some((range, row_sums)) = current.take_if(|(range, _)| at >= range.end) {
                debug_assert_eq!(range.end, at);
                sums.push(row_sums.finish());
                current = waiting.next().map(|(range, row)| (range.clone(), RowSums::new(*row)));
            }
        }
        progress(block.len() as u64);
        Ok(())
    })?;
    Ok(Scan { xxh3: hash.digest128(), sums, len })
}
