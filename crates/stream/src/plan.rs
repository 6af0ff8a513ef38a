//! Decides what stays in memory and what streams, and says how fast that will be. Numbers in, numbers out.

use crate::arena::ALIGNMENT;
use crate::cut::{LARGEST_STRIPE, smallest_slot};
use crate::{Catalog, Unit};
use serde::Serialize;

/// What a model needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Need {
    /// The units, in the catalog's order.
    pub units: Vec<UnitNeed>,
    /// Bytes besides weights and ring: activations, KV cache, logits.
    pub fixed: u64,
    /// Bytes of the longest packed row that streams.
    pub longest_row: usize,
}

/// What one unit needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UnitNeed {
    /// Its name.
    pub name: String,
    /// Bytes it occupies when pinned.
    pub bytes: u64,
    /// Bytes of it that each pass goes through; 0 for a table that is only gathered from.
    pub per_pass: u64,
}

impl Need {
    /// The need of a catalog; `fixed` as in [`Need::fixed`].
    pub fn of(catalog: &Catalog, fixed: u64) -> Self {
        let per_pass = |index: usize, unit: &Unit| -> u64 {
            let mut ids: Vec<_> = catalog.pass.iter().filter(|id| id.unit == index).collect();
            ids.dedup();
            ids.iter().filter_map(|id| unit.tensors.get(id.tensor)).map(|t| t.bytes() as u64).sum()
        };
        let units = catalog.units.iter().enumerate().map(|(index, unit)| UnitNeed {
            name: unit.name.clone(),
            bytes: unit.bytes() as u64,
            per_pass: per_pass(index, unit),
        });
        let rows = catalog.pass.iter().filter_map(|&id| catalog.get(id)).map(|t| t.row_bytes());
        Self { units: units.collect(), fixed, longest_row: rows.max().unwrap_or(0) }
    }
}

/// Measured rates, in bytes per second.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Hardware {
    /// Sequential reads of the shards by the fastest method.
    pub disk: f64,
    /// Reads of memory by all compute threads together; the roof of a one-token multiply.
    pub memory: f64,
}

/// What the user asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Request {
    /// Bytes for weights, ring, activations and KV cache together; `None` takes what the model needs.
    pub ram: Option<u64>,
    /// Reader threads.
    pub readers: usize,
    /// Slots of the ring; `None` lets the plan choose.
    pub slots: Option<usize>,
    /// Bytes of a slot; `None` lets the plan choose.
    pub slot_bytes: Option<usize>,
}

impl Default for Request {
    fn default() -> Self {
        Self { ram: None, readers: 2, slots: None, slot_bytes: None }
    }
}

/// Where everything lives, and what that costs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// Whether a unit stays in memory, in the order of [`Need::units`].
    pub pinned: Vec<bool>,
    /// Slots of the ring; 0 when nothing streams.
    pub slots: usize,
    /// Bytes of a slot.
    pub slot_bytes: usize,
    /// Reader threads.
    pub readers: usize,
    /// Bytes taken in all.
    pub ram: u64,
    /// Bytes of weights that every pass multiplies.
    pub bytes_per_pass: u64,
    /// Bytes that every pass reads from disk.
    pub streamed: u64,
    /// Bytes that are read once, and stay.
    pub resident: u64,
    /// Expected seconds of a pass with one token: lanes work at the same time, so the slower one.
    pub seconds_per_token: f64,
    /// The slower lane.
    pub bottleneck: Lane,
}

/// A lane that can be the bottleneck.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Lane {
    /// Reading shards.
    Disk,
    /// Reading weights from memory to multiply them.
    Memory,
}

impl std::fmt::Display for Lane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Disk => "disk",
            Self::Memory => "memory",
        })
    }
}

/// The budget cannot work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error, Serialize)]
#[error(
    "the memory budget of {have} bytes is too small: {need} bytes are the least that works \
     ({fixed} for activations and KV cache, {ring} for the ring)"
)]
pub struct Refusal {
    /// The smallest budget that works, in bytes.
    pub need: u64,
    /// The budget given.
    pub have: u64,
    /// The part of `need` that is activations, KV cache and logits.
    pub fixed: u64,
    /// The part of `need` that is the smallest ring.
    pub ring: u64,
}

/// Below this size reads get slow.
const COMFORTABLE_SLOT: usize = 1 << 20;
/// With two slots one is read while the other is computed with.
const FEWEST_SLOTS: usize = 2;

