//! The ring: a bounded hand-over of numbered stripes from reader threads to one consumer.
//!
//! Stripes are numbered without end, over all passes. Readers claim numbers in order, each with a free
//! slot; they may finish in any order; the consumer takes them in order. Because numbers are claimed in
//! order together with their slot, the stripe that the consumer waits for always has one: the ring
//! cannot deadlock, however few slots it has (one is enough).
//!
//! Beside the numbered stripes there are orders: stripes that the consumer asks for by name, each with the
//! slot it is to be read into. Orders go before the numbers that are not claimed yet, because whoever
//! orders is about to wait; they are answered one by one, in any order.

use crate::arena::{Filling, Free, Ready, Slot};
use crate::sync::{Condvar, Mutex, lock, wait};
use crate::{Error, Result};
use std::collections::{BTreeMap, VecDeque};

/// What a reader shall do next.
#[derive(Debug)]
pub struct Claim {
    /// What to read.
    pub work: Work,
    /// Where its bytes go.
    pub slot: Slot<Filling>,
}

/// What is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// The stripe with this number.
    Next(u64),
    /// A stripe that was ordered.
    Ordered(Order),
}

/// A stripe that the consumer asks for by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Order {
    /// Index of the stripe, among those that are read on demand.
    pub stripe: usize,
    /// The pass that needs it, for the timeline.
    pub pass: u64,
}

/// What became of an order.
#[derive(Debug)]
pub enum Answer {
    /// The bytes.
    Read(Slot<Ready>),
    /// The slot comes back without them.
    Failed(Slot<Free>, Error),
}

/// Where the slot of a stripe comes from.
#[derive(Debug)]
pub enum Place {
    /// From the ring, and back to it.
    Ring,
    /// This one, which the stripe keeps.
    Own(Slot<Free>),
    /// There is no such stripe: readers wait for orders.
    Nowhere,
}

/// The shared state. See the module's documentation.
#[derive(Debug)]
pub struct Ring {
    state: Mutex<State>,
    /// Signalled when a slot becomes free, a stripe is ordered or the ring closes.
    freed: Condvar,
    /// Signalled when a stripe arrives, an order is answered or the ring closes.
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
    /// Ordered, and not claimed yet.
    orders: VecDeque<(Order, Slot<Free>)>,
    /// Answers that the consumer has not taken, by stripe.
    answers: BTreeMap<usize, Answer>,
    closed: bool,
}

impl Ring {
    /// A ring of the given slots.
    pub fn new(slots: Vec<Slot<Free>>) -> Self {
        let state = State {
            free: slots,
            ready: BTreeMap::new(),
            next: 0,
            floor: 0,
            failure: None,
            orders: VecDeque::new(),
            answers: BTreeMap::new(),
            closed: false,
        };
        Self { state: Mutex::new(state), freed: Condvar::new(), arrived: Condvar::new() }
    }

    /// Claims an ordered stripe, or else the next one; waits until there is one, and a free slot where it
    /// needs one. `None` once the ring is closed. `place` is asked about a number until the number is
    /// claimed; an `Own` slot is claimed at once.
    pub fn claim(&self, mut place: impl FnMut(u64) -> Place) -> Option<Claim> {
        let mut state = lock(&self.state);
        loop {
            if state.closed {
                return None;
            }
            if let Some((order, slot)) = state.orders.pop_front() {
                self.freed.notify_one();
                return Some(Claim { work: Work::Ordered(order), slot: slot.fill() });
            }
            // Nothing is claimed after a stripe that could not be read.
            if state.failure.is_none() {
                let number = state.next;
                let slot = match place(number) {
                    Place::Nowhere => None,
                    Place::Own(slot) => Some(slot),
                    Place::Ring => state.free.pop(),
                };
                if let Some(slot) = slot {
                    state.next += 1;
                    // The next stripe may need no slot, or there may be another one: let the next reader
                    // look.
                    self.freed.notify_one();
                    return Some(Claim { work: Work::Next(number), slot: slot.fill() });
                }
            }
            state = wait(&self.freed, state);
        }
    }

    /// Delivers a claimed stripe.
    pub fn deliver(&self, claim: Claim) {
        let mut state = lock(&self.state);
        match claim.work {
            Work::Next(number) if number < state.floor => {
                state.free.push(claim.slot.discard());
                self.freed.notify_one();
                return;
            }
            Work::Next(number) => {
                state.ready.insert(number, claim.slot.ready());
            }
            Work::Ordered(order) => {
                state.answers.insert(order.stripe, Answer::Read(claim.slot.ready()));
            }
        }
        self.arrived.notify_one();
    }

