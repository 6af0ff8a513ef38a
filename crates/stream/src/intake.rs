//! The consumer's end of the host ring.

use crate::arena::{Ready, Slot};
use crate::reader::Shared;
use crate::timeline::{Activity, Event};
use crate::{Error, Result};
use std::sync::Arc;

/// Takes stripes in the order of their numbers, and keeps those of pinned units.
pub struct Intake {
    shared: Arc<Shared>,
    /// Number of the next stripe to take.
    number: u64,
    /// Pinned stripes that have arrived, by stripe.
    kept: Vec<Option<Arc<Slot<Ready>>>>,
    /// Why nothing comes any more.
    failure: Option<Error>,
    /// Nanoseconds spent waiting.
    pub wait_ns: u64,
}

/// What was taken.
pub enum Taken {
    /// A slot of the ring, to be given back.
    Ring(Slot<Ready>),
    /// One that is kept.
    Kept(Arc<Slot<Ready>>),
}

impl Intake {
    /// Nothing was taken yet.
    pub fn new(shared: Arc<Shared>) -> Self {
        let kept = shared.cut.stripes.iter().map(|_| None).collect();
        Self { shared, number: 0, kept, failure: None, wait_ns: 0 }
    }

    /// After a failure everything is refused with it.
    pub fn sound(&self) -> Result<()> {
        self.failure.clone().map_or(Ok(()), Err)
    }

    /// Nothing comes after this error.
    pub fn fail(&mut self, error: Error) -> Error {
        self.failure.get_or_insert_with(|| error.clone());
        error
    }

    /// Number of the next stripe to take.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// A pinned stripe, if it has arrived.
    pub fn kept(&self, stripe: usize) -> Option<&Arc<Slot<Ready>>> {
        self.kept.get(stripe)?.as_ref()
    }

    /// Whether the next stripe can be taken without waiting.
    pub fn is_ready(&self) -> bool {
        self.shared.ring.is_ready(self.number)
    }

    /// Takes the next stripe; waits until it is there.
    pub fn take(&mut self) -> Result<Taken> {
        let Some((pass, stripe)) = self.shared.rounds.locate(self.number) else {
            return Err(self.fail(Error::Stopped));
        };
        let start = self.shared.timeline.now();
        let waited = !self.is_ready();
        let slot = match self.shared.ring.take(self.number) {
            Ok(slot) => slot,
            Err(error) => return Err(self.fail(error)),
        };
        let it = &self.shared.cut.stripes[stripe];
        let (unit, pinned) = (it.parts[0].id.unit, it.tier.pinned);
        if waited {
            self.waited(pass, unit, start);
        }
        self.number += 1;
        if !pinned {
            return Ok(Taken::Ring(slot));
        }
        let slot = Arc::new(slot);
        self.kept[stripe] = Some(slot.clone());
        Ok(Taken::Kept(slot))
    }

    /// Passes over everything before `number`, unless more than that was taken. What is passed over must use the
    /// ring's slots.
    pub fn seek(&mut self, number: u64) {
        if number > self.number {
            self.number = number;
            self.shared.ring.seek(number);
        }
    }

    /// Records that the consumer waited from `start` to now.
    pub fn waited(&mut self, pass: u64, unit: usize, start: u64) {
        let end = self.shared.timeline.now();
        self.wait_ns += end - start;
        let activity = Activity::Wait;
        self.shared.timeline.record(Event { lane: 0, activity, pass, unit, start, end, bytes: 0 });
    }
}
