//! Calibrated rounding, and the choice of a format for each matrix.

use super::Builder;
use crate::adapter::open_all;
use crate::calibrate::{self, BATCH_TOKENS, Keep, Layers, MEMORY, Samples, Target, Widths};
use crate::checkpoint::{Checkpoint, Form};
use crate::error::At;
use crate::forecast::forecast;
use crate::prepare::Rounding;
use crate::progress::Meter;
use crate::{Adapter, CalibrationText, Error, Result, Stage, lift};
use airllm_format::shard::ShardTag;
use airllm_format::{Bits, Manifest, Recipe, Repo, Sensitivity};
use airllm_stream::Catalog;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How often a measurement writes down how far it has come.
const KEEP: Duration = Duration::from_secs(60);

impl Builder {
    /// How much a model suffers from rounding each of its matrices: measured on the calibration text in one pass over
    /// the weights, or what an earlier call has measured and kept in the cache. Of prepared shards, what they were
    /// made by.
    ///
    /// # Errors
    /// A calibration text that is too short, weights that are no numbers, shards that were made without.
    pub fn sensitivity(&self, checkpoint: &Checkpoint) -> Result<Sensitivity> {
        match checkpoint.form() {
            Form::Published(repo) => self.measured(checkpoint, repo, &open_all(&self.adapters)?),
            Form::Prepared(prepared) => prepared.manifest().sensitivity.clone().ok_or_else(|| {
                let what = format!(
                    "{}: these shards were made without a look at sensitivities; name the checkpoint",
                    prepared.dir().display()
                );
                Error::Input { what }
            }),
        }
    }

    /// The format that each matrix of a checkpoint gets for [`target`](Self::target), by its sensitivity; `None` where
    /// one format is for all, or where the shards are made already.
    ///
    /// # Errors
    /// A target that cannot be reached, with the best that can, and those of [`sensitivity`](Self::sensitivity).
    pub fn widths(&self, checkpoint: &Checkpoint) -> Result<Option<Widths>> {
        let (Form::Published(repo), Some(target)) = (checkpoint.form(), self.target) else { return Ok(None) };
        target.check()?;
        let adapters = open_all(&self.adapters)?;
        let sensitivity = self.measured(checkpoint, repo, &adapters)?;
        self.choose(checkpoint, repo, &adapters, &sensitivity, target).map(Some)
    }

    /// Expected tokens a second of a checkpoint as it is, and with these formats: bytes are time.
    pub fn gain(&self, checkpoint: &Checkpoint, widths: &Widths) -> Result<(f64, f64)> {
        let catalog = checkpoint.catalog(None)?;
        let chosen = self.open_device()?;
        let measured = self.measure(&checkpoint.files(), &catalog, None, &chosen)?;
        let want = self.want(checkpoint, &catalog, 0, &chosen);
        let rounded = with_widths(catalog.clone(), widths);
        let rate = |catalog: &Catalog| -> Result<f64> {
            Ok(forecast(checkpoint.config(), catalog, measured.hardware, &want)?.tokens_per_s())
        };
        Ok((rate(&catalog)?, rate(&rounded)?))
    }

    /// What there is to stream of a checkpoint when it is stored as asked for.
    ///
    /// # Errors
    /// Where the formats depend on a sensitivity that has not been measured yet: that takes long, and is not done
    /// here.
    pub(super) fn catalog(&self, checkpoint: &Checkpoint) -> Result<Catalog> {
        let (Form::Published(repo), Some(target)) = (checkpoint.form(), self.target) else {
            return checkpoint.catalog(self.bits);
        };
        let adapters = open_all(&self.adapters)?;
        let Some(sensitivity) = self.kept(checkpoint, repo, &adapters)?.and_then(|path| read(&path)) else {
            let what = format!(
                "{target}: which matrix gets how many bits is not known before the model was measured: run `airllm \
                 sensitivity` or `airllm prepare` first"
            );
            return Err(Error::Argument { what });
        };
        let widths = self.choose(checkpoint, repo, &adapters, &sensitivity, target)?;
        Ok(with_widths(checkpoint.catalog(None)?, &widths))
    }

    fn choose(
        &self,
        checkpoint: &Checkpoint,
        repo: &Repo,
        adapters: &[Adapter],
        sensitivity: &Sensitivity,
        target: Target,
    ) -> Result<Widths> {
        let units = lift::merged(repo, checkpoint.config(), Bits::Source, adapters)?;
        let (source, recipe) = (repo.fingerprint()?, self.recipe().name());
        let tag =
            |shard: &str| ShardTag { unit: shard.to_owned(), source: source.clone(), recipe: recipe.clone() };
        calibrate::choose(&units, sensitivity, target, &tag)
    }

    /// Whether rounding looks at what matrices are multiplied with.
    pub(super) fn is_calibrated(&self) -> bool {
        let to_less = !matches!(self.bits, None | Some(Bits::Source));
        self.target.is_some() || (self.calibration.is_some() && to_less)
    }

