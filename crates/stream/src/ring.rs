//! The ring: a bounded hand-over of numbered stripes from reader threads to one consumer.
//!
//! Stripes are numbered without end, over all passes. Readers claim numbers in order, each with a free
//! slot; they may finish in any order; the consumer takes them in order. Because numbers are claimed in
//! order together with their slot, the stripe that the consumer waits for always has one: the ring
//! cannot deadlock, however few slots it has (one is enough).

use crate::arena::{Filling, Free, Ready, Slot};
use crate::sync::{Condvar, Mutex, lock, wait};
use crate::{Error, Result};
use std::collections::BTreeMap;

/// What a reader shall do next.
#[derive(Debug)]
pub struct Claim {
    /// The stripe's number.
    pub number: u64,
    /// Where its bytes go.
    pub slot: Slot<Filling>,
}

/// Where the slot of a stripe comes from.
#[derive(Debug)]
pub enum Place {
    /// From the ring, and back to it.
    Ring,
    /// This one, which the stripe keeps.
    Own(Slot<Free>),
    /// There is no such stripe: readers end.
    Nowhere,
}

/// The shared state. See the module's documentation.
#[derive(Debug)]
pub struct Ring {
    state: Mutex<State>,
    /// Signalled when a slot becomes free or the ring closes.
    freed: Condvar,
    /// Signalled when a stripe arrives or the ring closes.
    arrived: Condvar,
}

#[derive(Debug)]
struct State {
    free: Vec<Slot<Free>>,
    ready: BTreeMap<u64, Slot<Ready>>,
    /// The next number to be claimed.
    next: u64,
    /// Stripes below this number are not wanted any more.
    floor: u64,
    /// The first stripe that could not be read, and why.
    failure: Option<(u64, Error)>,
    closed: bool,
}

impl Ring {
    /// A ring of the given slots.
    pub fn new(slots: Vec<Slot<Free>>) -> Self {
        let state =
            State { free: slots, ready: BTreeMap::new(), next: 0, floor: 0, failure: None, closed: false };
        Self { state: Mutex::new(state), freed: Condvar::new(), arrived: Condvar::new() }
    }

    /// Claims the next stripe; waits for a free slot where it needs one. `None` when there is nothing
    /// left to do. `place` is asked about a number until the number is claimed; an `Own` slot is claimed
    /// at once.
    pub fn claim(&self, mut place: impl FnMut(u64) -> Place) -> Option<Claim> {
        let mut state = lock(&self.state);
        loop {
            if state.closed || state.failure.is_some() {
                return None;
            }
            let number = state.next;
            let slot = match place(number) {
                Place::Nowhere => return None,
                Place::Own(slot) => Some(slot),
                Place::Ring => state.free.pop(),
            };
            if let Some(slot) = slot {
                state.next += 1;
                // The next stripe may need no slot, or there may be another one: let the next reader look.
                self.freed.notify_one();
                return Some(Claim { number, slot: slot.fill() });
            }
            state = wait(&self.freed, state);
        }
    }

    /// Delivers a claimed stripe.
    pub fn deliver(&self, number: u64, slot: Slot<Filling>) {
        let mut state = lock(&self.state);
        if number < state.floor {
            state.free.push(slot.discard());
            self.freed.notify_one();
        } else {
            state.ready.insert(number, slot.ready());
            self.arrived.notify_one();
        }
    }

    /// Says that a claimed stripe cannot be delivered. Nothing is claimed after it.
    pub fn fail(&self, number: u64, error: Error) {
        let mut state = lock(&self.state);
        if state.failure.as_ref().is_none_or(|(first, _)| number < *first) {
            state.failure = Some((number, error));
        }
        self.freed.notify_all();
        self.arrived.notify_one();
    }

    /// Takes a stripe; waits until it is there. After a failure every earlier stripe still arrives, the
    /// failed one and all later ones give the error.
    pub fn take(&self, number: u64) -> Result<Slot<Ready>> {
        let mut state = lock(&self.state);
        loop {
            if let Some(slot) = state.ready.remove(&number) {
                return Ok(slot);
            }
            match &state.failure {
                Some((first, error)) if number >= *first => return Err(error.clone()),
                _ if state.closed => return Err(Error::Stopped),
                _ => state = wait(&self.arrived, state),
            }
        }
    }

    /// Whether a stripe can be taken without waiting.
    pub fn is_ready(&self, number: u64) -> bool {
        lock(&self.state).ready.contains_key(&number)
    }

