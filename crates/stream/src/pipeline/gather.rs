//! Single rows, by need: of an embedding that no pass streams, or of anything else.

use super::{Pipeline, Place};
use crate::arena::{self, ALIGNMENT, Filling, Slot};
use crate::check::load;
use crate::cut::name;
use crate::feed::on_host;
use crate::{Error, Result, TensorId};
use airllm_kernels::Memory;
use std::collections::HashMap;

impl<M: Memory> Pipeline<M> {
    /// Fetches single rows, packed, in the order asked for, and leases them to `f`. Possible at any time,
    /// for any tensor; rows that lie in memory are copied from there.
    pub fn gather<E, F>(&mut self, id: TensorId, rows: &[u32], f: F) -> Result<(), E>
    where
        E: From<Error>,
        F: FnOnce(M::View<'_>) -> Result<(), E>,
    {
        // A pass begins with this: what has arrived meanwhile can be on its way during it.
        self.run_ahead()?;
        let shared = self.shared.clone();
        let tensor = shared.catalog.get(id).ok_or_else(|| Error::Catalog(format!("{id:?} is not there")))?;
        let row_bytes = tensor.row_bytes();
        let mut bytes = vec![0; rows.len() * row_bytes];
        let mut scratch: Option<Slot<Filling>> = None;
        let mut found: HashMap<u32, usize> = HashMap::new();
        for (index, &row) in rows.iter().enumerate() {
            if row as usize >= tensor.rows {
                let tensor_name = name(&shared.catalog, id);
                return Err(Error::Row { tensor: tensor_name, row: row as usize, rows: tensor.rows }.into());
            }
            let to = index * row_bytes;
            if let Some(&earlier) = found.get(&row) {
                bytes.copy_within(earlier..earlier + row_bytes, to);
                continue;
            }
            found.insert(row, to);
            let out = &mut bytes[to..to + row_bytes];
            if let Some(held) = self.held(id, row as usize, row_bytes) {
                out.copy_from_slice(held);
                continue;
            }
            if let Some((place, skip)) = self.place(id, row as usize, row_bytes)
                && self.feed.read(place, skip, out)?
            {
                continue;
            }
            let from = tensor.offset + u64::from(row) * row_bytes as u64;
            let start = from / ALIGNMENT as u64 * ALIGNMENT as u64;
            let skip = (from - start) as usize;
            let len = (skip + row_bytes).next_multiple_of(ALIGNMENT);
            let slot = match &mut scratch {
                Some(slot) => slot,
                None => scratch.insert(one_slot(row_bytes + 2 * ALIGNMENT)?),
            };
            let read = &mut slot.bytes_mut()[..len];
            shared.read(tensor.file, start, read)?;
            out.copy_from_slice(&read[skip..skip + row_bytes]);
        }
        if self.device.copies() {
            return self.staging.lend(&self.device, &bytes, f);
        }
        f(on_host(&*self.device, &bytes)?)?;
        // The bytes are dropped on return, so work that reads them must be over.
        let fence = self.device.fence().map_err(Error::from)?;
        Ok(self.device.wait(&fence).map_err(Error::from)?)
    }

    /// Bytes of a row, if they lie in memory.
    fn held(&self, id: TensorId, row: usize, row_bytes: usize) -> Option<&[u8]> {
        if let Some(slot) = self.gathered.get(&id) {
            return slot.bytes().get(row * row_bytes..(row + 1) * row_bytes);
        }
        if self.shared.catalog.units.get(id.unit)?.on_demand {
            return self.held_on_demand(id, row, row_bytes);
        }
        let (place, skip) = self.place(id, row, row_bytes)?;
        let at = place.part.at + skip;
        self.intake.kept(place.stripe)?.bytes().get(at..at + row_bytes)
    }

    /// Where a row lies among the stripes of the pass, and how far behind the first byte of its part.
    fn place(&self, id: TensorId, row: usize, row_bytes: usize) -> Option<(Place, usize)> {
        let cut = &self.shared.cut;
        let entry = self.shared.catalog.pass.iter().position(|&other| other == id)?;
        let first = *cut.starts.get(entry)?;
        for (stripe, it) in cut.stripes.iter().enumerate().skip(first) {
            let index = it.parts.iter().position(|part| part.id == id)?;
            let part = it.parts[index];
            if row < part.first + part.count {
                return Some((Place { stripe, index, part }, (row - part.first) * row_bytes));
            }
        }
        None
    }

    /// Bytes of a row of an on-demand unit, if they lie in memory.
    fn held_on_demand(&self, id: TensorId, row: usize, row_bytes: usize) -> Option<&[u8]> {
        let (stripes, entry) = self.demand.unit(id.unit)?;
        let cut = &self.shared.on_demand;
        for stripe in *cut.starts.get(entry + id.tensor)?..stripes.end {
            let part = cut.stripes[stripe].parts.iter().find(|part| part.id == id)?;
            if row < part.first + part.count {
                let at = part.at + (row - part.first) * row_bytes;
                return self.demand.slot(stripe)?.bytes().get(at..at + row_bytes);
            }
        }
        None
    }

    /// Checks tensors that no pass streams and nobody requests, and keeps those of pinned units.
    pub(super) fn load_gathered(&mut self, pinned: &[bool]) -> Result<()> {
        let shared = self.shared.clone();
        for (unit, it) in shared.catalog.units.iter().enumerate().filter(|(_, unit)| !unit.on_demand) {
            for (index, tensor) in it.tensors.iter().enumerate() {
                let id = TensorId { unit, tensor: index };
                let pin = pinned.get(unit).copied().unwrap_or(false);
                if shared.catalog.pass.contains(&id) || (!pin && tensor.checksum.is_none()) {
                    continue;
                }
                if let Some(slot) = load(&shared, id, tensor, pin)? {
                    self.gathered.insert(id, slot);
                }
            }
        }
        Ok(())
    }
}

fn one_slot(bytes: usize) -> Result<Slot<Filling>> {
    match arena::carve(&[bytes])?.pop() {
        Some(slot) => Ok(slot.fill()),
        None => Err(Error::Stopped),
    }
}
