//! What lives in host memory.

use super::experts::Experts;
use super::ring::{Ring, Stripes, pin_order};
use super::{Memory, Need, Refusal, Request};
use crate::ExpertCache;
use crate::cut::{LARGEST_STRIPE, smallest_slot};

/// Where everything goes.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    pub pinned: Vec<bool>,
    /// Slots and bytes of a slot.
    pub ring: (usize, usize),
    pub experts: ExpertCache,
    /// Expected share of on-demand bytes that are in memory.
    pub hits: f64,
    stripes: Stripes,
}

impl Layout {
    fn all(&self, units: &[usize]) -> bool {
        units.iter().all(|&index| self.pinned[index])
    }

    /// Bytes that it takes.
    pub fn taken(&self, need: &Need) -> u64 {
        let ring = (self.ring.0 * self.ring.1) as u64;
        need.fixed + ring + cache_bytes(&self.experts) + self.stripes.sum(need, &self.pinned)
    }
}

pub(super) fn cache_bytes(cache: &ExpertCache) -> u64 {
    cache.slots as u64 * cache.slot_bytes as u64
}

/// What host memory is asked to hold.
pub(super) struct Host<'a> {
    need: &'a Need,
    request: &'a Request,
    ring: Ring,
    experts: Experts,
    have: u64,
}

/// What lives in a GPU's memory, as host memory sees it.
pub(super) struct Elsewhere<'a> {
    pub units: &'a [bool],
    /// Bytes of a slot there, no more than those of a slot here.
    pub slot_bytes: usize,
}

impl<'a> Host<'a> {
    pub fn new(need: &'a Need, request: &'a Request) -> Self {
        Self {
            need,
            request,
            ring: Ring::host(request, smallest_slot(need.longest_row.max(1))),
            experts: Experts::of(need, request),
            have: request.ram.unwrap_or(u64::MAX),
        }
    }

    /// Bytes of a slot of the ring, where there always is one; refuses where no ring fits.
    pub fn slot_bytes(&self) -> Result<usize, Refusal> {
        Ok(self.ring.of(self.left(self.ring.least())?).1)
    }

    /// What is left when all that must be there is, of which `ring` bytes are still to be given to the ring.
    fn left(&self, ring: u64) -> Result<u64, Refusal> {
        let least = self.need.fixed + self.experts.least();
        match self.have.checked_sub(least).filter(|left| *left >= ring) {
            Some(left) => Ok(left),
            None => Err(self.refusal(least + ring)),
        }
    }

    fn refusal(&self, least: u64) -> Refusal {
        let fixed = self.need.fixed;
        Refusal { memory: Memory::Ram, need: least, have: self.have, fixed, ring: least - fixed }
    }

    /// Lays out host memory that holds all there is.
    pub fn alone(&self) -> Result<Layout, Refusal> {
        let need = self.need;
        let stripes = Stripes::LARGEST;
        let everything = need.fixed + stripes.sum(need, &vec![true; need.units.len()]);
        // Where nothing streams there is no ring; the stripes' size still shapes the first reads.
        let least_slot = smallest_slot(need.longest_row.max(1));
        let no_ring = (0, self.request.slot_bytes.unwrap_or(LARGEST_STRIPE).max(least_slot));
        if self.have >= everything {
            let (pinned, experts) = (vec![true; need.units.len()], ExpertCache::default());
            return Ok(Layout { pinned, ring: no_ring, experts, hits: 1.0, stripes });
        }
        let layers = pin_order(need);
        let pinned_layers: u64 = layers.iter().map(|&index| stripes.bytes(&need.units[index])).sum();
        let left = self.left(self.ring.least().min(pinned_layers));
        let left = left.map_err(|refusal| self.refusal(refusal.need.min(everything)))?;
        let with_ring = (left >= self.ring.least()).then(|| (self.ring.of(left), self.ring.set_aside(left)));
        let rings = Rings { some: with_ring, all: Some((no_ring, 0)) };
        self.fill(&layers, &|_| true, rings, left, stripes)
    }

    /// Lays out host memory that holds what a GPU's memory does not. The ring is always there: what lives in the
    /// GPU's memory comes through it.
    pub fn beside(&self, elsewhere: &Elsewhere<'_>) -> Result<Layout, Refusal> {
        let need = self.need;
        let left = self.left(self.ring.least())?;
        // One cut serves both rings: what is read as a whole is uploaded as a whole.
        let (ring, aside) = ((self.ring.of(left).0, elsewhere.slot_bytes), self.ring.set_aside(left));
        let stripes = Stripes::of(elsewhere.slot_bytes, need.longest_row);
        let here = |index: usize| !elsewhere.units[index];
        let all: Vec<bool> = (0..need.units.len()).map(here).collect();
        if self.have - need.fixed >= aside + stripes.sum(need, &all) {
            // They are uploaded in pieces that fit what they pass through.
            let experts = self.experts.all_pinned();
            return Ok(Layout { pinned: all, ring, experts, hits: 1.0, stripes });
        }
        let layers: Vec<usize> = pin_order(need).into_iter().filter(|&index| here(index)).collect();
        let rings = Rings { some: Some((ring, aside)), all: Some((ring, aside)) };
        self.fill(&layers, &here, rings, left, stripes)
    }

    /// Fills what is left with layers, experts, and tables.
    fn fill(
        &self,
        layers: &[usize],
        here: &dyn Fn(usize) -> bool,
        rings: Rings,
        left: u64,
        stripes: Stripes,
    ) -> Result<Layout, Refusal> {
        let (need, experts) = (self.need, &self.experts);
        let mut best: Option<(u64, Layout)> = None;
        let mut layers_bytes = 0;
        let mut read: u64 = layers.iter().map(|&index| need.units[index].per_pass).sum();
        let mut pinned = vec![false; need.units.len()];
        for count in 0..=layers.len() {
            if let Some(&index) = count.checked_sub(1).and_then(|last| layers.get(last)) {
                layers_bytes += stripes.bytes(&need.units[index]);
                read -= need.units[index].per_pass;
                pinned[index] = true;
            }
            let ring = if count == layers.len() { rings.all } else { rings.some };
            let Some((ring, aside)) = ring else { continue };
            let Some(room) = left.checked_sub(aside + layers_bytes) else { continue };
            let (cache, hits) = experts.cache(room + experts.least());
            let reads = read + experts.misses(hits);
            if best.as_ref().is_none_or(|(least, _)| reads <= *least) {
                let pinned = pinned.clone();
                best = Some((reads, Layout { pinned, ring, experts: cache, hits, stripes }));
            }
        }
        let Some((_, mut layout)) = best else {
            // Not reached: `left` holds the ring or all layers. Said as a refusal rather than a panic.
            return Err(self.refusal(need.fixed + experts.least() + self.ring.least()));
        };
        let mut room = self.have - layout.taken(need);
        if experts.fit(layout.experts) && layout.all(layers) {
            for (index, unit) in need.units.iter().enumerate().filter(|(index, _)| here(*index)) {
                if unit.per_pass == 0 && unit.on_demand.is_none() && stripes.bytes(unit) <= room {
                    room -= stripes.bytes(unit);
                    layout.pinned[index] = true;
                }
            }
        }
        Ok(layout)
    }
}

/// Slots and bytes of a slot, and the bytes set aside for them.
type Aside = ((usize, usize), u64);

/// The ring where some layers stream, and where none does; `None` where it does not fit.
struct Rings {
    some: Option<Aside>,
    all: Option<Aside>,
}
