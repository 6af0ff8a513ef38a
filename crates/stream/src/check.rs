//! Checks of what is read: the catalog against the source, rows against their checksums.

use crate::arena::{self, ALIGNMENT, Filling, Ready, Slot};
use crate::cut::{Cut, Stripe, name};
use crate::reader::Shared;
use crate::{Catalog, Error, Result, Tensor, TensorId};
use airllm_format::LayerSource;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Checks rows against the catalog's checksums when they are read for the first time.
///
/// A sum over rows can be added up in any order, so it does not matter how tensors were cut or which
/// reader was faster; the last stripe of a tensor to arrive is the one that compares.
#[derive(Debug)]
pub struct Checks {
    /// Whether a stripe was counted, by stripe.
    seen: Vec<AtomicBool>,
    /// Sum and rows missing for each entry of the cut.
    entries: Vec<(AtomicU64, AtomicU64)>,
    /// For each stripe, the entry of its first part; parts are consecutive entries.
    first_entry: Vec<usize>,
}

impl Checks {
    /// Nothing was read yet.
    pub fn new(catalog: &Catalog, cut: &Cut) -> Self {
        let rows = |&id| catalog.get(id).map_or(0, |tensor: &Tensor| tensor.rows as u64);
        let mut first_entry = Vec::with_capacity(cut.stripes.len());
        let mut entry = 0;
        for stripe in &cut.stripes {
            first_entry.push(entry);
            let last = stripe.parts[stripe.parts.len() - 1];
            entry += stripe.parts.len() - 1;
            if last.first + last.count == catalog.get(last.id).map_or(0, |tensor| tensor.rows) {
                entry += 1;
            }
        }
        Self {
            seen: cut.stripes.iter().map(|_| AtomicBool::new(false)).collect(),
            entries: cut.entries.iter().map(|id| (AtomicU64::new(0), AtomicU64::new(rows(id)))).collect(),
            first_entry,
        }
    }

    /// Counts a stripe that was just read; compares each tensor that it completes.
    pub fn check(&self, shared: &Shared, index: usize, stripe: &Stripe, bytes: &[u8]) -> Result<()> {
        if self.seen[index].swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        for (entry, part) in (self.first_entry[index]..).zip(&stripe.parts) {
            let Some(tensor) = shared.catalog.get(part.id) else {
                continue;
            };
            let Some(expected) = tensor.checksum else {
                continue;
            };
            let row = tensor.row_bytes();
            let sum = row_sum(&bytes[part.at..part.at + part.count * row], row, part.first);
            let (total, missing) = &self.entries[entry];
            total.fetch_add(sum, Ordering::Relaxed);
            // AcqRel orders every reader's sum before the read by whoever brings the last rows.
            let count = part.count as u64;
            if missing.fetch_sub(count, Ordering::AcqRel) == count {
                compare(shared, part.id, tensor, expected, total.load(Ordering::Relaxed))?;
            }
        }
        Ok(())
    }
}

/// Wrapping sum of the rows' hashes, `first` being the index of the first one.
fn row_sum(bytes: &[u8], row: usize, first: usize) -> u64 {
    bytes
        .chunks_exact(row)
        .zip(first as u64..)
        .fold(0, |sum: u64, (row, index)| sum.wrapping_add(xxh3_64_with_seed(row, index)))
}

/// Refuses a tensor whose sum differs.
fn compare(shared: &Shared, id: TensorId, tensor: &Tensor, expected: u64, found: u64) -> Result<()> {
    if expected == found {
        return Ok(());
    }
    Err(Error::Checksum {
        file: shared.source.0.name(tensor.file).to_string(),
        tensor: name(&shared.catalog, id),
        expected,
        found,
    })
}

/// Reads a tensor that no pass streams, compares its checksum, and keeps it if `pin` says so.
pub fn load(shared: &Shared, id: TensorId, tensor: &Tensor, pin: bool) -> Result<Option<Slot<Ready>>> {
    const CHUNK: usize = 4 << 20;
    let row = tensor.row_bytes();
    let rows_at_once = (CHUNK / row).max(1);
    let mut kept = if pin { one_slot(tensor.bytes())? } else { None };
    let mut scratch = one_slot(rows_at_once * row + 2 * ALIGNMENT)?;
    let mut sum: u64 = 0;
    let mut first = 0;
    while first < tensor.rows {
        let count = rows_at_once.min(tensor.rows - first);
        let from = tensor.offset + (first * row) as u64;
        let start = from / ALIGNMENT as u64 * ALIGNMENT as u64;
        let skip = (from - start) as usize;
        let Some(slot) = &mut scratch else {
            return Err(Error::Stopped);
        };
        let bytes = &mut slot.bytes_mut()[..(skip + count * row).next_multiple_of(ALIGNMENT)];
        shared.read(tensor.file, start, bytes)?;
        let bytes = &bytes[skip..skip + count * row];
        if tensor.checksum.is_some() {
            sum = sum.wrapping_add(row_sum(bytes, row, first));
        }
        if let Some(slot) = &mut kept {
            slot.bytes_mut()[first * row..(first + count) * row].copy_from_slice(bytes);
        }
        first += count;
    }
    if let Some(expected) = tensor.checksum {
        compare(shared, id, tensor, expected, sum)?;
    }
    Ok(kept.map(Slot::ready))
}

/// Refuses a catalog that names bytes its source does not have.
pub fn check_catalog(catalog: &Catalog, source: &dyn LayerSource) -> Result<()> {
    for unit in &catalog.units {
        for tensor in &unit.tensors {
            let what = format!("{}.{}", unit.name, tensor.name);
            if tensor.file >= source.files() {
                let files = source.files();
                return Err(Error::Catalog(format!("{what} is in file {}, there are {files}", tensor.file)));
            }
            if tensor.rows == 0 || tensor.row_bytes() == 0 {
                return Err(Error::Catalog(format!("{what} is empty")));
            }
            let len = source.len(tensor.file);
            let end = tensor.offset.checked_add(tensor.bytes() as u64);
            if end.is_none_or(|end| end > len) {
                return Err(Error::Catalog(format!(
                    "{what} needs bytes {} to {} of {}, which has {len}",
                    tensor.offset,
                    tensor.offset.saturating_add(tensor.bytes() as u64),
                    source.name(tensor.file),
                )));
            }
        }
    }
    for &id in &catalog.pass {
        if catalog.get(id).is_none() {
            return Err(Error::Catalog(format!("the pass names {id:?}, which is not there")));
        }
        if catalog.units[id.unit].on_demand {
            let what = name(catalog, id);
            return Err(Error::Catalog(format!("the pass names {what}, which is read on demand")));
        }
    }
    Ok(())
}

fn one_slot(bytes: usize) -> Result<Option<Slot<Filling>>> {
    Ok(arena::carve(&[bytes])?.pop().map(Slot::fill))
}