    /// Says that a claimed stripe cannot be delivered. No number is claimed after it; orders still are.
    pub fn fail(&self, claim: Claim, error: Error) {
        let mut state = lock(&self.state);
        match claim.work {
            Work::Next(number) => {
                if state.failure.as_ref().is_none_or(|(first, _)| number < *first) {
                    state.failure = Some((number, error));
                }
            }
            Work::Ordered(order) => {
                state.answers.insert(order.stripe, Answer::Failed(claim.slot.discard(), error));
            }
        }
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

    /// Orders a stripe. It must not be ordered again before the answer was taken.
    pub fn order(&self, order: Order, slot: Slot<Free>) {
        lock(&self.state).orders.push_back((order, slot));
        self.freed.notify_one();
    }

    /// Takes back the orders that no reader has claimed and `gone` chooses by stripe.
    pub fn withdraw(&self, gone: impl Fn(usize) -> bool) -> Vec<(usize, Slot<Free>)> {
        let mut state = lock(&self.state);
        let (back, kept) = std::mem::take(&mut state.orders).into_iter().partition(|(o, _)| gone(o.stripe));
        state.orders = kept;
        let back: VecDeque<(Order, Slot<Free>)> = back;
        back.into_iter().map(|(order, slot)| (order.stripe, slot)).collect()
    }

    /// Takes the answers there are.
    pub fn answers(&self) -> BTreeMap<usize, Answer> {
        std::mem::take(&mut lock(&self.state).answers)
    }

    /// Takes the answers there are, and waits for one if there are none. Something must be on order.
    pub fn await_answers(&self) -> Result<BTreeMap<usize, Answer>> {
        let mut state = lock(&self.state);
        while state.answers.is_empty() {
            if state.closed {
                return Err(Error::Stopped);
            }
            state = wait(&self.arrived, state);
        }
        Ok(std::mem::take(&mut state.answers))
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
        bounded(3, check);
    }

    /// With three threads two preemptions have to do.
    fn bounded(preemptions: usize, check: impl Fn() + Send + Sync + 'static) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(preemptions);
        builder.check(check);
    }

    /// Reads stripes `0..count` and orders in place of a disk: fills each slot with the stripe's number, or
    /// 100 more for an order. Ends when the ring is closed.
    fn reader(ring: &Ring, count: u64) {
        while let Some(mut claim) =
            ring.claim(|number| if number < count { Place::Ring } else { Place::Nowhere })
        {
            claim.slot.bytes_mut()[0] = match claim.work {
                Work::Next(number) => number as u8 + 1,
                Work::Ordered(order) => order.stripe as u8 + 100,
            };
            ring.deliver(claim);
        }
    }

    fn order(stripe: usize) -> Order {
        Order { stripe, pass: 0 }
    }

    #[test]
    fn every_stripe_arrives_once_in_order_with_its_own_bytes() {
        bounded(2, || {
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
            ring.close();
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
            ring.close();
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
            ring.close();
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
                    match claim.work {
                        Work::Next(0) | Work::Ordered(_) => other.deliver(claim),
                        Work::Next(_) => other.fail(claim, Error::Stopped),
                    }
                }
            });
            assert!(ring.take(0).is_ok());
            assert!(ring.take(1).is_err());
            assert!(ring.take(7).is_err());
            // Orders are still read.
            ring.order(order(5), carve(&[64]).unwrap().remove(0));
            assert!(matches!(ring.await_answers().unwrap().remove(&5), Some(Answer::Read(_))));
            ring.close();
            reader.join().unwrap();
        });
    }

    #[test]
    fn orders_are_answered_while_numbers_run() {
        bounded(2, || {
            let ring = Arc::new(Ring::new(carve(&[64]).unwrap()));
            let readers: Vec<_> = (0..2)
                .map(|_| {
                    let ring = ring.clone();
                    thread::spawn(move || reader(&ring, 2))
                })
                .collect();
            let mut spare = carve(&[64, 64]).unwrap();
            ring.order(order(3), spare.remove(0));
            ring.order(order(4), spare.remove(0));
            let mut answered = Vec::new();
            while answered.len() < 2 {
                for (stripe, answer) in ring.await_answers().unwrap() {
                    let Answer::Read(slot) = answer else { panic!("nothing fails here") };
                    assert_eq!(slot.bytes()[0], stripe as u8 + 100);
                    answered.push(stripe);
                }
            }
            for number in 0..2 {
                let slot = ring.take(number).unwrap();
                assert_eq!(slot.bytes()[0], number as u8 + 1);
                ring.release(slot);
            }
            ring.close();
            readers.into_iter().for_each(|reader| reader.join().unwrap());
        });
    }

    #[test]
    fn an_order_is_withdrawn_or_answered_never_both() {
        model(|| {
            let ring = Arc::new(Ring::new(Vec::new()));
            let other = ring.clone();
            let reader = thread::spawn(move || reader(&other, 0));
            for (stripe, slot) in carve(&[64, 64]).unwrap().into_iter().enumerate() {
                ring.order(order(stripe), slot);
            }
            let mut back: Vec<_> = ring.withdraw(|stripe| stripe == 1).into_iter().map(|(s, _)| s).collect();
            while back.len() < 2 {
                back.extend(ring.await_answers().unwrap().into_keys());
            }
            back.sort_unstable();
            assert_eq!(back, [0, 1]);
            ring.close();
            reader.join().unwrap();
        });
    }
}
