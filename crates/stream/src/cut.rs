//! Cuts tensors into stripes: contiguous runs of whole rows that fit a slot.

use crate::arena::ALIGNMENT;
use crate::tier::{Tier, Tiers};
use crate::{Catalog, Error, Result, TensorId, Unit};

/// Larger reads are not faster. Also the size of pinned stripes, whatever the ring's slots are.
pub const LARGEST_STRIPE: usize = 16 << 20;

/// Contiguous bytes of one file that hold whole rows of one or more consecutive tensors.
///
/// The file's order is the order of use, so small tensors share a stripe with their neighbours and
/// every read is large, however small the matrices are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stripe {
    /// Index of the file in the source.
    pub file: usize,
    /// First byte, aligned down for direct reads.
    pub offset: u64,
    /// Bytes to read, aligned up.
    pub len: usize,
    /// What lies in it, in order of use.
    pub parts: Vec<Part>,
    /// Where it stays.
    pub tier: Tier,
}

/// Rows of one tensor inside a stripe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// The tensor.
    pub id: TensorId,
    /// Its first row here.
    pub first: usize,
    /// Rows here.
    pub count: usize,
    /// Where they start in the slot, in bytes.
    pub at: usize,
}

/// A sequence of tensors cut into stripes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// What was cut, in order: a whole pass, or the tensors of all on-demand units.
    pub entries: Vec<TensorId>,
    /// All stripes, in order.
    pub stripes: Vec<Stripe>,
    /// Indices of those that do not stay in memory.
    pub streamed: Vec<usize>,
    /// For each entry: index of the stripe that holds its first rows.
    pub starts: Vec<usize>,
}

impl Cut {
    /// Cuts `catalog.pass` into stripes that fit slots of `slot_bytes`; `tiers` says which units stay in
    /// memory.
    pub fn new(catalog: &Catalog, tiers: Tiers<'_>, slot_bytes: usize) -> Result<Self> {
        Self::of(catalog, catalog.pass.clone(), false, tiers, slot_bytes)
    }

    /// Cuts the on-demand units, each into stripes of its own: one is read without its neighbours.
    pub fn on_demand(catalog: &Catalog, tiers: Tiers<'_>, slot_bytes: usize) -> Result<Self> {
        let units = catalog.units.iter().enumerate().filter(|(_, unit)| unit.on_demand);
        let ids =
            units.flat_map(|(unit, u)| (0..u.tensors.len()).map(move |tensor| TensorId { unit, tensor }));
        Self::of(catalog, ids.collect(), true, tiers, slot_bytes)
    }

    fn of(
        catalog: &Catalog,
        entries: Vec<TensorId>,
        apart: bool,
        tiers: Tiers<'_>,
        slot_bytes: usize,
    ) -> Result<Self> {
        let mut cut =
            Self { entries: Vec::new(), stripes: Vec::new(), streamed: Vec::new(), starts: Vec::new() };
        let mut open: Option<Open> = None;
        for &id in &entries {
            let tensor = catalog
                .get(id)
                .ok_or_else(|| Error::Catalog(format!("the pass names {id:?}, which is not there")))?;
            if apart && id.tensor == 0 {
                cut.close(open.take());
            }
            let row = tensor.row_bytes();
            let tier = tiers.get(id.unit);
            let most = tiers.most(tier, slot_bytes);
            let need = smallest_slot(row);
            if need > most {
                return Err(Error::SlotTooSmall { tensor: name(catalog, id), need, have: most });
            }
            if tensor.rows == 0 || row == 0 {
                return Err(Error::Catalog(format!("{} is empty", name(catalog, id))));
            }
            let mut first = 0;
            while first < tensor.rows {
                let offset = tensor.offset + (first * row) as u64;
                let fits = match &open {
                    Some(run) if run.follows(tensor.file, offset, tier) => run.room(offset, most) / row,
                    _ => 0,
                };
                if fits == 0 {
                    cut.close(open.take());
                    open =
                        Some(Open { file: tensor.file, start: offset, end: offset, tier, parts: Vec::new() });
                }
                if let Some(run) = &mut open {
                    let count = (run.room(offset, most) / row).min(tensor.rows - first);
                    if first == 0 {
                        cut.starts.push(cut.stripes.len());
                    }
                    let at = (offset - align_down(run.start)) as usize;
                    run.parts.push(Part { id, first, count, at });
                    run.end = offset + (count * row) as u64;
                    first += count;
                }
            }
        }
        cut.close(open);
        Ok(Self { entries, ..cut })
    }

