//! Stripes on their way to a device that has memory of its own.
//!
//! Copies run ahead of the leases, over tensors, layers and passes, as far as there are buffers: when a pass ends,
//! the first stripes of the next one are asked for already, and are copied while its logits are read and a token is
//! chosen. What is pinned can always run ahead, what is streamed as far as it has arrived.
//!
//! # Why this cannot get stuck
//!
//! Stripes are sent and leased in one order. So when the one that is wanted has not been sent, none after it has,
//! every one before it is finished, and all buffers are free: one is enough. A buffer is free for the host as soon as
//! its lease is finished, because it is the device that waits for the work which still reads it. What is missing then
//! is the stripe itself, and before the consumer waits for a reader it waits for every copy that is made from a slot
//! of the ring, oldest first, and gives the slot back. Such a copy waits for work that is queued already, and for
//! nothing else. So when the consumer does wait for a reader it holds no slot of the ring, and one slot is enough:
//! see [`ring`](crate::ring).

use super::host::on_host;
use super::{Feed, Place};
use crate::arena::device::{Origin, Resident, Target, Upload};
use crate::cut::Rounds;
use crate::device_ring::{Cargo, DeviceRing, Moved};
use crate::intake::{Intake, Taken};
use crate::layout::Layout;
use crate::reader::Shared;
use crate::ring::Ring;
use crate::{Error, Result};
use airllm_kernels::Memory;
use std::sync::Arc;

/// See the module's documentation.
pub struct DeviceFeed<M: Memory> {
    device: Arc<M>,
    shared: Arc<Shared>,
    /// Where each stripe lies on the device.
    layouts: Vec<Layout>,
    /// Buffers of stripes that live on the device and have not arrived there, by stripe.
    homes: Vec<Option<Target<M>>>,
    /// Those that have.
    resident: Vec<Option<Upload<M, Resident>>>,
    ring: DeviceRing<M>,
    /// How many stripes that live on the device may be on their way.
    most_ahead: usize,
    /// The numbers of stripes in the order of sending: all in the first pass, then those that are copied each time.
    rounds: Rounds,
    /// The next one to send.
    next: u64,
}

impl<M: Memory> DeviceFeed<M> {
    /// Makes all buffers, so that a device that is too small says so now. `lane` is the line of copies in the timeline.
    pub fn new(device: Arc<M>, shared: Arc<Shared>, buffers: usize, lane: usize) -> Result<Self> {
        let layouts = Layout::all(&shared.catalog, &shared.cut);
        let stripes = shared.cut.stripes.iter().enumerate();
        let each: Vec<usize> = stripes
            .filter(|(_, stripe)| !stripe.tier.resident && !stripe.tier.on_host)
            .map(|(index, _)| index)
            .collect();
        if buffers == 0 && !each.is_empty() {
            let stripes = each.len();
            return Err(Error::Catalog(format!("0 buffers of the device cannot take {stripes} stripes")));
        }
        let bytes = each.iter().map(|&stripe| layouts[stripe].bytes).max();
        let ring = DeviceRing::new(
            &device,
            bytes.map_or(0, |_| buffers),
            bytes.unwrap_or(0),
            &shared.timeline,
            lane,
        )?;
        let resident = layouts.iter().map(|_| None).collect();
        let homes = shared.cut.stripes.iter().zip(&layouts).map(|(stripe, layout)| {
            stripe.tier.resident.then(|| Target::new(&device, layout.bytes)).transpose()
        });
        let homes = homes.collect::<Result<_>>()?;
        let rounds = Rounds::new(&shared.cut, each);
        let most_ahead = buffers.max(1);
        Ok(Self { device, shared, layouts, homes, resident, ring, most_ahead, rounds, next: 0 })
    }

    /// Gives slots back whose copies are done.
    fn give_back(&mut self) -> Result<()> {
        let ring = &self.shared.ring;
        self.ring.give_back(|origin| release(ring, origin))
    }

    /// Sends the next stripe; waits for it if it has not arrived.
    fn send(&mut self, pass: u64, stripe: usize, intake: &mut Intake) -> Result<()> {
        let it = &self.shared.cut.stripes[stripe];
        let origin = match intake.kept(stripe) {
            Some(slot) => Origin::Kept(slot.clone()),
            None => match intake.take()? {
                Taken::Ring(slot) => Origin::Ring(slot),
                Taken::Kept(slot) => Origin::Kept(slot),
            },
        };
        let number = self.next;
        self.next += 1;
        if it.tier.on_host {
            return Ok(());
        }
        let cargo = Cargo { number, pass, stripe, unit: it.parts[0].id.unit };
        self.ring.send(cargo, &self.layouts[stripe], origin, self.homes[stripe].take())
    }

