//! What a model needs of the machine.

use crate::cut::runs;
use crate::{Catalog, Tensor, Unit};
use serde::Serialize;

/// What a model needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Need {
    /// The units, in the catalog's order.
    pub units: Vec<UnitNeed>,
    /// Bytes of host memory besides weights and ring; without a GPU activations, KV cache and logits.
    pub fixed: u64,
    /// Bytes of a GPU's memory besides weights and ring: activations, KV cache, rows of the embedding on their way,
    /// the driver's own. Not looked at where there is no GPU.
    pub device_fixed: u64,
    /// Bytes of the longest packed row that streams.
    pub longest_row: usize,
    /// Bytes of the longest packed row that is read on demand; 0 where nothing is.
    pub longest_demand_row: usize,
    /// Tokens of the passes of a prompt that [`UnitNeed::prompt_ns`] counts with.
    pub prompt_tokens: u64,
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
    /// Whether the processor may compute it while a GPU computes others: a layer, not the head or the embedding.
    pub beside: bool,
    /// Nanoseconds that the processor's threads together take to multiply one token with what a pass goes through, with all
    /// of it in memory; 0 where that was not measured, and reading memory is all that counts.
    pub token_ns: u64,
    /// The same for a pass of [`Need::prompt_tokens`] tokens of a prompt.
    pub prompt_ns: u64,
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
                beside: false,
                token_ns: 0,
                prompt_ns: 0,
            }
        };
        let rows = catalog.pass.iter().filter_map(|&id| catalog.get(id)).map(|t| t.row_bytes());
        let on_demand = catalog.units.iter().filter(|unit| unit.on_demand);
        let demand_rows = on_demand.flat_map(|unit| &unit.tensors).map(|t| t.row_bytes());
        Self {
            units: catalog.units.iter().zip(per_pass).map(unit).collect(),
            fixed,
            device_fixed: 0,
            longest_row: rows.max().unwrap_or(0),
            longest_demand_row: demand_rows.max().unwrap_or(0),
            prompt_tokens: 1,
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

    /// The same need on a processor that takes `times` for a tensor of a unit, by index: nanoseconds for one token, and for a
    /// pass of `tokens` tokens of a prompt. Of a unit on demand each token takes its share; call this after
    /// [`with_shares`](Self::with_shares).
    #[must_use]
    pub fn with_processor(
        mut self,
        catalog: &Catalog,
        tokens: u64,
        times: impl Fn(usize, &Tensor) -> (f64, f64),
    ) -> Self {
        let mut in_pass = catalog.pass.clone();
        in_pass.sort_unstable();
        in_pass.dedup();
        let mut sums = vec![(0.0, 0.0); self.units.len()];
        let mut add = |unit: usize, tensor: &Tensor| {
            if let Some((token, prompt)) = sums.get_mut(unit) {
                let times = times(unit, tensor);
                *token += times.0;
                *prompt += times.1;
            }
        };
        for id in in_pass {
            if let Some(tensor) = catalog.get(id) {
                add(id.unit, tensor);
            }
        }
        for (index, unit) in catalog.units.iter().enumerate().filter(|(_, unit)| unit.on_demand) {
            unit.tensors.iter().for_each(|tensor| add(index, tensor));
        }
        for (unit, (token, prompt)) in self.units.iter_mut().zip(sums) {
            let share = unit.on_demand.map_or(Share::WHOLE, |it| it.share);
            unit.token_ns = share.bytes(token as u64);
            unit.prompt_ns = share.bytes(prompt as u64);
        }
        self.prompt_tokens = tokens.max(1);
        self
    }

    /// The same need on a GPU that takes `device_fixed` bytes besides weights and ring, with the units, by index,
    /// that the processor may compute beside it.
    #[must_use]
    pub fn with_device(mut self, device_fixed: u64, beside: impl Fn(usize) -> bool) -> Self {
        self.device_fixed = device_fixed;
        for (index, unit) in self.units.iter_mut().enumerate() {
            unit.beside = unit.on_demand.is_none() && unit.per_pass > 0 && beside(index);
        }
        self
    }
}

impl UnitNeed {
    /// Whether every pass goes through it.
    pub(super) fn is_in_pass(&self) -> bool {
        self.per_pass > 0 && self.on_demand.is_none()
    }

    /// Bytes of it that a pass of so many tokens is expected to go through, all experts being used equally often.
    pub(super) fn bytes_of(&self, tokens: u64) -> f64 {
        match self.on_demand {
            Some(it) if tokens > 1 => {
                let none = 1.0 - f64::from(it.share.used) / f64::from(it.share.of.max(1));
                self.bytes as f64 * (1.0 - none.max(0.0).powf(tokens as f64))
            }
            _ => self.per_pass as f64,
        }
    }
}