    fn close(&mut self, open: Option<Open>) {
        let Some(run) = open else { return };
        let offset = align_down(run.start);
        let len = ((run.end - offset) as usize).next_multiple_of(ALIGNMENT);
        if !run.tier.stays() {
            self.streamed.push(self.stripes.len());
        }
        self.stripes.push(Stripe { file: run.file, offset, len, parts: run.parts, tier: run.tier });
    }
}

/// Stripes in the order in which passes meet them, numbered without end: the first pass meets all of them, later
/// ones those of a part of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rounds {
    all: u64,
    later: Vec<usize>,
}

impl Rounds {
    /// All stripes of a cut, and later those that `later` names, in order.
    pub fn new(cut: &Cut, later: Vec<usize>) -> Self {
        Self { all: cut.stripes.len() as u64, later }
    }

    /// Pass and stripe of a number. `None` where later passes meet nothing.
    pub fn locate(&self, number: u64) -> Option<(u64, usize)> {
        if number < self.all {
            return Some((0, number as usize));
        }
        let each = self.later.len() as u64;
        let beyond = number - self.all;
        let pass = beyond.checked_div(each)?;
        Some((1 + pass, self.later[(beyond % each) as usize]))
    }

    /// The number of the first stripe of a pass.
    pub fn begin(&self, pass: u64) -> u64 {
        match pass.checked_sub(1) {
            None => 0,
            Some(later) => self.all + later * self.later.len() as u64,
        }
    }
}

/// Bytes a slot must have so that one row of `row` bytes always fits, whatever its alignment.
pub fn smallest_slot(row: usize) -> usize {
    (row + ALIGNMENT - 1).next_multiple_of(ALIGNMENT)
}

/// How many stretches of contiguous bytes a unit's tensors lie in, and the bytes of the longest.
pub fn runs(unit: &Unit) -> (usize, u64) {
    let (mut count, mut longest) = (0, 0);
    let mut open: Option<(usize, u64, u64)> = None;
    for tensor in &unit.tensors {
        let end = tensor.offset.saturating_add(tensor.bytes() as u64);
        let start = match open {
            Some((file, start, until)) if file == tensor.file && right_behind(until, tensor.offset) => start,
            _ => {
                count += 1;
                tensor.offset
            }
        };
        longest = longest.max(end - start);
        open = Some((tensor.file, start, end));
    }
    (count, longest)
}

/// A tensor's name for messages: `unit.tensor`.
pub fn name(catalog: &Catalog, id: TensorId) -> String {
    match (catalog.units.get(id.unit), catalog.get(id)) {
        (Some(unit), Some(tensor)) => format!("{}.{}", unit.name, tensor.name),
        _ => format!("{id:?}"),
    }
}

struct Open {
    file: usize,
    start: u64,
    end: u64,
    tier: Tier,
    parts: Vec<Part>,
}

impl Open {
    /// Whether rows at `offset` may join: same file, same tier, and right behind.
    fn follows(&self, file: usize, offset: u64, tier: Tier) -> bool {
        self.file == file && self.tier == tier && right_behind(self.end, offset)
    }

    /// Bytes from `offset` to the end of a slot that starts at this run's aligned start.
    fn room(&self, offset: u64, slot_bytes: usize) -> usize {
        slot_bytes.saturating_sub((offset - align_down(self.start)) as usize)
    }
}

/// Whether bytes at `offset` come right behind those that end at `end`, padding allowed.
fn right_behind(end: u64, offset: u64) -> bool {
    offset >= end && offset - end < ALIGNMENT as u64
}

fn align_down(offset: u64) -> u64 {
    offset / ALIGNMENT as u64 * ALIGNMENT as u64
}

#[cfg(all(test, not(feature = "loom")))]
mod tests {
    use super::*;
    use crate::Tensor;
    use airllm_format::NumFormat;
    use proptest::prelude::*;