    /// Gives a slot back.
    pub fn release(&self, slot: Slot<Ready>) {
        lock(&self.state).free.push(slot.release());
        self.freed.notify_one();
    }

    /// Gives up all stripes below `number`: those that have arrived are dropped, those being read will
    /// be, the others are never read. Only for stripes that use the ring's slots.
    pub fn seek(&self, number: u64) {
        let mut state = lock(&self.state);
        state.floor = state.floor.max(number);
        state.next = state.next.max(number);
        let kept = state.ready.split_off(&number);
        let dropped = std::mem::replace(&mut state.ready, kept);
        state.free.extend(dropped.into_values().map(Slot::release));
        self.freed.notify_all();
    }

    /// Ends all waiting, now and later.
    pub fn close(&self) {
        lock(&self.state).closed = true;
        self.freed.notify_all();
        self.arrived.notify_all();
    }
}

#[cfg(all(test, feature = "loom"))]
mod model_check {
    use super::*;
    use crate::arena::carve;
    use loom::sync::Arc;
    use loom::thread;

    /// Every interleaving with at most three preemptions: enough to show the races that two-party
    /// protocols have, few enough to finish in seconds.
    fn model(check: impl Fn() + Send + Sync + 'static) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(3);
        builder.check(check);
    }

    /// Reads stripes `0..count` in place of a disk: fills each slot with the stripe's number.
    fn reader(ring: &Ring, count: u64) {
        while let Some(mut claim) =
            ring.claim(|number| if number < count { Place::Ring } else { Place::Nowhere })
        {
            claim.slot.bytes_mut()[0] = claim.number as u8 + 1;
            ring.deliver(claim.number, claim.slot);
        }
    }

    #[test]
    fn every_stripe_arrives_once_in_order_with_its_own_bytes() {
        model(|| {
            let ring = Arc::new(Ring::new(carve(&[64, 64]).unwrap()));
            let readers: Vec<_> = (0..2)
                .map(|_| {
                    let ring = ring.clone();
                    thread::spawn(move || reader(&ring, 3))
                })
                .collect();
            for number in 0..3 {
                let slot = ring.take(number).unwrap();
                assert_eq!(slot.bytes()[0], number as u8 + 1);
                ring.release(slot);
            }
            readers.into_iter().for_each(|reader| reader.join().unwrap());
        });
    }

    #[test]
    fn one_slot_is_enough() {
        model(|| {
            let ring = Arc::new(Ring::new(carve(&[64]).unwrap()));
            let other = ring.clone();
            let reader = thread::spawn(move || reader(&other, 3));
            for number in 0..3 {
                let slot = ring.take(number).unwrap();
                assert_eq!(slot.bytes()[0], number as u8 + 1);
                ring.release(slot);
            }
            reader.join().unwrap();
        });
    }

    #[test]
    fn closing_wakes_readers_that_wait_for_a_slot() {
        model(|| {
            let ring = Arc::new(Ring::new(carve(&[64]).unwrap()));
            let other = ring.clone();
            let reader = thread::spawn(move || reader(&other, u64::MAX));
            let held = ring.take(0).unwrap();
            ring.close();
            reader.join().unwrap();
            assert_eq!(held.bytes()[0], 1);
        });
    }

    #[test]
    fn seeking_drops_what_lies_before_and_loses_no_slot() {
        model(|| {
            let ring = Arc::new(Ring::new(carve(&[64, 64]).unwrap()));
            let other = ring.clone();
            let reader = thread::spawn(move || reader(&other, 4));
            ring.seek(2);
            for number in 2..4 {
                let slot = ring.take(number).unwrap();
                assert_eq!(slot.bytes()[0], number as u8 + 1);
                ring.release(slot);
            }
            reader.join().unwrap();
            assert_eq!(lock(&ring.state).free.len(), 2);
        });
    }

    #[test]
    fn a_failure_reaches_the_consumer_after_the_stripes_before_it() {
        model(|| {
            let ring = Arc::new(Ring::new(carve(&[64, 64]).unwrap()));
            let other = ring.clone();
            let reader = thread::spawn(move || {
                while let Some(claim) = other.claim(|_| Place::Ring) {
                    match claim.number {
                        0 => other.deliver(0, claim.slot),
                        number => other.fail(number, Error::Stopped),
                    }
                }
            });
            assert!(ring.take(0).is_ok());
            assert!(ring.take(1).is_err());
            assert!(ring.take(7).is_err());
            reader.join().unwrap();
        });
    }
}
