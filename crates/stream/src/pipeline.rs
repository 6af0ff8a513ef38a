//! The spine: a catalog streams through a ring of slots and is leased, rows at a time, to a computation.
//!
//! ```text
//!  LayerSource ──read──► slot of the ring ──lease──► f(rows) ──► slot is free again
//!       ▲ reader threads, in the order  │   ▲ pinned stripes stay: read once, leased in every pass
//!       └ of the pass, round and round  └─copy─► buffer of the device ──lease──► f(rows) ──► buffer is free again
//! ```
//!
//! The lower way is that of devices with memory of their own; [`feed`](crate::feed) hides which of the two it is.
//!
//! Readers never wait for the end of a pass: while the consumer samples a token, the first stripes of the
//! next pass are already being read, as far as the ring's slots allow. Units that a pass may or may not use
//! are read [on demand](Pipeline::request), into slots of their own, ahead of what the ring would read next.

mod gather;
mod on_demand;

use crate::arena::{self, ALIGNMENT, Free, Ready, Slot};
use crate::check::{Checks, check_catalog};
use crate::cut::{Cut, Part, Rounds, name};
use crate::demand::Lane;
use crate::feed::{DeviceFeed, Feed, HostFeed, Place};
use crate::intake::Intake;
use crate::reader::{Counters, Shared, SourceBox};
use crate::ring::Ring;
use crate::staging::Staging;
use crate::sync::{Mutex, lock};
use crate::tier::Tiers;
use crate::timeline::{Activity, Event, Timeline};
use crate::turns::Turns;
use crate::{Catalog, Error, Options, Result, Stats, Tensor, TensorId};
use airllm_format::LayerSource;
use airllm_kernels::Memory;
use std::collections::HashMap;
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