/// Plans inside a budget.
///
/// The ring gets a quarter of what activations and KV cache leave, as long as that makes its reads
/// faster; the rest pins whole units, a fixed set, because a cyclic scan defeats any cache that replaces.
/// Units are pinned in an order that does not depend on the budget and spreads every prefix over the
/// pass: more memory never pins less, and the disk lane can read ahead during pinned layers.
pub fn plan(need: &Need, hardware: &Hardware, request: &Request) -> Result<Plan, Refusal> {
    let total: u64 = need.units.iter().map(|unit| slack(unit.bytes)).sum();
    let least_slot = smallest_slot(need.longest_row.max(1));
    let ring_least = (request.slots.unwrap_or(FEWEST_SLOTS)
        * request.slot_bytes.unwrap_or(least_slot).max(least_slot)) as u64;
    let have = request.ram.unwrap_or(u64::MAX);
    let everything = need.fixed + total;
    if have >= everything {
        // Nothing streams, so there is no ring; the stripes' size still shapes the first reads.
        let pinned = vec![true; need.units.len()];
        let slot_bytes = request.slot_bytes.unwrap_or(LARGEST_STRIPE).max(least_slot);
        return Ok(finish(need, hardware, request, pinned, 0, slot_bytes));
    }
    if have < need.fixed + ring_least {
        let smallest = (need.fixed + ring_least).min(everything);
        return Err(Refusal { need: smallest, have, fixed: need.fixed, ring: smallest - need.fixed });
    }
    let left = have - need.fixed;
    let (slots, slot_bytes) = ring(request, left, least_slot);
    let mut room = left - (slots * slot_bytes) as u64;
    let mut pinned = vec![false; need.units.len()];
    for index in pin_order(need) {
        let bytes = slack(need.units[index].bytes);
        if bytes > room {
            break;
        }
        room -= bytes;
        pinned[index] = true;
    }
    Ok(finish(need, hardware, request, pinned, slots, slot_bytes))
}

/// Slots and slot size for a ring out of `left` bytes.
fn ring(request: &Request, left: u64, least_slot: usize) -> (usize, usize) {
    let share = usize::try_from(left / 4).unwrap_or(usize::MAX);
    // One slot is computed with while every reader fills another, and one more is ready.
    let wanted = request.slots.unwrap_or(request.readers.max(1) + 2).max(1);
    let even = |slots: usize| share / slots / ALIGNMENT * ALIGNMENT;
    let comfortable = COMFORTABLE_SLOT.min(left as usize / wanted);
    let slot_bytes = request.slot_bytes.unwrap_or(even(wanted).min(LARGEST_STRIPE).max(comfortable));
    let slot_bytes = (slot_bytes / ALIGNMENT * ALIGNMENT).max(least_slot);
    let most = usize::try_from(left).unwrap_or(usize::MAX) / slot_bytes;
    if most >= wanted {
        (wanted, slot_bytes)
    } else {
        // `left` holds FEWEST_SLOTS of the least size, or what the request names.
        let slots = request.slots.unwrap_or(FEWEST_SLOTS);
        let fit = usize::try_from(left).unwrap_or(usize::MAX) / slots / ALIGNMENT * ALIGNMENT;
        (slots, slot_bytes.min(fit).max(least_slot))
    }
}

/// The order in which units are pinned: those that stream, so that every prefix is spread evenly over the
/// pass (van der Corput's sequence in base 2), then those that are only gathered from.
fn pin_order(need: &Need) -> Vec<usize> {
    let streams: Vec<usize> = (0..need.units.len()).filter(|&index| need.units[index].per_pass > 0).collect();
    let bits = usize::BITS - streams.len().saturating_sub(1).leading_zeros();
    let mut order: Vec<usize> = (0..1usize << bits)
        .map(|i| if bits == 0 { 0 } else { i.reverse_bits() >> (usize::BITS - bits) })
        .filter_map(|position| streams.get(position).copied())
        .collect();
    order.extend((0..need.units.len()).filter(|&index| need.units[index].per_pass == 0));
    order
}

/// Bytes a unit takes when pinned: its stripes start and end on [`ALIGNMENT`], and the unit's neighbours
/// can make it begin a stripe of its own.
fn slack(bytes: u64) -> u64 {
    bytes + (2 + bytes / LARGEST_STRIPE as u64) * 2 * ALIGNMENT as u64
}

