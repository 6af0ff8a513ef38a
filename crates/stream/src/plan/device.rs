//! What lives in a GPU's memory.

use super::experts::Experts;
use super::ring::{Ring, Stripes, pin_order};
use super::{Memory, Need, Refusal, Request};
use crate::cut::smallest_slot;

/// Where everything goes.
#[derive(Debug, Clone)]
pub(super) struct OnDevice {
    pub resident: Vec<bool>,
    /// Slots and bytes of a slot; none where all that a pass goes through is here.
    pub ring: (usize, usize),
    /// Bytes that units on demand pass through.
    staging: u64,
    stripes: Stripes,
}

impl OnDevice {
    /// Lays out device memory inside the budget. Slots are no larger than those of the host's ring.
    pub fn layout(need: &Need, request: &Request, host_slot: usize) -> Result<Self, Refusal> {
        let order = pin_order(need);
        let bytes = |stripes: Stripes, index: usize| stripes.bytes(&need.units[index]);
        let staging = Experts::of(need, request).staging();
        let have = request.vram.unwrap_or(u64::MAX);
        let fixed = need.device_fixed + staging;
        let mut resident = vec![false; need.units.len()];
        let whole = Stripes::of(host_slot, need.longest_row);
        let total: u64 = order.iter().map(|&index| bytes(whole, index)).sum();
        if have >= fixed + total {
            order.iter().for_each(|&index| resident[index] = true);
            return Ok(Self { resident, ring: (0, host_slot), staging, stripes: whole });
        }
        let ring = Ring::device(request, smallest_slot(need.longest_row.max(1)));
        let least = fixed + ring.least().min(total);
        if have < least {
            let fixed = need.device_fixed;
            return Err(Refusal { memory: Memory::Vram, need: least, have, fixed, ring: least - fixed });
        }
        let left = have - fixed;
        let (slots, slot_bytes) = ring.of(left);
        let slot_bytes = slot_bytes.min(host_slot);
        let stripes = Stripes::of(slot_bytes, need.longest_row);
        let mut room = left - ring.set_aside(left);
        for index in order {
            let Some(less) = room.checked_sub(bytes(stripes, index)) else { break };
            room = less;
            resident[index] = true;
        }
        Ok(Self { resident, ring: (slots, slot_bytes), staging, stripes })
    }

    /// Bytes that it takes.
    pub fn taken(&self, need: &Need) -> u64 {
        let ring = (self.ring.0 * self.ring.1) as u64;
        need.device_fixed + self.staging + ring + self.stripes.sum(need, &self.resident)
    }
}