    /// Whether a stripe is where it is leased from in every pass.
    fn stays(&self, stripe: usize, intake: &Intake) -> bool {
        let on_host = self.shared.cut.stripes[stripe].tier.on_host;
        self.resident[stripe].is_some() || (on_host && intake.kept(stripe).is_some())
    }

    /// Whether a stripe can be sent without waiting.
    fn can_send(&self, stripe: usize, intake: &Intake) -> bool {
        let tier = self.shared.cut.stripes[stripe].tier;
        let room = match tier.resident || tier.on_host {
            true => self.ring.ahead() < self.most_ahead,
            false => self.ring.has_room(),
        };
        room && (intake.kept(stripe).is_some() || intake.is_ready())
    }

    /// Waits until `stripe`, which is the next one to be leased, was sent.
    fn await_sent(&mut self, stripe: usize, intake: &mut Intake) -> Result<()> {
        loop {
            self.run_ahead(intake)?;
            if self.stays(stripe, intake) {
                return Ok(());
            }
            match (self.ring.next(), self.rounds.locate(self.next)) {
                (Some(cargo), _) if cargo.stripe == stripe => return Ok(()),
                (None, Some((pass, next))) => {
                    let ring = &self.shared.ring;
                    if !self.ring.give_back_oldest(|origin| release(ring, origin))? {
                        self.send(pass, next, intake)?;
                    }
                }
                _ => return Err(Error::Catalog(format!("stripe {stripe} is not the next one"))),
            }
        }
    }
}

impl<M: Memory> Feed<M> for DeviceFeed<M> {
    fn reach(&mut self, stripe: usize, intake: &mut Intake) -> Result<()> {
        if self.stays(stripe, intake) || self.ring.leased().is_some_and(|(leased, _)| leased == stripe) {
            return self.run_ahead(intake);
        }
        self.await_sent(stripe, intake)?;
        if self.stays(stripe, intake) {
            return Ok(());
        }
        self.ring.lease_next()?;
        if self.shared.cut.stripes[stripe].tier.resident {
            let ring = &self.shared.ring;
            self.resident[stripe] = self.ring.keep_leased(|origin| release(ring, origin))?;
        }
        Ok(())
    }

    fn view<'a>(&'a self, it: Place, bytes: usize, intake: &'a Intake) -> Result<M::View<'a>> {
        if self.shared.cut.stripes[it.stripe].tier.on_host {
            let slot = intake.kept(it.stripe).ok_or(Error::Stopped)?;
            return on_host(&*self.device, &slot.bytes()[it.part.at..it.part.at + bytes]);
        }
        let at = self.layouts[it.stripe].at[it.index];
        match (&self.resident[it.stripe], self.ring.leased()) {
            (Some(upload), _) => upload.view(at..at + bytes),
            (None, Some((leased, upload))) if leased == it.stripe => upload.view(at..at + bytes),
            _ => Err(Error::Stopped),
        }
    }

    fn read(&self, it: Place, skip: usize, out: &mut [u8]) -> Result<bool> {
        let Some(upload) = &self.resident[it.stripe] else { return Ok(false) };
        upload.read(self.layouts[it.stripe].at[it.index] + skip, out)?;
        Ok(true)
    }

    fn finish(&mut self) -> Result<()> {
        self.ring.finish()
    }

    fn run_ahead(&mut self, intake: &mut Intake) -> Result<()> {
        self.give_back()?;
        while let Some((pass, stripe)) = self.rounds.locate(self.next) {
            if !self.can_send(stripe, intake) {
                break;
            }
            self.send(pass, stripe, intake)?;
        }
        Ok(())
    }

    fn next_of(&self, pass: u64, _: &Intake) -> Option<usize> {
        let next = self.ring.next().map_or(self.next, |cargo| cargo.number);
        self.rounds.locate(next).filter(|(of, _)| *of == pass).map(|(_, stripe)| stripe)
    }

    fn untouched(&self, pass: u64, _: &Intake) -> bool {
        let next = self.ring.next().map_or(self.next, |cargo| cargo.number);
        self.ring.leased().is_none() && next == self.rounds.begin(pass)
    }

    fn drop_pass(&mut self, pass: u64, intake: &mut Intake) -> Result<()> {
        self.ring.drop_pass(pass)?;
        self.next = self.next.max(self.rounds.begin(pass + 1));
        intake.seek(self.shared.rounds.begin(pass + 1));
        self.run_ahead(intake)
    }

    fn moved(&self) -> Moved {
        self.ring.moved
    }
}

/// Gives a slot of the ring back to it.
fn release(ring: &Ring, origin: Origin) {
    if let Origin::Ring(slot) = origin {
        ring.release(slot);
    }
}