    /// A catalog whose tensors lie one after the other with the given gaps, a file for each unit.
    pub(crate) fn catalog(units: &[Vec<(usize, usize, u64)>]) -> Catalog {
        let mut pass = Vec::new();
        let units = units.iter().enumerate().map(|(u, tensors)| {
            let mut offset = 0;
            let tensors = tensors.iter().enumerate().map(|(t, &(rows, cols, gap))| {
                offset += gap;
                let tensor = Tensor {
                    name: format!("t{t}"),
                    file: u,
                    offset,
                    format: NumFormat::F32,
                    rows,
                    cols,
                    checksum: None,
                };
                offset += tensor.bytes() as u64;
                pass.push(TensorId { unit: u, tensor: t });
                tensor
            });
            Unit { name: format!("u{u}"), tensors: tensors.collect(), on_demand: false }
        });
        Catalog { units: units.collect(), pass }
    }

    proptest! {
        #[test]
        fn stripes_cover_every_row_once_and_fit(
            units in prop::collection::vec(
                prop::collection::vec((1usize..200, 1usize..400, 0u64..9000), 1..6), 1..5),
            pinned in prop::collection::vec(any::<bool>(), 5),
            extra in 0usize..40_000,
        ) {
            let catalog = catalog(&units);
            let slot = (400 * 4 + 2 * ALIGNMENT + extra) / ALIGNMENT * ALIGNMENT;
            let cut = Cut::new(&catalog, Tiers::pinned(&pinned), slot).unwrap();
            let mut seen = Vec::new();
            for (index, stripe) in cut.stripes.iter().enumerate() {
                let most = if stripe.tier.pinned { LARGEST_STRIPE } else { slot };
                prop_assert!(stripe.len <= most);
                prop_assert_eq!(stripe.offset % ALIGNMENT as u64, 0);
                prop_assert_eq!(stripe.len % ALIGNMENT, 0);
                prop_assert_eq!(cut.streamed.contains(&index), !stripe.tier.pinned);
                for part in &stripe.parts {
                    let tensor = catalog.get(part.id).unwrap();
                    let from = tensor.offset + (part.first * tensor.row_bytes()) as u64;
                    prop_assert_eq!(stripe.offset + part.at as u64, from);
                    prop_assert!(part.at + part.count * tensor.row_bytes() <= stripe.len);
                    prop_assert_eq!(pinned[part.id.unit], stripe.tier.pinned);
                    for row in part.first..part.first + part.count {
                        seen.push((part.id, row));
                    }
                }
            }
            let all: Vec<_> = catalog.pass.iter()
                .flat_map(|&id| (0..catalog.get(id).unwrap().rows).map(move |row| (id, row)))
                .collect();
            prop_assert_eq!(seen, all);
            for (entry, &start) in cut.starts.iter().enumerate() {
                prop_assert!(cut.stripes[start].parts.iter().any(|part| part.id == catalog.pass[entry] && part.first == 0));
            }
        }
    }

    #[test]
    fn on_demand_units_share_no_stripe_with_their_neighbours() {
        let mut catalog = catalog(&[vec![(9, 10, 0), (9, 10, 0)], vec![(9, 10, 0)], vec![(9, 10, 0)]]);
        for unit in &mut catalog.units {
            // One file, one behind the other, as a shard of a layer with experts has them.
            unit.on_demand = unit.name != "u1";
            unit.tensors.iter_mut().for_each(|tensor| tensor.file = 0);
        }
        let cut = Cut::on_demand(&catalog, Tiers::pinned(&[false, false, true]), 8192).unwrap();
        let ids: Vec<_> = catalog.pass.iter().copied().filter(|id| id.unit != 1).collect();
        assert_eq!(cut.entries, ids);
        let units: Vec<Vec<usize>> =
            cut.stripes.iter().map(|s| s.parts.iter().map(|part| part.id.unit).collect()).collect();
        assert_eq!(units, [vec![0, 0], vec![2]]);
        assert_eq!((cut.streamed, cut.starts), (vec![0], vec![0, 0, 1]));
        assert_eq!(runs(&catalog.units[0]), (1, 2 * 9 * 40));
        catalog.units[0].tensors.swap(0, 1);
        assert_eq!(runs(&catalog.units[0]), (2, 9 * 40));
    }

    #[test]
    fn a_row_that_fits_no_slot_is_refused_with_numbers() {
        let catalog = catalog(&[vec![(3, 3000, 0)]]);
        let error = Cut::new(&catalog, Tiers::pinned(&[false]), 8192).unwrap_err();
        assert!(matches!(error, Error::SlotTooSmall { need: 16384, have: 8192, .. }), "{error}");
    }
}
