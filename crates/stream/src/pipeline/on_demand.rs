//! Units that a pass may or may not use: requested once it is known, leased in the order of the request.

use super::{Pipeline, Rows};
use crate::cut::name;
use crate::demand::Front;
use crate::feed::on_host;
use crate::{Error, Result, Tensor, TensorId};
use airllm_kernels::Memory;
use std::sync::atomic::Ordering;

impl<M: Memory> Pipeline<M> {
    /// Says which [on-demand](crate::Unit::on_demand) units are used next, in order of use, after those that
    /// were requested before and are not [done](Self::done). Readers turn to what is not in memory at once,
    /// in that order and ahead of the ring, as far as there are slots that nothing else needs.
    ///
    /// Returns without waiting. Refuses a unit that is not there, not on demand, or requested and not done;
    /// nothing of such a request is taken.
    pub fn request(&mut self, units: &[usize]) -> Result<()> {
        self.intake.sound()?;
        self.demand.request(&self.shared.catalog, units, self.entry, self.pass)?;
        self.order()
    }

    /// Leases all rows of a tensor of a requested unit to `f`, run after run, in order, and waits for bytes
    /// that have not arrived. Units come in the order in which they were requested, the tensors of a unit
    /// in the order of the catalog.
    pub fn demand<E, F>(&mut self, id: TensorId, mut f: F) -> Result<(), E>
    where
        E: From<Error>,
        F: FnMut(Rows<M::View<'_>>) -> Result<(), E>,
    {
        self.intake.sound()?;
        self.demand.expect(&self.shared.catalog, id)?;
        let shared = self.shared.clone();
        let rows = shared.catalog.get(id).map_or(0, |tensor| tensor.rows);
        let row_bytes = shared.catalog.get(id).map_or(0, Tensor::row_bytes);
        let mut done = 0;
        while done < rows {
            if self.stop.load(Ordering::Relaxed) {
                return Err(Error::Stopped.into());
            }
            let stripe = self.await_front(id)?;
            let parts = &shared.on_demand.stripes[stripe].parts;
            let index = parts.iter().position(|part| part.id == id && part.first == done);
            let (Some(index), Some(slot)) = (index, self.demand.slot(stripe)) else {
                return Err(Error::Catalog(format!("{} was cut badly", name(&shared.catalog, id))).into());
            };
            let (part, start) = (parts[index], shared.timeline.now());
            let bytes = part.count * row_bytes;
            let data = match &mut self.turns {
                Some(turns) if !shared.on_demand.stripes[stripe].tier.on_host => {
                    turns.carry(stripe, slot, self.pass, id.unit).map_err(|error| self.intake.fail(error))?;
                    turns.view(stripe, index, bytes)
                }
                _ => on_host(&*self.device, &slot.bytes()[part.at..part.at + bytes]),
            };
            f(Rows { data: data.map_err(E::from)?, first: part.first, count: part.count })?;
            self.computed(part, start, row_bytes);
            self.stats.demand_bytes += bytes as u64;
            done += part.count;
            if index + 1 == parts.len() {
                let fence = self.end_lease()?;
                self.demand.pass(fence);
                self.order()?;
            }
        }
        self.demand.leased();
        Ok(())
    }

    /// Ends the use of the unit that was requested first, whether all of it was leased or not. What of it is
    /// in memory stays there until its slots are needed for something that is worth more.
    pub fn done(&mut self, unit: usize) -> Result<()> {
        self.intake.sound()?;
        let fence = self.end_lease()?;
        self.demand.done(&self.shared.catalog, &self.shared.ring, unit, fence)?;
        self.order()
    }

    /// Forgets all requests.
    pub(super) fn drop_requests(&mut self) -> Result<()> {
        let fence = self.end_lease()?;
        self.demand.clear(&self.shared.ring, fence);
        Ok(())
    }

    /// Ends the lease of the stripe at the front, whether all of it was leased or not; the answer is done when the
    /// work with it is.
    fn end_lease(&mut self) -> Result<M::Fence> {
        if let Some(turns) = &mut self.turns {
            turns.finish().map_err(|error| self.intake.fail(error))?;
        }
        Ok(self.device.fence()?)
    }

    /// The oldest work with a stripe is done: its slot may go.
    fn settle(&mut self) -> Result<()> {
        if let (Some(turns), Some(stripe)) = (&mut self.turns, self.demand.oldest_stripe()) {
            turns.let_go(stripe)?;
        }
        self.demand.settle();
        Ok(())
    }

    /// Orders what there are slots for.
    fn order(&mut self) -> Result<()> {
        while let Some(fence) = self.demand.oldest_fence() {
            if !self.device.is_done(fence)? {
                break;
            }
            self.settle()?;
        }
        self.demand.order(&self.shared.ring, self.pass);
        Ok(())
    }

    /// Waits for the stripe that is to be leased next.
    fn await_front(&mut self, id: TensorId) -> Result<usize> {
        let start = self.shared.timeline.now();
        let mut waited = false;
        loop {
            self.order()?;
            match self.demand.front() {
                Some(Ok(Front::Here(stripe))) => {
                    if waited {
                        self.intake.waited(self.pass, id.unit, start);
                    }
                    return Ok(stripe);
                }
                Some(Ok(Front::Reader)) => {
                    let answers = self.shared.ring.await_answers()?;
                    self.demand.take_in(answers);
                }
                Some(Ok(Front::Device)) => {
                    if let Some(fence) = self.demand.oldest_fence() {
                        self.device.wait(fence)?;
                    }
                    self.settle()?;
                }
                Some(Err(error)) => {
                    return Err(self.intake.fail(error));
                }
                None => {
                    return Err(Error::Catalog(format!("{} was cut badly", name(&self.shared.catalog, id))));
                }
            }
            waited = true;
        }
    }
}
