//! The spine: a catalog streams through a ring of slots and is leased, rows at a time, to a computation.
//!
//! ```text
//!  LayerSource ──read──► slot of the ring ──lease──► f(rows) ──► slot is free again
//!       ▲ reader threads, in the order      ▲ pinned stripes stay: read once, leased in every pass
//!       └ of the pass, round and round
//! ```
//!
//! Readers never wait for the end of a pass: while the consumer samples a token, the first stripes of the
//! next pass are already being read, as far as the ring's slots allow. Units that a pass may or may not use
//! are read [on demand](Pipeline::request), into slots of their own, ahead of what the ring would read next.

mod gather;
mod on_demand;

use crate::arena::{self, ALIGNMENT, Free, Ready, Slot};
use crate::check::{Checks, check_catalog};
use crate::cut::{Cut, Part, name};
use crate::demand::Lane;
use crate::reader::{Counters, Shared, SourceBox};
use crate::ring::Ring;
use crate::sync::{Mutex, lock};
use crate::timeline::{Activity, Event, Timeline};
use crate::upload::Uploads;
use crate::{Catalog, Error, Plan, Result, Tensor, TensorId};
use airllm_format::LayerSource;
use airllm_kernels::Memory;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// Consecutive rows of one tensor, where the device can read them.
#[derive(Debug, Clone, Copy)]
pub struct Rows<V> {
    /// The packed rows.
    pub data: V,
    /// Index of the first one in its tensor.
    pub first: usize,
    /// How many.
    pub count: usize,
}

/// How a pipeline is laid out; see [`plan`](crate::plan::plan), which chooses this.
#[derive(Debug, Clone)]
pub struct Options {
    /// Which units stay in memory, by index; missing ones are streamed.
    pub pinned: Vec<bool>,
    /// Slots of the ring.
    pub slots: usize,
    /// Bytes of a slot.
    pub slot_bytes: usize,
    /// Reader threads.
    pub readers: usize,
    /// Memory for units that are read on demand and not pinned.
    pub experts: ExpertCache,
    /// Where lanes record what they do.
    pub timeline: Arc<Timeline>,
}

/// Memory for stripes that are read on demand: what is in use, what is read next, and what was used before
/// and stays for as long as the [`Policy`](crate::Policy) says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct ExpertCache {
    /// How many slots. One works; with two, one is read while the other is computed with. A unit that needs
    /// more than there are flows through them.
    pub slots: usize,
    /// Bytes of a slot.
    pub slot_bytes: usize,
}

impl Options {
    /// The layout that a plan chose.
    pub fn of(plan: &Plan, timeline: Arc<Timeline>) -> Self {
        Self {
            pinned: plan.pinned.clone(),
            slots: plan.slots,
            slot_bytes: plan.slot_bytes,
            readers: plan.readers,
            experts: plan.experts,
            timeline,
        }
    }
}

/// What has been moved so far. Deterministic but for the times.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Stats {
    /// Bytes asked of the source.
    pub bytes_read: u64,
    /// Reads issued.
    pub reads: u64,
    /// Reads repeated after an error.
    pub retries: u64,
    /// Bytes of weights leased to the computation.
    pub bytes_leased: u64,
    /// Whole passes leased.
    pub passes: u64,
    /// Nanoseconds spent in reads, summed over readers.
    pub read_ns: u64,
    /// Nanoseconds the consumer waited for stripes.
    pub wait_ns: u64,
    /// Nanoseconds the consumer spent on leases.
    pub compute_ns: u64,
    /// The part of `bytes_leased` that was of units read on demand.
    pub demand_bytes: u64,
    /// Stripes of such units that were leased and did not have to be read for it.
    pub demand_hits: u64,
    /// Those that did.
    pub demand_misses: u64,
    /// The part of `bytes_read` that was read for that, requests that came to nothing included.
    pub demand_read: u64,
}

