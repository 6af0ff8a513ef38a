//! The lane of what is read on demand: which stripes are asked for, which are in memory, which go.
//!
//! ```text
//!  request(units) ──► wanted stripes, in order of use ──slot──► Ring::order ──► reader ──► answer
//!                       │ in memory already: a hit     ▲ free, or taken from the one of least worth
//!                       ▼                              │
//!                     lease, stripe by stripe ──► passed: stays until its slot is taken
//! ```
//!
//! All of this happens on the consumer's thread; readers see nothing but orders. A slot is only ever taken
//! from a stripe that nobody wants and whose last lease the device is done with. One exception keeps a
//! small cache from deadlock: the stripe that the consumer waits for, and the one after it, may take the
//! slot of a hit that is wanted later, which is then read again.

#[cfg(all(test, not(feature = "loom")))]
mod tests;

use crate::arena::{Free, Ready, Slot};
use crate::cut::{Cut, name};
use crate::policy::Policy;
use crate::ring::{Answer, Order, Ring};
use crate::{Catalog, Error, Result, TensorId};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

/// State of the on-demand stripes. `F` is the device's fence.
#[derive(Debug)]
pub struct Lane<F> {
    stripes: Vec<Stripe>,
    /// For each unit of the catalog: its stripes and its first entry of the cut; nothing for other units.
    units: Vec<(Range<usize>, usize)>,
    /// Slots of the cache that hold nothing.
    free: Vec<Slot<Free>>,
    /// Slots of the cache.
    slots: usize,
    /// Stripes that hold a slot of the cache, and its bytes.
    cached: Vec<usize>,
    /// What was requested and not passed yet, in order of use.
    wanted: VecDeque<Wanted>,
    /// How many of `wanted`, from the front, are in memory or on their way.
    covered: usize,
    /// How many of those had to be read.
    ahead: usize,
    /// Most of them at a time: further ahead no reader is faster, and the cache loses what it keeps.
    most_ahead: usize,
    uses: VecDeque<Use>,
    /// Stripes whose leases ended but whose work may not have, by time.
    busy: VecDeque<(F, usize)>,
    policy: Policy,
    /// Stripes passed that were in memory when they were wanted, and that were not.
    pub hits: u64,
    pub misses: u64,
}

#[derive(Debug)]
struct Stripe {
    unit: usize,
    place: Place,
    /// Whether it is in `wanted`.
    wanted: bool,
    /// How often it is in `busy`.
    busy: u32,
    /// Pinned: has a slot of its own and keeps it.
    pinned: bool,
    /// The slot of its own, until it is read.
    own: Option<Slot<Free>>,
}

#[derive(Debug)]
enum Place {
    Absent,
    Ordered,
    /// Shared with nobody but a copy of it to the device, while the stripe is leased or busy.
    Here(Arc<Slot<Ready>>),
    /// It could not be read, or is damaged. It is not tried again.
    Failed(Error),
}

#[derive(Debug)]
struct Wanted {
    stripe: usize,
    read: bool,
}

/// A requested unit that is not done.
#[derive(Debug)]
struct Use {
    unit: usize,
    /// The tensor to be leased next.
    tensor: usize,
}

/// What the front of the queue waits for.
#[derive(Debug, PartialEq, Eq)]
pub enum Front {
    /// Nothing, here it is.
    Here(usize),
    /// A reader.
    Reader,
    /// The device, which still works with the slots there are.
    Device,
}

impl<F> Lane<F> {
    /// Nothing was requested. `own` holds a slot for each pinned stripe of the cut, `free` the cache.
    pub fn new(
        catalog: &Catalog,
        cut: &Cut,
        own: Vec<Slot<Free>>,
        free: Vec<Slot<Free>>,
        readers: usize,
    ) -> Self {
        let stripe = |(stripe, own): (&crate::cut::Stripe, Slot<Free>)| Stripe {
            unit: stripe.parts[0].id.unit,
            place: Place::Absent,
            wanted: false,
            busy: 0,
            pinned: stripe.tier.pinned,
            own: stripe.tier.pinned.then_some(own),
        };
        let mut entry = 0;
        let mut units = Vec::with_capacity(catalog.units.len());
        let first = |entry: usize| cut.starts.get(entry).copied().unwrap_or(cut.stripes.len());
        for unit in &catalog.units {
            let next = if unit.on_demand { entry + unit.tensors.len() } else { entry };
            units.push((first(entry)..first(next), entry));
            entry = next;
        }
        Self {
            stripes: cut.stripes.iter().zip(own).map(stripe).collect(),
            policy: Policy::new(units.len(), Policy::HALF_LIFE),
            units,
            slots: free.len(),
            free,
            cached: Vec::new(),
            wanted: VecDeque::new(),
            covered: 0,
            ahead: 0,
            most_ahead: readers + 2,
            uses: VecDeque::new(),
            busy: VecDeque::new(),
            hits: 0,
            misses: 0,
        }
    }

