//! From the tensors of a checkpoint to the tensors that stream: names, shapes, formats, places.
//!
//! The shapes and the order come from the model's declarations; [`units`] checks, on headers alone, that
//! the checkpoint has them, and decides for each where its rows come from:
//!
//! - *direct*: they lie in a file of the checkpoint as they will be used, and are read from there;
//! - *made*: they are parts of several places, folded, widened, or packed anew from the layout of another
//!   program.
//!
//! [`TensorPlan::rows`] is the one producer of rows. Preparing writes what it gives, and a checkpoint that
//! runs as it is ([`LiftedSource`]) streams what it gives, so both see the same bytes.

mod affine;
mod bnb;
mod catalog;
mod fp8;
mod part;
mod rows;
mod scheme;
mod source;
mod stored;
#[cfg(test)]
mod tests;

pub(crate) use catalog::{Lifted, MadeFile, pass};
pub(crate) use rows::Scratch;
pub(crate) use source::LiftedSource;

use crate::{Adapter, Error, Result};
use airllm_format::shard::TensorSpec;
use airllm_format::{Bits, NumFormat, Repo};
use airllm_model::arch::{Fold, Role};
use airllm_model::{Config, TensorDecl, UnitDecl};
use scheme::Scheme;
use std::collections::BTreeSet;
use stored::Stored;

/// The tensors of one unit.
#[derive(Debug, Clone)]
pub(crate) struct UnitPlan {
    pub(crate) name: String,
    /// The shard that it is stored in, its own or another unit's.
    pub(crate) shard: String,
    /// Whether it is read only when asked for.
    pub(crate) on_demand: bool,
    pub(crate) tensors: Vec<TensorPlan>,
}

/// One shard to write: a unit, and those that are stored with it.
#[derive(Debug, Clone)]
pub(crate) struct ShardPlan {
    pub(crate) name: String,
    pub(crate) file: String,
    pub(crate) tensors: Vec<TensorPlan>,
}

/// One tensor, and where its rows come from.
#[derive(Debug, Clone)]
pub(crate) struct TensorPlan {
    pub(crate) decl: TensorDecl,
    /// Its name in its shard.
    pub(crate) entry: String,
    /// How the checkpoint stores it.
    stored: Stored,
    /// Adapters that are folded into its weights.
    adapters: Vec<Adapter>,
    /// The format of its rows.
    pub(crate) to: NumFormat,
}

impl TensorPlan {
    pub(crate) fn row_bytes(&self) -> usize {
        self.to.row_bytes(self.decl.cols())
    }

    pub(crate) fn bytes(&self) -> u64 {
        (self.decl.rows() * self.row_bytes()) as u64
    }

    /// File and offset of its first row, where the rows lie in a file of the checkpoint as they are used.
    pub(crate) fn direct(&self) -> Option<(usize, u64)> {
        let Stored::Plain(part, format) = &self.stored else { return None };
        let ([span], Fold::None) = (&self.decl.spans[..], self.decl.fold) else { return None };
        let before = match self.decl.is_vector() {
            true => format.row_bytes(span.start),
            false => span.start * format.row_bytes(self.decl.cols()),
        };
        (*format == self.to && self.adapters.is_empty()).then(|| (part.file, part.start + before as u64))
    }

    /// Bytes of memory that it takes itself.
    fn tables(&self) -> usize {
        self.stored.tables()
    }

    /// The error of a row that holds something that cannot be used.
    pub(crate) fn bad_row(&self, row: usize, what: impl std::fmt::Display) -> airllm_format::Error {
        self.stored.main().bad_row(rows::in_checkpoint(&self.decl.spans, row), what)
    }

    /// Says that the bytes of the checkpoint that it is made of will not be needed again soon.
    pub(crate) fn forget(&self, repo: &Repo) {
        self.stored.parts().iter().for_each(|part| repo.forget(&part.name));
    }
}

impl ShardPlan {
    pub(crate) fn specs(&self) -> Vec<TensorSpec> {
        let spec =
            |t: &TensorPlan| TensorSpec { name: t.entry.clone(), format: t.to, shape: t.decl.shape.clone() };
        self.tensors.iter().map(spec).collect()
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.tensors.iter().map(TensorPlan::bytes).sum()
    }
}

/// The format that rows get which are `from` now: what the recipe asks for, but never narrower than the
/// tensor's floor, and as it is where it has no more bits than asked for; vectors always in f32.
pub(crate) fn choose(from: NumFormat, floor: NumFormat, bits: Bits) -> NumFormat {
    let (wanted, most) = match bits.format() {
        None => (from, usize::MAX),
        Some(format) => (format, code_bits(format)),
    };
    match floor {
        NumFormat::F32 => NumFormat::F32,
        _ if code_bits(from) <= most => from,
        // `NumFormat` is ordered from the widest to the narrowest.
        floor => wanted.min(floor).max(from),
    }
}