/// A running stream. Dropping it ends its threads.
pub struct Pipeline<M: Memory> {
    device: Arc<M>,
    shared: Arc<Shared>,
    readers: Vec<JoinHandle<()>>,
    /// Pinned stripes that have arrived, by stripe.
    kept: Vec<Option<Slot<Ready>>>,
    /// Pinned tensors that no pass streams (an untied embedding), whole.
    resident: HashMap<TensorId, Slot<Ready>>,
    /// The ring's slot that is being leased, and its stripe.
    lease: Option<(usize, Slot<Ready>)>,
    /// Slots whose leases ended but whose work may not have.
    pending: VecDeque<(M::Fence, Slot<Ready>)>,
    slots: usize,
    /// What is read on demand.
    demand: Lane<M::Fence>,
    uploads: Uploads<M>,
    /// Number of the next stripe to take.
    number: u64,
    pass: u64,
    /// Index into the catalog's pass.
    entry: usize,
    failure: Option<Error>,
    stop: Arc<AtomicBool>,
    stats: Stats,
}

impl<M: Memory> Pipeline<M> {
    /// Starts the readers. Pinned units are read on their first use; tensors that no pass streams are
    /// checked here, and loaded if pinned.
    pub fn start(
        device: Arc<M>,
        source: Arc<dyn LayerSource>,
        catalog: Catalog,
        options: &Options,
    ) -> Result<Self> {
        check_catalog(&catalog, source.as_ref())?;
        let slot_bytes = options.slot_bytes / ALIGNMENT * ALIGNMENT;
        let cut = Cut::new(&catalog, &options.pinned, slot_bytes)?;
        let expert_bytes = options.experts.slot_bytes / ALIGNMENT * ALIGNMENT;
        let on_demand = Cut::on_demand(&catalog, &options.pinned, expert_bytes)?;
        if options.experts.slots == 0 && !on_demand.streamed.is_empty() {
            let stripes = on_demand.streamed.len();
            return Err(Error::Catalog(format!("0 slots cannot hold {stripes} stripes read on demand")));
        }
        if options.readers == 0 || (options.slots == 0 && !cut.streamed.is_empty()) {
            return Err(Error::Catalog(format!(
                "{} readers and {} slots cannot stream {} stripes",
                options.readers,
                options.slots,
                cut.streamed.len()
            )));
        }
        let slots = if cut.streamed.is_empty() { 0 } else { options.slots };
        let own = own_slots(&cut)?.into_iter().map(Some).collect();
        let expert_slots = vec![expert_bytes; options.experts.slots.min(on_demand.streamed.len())];
        let (kept, cache) = (own_slots(&on_demand)?, arena::carve(&expert_slots)?);
        let demand = Lane::new(&catalog, &on_demand, kept, cache, options.readers);
        let shared = Arc::new(Shared {
            source: SourceBox(source),
            ring: Ring::new(arena::carve(&vec![slot_bytes; slots])?),
            own: Mutex::new(own),
            checks: Checks::new(&catalog, &cut),
            demand_checks: Checks::new(&catalog, &on_demand),
            on_demand,
            counters: Counters::default(),
            timeline: options.timeline.clone(),
            catalog,
            cut,
        });
        let mut pipeline = Self {
            device,
            kept: shared.cut.stripes.iter().map(|_| None).collect(),
            shared,
            readers: Vec::new(),
            resident: HashMap::new(),
            lease: None,
            pending: VecDeque::new(),
            slots,
            demand,
            uploads: Uploads::new(),
            number: 0,
            pass: 0,
            entry: 0,
            failure: None,
            stop: Arc::default(),
            stats: Stats::default(),
        };
        pipeline.load_gathered(&options.pinned)?;
        for reader in 0..options.readers {
            let shared = pipeline.shared.clone();
            let thread = std::thread::Builder::new()
                .name(format!("airllm-read-{reader}"))
                .spawn(move || shared.run(reader + 1))
                .map_err(|error| Error::Memory {
                    bytes: 0,
                    what: "a reader thread",
                    reason: error.to_string(),
                })?;
            pipeline.readers.push(thread);
        }
        Ok(pipeline)
    }

