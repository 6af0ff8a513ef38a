//! Writing shards whose rounding knows what the matrices will be multiplied with.
//!
//! Layer after layer: the text's hidden states, as the rounded layers before have left them, show what the
//! matrices of the next one meet; it is rounded by that, written, and passed through as it is now. A shard that an
//! earlier run finished is only passed through, and only where a later one is missing.

use super::layers::{Factors, Layers};
use super::{BATCH_TOKENS, MEMORY, Samples};
use crate::error::At;
use crate::lift::{Scratch, ShardPlan, TensorPlan, UnitPlan};
use crate::progress::Meter;
use crate::{Cancel, Error, Result};
use airllm_format::shard::{Folders, ShardWriter};
use airllm_format::{Repo, ShardEntry};
use airllm_model::{Binding, Config};
use airllm_stream::TensorId;
use std::collections::HashMap;

/// A checkpoint on its way to calibrated shards.
pub(crate) struct Calibrated<'a> {
    repo: &'a Repo,
    layers: Layers<'a>,
    samples: &'a Samples,
    /// The tensors as they will be.
    units: Vec<UnitPlan>,
    source: Binding,
    rounded: Binding,
    /// Tensors by shard, in the shard's order.
    shards: HashMap<String, Vec<TensorId>>,
    /// Shards that an earlier run finished, and that the text has not passed yet.
    skipped: Vec<(Folders, ShardEntry)>,
    /// Hidden states of the text behind what is written.
    x: Vec<f32>,
    cancel: Cancel,
}

impl<'a> Calibrated<'a> {
    /// `units` are the tensors as they will be, `source` the same at the checkpoint's own precision.
    pub(crate) fn new(
        repo: &'a Repo,
        config: &'a Config,
        (units, source): (Vec<UnitPlan>, Vec<UnitPlan>),
        samples: &'a Samples,
        (threads, memory): (usize, u64),
        cancel: &Cancel,
    ) -> Result<Calibrated<'a>> {
        let batch = (BATCH_TOKENS / samples.context).max(1).min(samples.windows.len());
        let memory = memory.min(MEMORY);
        let layers = Layers::new(repo, config, source, (batch, samples.context), (threads, memory), cancel)?;
        let mut shards: HashMap<String, Vec<TensorId>> = HashMap::new();
        for (unit, it) in units.iter().enumerate() {
            let ids = (0..it.tensors.len()).map(|tensor| TensorId { unit, tensor });
            shards.entry(it.shard.clone()).or_default().extend(ids);
        }
        let source = layers.binding(|_| None)?;
        let rounded = layers.binding(|id| Some(units[id.unit].tensors[id.tensor].to))?;
        let cancel = cancel.clone();
        Ok(Calibrated {
            repo,
            layers,
            samples,
            units,
            source,
            rounded,
            shards,
            skipped: Vec::new(),
            x: Vec::new(),
            cancel,
        })
    }

    /// Writes the next shard; they come in the order of the units.
    pub(crate) fn write(
        &mut self,
        shard: &ShardPlan,
        writer: &mut ShardWriter,
        meter: &mut Meter<'_>,
    ) -> Result<()> {
        for (folders, entry) in std::mem::take(&mut self.skipped) {
            self.catch_up(&folders, &entry)?;
        }
        let windows = self.samples.windows();
        let factors = match self.layer(&shard.name) {
            Some(layer) => {
                self.layers.hold(layer)?;
                self.layers.observe(&self.source, layer, &windows, &mut self.x.clone())?
            }
            None if shard.name == "head" && self.shards["head"].iter().any(|id| self.is_rounded(*id)) => {
                self.layers.observe_head(&self.source, &windows, &self.x)?
            }
            None => Factors::new(),
        };
        self.rows(shard, &factors, writer, meter)?;
        self.pass(&shard.name)
    }

    /// Goes past a shard that is there already. The text passes through it only if a later one must be written.
    pub(crate) fn skip(&mut self, folders: &Folders, entry: &ShardEntry) {
        self.skipped.push((folders.clone(), entry.clone()));
    }

    fn catch_up(&mut self, folders: &Folders, entry: &ShardEntry) -> Result<()> {
        let (file, path) = (folders.open(&entry.file)?, &folders.first().join(&entry.file));
        for id in self.shards[&entry.unit].clone() {
            self.cancel.check()?;
            let name = &self.target(id).entry;
            let Some(tensor) = entry.tensors.iter().find(|tensor| tensor.name == *name) else {
                let what = format!("{}: there is no {name} in it", path.display());
                return Err(Error::Input { what });
            };
            let mut bytes = vec![0; tensor.bytes as usize];
            file.read_exact_at(&mut bytes, tensor.offset).at(path, "reading the shard")?;
            self.layers.held.put(id, &bytes)?;
        }
        self.pass(&entry.unit)
    }

    fn layer(&self, shard: &str) -> Option<usize> {
        shard.strip_prefix("layer.")?.parse().ok()
    }

    fn target(&self, id: TensorId) -> &TensorPlan {
        &self.units[id.unit].tensors[id.tensor]
    }

    /// Whether a tensor is rounded to something that calibrating makes better.
    fn is_rounded(&self, id: TensorId) -> bool {
        let (to, own) = (self.target(id).to, self.layers.plan(id).to);
        to != own && to.is_quantised()
    }

    /// Writes all tensors of a shard, and holds them as they are now.
    fn rows(
        &mut self,
        shard: &ShardPlan,
        factors: &Factors,
        writer: &mut ShardWriter,
        meter: &mut Meter<'_>,
    ) -> Result<()> {
        let mut bytes = Vec::new();
        let mut scratch = Scratch::default();
        for id in self.shards[&shard.name].clone() {
            self.cancel.check()?;
            bytes.clear();
            let plan = self.target(id);
            if self.is_rounded(id) {
                self.layers.round(id, plan.to, factors, 1, &mut bytes)?;
            } else {
                bytes.resize(plan.decl.rows() * plan.row_bytes(), 0);
                plan.rows(self.repo.source(), 0..plan.decl.rows(), &mut scratch, &mut bytes)?;
            }
            writer.write(&bytes)?;
            plan.forget(self.repo);
            self.layers.held.put(id, &bytes)?;
            meter.add(&shard.name, bytes.len() as u64);
        }
        Ok(())
    }

    /// Passes the text through what is held now: an embedding, or a layer.
    fn pass(&mut self, shard: &str) -> Result<()> {
        let windows = self.samples.windows();
        if shard == "embed" {
            self.x = self.layers.embed(&self.rounded, &windows)?;
        } else if let Some(layer) = self.layer(shard) {
            self.layers.run(&self.rounded, layer, &windows, &mut self.x, None)?;
        }
        self.layers.held.clear();
        Ok(())
    }
}