fn finish(
    need: &Need,
    hardware: &Hardware,
    request: &Request,
    pinned: Vec<bool>,
    slots: usize,
    slot_bytes: usize,
) -> Plan {
    let sum = |pin: bool, bytes: fn(&UnitNeed) -> u64| -> u64 {
        need.units.iter().zip(&pinned).filter(|(_, p)| **p == pin).map(|(unit, _)| bytes(unit)).sum()
    };
    let streamed = sum(false, |unit| unit.per_pass);
    let resident = sum(true, |unit| unit.bytes);
    let bytes_per_pass = need.units.iter().map(|unit| unit.per_pass).sum();
    let disk = streamed as f64 / hardware.disk;
    let memory = bytes_per_pass as f64 / hardware.memory;
    let taken: u64 = need.fixed + (slots * slot_bytes) as u64 + sum(true, |unit| slack(unit.bytes));
    Plan {
        slots,
        slot_bytes,
        readers: request.readers.max(1),
        ram: taken,
        bytes_per_pass,
        streamed,
        resident,
        seconds_per_token: disk.max(memory),
        bottleneck: if disk > memory { Lane::Disk } else { Lane::Memory },
        pinned,
    }
}

#[cfg(all(test, not(feature = "loom")))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HARDWARE: Hardware = Hardware { disk: 1e9, memory: 2e10 };

    fn need(units: &[u64], table: u64, fixed: u64, longest_row: usize) -> Need {
        let mut all = vec![UnitNeed { name: "embed".into(), bytes: table, per_pass: 0 }];
        all.extend(units.iter().enumerate().map(|(index, &bytes)| UnitNeed {
            name: format!("layer.{index}"),
            bytes,
            per_pass: bytes,
        }));
        Need { units: all, fixed, longest_row }
    }

    fn request(ram: u64) -> Request {
        Request { ram: Some(ram), ..Request::default() }
    }

    proptest! {
        #[test]
        fn budgets_hold_and_more_memory_is_never_slower(
            units in prop::collection::vec(10_000u64..200_000_000, 1..40),
            table in 0u64..100_000_000,
            fixed in 0u64..50_000_000,
            row in 1usize..60_000,
            budgets in prop::collection::vec(0u64..3_000_000_000, 2..6),
            slots in prop::option::of(1usize..9),
            slot_bytes in prop::option::of(4096usize..20_000_000),
        ) {
            let need = need(&units, table, fixed, row);
            let mut budgets = budgets;
            budgets.sort_unstable();
            let mut last = f64::INFINITY;
            let mut worked = false;
            for ram in budgets {
                let request = Request { ram: Some(ram), readers: 2, slots, slot_bytes };
                match plan(&need, &HARDWARE, &request) {
                    Ok(plan) => {
                        worked = true;
                        prop_assert!(plan.ram <= ram, "{} of {ram}", plan.ram);
                        prop_assert!(plan.seconds_per_token <= last);
                        last = plan.seconds_per_token;
                        prop_assert!(plan.slot_bytes >= smallest_slot(row));
                        prop_assert_eq!(&plan, &super::plan(&need, &HARDWARE, &request).unwrap());
                    }
                    Err(refusal) => {
                        prop_assert!(!worked, "a larger budget was refused");
                        prop_assert_eq!(refusal.have, ram);
                        let least = Request { ram: Some(refusal.need), ..request };
                        prop_assert!(super::plan(&need, &HARDWARE, &least).is_ok());
                        let less = Request { ram: Some(refusal.need - 1), ..request };
                        prop_assert!(super::plan(&need, &HARDWARE, &less).is_err());
                    }
                }
            }
        }
    }

    #[test]
    fn everything_is_pinned_where_it_fits() {
        let need = need(&[1000, 1000], 500, 10, 100);
        let plan = plan(&need, &HARDWARE, &Request::default()).unwrap();
        assert_eq!((plan.pinned, plan.slots, plan.streamed), (vec![true; 3], 0, 0));
        assert_eq!(plan.bottleneck, Lane::Memory);
    }

    #[test]
    fn half_the_memory_pins_every_other_layer() {
        let layer = 100_000_000;
        let need = need(&[layer; 16], 50_000_000, 1_000_000, 16384);
        let plan = plan(&need, &HARDWARE, &request(8 * 100_500_000 + 70_000_000)).unwrap();
        let layers: Vec<bool> = plan.pinned[1..].to_vec();
        assert_eq!(layers.iter().filter(|&&pin| pin).count(), 8);
        assert!(layers.chunks(2).all(|pair| pair[0] != pair[1]), "{layers:?}");
        assert_eq!((plan.streamed, plan.bottleneck), (8 * layer, Lane::Disk));
        assert!((plan.seconds_per_token - 0.8).abs() < 1e-9);
    }
}
