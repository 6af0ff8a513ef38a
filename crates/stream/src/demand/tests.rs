//! The lane without threads and without a disk: the test plays the reader.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::arena::carve;
use crate::ring::{Claim, Place as RingPlace, Work};
use crate::{Tensor, Unit};
use airllm_format::NumFormat;
use proptest::prelude::*;

/// Units of `sizes` stripes of 8192 bytes each.
fn catalog(sizes: &[usize]) -> Catalog {
    let unit = |(file, &rows): (usize, &usize)| {
        let (name, format) = ("t".into(), NumFormat::F32);
        let tensor = Tensor { name, file, offset: 0, format, rows: rows * 2048, cols: 1, checksum: None };
        Unit { name: format!("u{file}"), tensors: vec![tensor], on_demand: true }
    };
    Catalog { units: sizes.iter().enumerate().map(unit).collect(), pass: Vec::new() }
}

struct Bench {
    catalog: Catalog,
    ring: Ring,
    lane: Lane<u64>,
    slots: usize,
    /// Orders that a reader has in hand.
    claims: Vec<Claim>,
    /// Stripes delivered that the lane has not taken in.
    delivered: usize,
    fence: u64,
}

#[derive(Debug, Clone)]
enum Deed {
    /// Units as numbers, those that cannot be requested left out, and the place of the pass.
    Request(Vec<usize>, usize),
    Order,
    Claim,
    Deliver(usize),
    Lease,
    Settle,
    Done,
    Clear,
}

impl Bench {
    fn new(sizes: &[usize], slots: usize) -> Self {
        let catalog = catalog(sizes);
        let cut = Cut::on_demand(&catalog, crate::tier::Tiers::pinned(&[]), 8192).unwrap();
        assert_eq!(cut.stripes.len(), sizes.iter().sum::<usize>());
        let own = carve(&vec![0; cut.stripes.len()]).unwrap();
        let lane = Lane::new(&catalog, &cut, own, carve(&vec![8192; slots]).unwrap(), 1);
        let ring = Ring::new(Vec::new());
        Self { catalog, ring, lane, slots, claims: Vec::new(), delivered: 0, fence: 0 }
    }

    /// Orders that no reader has claimed.
    fn open(&self) -> usize {
        let ordered = self.lane.stripes.iter().filter(|s| matches!(s.place, Place::Ordered)).count();
        ordered - self.claims.len() - self.delivered
    }

    fn order(&mut self) {
        self.lane.order(&self.ring, 0);
        self.delivered = 0;
    }

    fn claim(&mut self) -> bool {
        let open = self.open() > 0;
        if open {
            self.claims.extend(self.ring.claim(|_| RingPlace::Nowhere));
        }
        open
    }

    fn deliver(&mut self, which: usize) -> bool {
        if self.claims.is_empty() {
            return false;
        }
        let mut claim = self.claims.swap_remove(which % self.claims.len());
        let Work::Ordered(order) = claim.work else { panic!("there are no numbers here") };
        claim.slot.bytes_mut().fill(order.stripe as u8 + 1);
        self.ring.deliver(claim);
        self.delivered += 1;
        true
    }

    fn lease(&mut self) {
        if let Some(Ok(Front::Here(stripe))) = self.lane.front() {
            assert!(self.lane.slot(stripe).unwrap().bytes().iter().all(|&byte| byte == stripe as u8 + 1));
            self.fence += 1;
            self.lane.pass(self.fence);
        }
    }

    fn act(&mut self, deed: &Deed) {
        match deed {
            Deed::Request(units, place) => {
                let mut fresh: Vec<usize> = Vec::new();
                for unit in units.iter().map(|unit| unit % self.catalog.units.len()) {
                    if !fresh.contains(&unit) && self.lane.uses.iter().all(|other| other.unit != unit) {
                        fresh.push(unit);
                    }
                }
                self.lane.request(&self.catalog, &fresh, *place, self.fence / 8).unwrap();
            }
            Deed::Order => self.order(),
            Deed::Claim => drop(self.claim()),
            Deed::Deliver(which) => drop(self.deliver(*which)),
            Deed::Lease => self.lease(),
            Deed::Settle => self.lane.settle(),
            Deed::Done => {
                if let Some(unit) = self.lane.uses.front().map(|first| first.unit) {
                    self.fence += 1;
                    self.lane.done(&self.catalog, &self.ring, unit, self.fence).unwrap();
                }
            }
            Deed::Clear => {
                self.fence += 1;
                self.lane.clear(&self.ring, self.fence);
            }
        }
    }