    /// Leases all rows of the pass's next tensor to `f`, run after run, in order. `id` must be that
    /// tensor. Waits for bytes that have not arrived.
    pub fn rows<E, F>(&mut self, id: TensorId, mut f: F) -> Result<(), E>
    where
        E: From<Error>,
        F: FnMut(Rows<M::View<'_>>) -> Result<(), E>,
    {
        self.expect(id)?;
        let shared = self.shared.clone();
        let rows = shared.catalog.get(id).map_or(0, |tensor| tensor.rows);
        let row_bytes = shared.catalog.get(id).map_or(0, Tensor::row_bytes);
        let mut stripe = shared.cut.starts[self.entry];
        let mut done = 0;
        while done < rows {
            let parts = &shared.cut.stripes[stripe].parts;
            let Some(index) = parts.iter().position(|part| part.id == id && part.first == done) else {
                return Err(Error::Catalog(format!("{} was cut badly", name(&shared.catalog, id))).into());
            };
            let part = parts[index];
            if self.stop.load(Ordering::Relaxed) {
                return Err(Error::Stopped.into());
            }
            self.acquire(stripe)?;
            let slot = match (&self.kept[stripe], &self.lease) {
                (Some(slot), _) | (None, Some((_, slot))) => slot,
                (None, None) => return Err(Error::Stopped.into()),
            };
            let lend = Lend { device: &*self.device, timeline: &shared.timeline, pass: self.pass };
            let ns = lend.rows(&mut self.uploads, slot.bytes(), part, row_bytes, &mut f)?;
            self.stats.compute_ns += ns;
            self.stats.bytes_leased += (part.count * row_bytes) as u64;
            done += part.count;
            if index + 1 == parts.len() {
                self.finish_lease()?;
            }
            stripe += 1;
        }
        self.advance();
        Ok(())
    }

    /// From now on, [`rows`](Self::rows) fails with [`Error::Stopped`] at the next stripe once `stop` is
    /// set: a pass over a large model takes long, and a user who wants it to end does not wait.
    pub fn stop_when(&mut self, stop: Arc<AtomicBool>) {
        self.stop = stop;
    }

    /// Passes over the next tensor without leasing it.
    pub fn skip(&mut self, id: TensorId) -> Result<()> {
        self.rows(id, |_| Ok(()))
    }

    /// Gives up the current pass, after an error of the computation or an interruption, so that the next
    /// lease is the first tensor again. What the ring holds for the rest of the pass is dropped, and so are
    /// requests; during the very first pass the rest is read, because pinned units arrive then.
    pub fn restart(&mut self) -> Result<()> {
        if let Some((_, slot)) = self.lease.take() {
            self.retire(slot)?;
        }
        self.drop_requests()?;
        if self.entry == 0 && self.number == self.shared.begin(self.pass) {
            return Ok(());
        }
        if self.pass == 0 {
            for stripe in 0..self.shared.cut.stripes.len() {
                if self.shared.begin(0) + stripe as u64 >= self.number {
                    self.acquire(stripe)?;
                    self.finish_lease()?;
                }
            }
        } else if !self.shared.cut.streamed.is_empty() {
            self.number = self.shared.begin(self.pass + 1);
            self.shared.ring.seek(self.number);
        }
        self.pass += 1;
        self.entry = 0;
        Ok(())
    }

    /// What is streamed.
    pub fn catalog(&self) -> &Catalog {
        &self.shared.catalog
    }

    /// The device that leases are made for.
    pub fn device(&self) -> &Arc<M> {
        &self.device
    }

    /// Where the lanes record what they do.
    pub fn timeline(&self) -> &Arc<Timeline> {
        &self.shared.timeline
    }

    /// What has been moved so far.
    pub fn stats(&self) -> Stats {
        let counters = &self.shared.counters;
        Stats {
            bytes_read: counters.bytes.load(Ordering::Relaxed),
            reads: counters.reads.load(Ordering::Relaxed),
            retries: counters.retries.load(Ordering::Relaxed),
            read_ns: counters.busy.load(Ordering::Relaxed),
            demand_hits: self.demand.hits,
            demand_misses: self.demand.misses,
            demand_read: counters.demand.load(Ordering::Relaxed),
            ..self.stats
        }
    }

    /// Bytes that every pass reads once the pinned units are in memory.
    pub fn streamed_bytes(&self) -> u64 {
        let cut = &self.shared.cut;
        cut.streamed.iter().map(|&stripe| cut.stripes[stripe].len as u64).sum()
    }

    /// After a failure of the source everything is refused with it.
    fn sound(&self) -> Result<()> {
        self.failure.clone().map_or(Ok(()), Err)
    }

    fn expect(&mut self, id: TensorId) -> Result<()> {
        self.sound()?;
        match self.shared.catalog.pass.get(self.entry) {
            Some(&next) if next == id => Ok(()),
            next => Err(Error::OutOfOrder {
                expected: next.map_or("nothing".into(), |&next| name(&self.shared.catalog, next)),
                found: name(&self.shared.catalog, id),
            }),
        }
    }

    fn advance(&mut self) {
        self.entry += 1;
        if self.entry == self.shared.catalog.pass.len() {
            self.entry = 0;
            self.pass += 1;
            self.stats.passes += 1;
        }
    }

    /// Makes sure that the stripe's bytes are at hand, in `kept` or in `lease`.
    fn acquire(&mut self, stripe: usize) -> Result<()> {
        if self.kept[stripe].is_some() || self.lease.as_ref().is_some_and(|(held, _)| *held == stripe) {
            return Ok(());
        }
        let start = self.shared.timeline.now();
        let waited = !self.shared.ring.is_ready(self.number);
        let slot = match self.shared.ring.take(self.number) {
            Ok(slot) => slot,
            Err(error) => {
                self.failure = Some(error.clone());
                return Err(error);
            }
        };
        if waited {
            let end = self.shared.timeline.now();
            self.stats.wait_ns += end - start;
            self.record_wait(self.shared.cut.stripes[stripe].parts[0].id.unit, start, end);
        }
        self.number += 1;
        if self.shared.cut.stripes[stripe].pinned {
            self.kept[stripe] = Some(slot);
        } else {
            self.lease = Some((stripe, slot));
        }
        Ok(())
    }

    fn record_wait(&self, unit: usize, start: u64, end: u64) {
        let pass = self.pass;
        self.shared.timeline.record(Event {
            lane: 0,
            activity: Activity::Wait,
            pass,
            unit,
            start,
            end,
            bytes: 0,
        });
    }

    /// Ends the lease of a streamed stripe; a pinned one stays.
    fn finish_lease(&mut self) -> Result<()> {
        match self.lease.take() {
            Some((_, slot)) => self.retire(slot),
            None => Ok(()),
        }
    }

    /// Returns slots to the ring as soon as the device is done with them.
    fn retire(&mut self, slot: Slot<Ready>) -> Result<()> {
        self.pending.push_back((self.device.fence()?, slot));
        while let Some((fence, _)) = self.pending.front() {
            // One slot at least must be on its way, or the readers would starve the consumer.
            if self.pending.len() >= self.slots {
                self.device.wait(fence)?;
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

impl<M: Memory> Drop for Pipeline<M> {
    fn drop(&mut self) {
        self.shared.ring.close();
        // Work that still reads a slot must end before its memory goes.
        for (fence, _) in self.pending.drain(..) {
            let _ = self.device.wait(&fence);
        }
        while let Some(fence) = self.demand.oldest_fence() {
            let _ = self.device.wait(fence);
            self.demand.settle();
        }
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
        lock(&self.shared.own).clear();
    }
}

/// A slot for each pinned stripe, an empty one for the others.
fn own_slots(cut: &Cut) -> Result<Vec<Slot<Free>>> {
    let sizes: Vec<_> = cut.stripes.iter().map(|s| if s.pinned { s.len } else { 0 }).collect();
    arena::carve(&sizes)
}

/// Lends rows that lie in a slot.
struct Lend<'a, M> {
    device: &'a M,
    timeline: &'a Timeline,
    pass: u64,
}

impl<M: Memory> Lend<'_, M> {
    /// Lends a part of `slot` to `f`, copied to the device where that is needed; returns the nanoseconds it
    /// took.
    fn rows<E, F>(
        &self,
        uploads: &mut Uploads<M>,
        slot: &[u8],
        part: Part,
        row_bytes: usize,
        f: &mut F,
    ) -> Result<u64, E>
    where
        E: From<Error>,
        F: FnMut(Rows<M::View<'_>>) -> Result<(), E>,
    {
        let start = self.timeline.now();
        let bytes = &slot[part.at..part.at + part.count * row_bytes];
        match self.device.host_view(bytes) {
            Some(data) => f(Rows { data, first: part.first, count: part.count })?,
            None => uploads
                .lend(self.device, bytes, |data| f(Rows { data, first: part.first, count: part.count }))?,
        }
        let end = self.timeline.now();
        let (activity, unit, bytes) = (Activity::Compute, part.id.unit, bytes.len() as u64);
        self.timeline.record(Event { lane: 0, activity, pass: self.pass, unit, start, end, bytes });
        Ok(end - start)
    }
}
