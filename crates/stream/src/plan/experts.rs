//! Units that are read on demand, and the cache that they go through.

use super::{FEWEST_SLOTS, Need, OnDemand, Request};
use crate::ExpertCache;
use crate::arena::ALIGNMENT;
use crate::cut::{LARGEST_STRIPE, smallest_slot};

/// All units that are read on demand, together.
pub(super) struct Experts {
    /// Bytes of the smallest slot that works; 0 where nothing is read on demand.
    least_slot: usize,
    /// Bytes of a slot that holds the longest stretch, or an even part of it.
    slot: usize,
    /// Slots of that size for all of them.
    slots: usize,
    /// Slots that are read into or computed with, rather than kept.
    moving: usize,
    /// Bytes that one token uses.
    per_token: u64,
}

impl Experts {
    pub fn of(need: &Need, request: &Request) -> Self {
        let all = || need.units.iter().filter_map(|unit| unit.on_demand.map(|on_demand| (unit, on_demand)));
        let moving = request.readers.max(1) + 2;
        let Some(longest) = all().map(|(_, it)| it.longest_run).max() else {
            return Self { least_slot: 0, slot: 0, slots: 0, moving, per_token: 0 };
        };
        let least_slot = smallest_slot(need.longest_demand_row.max(1));
        // A stripe starts and ends on ALIGNMENT, and ends with a whole row.
        let edges = 2 * ALIGNMENT as u64;
        let parts = longest.div_ceil(LARGEST_STRIPE as u64).max(1);
        let row = if parts > 1 { need.longest_demand_row as u64 } else { 0 };
        let even = (longest.div_ceil(parts) + row + edges).next_multiple_of(ALIGNMENT as u64);
        let slot = usize::try_from(even).unwrap_or(LARGEST_STRIPE).max(least_slot);
        let stripes = |it: OnDemand| {
            let whole = it.longest_run + edges <= slot as u64;
            it.runs * if whole { 1 } else { parts as usize }
        };
        Self {
            least_slot,
            slot,
            slots: all().map(|(_, it)| stripes(it)).sum(),
            moving,
            per_token: all().map(|(unit, _)| unit.per_pass).sum(),
        }
    }

    /// Bytes of the smallest cache that works.
    pub fn least(&self) -> u64 {
        (FEWEST_SLOTS * self.least_slot) as u64
    }

    /// The cache for `room` bytes, at least [`least`](Self::least), and the share it is expected to hit.
    pub fn cache(&self, room: u64) -> (ExpertCache, f64) {
        if self.slots == 0 {
            return (ExpertCache::default(), 1.0);
        }
        let room = usize::try_from(room).unwrap_or(usize::MAX);
        let slots = (room / self.slot).min(self.slots);
        if slots == self.slots {
            return (ExpertCache { slots, slot_bytes: self.slot }, 1.0);
        }
        if slots >= self.moving {
            let hits = (slots - self.moving) as f64 / self.slots as f64;
            return (ExpertCache { slots, slot_bytes: self.slot }, hits);
        }
        // Too small to keep anything: experts flow through.
        let slot_bytes = (room / self.moving / ALIGNMENT * ALIGNMENT).clamp(self.least_slot, self.slot);
        (ExpertCache { slots: (room / slot_bytes).min(self.moving), slot_bytes }, 0.0)
    }

    /// Bytes that one token is expected to read.
    pub fn misses(&self, hits: f64) -> u64 {
        (self.per_token as f64 * (1.0 - hits)).round() as u64
    }

    /// Whether all of them stay in this cache once read.
    pub fn fit(&self, cache: ExpertCache) -> bool {
        self.slots == 0 || cache.slots == self.slots
    }

    /// Bytes of a GPU's memory that they pass through: one stripe is computed with while another is copied.
    pub fn staging(&self) -> u64 {
        2 * self.slot as u64
    }

    /// No cache for them, since all of them stay: what they are cut into.
    pub fn all_pinned(&self) -> ExpertCache {
        ExpertCache { slots: 0, slot_bytes: self.slot }
    }
}
