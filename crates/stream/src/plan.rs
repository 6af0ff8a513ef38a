//! Decides what stays in memory and what streams, and says how fast that will be. Numbers in, numbers out.

use crate::arena::ALIGNMENT;
use crate::cut::{LARGEST_STRIPE, runs, smallest_slot};
use crate::{Catalog, ExpertCache, Unit};
use serde::Serialize;

#[cfg(all(test, not(feature = "loom")))]
mod tests;

/// What a model needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Need {
    /// The units, in the catalog's order.
    pub units: Vec<UnitNeed>,
    /// Bytes besides weights and ring: activations, KV cache, logits.
    pub fixed: u64,
    /// Bytes of the longest packed row that streams.
    pub longest_row: usize,
    /// Bytes of the longest packed row that is read on demand; 0 where nothing is.
    pub longest_demand_row: usize,
}

/// What one unit needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UnitNeed {
    /// Its name.
    pub name: String,
    /// Bytes it occupies when pinned.
    pub bytes: u64,
    /// Bytes of it that each pass goes through; 0 for a table that is only gathered from. Of a unit that is
    /// read on demand, what one token is expected to use.
    pub per_pass: u64,
    /// What to know of a unit that is read on demand.
    pub on_demand: Option<OnDemand>,
}

/// A unit that a pass may or may not use: an expert.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct OnDemand {
    /// How much one token uses of it.
    pub share: Share,
    /// Stretches of contiguous bytes that it lies in.
    pub runs: usize,
    /// Bytes of the longest of them.
    pub longest_run: u64,
}

/// A share as a fraction: of `of` units like this one, a token uses `used`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Share {
    /// Experts that the router chooses for a token.
    pub used: u32,
    /// Experts that it chooses from.
    pub of: u32,
}

impl Share {
    /// All of it.
    pub const WHOLE: Self = Self { used: 1, of: 1 };

    /// The share of `bytes`, at most all.
    pub fn bytes(self, bytes: u64) -> u64 {
        let of = u64::from(self.of.max(1));
        let used = u64::from(self.used).min(of);
        bytes / of * used + bytes % of * used / of
    }
}

impl Need {
    /// The need of a catalog; `fixed` as in [`Need::fixed`]. Tokens are taken to use all of every unit: see
    /// [`with_shares`](Self::with_shares).
    pub fn of(catalog: &Catalog, fixed: u64) -> Self {
        let mut in_pass = catalog.pass.clone();
        in_pass.sort_unstable();
        in_pass.dedup();
        let mut per_pass = vec![0; catalog.units.len()];
        for &id in &in_pass {
            if let (Some(bytes), Some(tensor)) = (per_pass.get_mut(id.unit), catalog.get(id)) {
                *bytes += tensor.bytes() as u64;
            }
        }
        let unit = |(unit, per_pass): (&Unit, u64)| {
            let (runs, longest_run) = runs(unit);
            let bytes = unit.bytes() as u64;
            UnitNeed {
                name: unit.name.clone(),
                bytes,
                per_pass: if unit.on_demand { bytes } else { per_pass },
                on_demand: unit.on_demand.then_some(OnDemand { share: Share::WHOLE, runs, longest_run }),
            }
        };
        let rows = catalog.pass.iter().filter_map(|&id| catalog.get(id)).map(|t| t.row_bytes());
        let on_demand = catalog.units.iter().filter(|unit| unit.on_demand);
        let demand_rows = on_demand.flat_map(|unit| &unit.tensors).map(|t| t.row_bytes());
        Self {
            units: catalog.units.iter().zip(per_pass).map(unit).collect(),
            fixed,
            longest_row: rows.max().unwrap_or(0),
            longest_demand_row: demand_rows.max().unwrap_or(0),
        }
    }