    /// Adds units to what is wanted, in order of use, or none of them. `place` is where the pass is.
    pub fn request(&mut self, catalog: &Catalog, units: &[usize], place: usize, pass: u64) -> Result<()> {
        for (index, &unit) in units.iter().enumerate() {
            let why = match catalog.units.get(unit) {
                None => "which is not there",
                Some(it) if !it.on_demand => "which is not read on demand",
                _ if self.uses.iter().any(|other| other.unit == unit) => "which is requested already",
                _ if units[..index].contains(&unit) => "twice at once",
                _ => continue,
            };
            return Err(Error::Request { unit: unit_name(catalog, unit), why });
        }
        for &unit in units {
            self.policy.touch(unit, place, pass);
            self.uses.push_back(Use { unit, tensor: 0 });
            for stripe in self.units[unit].0.clone() {
                self.stripes[stripe].wanted = true;
                self.wanted.push_back(Wanted { stripe, read: false });
            }
        }
        Ok(())
    }

    /// Orders what is wanted and not in memory, as far as there are slots for it.
    pub fn order(&mut self, ring: &Ring, pass: u64) {
        self.take_in(ring.answers());
        while let Some(wanted) = self.wanted.get(self.covered) {
            let stripe = wanted.stripe;
            if matches!(self.stripes[stripe].place, Place::Absent) {
                if self.ahead >= self.most_ahead {
                    break;
                }
                let Some(slot) = self.slot_for(stripe) else { break };
                self.stripes[stripe].place = Place::Ordered;
                self.wanted[self.covered].read = true;
                self.ahead += 1;
                ring.order(Order { stripe, pass }, slot);
            }
            self.covered += 1;
        }
    }

    /// Takes in what the readers have brought.
    pub fn take_in(&mut self, answers: BTreeMap<usize, Answer>) {
        for (index, answer) in answers {
            let stripe = &mut self.stripes[index];
            match answer {
                Answer::Read(slot) => {
                    stripe.place = Place::Here(Arc::new(slot));
                    if !stripe.pinned {
                        self.cached.push(index);
                    }
                }
                Answer::Failed(slot, error) => {
                    stripe.place = Place::Failed(error);
                    self.give_back(index, slot);
                }
            }
        }
    }

    /// The tensor that may be leased now must be `id`.
    pub fn expect(&self, catalog: &Catalog, id: TensorId) -> Result<()> {
        let next = self.uses.front();
        match next.map(|next| TensorId { unit: next.unit, tensor: next.tensor }) {
            Some(next) if next == id && catalog.get(id).is_some() => Ok(()),
            Some(next) if catalog.get(next).is_none() => {
                Err(not_next(format!("the end of {}", unit_name(catalog, next.unit)), name(catalog, id)))
            }
            Some(next) => Err(not_next(name(catalog, next), name(catalog, id))),
            None => Err(not_next("nothing".to_owned(), name(catalog, id))),
        }
    }

    /// The tensor was leased.
    pub fn leased(&mut self) {
        if let Some(first) = self.uses.front_mut() {
            first.tensor += 1;
        }
    }

    /// Looks at the stripe that is to be leased next. `None` if nothing is wanted.
    pub fn front(&self) -> Option<Result<Front>> {
        let stripe = self.wanted.front()?.stripe;
        Some(match &self.stripes[stripe].place {
            Place::Here(_) => Ok(Front::Here(stripe)),
            Place::Failed(error) => Err(error.clone()),
            Place::Ordered => Ok(Front::Reader),
            // It has no slot: they are all being read into, or the device works with them.
            Place::Absent if self.busy.is_empty() => Ok(Front::Reader),
            Place::Absent => Ok(Front::Device),
        })
    }

    /// The slot of a stripe, if it is in memory.
    pub fn slot(&self, stripe: usize) -> Option<&Arc<Slot<Ready>>> {
        match &self.stripes.get(stripe)?.place {
            Place::Here(slot) => Some(slot),
            _ => None,
        }
    }

    /// Stripes of a unit, and the first of its entries in the cut.
    pub fn unit(&self, unit: usize) -> Option<&(Range<usize>, usize)> {
        self.units.get(unit)
    }

    /// The front was leased; work up to `fence` may still read it.
    pub fn pass(&mut self, fence: F) {
        let Some(wanted) = self.drop_front() else { return };
        *if wanted.read { &mut self.misses } else { &mut self.hits } += 1;
        self.stripes[wanted.stripe].busy += 1;
        self.busy.push_back((fence, wanted.stripe));
    }

    /// The fence of the oldest work that may not be done.
    pub fn oldest_fence(&self) -> Option<&F> {
        self.busy.front().map(|(fence, _)| fence)
    }

    /// The stripe that that work reads.
    pub fn oldest_stripe(&self) -> Option<usize> {
        self.busy.front().map(|(_, stripe)| *stripe)
    }

