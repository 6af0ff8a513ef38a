//! A device that computes from host memory is lent the slots themselves.

use super::{Feed, Place};
use crate::arena::{Ready, Slot};
use crate::device_ring::Moved;
use crate::intake::{Intake, Taken};
use crate::reader::Shared;
use crate::{Error, Result};
use airllm_kernels::Memory;
use std::collections::VecDeque;
use std::sync::Arc;

/// Leases of the ring's slots, which go back to the ring as soon as the device is done with them.
pub struct HostFeed<M: Memory> {
    device: Arc<M>,
    shared: Arc<Shared>,
    /// Slots of the ring.
    slots: usize,
    /// The ring's slot that is being leased, and its stripe.
    lease: Option<(usize, Slot<Ready>)>,
    /// Slots whose leases ended but whose work may not have.
    pending: VecDeque<(M::Fence, Slot<Ready>)>,
    moved: Moved,
}

impl<M: Memory> HostFeed<M> {
    /// Nothing is leased.
    pub fn new(device: Arc<M>, shared: Arc<Shared>, slots: usize) -> Self {
        Self { device, shared, slots, lease: None, pending: VecDeque::new(), moved: Moved::default() }
    }

    /// Returns slots to the ring as soon as the device is done with them.
    fn retire(&mut self, slot: Slot<Ready>) -> Result<()> {
        self.pending.push_back((self.device.fence()?, slot));
        while let Some((fence, _)) = self.pending.front() {
            // One slot at least must be on its way, or the readers would starve the consumer.
            if self.pending.len() >= self.slots {
                let begun = self.shared.timeline.now();
                self.device.wait(fence)?;
                self.moved.wait_ns += self.shared.timeline.now() - begun;
            } else if !self.device.is_done(fence)? {
                break;
            }
            if let Some((_, slot)) = self.pending.pop_front() {
                self.shared.ring.release(slot);
            }
        }
        Ok(())
    }
}

impl<M: Memory> Feed<M> for HostFeed<M> {
    fn reach(&mut self, stripe: usize, intake: &mut Intake) -> Result<()> {
        let leased = self.lease.as_ref().is_some_and(|(held, _)| *held == stripe);
        if !leased
            && intake.kept(stripe).is_none()
            && let Taken::Ring(slot) = intake.take()?
        {
            self.lease = Some((stripe, slot));
        }
        Ok(())
    }

    fn view<'a>(&'a self, it: Place, bytes: usize, intake: &'a Intake) -> Result<M::View<'a>> {
        let slot = match (intake.kept(it.stripe), &self.lease) {
            (Some(slot), _) => slot.bytes(),
            (None, Some((_, slot))) => slot.bytes(),
            (None, None) => return Err(Error::Stopped),
        };
        on_host(&*self.device, &slot[it.part.at..it.part.at + bytes])
    }

    fn read(&self, _: Place, _: usize, _: &mut [u8]) -> Result<bool> {
        Ok(false)
    }

    fn finish(&mut self) -> Result<()> {
        // A streamed stripe goes; a pinned one stays.
        self.lease.take().map_or(Ok(()), |(_, slot)| self.retire(slot))
    }

    fn run_ahead(&mut self, _: &mut Intake) -> Result<()> {
        Ok(())
    }

    fn next_of(&self, pass: u64, intake: &Intake) -> Option<usize> {
        self.shared.rounds.locate(intake.number()).filter(|(of, _)| *of == pass).map(|(_, stripe)| stripe)
    }

    fn untouched(&self, pass: u64, intake: &Intake) -> bool {
        intake.number() == self.shared.rounds.begin(pass)
    }

    fn drop_pass(&mut self, pass: u64, intake: &mut Intake) -> Result<()> {
        intake.seek(self.shared.rounds.begin(pass + 1));
        Ok(())
    }

    fn moved(&self) -> Moved {
        self.moved
    }
}

/// Bytes of the host, where the device can read them.
pub fn on_host<'a, M: Memory>(device: &'a M, bytes: &'a [u8]) -> Result<M::View<'a>> {
    let refused = || Error::Catalog("the device computes from host memory, and refuses it".to_owned());
    device.host_view(bytes).ok_or_else(refused)
}
