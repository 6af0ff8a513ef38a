//! How large a ring is, in which order units get to stay, and what staying costs.

use super::{FEWEST_SLOTS, Need, Request, UnitNeed};
use crate::arena::ALIGNMENT;
use crate::cut::LARGEST_STRIPE;

/// Below this size reads get slow.
const COMFORTABLE_SLOT: usize = 1 << 20;

/// A ring that is to be found room for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ring {
    /// Slots that keep every lane busy.
    wanted: usize,
    /// Slots that it has where these do not fit.
    fewest: usize,
    /// Bytes of a slot, where the user has named them.
    slot_bytes: Option<usize>,
    /// Bytes of the smallest slot that holds the longest row.
    least_slot: usize,
}

impl Ring {
    /// The ring that is read into. One slot is computed with while every reader fills another, and one more is
    /// ready.
    pub fn host(request: &Request, least_slot: usize) -> Self {
        Self {
            wanted: request.slots.unwrap_or(request.readers.max(1) + 2).max(1),
            fewest: request.slots.unwrap_or(FEWEST_SLOTS),
            slot_bytes: request.slot_bytes,
            least_slot,
        }
    }

    /// The ring that is uploaded to. One slot is computed with while another is copied to, and two more are done.
    pub fn device(request: &Request, least_slot: usize) -> Self {
        Self { wanted: 4, fewest: FEWEST_SLOTS, slot_bytes: request.slot_bytes, least_slot }
    }

    /// Bytes of the smallest ring that works.
    pub fn least(self) -> u64 {
        (self.fewest * self.slot_bytes.unwrap_or(self.least_slot).max(self.least_slot)) as u64
    }

    /// Slots and slot size out of `left` bytes, at least [`least`](Self::least).
    pub fn of(self, left: u64) -> (usize, usize) {
        let share = usize::try_from(left / 4).unwrap_or(usize::MAX);
        let left = usize::try_from(left).unwrap_or(usize::MAX);
        let even = share / self.wanted / ALIGNMENT * ALIGNMENT;
        let comfortable = COMFORTABLE_SLOT.min(left / self.wanted);
        let slot_bytes = self.slot_bytes.unwrap_or(even.min(LARGEST_STRIPE).max(comfortable));
        let slot_bytes = (slot_bytes / ALIGNMENT * ALIGNMENT).max(self.least_slot);
        if left / slot_bytes >= self.wanted {
            (self.wanted, slot_bytes)
        } else {
            // `left` holds the fewest slots of the least size.
            let fit = left / self.fewest / ALIGNMENT * ALIGNMENT;
            (self.fewest, slot_bytes.min(fit).max(self.least_slot))
        }
    }

    /// Bytes that are set aside for the ring out of `left`, of which it takes no more than a quarter where its slots
    /// are large. A ring of a quarter is rounded down; what that leaves is
    /// not counted, so that more memory never makes less room.
    pub fn set_aside(self, left: u64) -> u64 {
        let (slots, slot_bytes) = self.of(left);
        let quarter = match self.slot_bytes {
            Some(_) => 0,
            None => (left / 4).min((self.wanted * LARGEST_STRIPE) as u64),
        };
        quarter.max((slots * slot_bytes) as u64)
    }
}

/// The order in which units that stream get to stay, so that every prefix is spread evenly over the pass: van
/// der Corput's sequence in base 2.
pub(super) fn pin_order(need: &Need) -> Vec<usize> {
    let streams: Vec<usize> = (0..need.units.len()).filter(|&index| need.units[index].is_in_pass()).collect();
    let bits = usize::BITS - streams.len().saturating_sub(1).leading_zeros();
    (0..1usize << bits)
        .map(|i| if bits == 0 { 0 } else { i.reverse_bits() >> (usize::BITS - bits) })
        .filter_map(|position| streams.get(position).copied())
        .collect()
}

/// How finely units that stay are cut.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stripes {
    /// Bytes of weights that a stripe holds, about the least.
    payload: u64,
}

impl Stripes {
    /// As large as reads get.
    pub const LARGEST: Self = Self { payload: LARGEST_STRIPE as u64 };

    /// Stripes that fit slots of `slot_bytes`, which hold at least one row of `row` bytes.
    pub fn of(slot_bytes: usize, row: usize) -> Self {
        // A stripe starts anywhere in its first page. Whole rows that are no longer than the rest fill half of it at
        // least, and all of it but one row.
        let rest = slot_bytes.saturating_sub(ALIGNMENT - 1);
        Self { payload: rest.saturating_sub(row).max(rest / 2).clamp(1, LARGEST_STRIPE) as u64 }
    }

    /// Bytes a unit takes where it stays: its stripes start and end on [`ALIGNMENT`], and the unit's neighbours
    /// can make it begin a stripe of its own.
    pub fn bytes(self, unit: &UnitNeed) -> u64 {
        let stripes = 1 + unit.bytes / self.payload + unit.on_demand.map_or(1, |it| it.runs as u64);
        unit.bytes + stripes * 2 * ALIGNMENT as u64
    }

    /// Bytes that the units take that are marked.
    pub fn sum(self, need: &Need, marks: &[bool]) -> u64 {
        need.units.iter().zip(marks).filter(|(_, mark)| **mark).map(|(unit, _)| self.bytes(unit)).sum()
    }
}