    /// How the shards are made that are asked for.
    pub(super) fn recipe(&self) -> Recipe {
        let text = || self.text().hash(self.calibration_tokens);
        Recipe {
            bits: self.bits.unwrap_or(Bits::Source),
            target: self.target.and_then(|target| target.name()),
            calibration: self.is_calibrated().then(text),
        }
    }

    /// All that calibrated rounding has to know.
    pub(super) fn rounding(
        &self,
        checkpoint: &Checkpoint,
        repo: &Repo,
        adapters: &[Adapter],
        out: &Path,
    ) -> Result<Rounding> {
        let Some(target) = self.target else {
            let samples = self.samples(checkpoint)?;
            return Ok(Rounding { samples, formats: Default::default(), sensitivity: None });
        };
        target.check()?;
        // An unfinished or damaged folder may still say what its shards were chosen by.
        let manifest = Manifest::read(out).ok().filter(|manifest| manifest.recipe == self.recipe());
        let sensitivity = match manifest.and_then(|manifest| manifest.sensitivity) {
            Some(sensitivity) => sensitivity,
            None => self.measured(checkpoint, repo, adapters)?,
        };
        let formats = self.choose(checkpoint, repo, adapters, &sensitivity, target)?.chosen;
        Ok(Rounding { samples: self.samples(checkpoint)?, formats, sensitivity: Some(sensitivity) })
    }

    fn text(&self) -> CalibrationText {
        self.calibration.clone().unwrap_or_default()
    }

    fn samples(&self, checkpoint: &Checkpoint) -> Result<Samples> {
        Samples::of(&self.text(), &checkpoint.tokenizer()?, checkpoint.context(), self.calibration_tokens)
    }

    fn measured(&self, checkpoint: &Checkpoint, repo: &Repo, adapters: &[Adapter]) -> Result<Sensitivity> {
        let kept = self.kept(checkpoint, repo, adapters)?;
        if let Some(path) = &kept
            && let Some(sensitivity) = read(path)
        {
            return Ok(sensitivity);
        }
        let config = checkpoint.config();
        let samples = self.samples(checkpoint)?;
        let plans = lift::merged(repo, config, Bits::Source, adapters)?;
        let total = plans.iter().flat_map(|unit| &unit.tensors).map(|tensor| tensor.bytes()).sum();
        let mut meter = Meter::new(Stage::Measure, total, &*self.progress);
        let batch = (BATCH_TOKENS / samples.context).max(1).min(samples.windows.len());
        let memory = self.ram.map_or(MEMORY, |ram| ram / 2).min(MEMORY);
        let machine = (self.thread_count(), memory);
        let keep = match &kept {
            Some(path) => {
                let dir = path.parent().unwrap_or(Path::new("."));
                std::fs::create_dir_all(dir).at(dir, "making the folder for sensitivities")?;
                Some(Keep::new(path.with_extension("state"), KEEP))
            }
            None => None,
        };
        let mut layers = Layers::new(repo, config, plans, (batch, samples.context), machine, &self.cancel)?;
        let sensitivity = calibrate::measure(&mut layers, &samples, keep, &mut meter)?;
        if let Some(path) = kept {
            write(&path, &sensitivity)?;
        }
        Ok(sensitivity)
    }

    /// The file in which a checkpoint's sensitivity is kept; `None` where there is no cache.
    fn kept(&self, checkpoint: &Checkpoint, repo: &Repo, adapters: &[Adapter]) -> Result<Option<PathBuf>> {
        let Ok(cache) = self.cache() else { return Ok(None) };
        let mut all = repo.fingerprint()?;
        adapters.iter().for_each(|adapter| all += &adapter.fingerprint());
        all += &self.text().hash(self.calibration_tokens);
        let hash = format!("{:032x}", xxhash_rust::xxh3::xxh3_128(all.as_bytes()));
        Ok(Some(cache.sensitivity(checkpoint.name(), &hash)))
    }
}

/// A catalog whose matrices have the formats that were chosen; its places mean nothing then.
fn with_widths(mut catalog: Catalog, widths: &Widths) -> Catalog {
    for unit in &mut catalog.units {
        for tensor in &mut unit.tensors {
            tensor.format = widths.format(&unit.name, &tensor.name).unwrap_or(tensor.format);
        }
    }
    catalog
}

/// A sensitivity that was kept; `None` where there is none that can be used.
fn read(path: &Path) -> Option<Sensitivity> {
    let sensitivity: Sensitivity = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
    sensitivity.check().is_ok().then_some(sensitivity)
}

fn write(path: &Path, sensitivity: &Sensitivity) -> Result<()> {
    let text = serde_json::to_string_pretty(sensitivity)
        .map_err(|error| Error::Input { what: format!("{}: {error}", path.display()) })?;
    Ok(airllm_format::write_atomically(path, text.as_bytes())?)
}