    /// The oldest work is done.
    pub fn settle(&mut self) {
        if let Some((_, stripe)) = self.busy.pop_front() {
            self.stripes[stripe].busy -= 1;
        }
    }

    /// Ends the use of the first requested unit, which must be `unit`, whatever of it was leased. Work up to
    /// `fence` may still read the rest.
    pub fn done(&mut self, catalog: &Catalog, ring: &Ring, unit: usize, fence: F) -> Result<()> {
        match self.uses.front() {
            Some(first) if first.unit == unit => {}
            first => {
                let expected = first.map_or("nothing".into(), |first| unit_name(catalog, first.unit));
                return Err(not_next(expected, unit_name(catalog, unit)));
            }
        }
        self.uses.pop_front();
        let rest = self.wanted.iter().take_while(|wanted| self.stripes[wanted.stripe].unit == unit).count();
        self.give_up(ring, rest, fence);
        Ok(())
    }

    /// Ends the use of everything. Work up to `fence` may still read what was leased.
    pub fn clear(&mut self, ring: &Ring, fence: F) {
        self.uses.clear();
        self.give_up(ring, self.wanted.len(), fence);
    }

    /// Nobody wants the first `count` any more. The very first one may have been leased in part.
    fn give_up(&mut self, ring: &Ring, count: usize, fence: F) {
        if count > 0
            && let Some(Ok(Front::Here(stripe))) = self.front()
        {
            self.stripes[stripe].busy += 1;
            self.busy.push_back((fence, stripe));
        }
        for _ in 0..count {
            self.drop_front();
        }
        let stripes = &self.stripes;
        for (stripe, slot) in ring.withdraw(|stripe| !stripes[stripe].wanted) {
            self.stripes[stripe].place = Place::Absent;
            self.give_back(stripe, slot);
        }
    }

    fn drop_front(&mut self) -> Option<Wanted> {
        let wanted = self.wanted.pop_front()?;
        self.stripes[wanted.stripe].wanted = false;
        self.covered = self.covered.saturating_sub(1);
        self.ahead -= usize::from(wanted.read);
        Some(wanted)
    }

    fn give_back(&mut self, stripe: usize, slot: Slot<Free>) {
        let stripe = &mut self.stripes[stripe];
        if stripe.pinned {
            stripe.own = Some(slot);
        } else {
            self.policy.leave(stripe.unit);
            self.free.push(slot);
        }
    }

    /// A slot to read a stripe into: its own, a free one, or that of the stripe worth least.
    fn slot_for(&mut self, stripe: usize) -> Option<Slot<Free>> {
        if self.stripes[stripe].pinned {
            return self.stripes[stripe].own.take();
        }
        if self.free.is_empty() {
            let victim = self.victim(stripe).or_else(|| self.latest())?;
            self.evict(victim);
        }
        let slot = self.free.pop()?;
        self.policy.enter(self.stripes[stripe].unit);
        Some(slot)
    }

    /// The stripe that the policy gives up for `newcomer`, of those that may go: of the unit it chooses the
    /// last one, so that the first ones are there while the last one is read.
    fn victim(&self, newcomer: usize) -> Option<usize> {
        let may_go = |&&stripe: &&usize| !self.stripes[stripe].wanted && self.stripes[stripe].busy == 0;
        let units = self.cached.iter().filter(may_go).map(|&stripe| self.stripes[stripe].unit);
        let unit = self.policy.victim(units, self.stripes[newcomer].unit, self.slots)?;
        self.cached.iter().filter(may_go).copied().filter(|&stripe| self.stripes[stripe].unit == unit).max()
    }

    /// For the first two stripes wanted: the stripe in memory that is wanted last.
    fn latest(&self) -> Option<usize> {
        if self.covered >= 2 {
            return None;
        }
        let later = self.wanted.iter().skip(self.covered + 1).rev().map(|wanted| wanted.stripe);
        let mut cached = later.filter(|&stripe| {
            let it = &self.stripes[stripe];
            !it.pinned && it.busy == 0 && matches!(it.place, Place::Here(_))
        });
        cached.next()
    }

    fn evict(&mut self, victim: usize) {
        let place = std::mem::replace(&mut self.stripes[victim].place, Place::Absent);
        let kept = match place {
            Place::Here(slot) => match Arc::try_unwrap(slot) {
                Ok(slot) => {
                    self.give_back(victim, slot.release());
                    self.cached.retain(|&stripe| stripe != victim);
                    return;
                }
                // Not reached: what is shared is busy. It stays rather than that its slot is lost.
                Err(slot) => Place::Here(slot),
            },
            other => other,
        };
        self.stripes[victim].place = kept;
    }
}

fn unit_name(catalog: &Catalog, unit: usize) -> String {
    catalog.units.get(unit).map_or_else(|| format!("number {unit}"), |unit| unit.name.clone())
}

fn not_next(expected: String, found: String) -> Error {
    Error::NotNext { expected, found }
}
