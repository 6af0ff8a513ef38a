//! The reader threads: claim a stripe, read it, check it, deliver it.

use crate::arena::{Free, Slot};
use crate::check::Checks;
use crate::cut::{Cut, Rounds};
use crate::ring::{Place, Ring, Work};
use crate::sync::{Mutex, lock};
use crate::timeline::{Activity, Event, Timeline};
use crate::{Catalog, Result};
use airllm_format::LayerSource;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A read that fails is tried this often in all; flaky disks and network mounts do recover.
const ATTEMPTS: u32 = 3;

/// What readers and the consumer share.
#[derive(Debug)]
pub struct Shared {
    pub source: SourceBox,
    pub catalog: Catalog,
    pub cut: Cut,
    /// The numbers of the ring's stripes: all in the first pass, then those that are streamed.
    pub rounds: Rounds,
    pub ring: Ring,
    /// Slots of pinned stripes that were not read yet, by stripe.
    pub own: Mutex<Vec<Option<Slot<Free>>>>,
    pub checks: Checks,
    /// The units that are read on demand.
    pub on_demand: Cut,
    pub demand_checks: Checks,
    pub counters: Counters,
    pub timeline: Arc<Timeline>,
}

/// The source, in a coat that can be debugged.
pub struct SourceBox(pub Arc<dyn LayerSource>);

impl std::fmt::Debug for SourceBox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "source of {} files", self.0.files())
    }
}

/// Counters of all lanes.
#[derive(Debug, Default)]
pub struct Counters {
    pub bytes: AtomicU64,
    pub reads: AtomicU64,
    pub retries: AtomicU64,
    pub busy: AtomicU64,
    /// Bytes of stripes read on demand.
    pub demand: AtomicU64,
}

impl Shared {
    /// Reads `buf.len()` bytes, trying again where that can help; zeros past the end of the file.
    pub fn read(&self, file: usize, offset: u64, buf: &mut [u8]) -> Result<()> {
        // A source allows reads past its end only up to its own alignment.
        let end = self.source.0.len(file).next_multiple_of(self.source.0.alignment().max(1) as u64);
        let there = buf.len().min(usize::try_from(end.saturating_sub(offset)).unwrap_or(usize::MAX));
        let (buf, beyond) = buf.split_at_mut(there);
        beyond.fill(0);
        let mut attempt = 1;
        loop {
            let begun = self.timeline.now();
            let result = self.source.0.read_at(file, offset, buf);
            self.counters.busy.fetch_add(self.timeline.now() - begun, Ordering::Relaxed);
            self.counters.reads.fetch_add(1, Ordering::Relaxed);
            match result {
                Ok(()) => {
                    self.counters.bytes.fetch_add(buf.len() as u64, Ordering::Relaxed);
                    return Ok(());
                }
                Err(airllm_format::Error::Io { .. }) if attempt < ATTEMPTS => {
                    attempt += 1;
                    self.counters.retries.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn place(&self, number: u64) -> Place {
        match self.rounds.locate(number) {
            None => Place::Nowhere,
            Some((_, stripe)) if self.cut.stripes[stripe].tier.pinned => {
                lock(&self.own)[stripe].take().map_or(Place::Nowhere, Place::Own)
            }
            Some(_) => Place::Ring,
        }
    }

    /// The life of a reader thread; `lane` is its line in the timeline.
    pub fn run(&self, lane: usize) {
        while let Some(mut claim) = self.ring.claim(|number| self.place(number)) {
            let (cut, checks, pass, index) = match claim.work {
                Work::Next(number) => match self.rounds.locate(number) {
                    Some((pass, index)) => (&self.cut, &self.checks, pass, index),
                    None => return,
                },
                Work::Ordered(order) => (&self.on_demand, &self.demand_checks, order.pass, order.stripe),
            };
            let stripe = &cut.stripes[index];
            let start = self.timeline.now();
            let bytes = &mut claim.slot.bytes_mut()[..stripe.len];
            let mut result = self.read(stripe.file, stripe.offset, bytes);
            self.timeline.record(Event {
                lane,
                activity: Activity::Read,
                pass,
                unit: stripe.parts[0].id.unit,
                start,
                end: self.timeline.now(),
                bytes: stripe.len as u64,
            });
            if result.is_ok() {
                if matches!(claim.work, Work::Ordered(_)) {
                    self.counters.demand.fetch_add(stripe.len as u64, Ordering::Relaxed);
                }
                result = checks.check(self, index, stripe, bytes);
            }
            match result {
                Ok(()) => self.ring.deliver(claim),
                Err(error) => self.ring.fail(claim, error),
            }
        }
    }
}