/// The precision floor of a tensor where all matrices get one format. Every token depends on all of the embedding and
/// the head, and they are little of a large model, so they stay above what they may have where each matrix is looked at.
pub(crate) fn floor(decl: &TensorDecl, bits: Bits) -> NumFormat {
    match (decl.role, bits.format()) {
        (Role::Embed | Role::Head, Some(_)) => decl.floor.min(NumFormat::Q6),
        _ => decl.floor,
    }
}

/// Bits of the code of a weight, its share of scales aside.
fn code_bits(format: NumFormat) -> usize {
    use NumFormat::*;
    match format {
        F32 => 32,
        F16 | Bf16 => 16,
        A8 | Q8_0 | Q8 | F8 | I8 => 8,
        Q6K | Q6 => 6,
        Q5_1 | Q5_0 | Q5K | Q5 => 5,
        Q3K | Q3 => 3,
        Q2K | Q2 => 2,
        _ => 4,
    }
}

/// The plan of every unit of a model, checked against the checkpoint's headers.
pub(crate) fn units(repo: &Repo, config: &Config, bits: Bits) -> Result<Vec<UnitPlan>> {
    merged(repo, config, bits, &[])
}

/// The same, with adapters folded into the weights.
pub(crate) fn merged(
    repo: &Repo,
    config: &Config,
    bits: Bits,
    adapters: &[Adapter],
) -> Result<Vec<UnitPlan>> {
    let scheme = Scheme::read(repo)?;
    let plan = |unit: UnitDecl| -> Result<UnitPlan> {
        let tensors = unit.tensors.iter().map(|decl| {
            let sorted = config.reordered.contains(&decl.hf);
            tensor(repo, &scheme, &unit, decl, (bits, adapters), sorted)
        });
        let tensors = tensors.collect::<Result<_>>()?;
        Ok(UnitPlan { name: unit.name, shard: unit.shard, on_demand: unit.on_demand, tensors })
    };
    config.units().into_iter().map(plan).collect()
}

/// The matrices of a checkpoint whose columns are better put into another order, for
/// [`Config::reordered`]: those of GPTQ in act-order.
pub(crate) fn reordered(repo: &Repo, config: &Config) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    let scheme = Scheme::read(repo)?;
    if !matches!(scheme, Scheme::Gptq { .. }) {
        return Ok(names);
    }
    for unit in config.units() {
        // The forward puts the inputs of layers into another order, not what embedding and head see.
        let layers = |decl: &&TensorDecl| !matches!(decl.role, Role::Embed | Role::Head);
        for decl in unit.tensors.iter().filter(|decl| !decl.is_vector()).filter(layers) {
            // What is wrong with a tensor is said when it is planned.
            if let Ok(Stored::Affine(it)) = stored::find(repo, &scheme, &unit.name, decl, true)
                && it.columns().is_some()
            {
                names.insert(decl.hf.clone());
            }
        }
    }
    Ok(names)
}

/// The shards that units are written to, in the order of the units.
pub(crate) fn shards(units: Vec<UnitPlan>) -> Vec<ShardPlan> {
    let mut shards: Vec<ShardPlan> = Vec::new();
    for unit in units {
        // The units of a shard are neighbours, as a rule.
        match shards.iter_mut().rev().find(|shard| shard.name == unit.shard) {
            Some(shard) => shard.tensors.extend(unit.tensors),
            None => shards.push(ShardPlan {
                file: format!("{}.safetensors", unit.shard),
                name: unit.shard,
                tensors: unit.tensors,
            }),
        }
    }
    shards
}

fn tensor(
    repo: &Repo,
    scheme: &Scheme,
    unit: &UnitDecl,
    decl: &TensorDecl,
    (bits, adapters): (Bits, &[Adapter]),
    sorted: bool,
) -> Result<TensorPlan> {
    let (stored, entry) = (stored::find(repo, scheme, &unit.name, decl, sorted)?, unit.entry(decl));
    let have: usize = decl.spans.iter().map(std::ops::Range::len).sum();
    let inside = decl.spans.iter().all(|span| span.start <= span.end && span.end <= decl.hf_rows);
    if !inside || have != decl.shape.first().copied().unwrap_or(0) {
        let what = format!(
            "{}: the {entry} of {} was expected to be {:?}, from the parts {:?} of {} rows of `{}`",
            repo.dir().display(),
            unit.name,
            decl.shape,
            decl.spans,
            decl.hf_rows,
            decl.hf
        );
        return Err(Error::Input { what });
    }
    let changes = |adapter: &&Adapter| !decl.is_vector() && adapter.factors(&decl.hf).is_some();
    let adapters: Vec<Adapter> = adapters.iter().filter(changes).cloned().collect();
    // What was folded has numbers that the format it was stored in need not have. Sums with an adapter are
    // rounded to it all the same, if it is one that anything is rounded to, as other programs do.
    let from = match stored.format() {
        _ if decl.fold != Fold::None => NumFormat::F32,
        format if format.is_foreign() && !adapters.is_empty() => NumFormat::F16,
        format => format,
    };
    let to = choose(from, floor(decl, bits), bits);
    Ok(TensorPlan { decl: decl.clone(), entry, stored, adapters, to })
}
