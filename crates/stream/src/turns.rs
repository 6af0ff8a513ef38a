//! Copies of what is read on demand: two buffers of the device, in turn.

use crate::Result;
use crate::arena::device::Origin;
use crate::arena::{Ready, Slot};
use crate::device_ring::{Cargo, DeviceRing, Moved};
use crate::layout::Layout;
use crate::reader::Shared;
use airllm_kernels::Memory;
use std::sync::Arc;

/// One is copied to while the device still works with the other.
const BUFFERS: usize = 2;

/// Stripes of requested units on their way to the device, each when its first part is leased.
///
/// The lane of what is read on demand keeps a stripe until the work with it is done; a copy shares the stripe's slot
/// until then, and lets go of it before the lane does.
pub struct Turns<M: Memory> {
    layouts: Vec<Layout>,
    ring: DeviceRing<M>,
    /// How many were sent.
    number: u64,
}

impl<M: Memory> Turns<M> {
    /// Makes the buffers, each for the largest stripe. `None` where nothing is copied on demand.
    pub fn new(device: &Arc<M>, shared: &Shared, lane: usize) -> Result<Option<Self>> {
        let layouts = Layout::all(&shared.catalog, &shared.on_demand);
        let copied = shared.on_demand.stripes.iter().zip(&layouts).filter(|(stripe, _)| !stripe.tier.on_host);
        let Some(bytes) = copied.map(|(_, layout)| layout.bytes).max() else { return Ok(None) };
        let ring = DeviceRing::new(device, BUFFERS, bytes, &shared.timeline, lane)?;
        Ok(Some(Self { layouts, ring, number: 0 }))
    }

    /// Leases a stripe, which lies in `slot`; copies it unless it is leased already.
    pub fn carry(&mut self, stripe: usize, slot: &Arc<Slot<Ready>>, pass: u64, unit: usize) -> Result<()> {
        if self.ring.leased().is_some_and(|(leased, _)| leased == stripe) {
            return Ok(());
        }
        self.ring.finish()?;
        let cargo = Cargo { number: self.number, pass, stripe, unit };
        self.number += 1;
        self.ring.send(cargo, &self.layouts[stripe], Origin::Kept(slot.clone()), None)?;
        self.ring.lease_next()
    }

    /// The first `bytes` bytes of a part of the stripe that is leased.
    pub fn view(&self, stripe: usize, index: usize, bytes: usize) -> Result<M::View<'_>> {
        let at = self.layouts[stripe].at[index];
        match self.ring.leased() {
            Some((leased, upload)) if leased == stripe => upload.view(at..at + bytes),
            _ => Err(crate::Error::Stopped),
        }
    }

    /// Ends the lease.
    pub fn finish(&mut self) -> Result<()> {
        self.ring.finish()
    }

    /// Lets go of a stripe's slot. The work with it is done, or is waited for.
    pub fn let_go(&mut self, stripe: usize) -> Result<()> {
        self.ring.let_go(stripe)
    }

    /// What was copied.
    pub fn moved(&self) -> Moved {
        self.ring.moved
    }
}
