//! Units that a pass may or may not use: requested once it is known, leased in the order of the request.

use super::{Lend, Pipeline, Rows};
use crate::cut::name;
use crate::demand::Front;
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
        self.sound()?;
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
        self.sound()?;
        self.demand.expect(&self.shared.catalog, id)?;
        let shared = self.shared.clone();
        let rows = shared.catalog.get(id).map_or(0, |tensor| tensor.rows);
        let row_bytes = shared.catalog.get(id).map_or(0, Tensor::row_bytes);
        let mut done = 0;
        while done < rows {
            if self.stop.load(Ordering::Relaxed) {
                return Err(Error::Stopped.into());
            }
            let stripe = self.reach(id)?;
            let parts = &shared.on_demand.stripes[stripe].parts;
            let index = parts.iter().position(|part| part.id == id && part.first == done);
            let (Some(index), Some(slot)) = (index, self.demand.bytes(stripe)) else {
                return Err(Error::Catalog(format!("{} was cut badly", name(&shared.catalog, id))).into());
            };
            let part = parts[index];
            let lend = Lend { device: &*self.device, timeline: &shared.timeline, pass: self.pass };
            self.stats.compute_ns += lend.rows(&mut self.uploads, slot, part, row_bytes, &mut f)?;
            self.stats.bytes_leased += (part.count * row_bytes) as u64;
            self.stats.demand_bytes += (part.count * row_bytes) as u64;
            done += part.count;
            if index + 1 == parts.len() {
                let fence = self.device.fence().map_err(Error::from)?;
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
        self.sound()?;
        let fence = self.device.fence()?;
        self.demand.done(&self.shared.catalog, &self.shared.ring, unit, fence)?;
        self.order()
    }

    /// Forgets all requests.
    pub(super) fn drop_requests(&mut self) -> Result<()> {
        let fence = self.device.fence()?;
        self.demand.clear(&self.shared.ring, fence);
        Ok(())
    }

    /// Orders what there are slots for.
    fn order(&mut self) -> Result<()> {
        while let Some(fence) = self.demand.oldest_fence() {
            if !self.device.is_done(fence)? {
                break;
            }
            self.demand.settle();
        }
        self.demand.order(&self.shared.ring, self.pass);
        Ok(())
    }

    /// Waits for the stripe that is to be leased next.
    fn reach(&mut self, id: TensorId) -> Result<usize> {
        let start = self.shared.timeline.now();
        let mut waited = false;
        loop {
            self.order()?;
            match self.demand.front() {
                Some(Ok(Front::Here(stripe))) => {
                    if waited {
                        let end = self.shared.timeline.now();
                        self.stats.wait_ns += end - start;
                        self.record_wait(id.unit, start, end);
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
                    self.demand.settle();
                }
                Some(Err(error)) => {
                    self.failure = Some(error.clone());
                    return Err(error);
                }
                None => {
                    return Err(Error::Catalog(format!("{} was cut badly", name(&self.shared.catalog, id))));
                }
            }
            waited = true;
        }
    }
}