    /// The same need, knowing for each on-demand unit, by index, how much of it one token uses.
    #[must_use]
    pub fn with_shares(mut self, share: impl Fn(usize) -> Share) -> Self {
        for (index, unit) in self.units.iter_mut().enumerate() {
            if let Some(on_demand) = &mut unit.on_demand {
                on_demand.share = share(index);
                unit.per_pass = on_demand.share.bytes(unit.bytes);
            }
        }
        self
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
    /// Memory for units that are read on demand and not pinned.
    pub experts: ExpertCache,
    /// Bytes of that memory.
    pub expert_cache_bytes: u64,
    /// The expected share of a token's on-demand bytes that are in memory, if all are used equally often,
    /// which is the worst case; `None` where nothing is read on demand.
    pub expert_hit_rate: Option<f64>,
    /// Bytes taken in all.
    pub ram: u64,
    /// Bytes of weights that every pass multiplies.
    pub bytes_per_pass: u64,
    /// Bytes that every pass reads from disk; of units on demand, what one token is expected to read.
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
    /// The part of `need` that is the smallest ring, and the smallest cache for units on demand.
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
///
/// Units that are read on demand have a cache. If routers choose uniformly, one that holds a share of the
/// experts hits that share, so a byte of it saves `top_k / experts` bytes a token, and a byte of a pinned
/// layer saves one. Layers come first therefore, then experts, then tables that are only gathered from;
/// what is left over between two layers goes to the cache, unless fewer layers and more cache read less.
pub fn plan(need: &Need, hardware: &Hardware, request: &Request) -> Result<Plan, Refusal> {
    let total: u64 = need.units.iter().map(slack).sum();
    let least_slot = smallest_slot(need.longest_row.max(1));
    let have = request.ram.unwrap_or(u64::MAX);
    let everything = need.fixed + total;
    // Where nothing streams there is no ring; the stripes' size still shapes the first reads.
    let no_ring = (0, request.slot_bytes.unwrap_or(LARGEST_STRIPE).max(least_slot));
    if have >= everything {
        let (pinned, experts) = (vec![true; need.units.len()], ExpertCache::default());
        return Ok(finish(need, hardware, request, Layout { pinned, ring: no_ring, experts, hits: 1.0 }));
    }
    let experts = Experts::of(need, request);
    let layers = pin_order(need);
    let pinned_layers: u64 = layers.iter().map(|&index| slack(&need.units[index])).sum();
    let ring_least = (request.slots.unwrap_or(FEWEST_SLOTS)
        * request.slot_bytes.unwrap_or(least_slot).max(least_slot)) as u64;
    let least = experts.least() + ring_least.min(pinned_layers);
    if have < need.fixed + least {
        let smallest = (need.fixed + least).min(everything);
        return Err(Refusal { need: smallest, have, fixed: need.fixed, ring: smallest - need.fixed });
    }
    let left = have - need.fixed - experts.least();
    let with_ring = (left >= ring_least).then(|| ring(request, left, least_slot));
    // A ring of a quarter is rounded down; what that leaves is not counted, so that more memory never makes
    // less room.
    let quarter = match request.slot_bytes {
        Some(_) => 0,
        None => (left / 4).min((wanted_slots(request) * LARGEST_STRIPE) as u64),
    };
    let mut best: Option<(u64, Layout)> = None;
    let mut layers_bytes = 0;
    let mut read: u64 = layers.iter().map(|&index| need.units[index].per_pass).sum();
    let mut pinned = vec![false; need.units.len()];
    for count in 0..=layers.len() {
        if let Some(&index) = count.checked_sub(1).and_then(|last| layers.get(last)) {
            layers_bytes += slack(&need.units[index]);
            read -= need.units[index].per_pass;
            pinned[index] = true;
        }
        let all = count == layers.len();
        let Some(ring) = (if all { Some(no_ring) } else { with_ring }) else { continue };
        let taken = (ring.0 * ring.1) as u64;
        let taken = if all { taken } else { taken.max(quarter) };
        let Some(room) = left.checked_sub(taken + layers_bytes) else { continue };
        let (cache, hits) = experts.cache(room + experts.least());
        let reads = read + experts.misses(hits);
        if best.as_ref().is_none_or(|(least, _)| reads <= *least) {
            best = Some((reads, Layout { pinned: pinned.clone(), ring, experts: cache, hits }));
        }
    }
    let Some((_, mut layout)) = best else {
        // Not reached: `left` holds the ring or all layers. Said as a refusal rather than a panic.
        return Err(Refusal { need: everything, have, fixed: need.fixed, ring: everything - need.fixed });
    };
    let mut room = have - taken(need, &layout);
    if experts.hold_all(&layout) {
        for (index, unit) in need.units.iter().enumerate() {
            if unit.per_pass == 0 && unit.on_demand.is_none() && layout.all(&layers) && slack(unit) <= room {
                room -= slack(unit);
                layout.pinned[index] = true;
            }
        }
    }
    Ok(finish(need, hardware, request, layout))
}

/// Where everything goes.
#[derive(Debug, Clone)]
struct Layout {
    pinned: Vec<bool>,
    /// Slots and bytes of a slot.
    ring: (usize, usize),
    experts: ExpertCache,
    /// Expected share of on-demand bytes that are in memory.
    hits: f64,
}

impl Layout {
    fn all(&self, units: &[usize]) -> bool {
        units.iter().all(|&index| self.pinned[index])
    }
}

/// Bytes that a layout takes.
fn taken(need: &Need, layout: &Layout) -> u64 {
    let pinned = need.units.iter().zip(&layout.pinned).filter(|(_, pin)| **pin);
    let pinned: u64 = pinned.map(|(unit, _)| slack(unit)).sum();
    need.fixed + (layout.ring.0 * layout.ring.1) as u64 + cache_bytes(&layout.experts) + pinned
}

fn cache_bytes(cache: &ExpertCache) -> u64 {
    cache.slots as u64 * cache.slot_bytes as u64
}

/// All units that are read on demand, together.
struct Experts {
    /// Bytes of the smallest slot that works; 0 where nothing is read on demand.
    least_slot: usize,
    /// Bytes of a slot that holds the longest stretch, or an even part of it.
    slot: usize,
    /// Slots of that size for all of them.
    slots: usize,
    /// Slots that are read into or computed with, rather than kept.
    moving: usize,
    /// Bytes that one token uses.
    per_token: u64,
}

impl Experts {
    fn of(need: &Need, request: &Request) -> Self {
        let all = || need.units.iter().filter_map(|unit| unit.on_demand.map(|on_demand| (unit, on_demand)));
        let moving = request.readers.max(1) + 2;
        let Some(longest) = all().map(|(_, it)| it.longest_run).max() else {
            return Self { least_slot: 0, slot: 0, slots: 0, moving, per_token: 0 };
        };
        let least_slot = smallest_slot(need.longest_demand_row.max(1));
        // A stripe starts and ends on ALIGNMENT, and ends with a whole row.
        let edges = 2 * ALIGNMENT as u64;
        let parts = longest.div_ceil(LARGEST_STRIPE as u64).max(1);
        let row = if parts > 1 { need.longest_demand_row as u64 } else { 0 };
        let even = (longest.div_ceil(parts) + row + edges).next_multiple_of(ALIGNMENT as u64);
        let slot = usize::try_from(even).unwrap_or(LARGEST_STRIPE).max(least_slot);
        let stripes = |it: OnDemand| {
            let whole = it.longest_run + edges <= slot as u64;
            it.runs * if whole { 1 } else { parts as usize }
        };
        Self {
            least_slot,
            slot,
            slots: all().map(|(_, it)| stripes(it)).sum(),
            moving,
            per_token: all().map(|(unit, _)| unit.per_pass).sum(),
        }
    }

    /// Bytes of the smallest cache that works.
    fn least(&self) -> u64 {
        (FEWEST_SLOTS * self.least_slot) as u64
    }

    /// The cache for `room` bytes, at least [`least`](Self::least), and the share it is expected to hit.
    fn cache(&self, room: u64) -> (ExpertCache, f64) {
        if self.slots == 0 {
            return (ExpertCache::default(), 1.0);
        }
        let room = usize::try_from(room).unwrap_or(usize::MAX);
        let slots = (room / self.slot).min(self.slots);
        if slots == self.slots {
            return (ExpertCache { slots, slot_bytes: self.slot }, 1.0);
        }
        if slots >= self.moving {
            let hits = (slots - self.moving) as f64 / self.slots as f64;
            return (ExpertCache { slots, slot_bytes: self.slot }, hits);
        }
        // Too small to keep anything: experts flow through.
        let slot_bytes = (room / self.moving / ALIGNMENT * ALIGNMENT).clamp(self.least_slot, self.slot);
        (ExpertCache { slots: (room / slot_bytes).min(self.moving), slot_bytes }, 0.0)
    }

    /// Bytes that one token is expected to read.
    fn misses(&self, hits: f64) -> u64 {
        (self.per_token as f64 * (1.0 - hits)).round() as u64
    }

    /// Whether all of them stay in the cache once read.
    fn hold_all(&self, layout: &Layout) -> bool {
        self.slots == 0 || layout.experts.slots == self.slots
    }
}

/// One slot is computed with while every reader fills another, and one more is ready.
fn wanted_slots(request: &Request) -> usize {
    request.slots.unwrap_or(request.readers.max(1) + 2).max(1)
}

/// Slots and slot size for a ring out of `left` bytes.
fn ring(request: &Request, left: u64, least_slot: usize) -> (usize, usize) {
    let share = usize::try_from(left / 4).unwrap_or(usize::MAX);
    let wanted = wanted_slots(request);
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

/// The order in which units that stream are pinned, so that every prefix is spread evenly over the pass: van
/// der Corput's sequence in base 2.
fn pin_order(need: &Need) -> Vec<usize> {
    let streams = |index: &usize| need.units[*index].per_pass > 0 && need.units[*index].on_demand.is_none();
    let streams: Vec<usize> = (0..need.units.len()).filter(streams).collect();
    let bits = usize::BITS - streams.len().saturating_sub(1).leading_zeros();
    (0..1usize << bits)
        .map(|i| if bits == 0 { 0 } else { i.reverse_bits() >> (usize::BITS - bits) })
        .filter_map(|position| streams.get(position).copied())
        .collect()
}

/// Bytes a unit takes when pinned: its stripes start and end on [`ALIGNMENT`], and the unit's neighbours
/// can make it begin a stripe of its own.
fn slack(unit: &UnitNeed) -> u64 {
    let stripes = 1 + unit.bytes / LARGEST_STRIPE as u64 + unit.on_demand.map_or(1, |it| it.runs as u64);
    unit.bytes + stripes * 2 * ALIGNMENT as u64
}

fn finish(need: &Need, hardware: &Hardware, request: &Request, layout: Layout) -> Plan {
    let sum = |pin: bool, bytes: fn(&UnitNeed) -> u64| -> u64 {
        need.units.iter().zip(&layout.pinned).filter(|(_, p)| **p == pin).map(|(unit, _)| bytes(unit)).sum()
    };
    let missed = |unit: &UnitNeed| if unit.on_demand.is_some() { unit.per_pass } else { 0 };
    let streamed = sum(false, |unit| if unit.on_demand.is_some() { 0 } else { unit.per_pass })
        + (sum(false, missed) as f64 * (1.0 - layout.hits)).round() as u64;
    let bytes_per_pass = need.units.iter().map(|unit| unit.per_pass).sum();
    let disk = streamed as f64 / hardware.disk;
    let memory = bytes_per_pass as f64 / hardware.memory;
    Plan {
        slots: layout.ring.0,
        slot_bytes: layout.ring.1,
        readers: request.readers.max(1),
        experts: layout.experts,
        expert_cache_bytes: cache_bytes(&layout.experts),
        expert_hit_rate: need.units.iter().any(|unit| unit.on_demand.is_some()).then_some(layout.hits),
        ram: taken(need, &layout),
        bytes_per_pass,
        streamed,
        resident: sum(true, |unit| unit.bytes),
        seconds_per_token: disk.max(memory),
        bottleneck: if disk > memory { Lane::Disk } else { Lane::Memory },
        pinned: layout.pinned,
    }
}
