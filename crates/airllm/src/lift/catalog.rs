//! The catalog of a checkpoint that is not prepared: places in its own files, and in files that are made
//! while they are read.

use super::{TensorPlan, UnitPlan};
use airllm_model::Config;
use airllm_stream::{Catalog, Tensor, TensorId, Unit};

/// Tensors of a made file start at multiples of this, as those of shards do.
const TENSOR_ALIGNMENT: u64 = 256;

/// Everything there is to stream of a checkpoint, and where its bytes come from.
#[derive(Debug)]
pub(crate) struct Lifted {
    /// Its first files are the checkpoint's own, by their numbers; the rest are those of `made`.
    pub(crate) catalog: Catalog,
    /// Files that exist only when they are read.
    pub(crate) made: Vec<MadeFile>,
}

/// A file of tensors that are made. One a shard, in the order of use, so that small ones share a read.
#[derive(Debug)]
pub(crate) struct MadeFile {
    /// Name for messages.
    pub(crate) name: String,
    pub(crate) len: u64,
    /// Offset and plan of each tensor, by offset.
    pub(crate) tensors: Vec<(u64, TensorPlan)>,
}

impl Lifted {
    /// Gives every tensor its place. `files` is the number of files of the checkpoint, `dir` its folder's
    /// name for messages.
    pub(crate) fn new(units: Vec<UnitPlan>, config: &Config, files: usize, dir: &str) -> Lifted {
        let mut catalog = Catalog::default();
        let mut made: Vec<MadeFile> = Vec::new();
        for unit in units {
            let mut tensors = Vec::with_capacity(unit.tensors.len());
            for plan in unit.tensors {
                let mut tensor = Tensor {
                    name: plan.decl.name.clone(),
                    file: 0,
                    offset: 0,
                    format: plan.to,
                    rows: plan.decl.rows(),
                    cols: plan.decl.cols(),
                    checksum: None,
                };
                (tensor.file, tensor.offset) = match plan.direct() {
                    Some(place) => place,
                    None => {
                        let (number, offset) = place(&mut made, &unit.shard, dir, plan);
                        (files + number, offset)
                    }
                };
                tensors.push(tensor);
            }
            catalog.units.push(Unit { name: unit.name, tensors, on_demand: unit.on_demand });
        }
        catalog.pass = pass(&catalog, config);
        Lifted { catalog, made }
    }

    /// Bytes of memory that reading takes besides the buffers that are read into, with `readers` threads
    /// and the one that computes: vectors, which are made once and kept, and rows on their way.
    pub(crate) fn memory(&self, readers: usize) -> u64 {
        let plans = || self.made.iter().flat_map(|file| &file.tensors).map(|(_, plan)| plan);
        let (vectors, matrices): (Vec<_>, Vec<_>) = plans().partition(|plan| plan.decl.is_vector());
        let kept: u64 = vectors.iter().map(|plan| plan.bytes()).sum();
        // What a plan itself takes only counts where there are tens of thousands, as of experts.
        const PLAN: usize = 1 << 10;
        let tables: usize = plans().map(|plan| PLAN + plan.tables()).sum();
        let most = |plans: Vec<&TensorPlan>| plans.into_iter().map(TensorPlan::working).max().unwrap_or(0);
        kept + (tables + most(vectors) + (readers + 1) * most(matrices)) as u64
    }
}

/// Puts a tensor at the end of its shard's file: number among `made`, and offset.
fn place(made: &mut Vec<MadeFile>, shard: &str, dir: &str, plan: TensorPlan) -> (usize, u64) {
    let name = format!("{dir}, {shard}");
    let number = made.iter().rposition(|file| file.name == name).unwrap_or_else(|| {
        made.push(MadeFile { name, len: 0, tensors: Vec::new() });
        made.len() - 1
    });
    let file = &mut made[number];
    let offset = file.len.next_multiple_of(TENSOR_ALIGNMENT);
    file.len = offset + plan.bytes();
    file.tensors.push((offset, plan));
    (number, offset)
}

/// The order of a pass, as far as the catalog has its tensors; binding refuses what is missing.
pub(crate) fn pass(catalog: &Catalog, config: &Config) -> Vec<TensorId> {
    // Large models of experts have tens of thousands of tensors: searching for each would take seconds.
    let ids = catalog.units.iter().enumerate().flat_map(|(unit, u)| {
        u.tensors.iter().enumerate().map(move |(tensor, t)| ((&*u.name, &*t.name), TensorId { unit, tensor }))
    });
    let ids: std::collections::HashMap<(&str, &str), TensorId> = ids.collect();
    config.pass().iter().filter_map(|(unit, tensor)| ids.get(&(&**unit, &**tensor)).copied()).collect()
}
