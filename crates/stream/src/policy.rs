//! Which units read on demand stay in memory when there is not room for all.
//!
//! Three rules, each for a reason:
//! - Places of the pass (layers) have equal shares of the memory. A place that has its share replaces its
//!   own units. A pass goes round the places, so by recency alone what is oldest is what is needed next:
//!   with less memory than one pass uses, LRU hits nothing.
//! - Within a place the unit goes whose requests weigh least; a request weighs half as much after every
//!   [`Policy::HALF_LIFE`] passes. That is frequency with aging: experts are popular for a while.
//! - Among equals a fixed order decides, which keeps a fixed part of what is used equally often, so that a
//!   scan hits its share, as it does with pinned layers.
//!
//! Chosen by `cargo bench --bench experts`, which simulates policies on routers that choose uniformly, by
//! popularity that changes, by habit, and by mixtures. Fairness keeps frequency from hoarding in the places
//! whose experts were counted first, and keeps every policy from failing at small memory. Long half-lives win
//! a few points while popularity stays and lose many when it moves or when tokens repeat the last one's
//! experts; short ones are the reverse. Four passes lose little anywhere, with one exception: where tokens
//! repeat experts and a place's share is just what one token uses, LRU hits 10 to 17 in a hundred more.

use std::cmp::Ordering;

/// Ranks units by how often and how recently they were requested, and says which one goes. Pure: no clock,
/// no I/O.
#[derive(Debug, Clone)]
pub struct Policy {
    half_life: f64,
    units: Vec<Record>,
    /// Slots in use by the units of each place, for places where something was requested.
    held: Vec<Option<usize>>,
}

#[derive(Debug, Clone, Copy)]
struct Record {
    /// log2 of the sum over requests of 2^(pass / half life). Aging multiplies all sums by the same
    /// number, so that this only changes for the unit that is requested.
    weight: f64,
    /// Where in the pass it was first requested.
    place: usize,
}

impl Policy {
    /// Passes after which a request counts half, unless something else is measured.
    pub const HALF_LIFE: f64 = 4.0;

    /// No unit was requested yet; `half_life` in passes, above zero.
    pub fn new(units: usize, half_life: f64) -> Self {
        let record = Record { weight: f64::NEG_INFINITY, place: 0 };
        Self { half_life, units: vec![record; units], held: Vec::new() }
    }

    /// A unit is requested at a place of a pass. Units that there are not are passed over.
    pub fn touch(&mut self, unit: usize, place: usize, pass: u64) {
        let Some(record) = self.units.get_mut(unit) else { return };
        if record.weight == f64::NEG_INFINITY {
            record.place = place;
            if self.held.len() <= place {
                self.held.resize(place + 1, None);
            }
            self.held[place].get_or_insert(0);
        }
        let now = pass as f64 / self.half_life;
        let (high, low) = if now > record.weight { (now, record.weight) } else { (record.weight, now) };
        record.weight = high + (low - high).exp2().ln_1p() / std::f64::consts::LN_2;
    }

    /// A slot is given to a unit that was requested.
    pub fn enter(&mut self, unit: usize) {
        if let Some(count) = self.held_by_place_of(unit) {
            *count += 1;
        }
    }

    /// A slot is taken from a unit.
    pub fn leave(&mut self, unit: usize) {
        if let Some(count) = self.held_by_place_of(unit) {
            *count = count.saturating_sub(1);
        }
    }

    /// Which of the units `from` gives a slot to `newcomer`, where there are `slots`; `None` if there is none.
    pub fn victim<I>(&self, from: I, newcomer: usize, slots: usize) -> Option<usize>
    where
        I: Iterator<Item = usize> + Clone,
    {
        let places = self.held.iter().flatten().count().max(1);
        let held = |place: usize| self.held.get(place).copied().flatten().unwrap_or(0);
        let own = self.place(newcomer);
        let place = if held(own) >= slots.div_ceil(places) {
            own
        } else {
            (0..self.held.len()).max_by_key(|&place| held(place)).unwrap_or(own)
        };
        let there = from.clone().filter(|&unit| self.place(unit) == place);
        there.min_by(|&a, &b| self.compare(a, b)).or_else(|| from.min_by(|&a, &b| self.compare(a, b)))
    }

    /// Which of two units is worth less: the lesser is to go first.
    fn compare(&self, one: usize, other: usize) -> Ordering {
        let weight = |unit: usize| self.units.get(unit).map_or(f64::NEG_INFINITY, |record| record.weight);
        weight(one).total_cmp(&weight(other)).then(other.cmp(&one))
    }

    fn place(&self, unit: usize) -> usize {
        self.units.get(unit).map_or(0, |record| record.place)
    }

    fn held_by_place_of(&mut self, unit: usize) -> Option<&mut usize> {
        let place = self.place(unit);
        self.held.get_mut(place)?.as_mut()
    }
}

#[cfg(all(test, not(feature = "loom")))]
mod tests {
    use super::*;

    #[test]
    fn requests_count_half_after_a_half_life() {
        let mut policy = Policy::new(4, 10.0);
        policy.touch(0, 0, 0);
        policy.touch(0, 0, 0);
        policy.touch(1, 0, 9);
        // Two requests of nine passes ago still outweigh one of now, those of eleven passes ago do not.
        assert_eq!(policy.compare(0, 1), Ordering::Greater);
        policy.touch(2, 0, 11);
        assert_eq!(policy.compare(0, 2), Ordering::Less);
        assert_eq!(policy.compare(1, 2), Ordering::Less);
        assert_eq!(policy.compare(3, 0), Ordering::Less);
        assert_eq!(policy.victim([2, 0, 1].into_iter(), 3, 3), Some(1));
        assert_eq!(policy.victim([].into_iter(), 3, 3), None);
    }

    #[test]
    fn equals_have_a_fixed_order() {
        let mut policy = Policy::new(3, 10.0);
        for unit in [2, 0, 1] {
            policy.touch(unit, 0, 5);
        }
        assert_eq!(policy.victim([0, 2, 1].into_iter(), 0, 3), Some(2));
        assert_eq!(policy.victim([1, 0].into_iter(), 0, 3), Some(1));
    }

    #[test]
    fn a_place_with_its_share_replaces_its_own() {
        let mut policy = Policy::new(6, 10.0);
        for (unit, pass) in [(0, 1), (1, 2), (2, 3)] {
            policy.touch(unit, 0, pass);
        }
        policy.touch(3, 7, 9);
        for unit in [0, 1, 3] {
            policy.enter(unit);
        }
        // Place 0 has two of four slots, its share: it gives up its own least.
        assert_eq!(policy.victim([1, 0, 3].into_iter(), 2, 4), Some(0));
        // Place 7 has one: the place that has the most gives.
        policy.touch(4, 7, 9);
        assert_eq!(policy.victim([3, 1, 0].into_iter(), 4, 4), Some(0));
        // Where that place has nothing to give, anyone does.
        assert_eq!(policy.victim([3].into_iter(), 4, 4), Some(3));
        policy.leave(0);
        policy.leave(1);
        policy.enter(4);
        assert_eq!(policy.victim([4, 3, 2].into_iter(), 2, 4), Some(4));
    }

    #[test]
    fn weights_stay_finite_over_long_runs() {
        let mut policy = Policy::new(2, 0.5);
        for pass in (0..10_000_000).step_by(100_000) {
            policy.touch(0, 0, pass);
        }
        policy.touch(1, 0, 10_000_000);
        assert_eq!(policy.compare(0, 1), Ordering::Less);
        policy.touch(9, 0, 1);
        assert_eq!(policy.compare(9, 0), Ordering::Less);
    }
}