/// A running stream. Dropping it ends its threads.
pub struct Pipeline<M: Memory> {
    device: Arc<M>,
    shared: Arc<Shared>,
    readers: Vec<JoinHandle<()>>,
    /// Where stripes come from.
    intake: Intake,
    /// Where leases find them.
    feed: Box<dyn Feed<M>>,
    /// Pinned tensors that no pass streams (an untied embedding), whole.
    gathered: HashMap<TensorId, Slot<Ready>>,
    /// What is read on demand.
    demand: Lane<M::Fence>,
    /// Where that is copied to, on a device with memory of its own.
    turns: Option<Turns<M>>,
    staging: Staging<M>,
    pass: u64,
    /// Index into the catalog's pass.
    entry: usize,
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
        let copies = device.copies();
        let tiers = Tiers::of(options, copies);
        tiers.check(&catalog, device.host_view(&[]).is_some())?;
        let slot_bytes = options.slot_bytes / ALIGNMENT * ALIGNMENT;
        let cut = Cut::new(&catalog, tiers, slot_bytes)?;
        let expert_bytes = options.experts.slot_bytes / ALIGNMENT * ALIGNMENT;
        let on_demand = Cut::on_demand(&catalog, tiers, expert_bytes)?;
        if options.experts.slots == 0 && !on_demand.streamed.is_empty() {
            let stripes = on_demand.streamed.len();
            return Err(Error::Catalog(format!("0 slots cannot hold {stripes} stripes read on demand")));
        }
        // What lives on the device comes through the ring as well, once.
        let through_ring = cut.stripes.iter().filter(|stripe| !stripe.tier.pinned).count();
        if options.readers == 0 || (options.slots == 0 && through_ring > 0) {
            let (readers, slots) = (options.readers, options.slots);
            return Err(Error::Catalog(format!(
                "{readers} readers and {slots} slots cannot stream {through_ring} stripes"
            )));
        }
        let slots = if through_ring == 0 { 0 } else { options.slots };
        let own = own_slots(&*device, &cut)?.into_iter().map(Some).collect();
        let expert_slots = vec![expert_bytes; options.experts.slots.min(on_demand.streamed.len())];
        let (kept, cache) =
            (own_slots(&*device, &on_demand)?, arena::carve_touched(&*device, &expert_slots)?);
        let demand = Lane::new(&catalog, &on_demand, kept, cache, options.readers);
        let shared = Arc::new(Shared {
            source: SourceBox(source),
            ring: Ring::new(arena::carve_touched(&*device, &vec![slot_bytes; slots])?),
            own: Mutex::new(own),
            checks: Checks::new(&catalog, &cut),
            demand_checks: Checks::new(&catalog, &on_demand),
            on_demand,
            counters: Counters::default(),
            timeline: options.timeline.clone(),
            rounds: Rounds::new(&cut, cut.streamed.clone()),
            catalog,
            cut,
        });
        let lane = options.readers + 1;
        let feed: Box<dyn Feed<M>> = if copies {
            Box::new(DeviceFeed::new(device.clone(), shared.clone(), options.device.slots, lane)?)
        } else {
            Box::new(HostFeed::new(device.clone(), shared.clone(), slots))
        };
        let turns = if copies { Turns::new(&device, &shared, lane)? } else { None };
        let mut pipeline = Self {
            intake: Intake::new(shared.clone()),
            feed,
            turns,
            device,
            shared,
            readers: Vec::new(),
            gathered: HashMap::new(),
            demand,
            staging: Staging::new(),
            pass: 0,
            entry: 0,
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
            self.reach(stripe)?;
            let start = shared.timeline.now();
            let place = Place { stripe, index, part };
            let data = self.feed.view(place, part.count * row_bytes, &self.intake).map_err(E::from)?;
            f(Rows { data, first: part.first, count: part.count })?;
            self.computed(part, start, row_bytes);
            done += part.count;
            if index + 1 == parts.len() {
                self.finish()?;
                self.run_ahead()?;
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
        self.finish()?;
        self.drop_requests()?;
        if self.entry == 0 && self.feed.untouched(self.pass, &self.intake) {
            return Ok(());
        }
        if self.pass == 0 {
            while let Some(stripe) = self.feed.next_of(0, &self.intake) {
                self.reach(stripe)?;
                self.finish()?;
            }
        } else {
            self.feed.drop_pass(self.pass, &mut self.intake).map_err(|error| self.intake.fail(error))?;
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
        let (feed, turns) = (self.feed.moved(), self.turns.as_ref().map(Turns::moved).unwrap_or_default());
        Stats {
            bytes_read: counters.bytes.load(Ordering::Relaxed),
            reads: counters.reads.load(Ordering::Relaxed),
            retries: counters.retries.load(Ordering::Relaxed),
            read_ns: counters.busy.load(Ordering::Relaxed),
            wait_ns: self.intake.wait_ns,
            demand_hits: self.demand.hits,
            demand_misses: self.demand.misses,
            demand_read: counters.demand.load(Ordering::Relaxed),
            bytes_uploaded: feed.bytes + turns.bytes,
            uploads: feed.copies + turns.copies,
            device_wait_ns: feed.wait_ns + turns.wait_ns,
            ..self.stats
        }
    }

    /// Bytes that every pass reads once the pinned units are in memory.
    pub fn streamed_bytes(&self) -> u64 {
        let cut = &self.shared.cut;
        cut.streamed.iter().map(|&stripe| cut.stripes[stripe].len as u64).sum()
    }

    fn expect(&mut self, id: TensorId) -> Result<()> {
        self.intake.sound()?;
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

    /// Makes sure that a stripe is at hand. After an error nothing comes any more.
    fn reach(&mut self, stripe: usize) -> Result<()> {
        self.feed.reach(stripe, &mut self.intake).map_err(|error| self.intake.fail(error))
    }

    /// Ends the lease of a stripe, if there is one.
    fn finish(&mut self) -> Result<()> {
        self.feed.finish().map_err(|error| self.intake.fail(error))
    }

    /// Lets what can be done without waiting be done for later stripes.
    fn run_ahead(&mut self) -> Result<()> {
        self.feed.run_ahead(&mut self.intake).map_err(|error| self.intake.fail(error))
    }

    /// Counts a lease that began at `start` and is over.
    fn computed(&mut self, part: Part, start: u64, row_bytes: usize) {
        let (end, bytes) = (self.shared.timeline.now(), (part.count * row_bytes) as u64);
        self.stats.compute_ns += end - start;
        self.stats.bytes_leased += bytes;
        let (activity, pass, unit) = (Activity::Compute, self.pass, part.id.unit);
        self.shared.timeline.record(Event { lane: 0, activity, pass, unit, start, end, bytes });
    }
}

impl<M: Memory> Drop for Pipeline<M> {
    fn drop(&mut self) {
        self.shared.ring.close();
        // Work that still reads a slot must end before its memory goes. Copies look after themselves.
        if let Ok(fence) = self.device.fence() {
            let _ = self.device.wait(&fence);
        }
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
        lock(&self.shared.own).clear();
    }
}

/// A slot for each pinned stripe, an empty one for the others. Each is filled once, so that touching its memory before
/// would save nothing.
fn own_slots<M: Memory>(device: &M, cut: &Cut) -> Result<Vec<Slot<Free>>> {
    let sizes: Vec<_> = cut.stripes.iter().map(|s| if s.tier.pinned { s.len } else { 0 }).collect();
    arena::carve_for(device, &sizes)
}