    fn check(&self) {
        let lane = &self.lane;
        let on_the_way = self.open() + self.claims.len() + self.delivered;
        assert_eq!(
            lane.free.len() + lane.cached.len() + on_the_way,
            self.slots,
            "a slot was lost or doubled"
        );
        for (index, stripe) in lane.stripes.iter().enumerate() {
            let here = matches!(stripe.place, Place::Here(_));
            assert!(stripe.busy == 0 || here, "stripe {index} went while the device worked with it");
            assert_eq!(here, lane.cached.contains(&index));
            assert_eq!(stripe.wanted, lane.wanted.iter().any(|wanted| wanted.stripe == index));
        }
        for wanted in lane.wanted.iter().take(lane.covered) {
            assert!(!matches!(lane.stripes[wanted.stripe].place, Place::Absent), "a wanted stripe went");
        }
        assert!(lane.ahead <= lane.most_ahead);
    }

    /// Leases all that is wanted, as the pipeline does.
    fn drain(&mut self) {
        for _ in 0..10_000 {
            self.order();
            match self.lane.front() {
                None => return,
                Some(Ok(Front::Here(_))) => self.lease(),
                Some(Ok(Front::Reader)) => {
                    assert!(self.claim() || self.deliver(0), "it waits for a reader that has nothing to do");
                }
                Some(Ok(Front::Device)) => self.lane.settle(),
                Some(Err(error)) => panic!("{error}"),
            }
            self.check();
        }
        panic!("it goes round in circles");
    }
}

fn deed() -> impl Strategy<Value = Deed> {
    prop_oneof![
        2 => (prop::collection::vec(0usize..12, 0..5), 0usize..4).prop_map(|(units, at)| Deed::Request(units, at)),
        4 => Just(Deed::Order),
        4 => Just(Deed::Claim),
        4 => (0usize..8).prop_map(Deed::Deliver),
        4 => Just(Deed::Lease),
        2 => Just(Deed::Settle),
        1 => Just(Deed::Done),
        1 => Just(Deed::Clear),
    ]
}

proptest! {
    #[test]
    fn no_slot_is_lost_no_stripe_in_use_goes_and_all_that_is_wanted_comes(
        sizes in prop::collection::vec(1usize..5, 1..12),
        slots in 1usize..9,
        deeds in prop::collection::vec(deed(), 0..120),
    ) {
        let mut bench = Bench::new(&sizes, slots);
        for deed in &deeds {
            bench.act(deed);
            bench.check();
        }
        bench.drain();
    }
}

#[test]
fn a_hit_wanted_later_makes_room_for_what_is_wanted_now() {
    let mut bench = Bench::new(&[2, 2], 2);
    bench.lane.request(&bench.catalog, &[1], 0, 0).unwrap();
    bench.drain();
    bench.act(&Deed::Done);
    assert_eq!(bench.lane.cached, [2, 3]);
    bench.lane.request(&bench.catalog, &[0, 1], 0, 1).unwrap();
    bench.drain();
    assert_eq!((bench.lane.hits, bench.lane.misses), (0, 6));
}

#[test]
fn reading_ahead_takes_no_more_than_readers_can_use() {
    let mut bench = Bench::new(&[1; 10], 8);
    bench.lane.request(&bench.catalog, &[0, 1, 2, 3, 4], 0, 0).unwrap();
    bench.drain();
    for _ in 0..5 {
        bench.act(&Deed::Done);
        bench.act(&Deed::Settle);
    }
    bench.lane.request(&bench.catalog, &[5, 6, 7, 8, 9], 1, 1).unwrap();
    bench.order();
    assert_eq!((bench.open(), bench.lane.free.len()), (3, 0));
    assert_eq!(bench.lane.cached.len(), 5);
}

#[test]
fn orders_go_before_numbers() {
    let ring = Ring::new(carve(&[4096, 4096]).unwrap());
    assert_eq!(ring.claim(|_| RingPlace::Ring).unwrap().work, Work::Next(0));
    let order = Order { stripe: 7, pass: 3 };
    ring.order(order, carve(&[4096]).unwrap().remove(0));
    assert_eq!(ring.claim(|_| RingPlace::Ring).unwrap().work, Work::Ordered(order));
    assert_eq!(ring.claim(|_| RingPlace::Ring).unwrap().work, Work::Next(1));
}
