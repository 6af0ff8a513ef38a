//! Preparing: a checkpoint becomes layer shards, once.
//!
//! Crash-safe and resumable: every shard appears under its name when it is whole, the manifest comes
//! last, and a second run accepts the shards of the first after checking every byte of them. The
//! result does not depend on how often it was interrupted.

use crate::calibrate::{self, Calibrated, Formats, Samples};
use crate::lift::{self, ShardPlan, UnitPlan};
use crate::lock::Lock;
use crate::pack::Packer;
use crate::progress::Meter;
use crate::{Adapter, Cancel, Error, OnProgress, Result, Stage};
use airllm_format::shard::{Folders, ShardTag, ShardWriter, accept_in};
use airllm_format::{
    Bits, Manifest, PartEntry, Prepared, Recipe, Repo, Sensitivity, SourceEntry, copy_file, write_side_text,
};
use airllm_model::Config;
use std::path::{Path, PathBuf};

/// Header, checksums and padding of a shard take less than this.
const SHARD_EXTRA: u64 = 64 << 10;

/// A checkpoint that is to be prepared. Fields with a rule of their own have a setter.
pub struct Preparation<'a> {
    repo: &'a Repo,
    config: &'a Config,
    id: Option<String>,
    bits: Bits,
    recipe: Option<Recipe>,
    rounding: Option<Rounding>,
    threads: usize,
    memory: u64,
    check_existing: bool,
    adapters: &'a [Adapter],
    cancel: Cancel,
    progress: &'a OnProgress,
    free_space: &'a dyn Fn(&Path) -> airllm_format::Result<u64>,
}

/// Rounding that knows what the matrices will be multiplied with.
pub(crate) struct Rounding {
    /// The text that shows it.
    pub(crate) samples: Samples,
    /// The format of each matrix; empty where one is for all.
    pub(crate) formats: Formats,
    /// What the formats were chosen by.
    pub(crate) sensitivity: Option<Sensitivity>,
}

impl<'a> Preparation<'a> {
    /// Prepares `repo` with the checkpoint's own precision, on one thread, without reports.
    pub fn new(repo: &'a Repo, config: &'a Config) -> Self {
        Preparation {
            repo,
            config,
            id: None,
            bits: Bits::Source,
            recipe: None,
            rounding: None,
            threads: 1,
            memory: u64::MAX,
            check_existing: false,
            adapters: &[],
            cancel: Cancel::new(),
            progress: &|_| {},
            free_space: &airllm_format::free_space,
        }
    }

    /// The name the checkpoint was asked for by, for the manifest.
    pub fn id(mut self, id: Option<String>) -> Self {
        self.id = id;
        self
    }

    /// How matrices are stored.
    pub fn bits(mut self, bits: Bits) -> Self {
        self.bits = bits;
        self
    }

    /// Rounds with a calibration text, to one format or to several.
    pub(crate) fn rounding(mut self, rounding: Rounding) -> Self {
        self.rounding = Some(rounding);
        self
    }

    /// What is asked for, of which [`rounding`](Self::rounding) must follow before anything is written.
    pub(crate) fn recipe(mut self, recipe: Recipe) -> Self {
        self.bits = recipe.bits;
        self.recipe = Some(recipe);
        self
    }

    /// Threads that pack.
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads.max(1);
        self
    }

    /// The most memory for blocks of rows. A single row is never cut, so very long ones may take more.
    pub fn memory(mut self, bytes: u64) -> Self {
        self.memory = bytes;
        self
    }

    /// Reads every byte of shards that are there already, even of a finished folder, and writes damaged
    /// ones again. Without this a finished folder is taken as it is.
    pub fn check_existing(mut self, check: bool) -> Self {
        self.check_existing = check;
        self
    }

    /// Folds adapters into the weights.
    pub fn adapters(mut self, adapters: &'a [Adapter]) -> Self {
        self.adapters = adapters;
        self
    }

    /// Stops soon after this is set; finished shards stay for the next run.
    pub fn cancel(mut self, cancel: &Cancel) -> Self {
        self.cancel = cancel.clone();
        self
    }

    /// Who is told of progress.
    pub fn progress(mut self, progress: &'a OnProgress) -> Self {
        self.progress = progress;
        self
    }

    /// Another answer to "how many bytes are free at this path", for tests and quotas.
    pub fn free_space(mut self, answer: &'a dyn Fn(&Path) -> airllm_format::Result<u64>) -> Self {
        self.free_space = answer;
        self
    }

    /// Bytes that the shards will have, about.
    pub fn bytes(&self) -> Result<u64> {
        Ok(self.shards()?.iter().map(|shard| shard.bytes() + SHARD_EXTRA).sum())
    }

    /// Writes the shards to `out`, or finds them there.
    ///
    /// Waits while another process prepares the same folder. A folder that holds shards of another
    /// checkpoint or recipe is refused, not overwritten.
    pub fn run(&self, out: &Path) -> Result<Prepared> {
        self.run_in(&Folders::one(out))
    }

    /// The same with the bytes of every shard in one folder or spread over several.
    pub fn run_in(&self, out: &Folders) -> Result<Prepared> {
        let shards = self.shards()?;
        let source = self.source()?;
        if let Some(done) = self.existing(out, &source)?.filter(|_| !self.check_existing) {
            return Ok(done);
        }
        let mut waiting = Meter::new(Stage::Wait, 0, self.progress);
        // In an order of their own, so that two processes that name them differently do not wait for each other.
        let mut dirs: Vec<&PathBuf> = out.dirs().iter().collect();
        dirs.sort();
        let lock = |dir: &PathBuf| Lock::take(dir, &self.cancel, || waiting.tell(&dir.display().to_string()));
        let _locks = dirs.into_iter().map(lock).collect::<Result<Vec<_>>>()?;
        // Whoever held the lock may have finished the work.
        if let Some(done) = self.existing(out, &source)?.filter(|_| !self.check_existing) {
            return Ok(done);
        }
        self.check_space(out, &shards)?;
        self.write(out, &shards, source)
    }

    /// The finished shards in `out`, if there are some; others than those asked for are an error.
    pub(crate) fn made(&self, out: &Folders) -> Result<Option<Prepared>> {
        self.existing(out, &self.source()?)
    }

    fn source(&self) -> Result<SourceEntry> {
        let mut fingerprint = self.repo.fingerprint()?;
        for adapter in self.adapters {
            // What an adapter changes must exist, whether or not any of it is looked at below.
            adapter.low_rank(self.config)?;
            let both = fingerprint + &adapter.fingerprint();
            fingerprint = format!("{:032x}", xxhash_rust::xxh3::xxh3_128(both.as_bytes()));
        }
        Ok(SourceEntry { id: self.id.clone(), fingerprint })
    }

    fn shards(&self) -> Result<Vec<ShardPlan>> {
        Ok(lift::shards(self.units()?))
    }

    fn units(&self) -> Result<Vec<UnitPlan>> {
        let mut units = lift::merged(self.repo, self.config, self.bits, self.adapters)?;
        if let Some(rounding) = &self.rounding {
            calibrate::apply(&mut units, &rounding.formats);
        }
        Ok(units)
    }

    fn asked(&self) -> Recipe {
        self.recipe.clone().unwrap_or(Recipe::uniform(self.bits))
    }

    /// What shards are marked with.
    fn tag(&self, shard: &str, source: &SourceEntry) -> ShardTag {
        let source = source.fingerprint.clone();
        ShardTag { unit: shard.to_owned(), source, recipe: self.asked().name() }
    }

    /// The finished folder, if it is one. An unfinished or damaged one is `None`, one that holds
    /// something else an error.
    fn existing(&self, out: &Folders, source: &SourceEntry) -> Result<Option<Prepared>> {
        if !out.dirs().iter().any(|dir| Prepared::is_prepared(dir)) {
            return Ok(None);
        }
        for (index, dir) in out.dirs().iter().enumerate() {
            // A manifest that cannot be read says nothing about whose shards these are.
            if let Ok(manifest) = Manifest::read(dir) {
                self.ours(dir, &manifest, part(out, index).as_ref(), source)?;
            }
        }
        match Prepared::open_in(out.dirs()) {
            Ok(prepared) => Ok(Some(prepared)),
            Err(error) => {
                tracing::info!(%error, "prepared shards are damaged; they are written again");
                Ok(None)
            }
        }
    }

    /// Refuses a folder with a manifest of something else.
    fn ours(
        &self,
        out: &Path,
        manifest: &Manifest,
        part: Option<&PartEntry>,
        source: &SourceEntry,
    ) -> Result<()> {
        if manifest.source.fingerprint != source.fingerprint || manifest.recipe != self.asked() {
            let what = format!(
                "{}: holds shards of another checkpoint or recipe ({}, {}) than asked for ({}): choose another folder, \
                 or remove this one first",
                out.display(),
                manifest.source.id.as_deref().unwrap_or(&manifest.architecture),
                manifest.recipe.name(),
                self.asked().name()
            );
            return Err(Error::Input { what });
        }
        if manifest.part.as_ref() != part {
            let say = |part: Option<&PartEntry>| match part {
                None => "all of the shards".to_owned(),
                Some(it) => {
                    format!("part {} of {:?} of the shards", it.index + 1, it.shares.shares())
                }
            };
            let what = format!(
                "{}: holds {}, here {} would be: name all of its folders and no other, or choose other ones",
                out.display(),
                say(manifest.part.as_ref()),
                say(part)
            );
            return Err(Error::Input { what });
        }
        Ok(())
    }

    /// The work on layers that rounding with a calibration text is.
    fn calibrated(&self) -> Result<Option<Calibrated<'_>>> {
        let Some(rounding) = &self.rounding else { return Ok(None) };
        let source = lift::merged(self.repo, self.config, Bits::Source, self.adapters)?;
        let (units, machine) = ((self.units()?, source), (self.threads, self.memory / 2));
        Calibrated::new(self.repo, self.config, units, &rounding.samples, machine, &self.cancel).map(Some)
    }

    fn check_space(&self, out: &Folders, shards: &[ShardPlan]) -> Result<()> {
        for (index, dir) in out.dirs().iter().enumerate() {
            let share = |bytes: u64| out.shares().map_or(bytes, |spread| spread.part_len(index, bytes));
            self.check_space_in(dir, shards, &share)?;
        }
        Ok(())
    }

    fn check_space_in(&self, out: &Path, shards: &[ShardPlan], share: &dyn Fn(u64) -> u64) -> Result<()> {
        let there = |shard: &ShardPlan| std::fs::metadata(out.join(&shard.file)).map_or(0, |m| m.len());
        let side: u64 =
            self.repo.side_files()?.iter().map(|f| std::fs::metadata(f).map_or(0, |m| m.len())).sum();
        let shards: u64 = shards
            .iter()
            .map(|shard| (share(shard.bytes()) + SHARD_EXTRA).saturating_sub(there(shard)))
            .sum();
        let (needed, free) = (shards + side, (self.free_space)(out)?);
        if needed > free {
            let what = format!("preparing {}", self.repo.dir().display());
            return Err(Error::NoSpace { path: out.to_path_buf(), what, needed, free });
        }
        Ok(())
    }

    fn write(&self, out: &Folders, shards: &[ShardPlan], source: SourceEntry) -> Result<Prepared> {
        // From here on a folder does not count as prepared until its manifest is written anew.
        out.dirs().iter().try_for_each(|dir| Manifest::remove(dir))?;
        let block = Packer::block_within(self.memory, self.threads);
        let packer = Packer { repo: self.repo, threads: self.threads, block, cancel: &self.cancel };
        let total = shards.iter().map(ShardPlan::bytes).sum();
        let mut meter = Meter::new(Stage::Prepare, total, self.progress);
        let architecture = self.config.arch.hf.first().copied().unwrap_or(self.config.arch.name);
        let (recipe, config) = (self.asked(), self.repo.config().clone());
        let mut manifest = Manifest::new(architecture.to_owned(), source, recipe, config);
        manifest.generation_config = self.repo.generation_config().cloned();
        let mut calibrated = self.calibrated()?;
        if let Some(rounding) = &self.rounding {
            manifest.sensitivity = rounding.sensitivity.clone();
        }
        for shard in shards {
            self.cancel.check()?;
            meter.tell(&shard.name);
            let tag = self.tag(&shard.name, &manifest.source);
            let entry = match accept_in(out, &shard.file, &tag, &shard.specs())? {
                Some(entry) => {
                    if let Some(calibrated) = &mut calibrated {
                        calibrated.skip(out, &entry);
                    }
                    meter.resume(&shard.name, shard.bytes());
                    entry
                }
                None => {
                    let mut writer = ShardWriter::create_in(out, &shard.file, &tag, shard.specs())?;
                    match &mut calibrated {
                        Some(calibrated) => calibrated.write(shard, &mut writer, &mut meter)?,
                        None => packer.shard(shard, &mut writer, &mut meter)?,
                    }
                    writer.finish()?
                }
            };
            manifest.shards.push(entry);
        }
        for (index, dir) in out.dirs().iter().enumerate() {
            // Each folder has all that is small.
            manifest.files.clear();
            for file in self.repo.side_files()? {
                manifest.files.push(copy_file(&file, dir)?);
            }
            for (name, text) in self.repo.side_texts() {
                manifest.files.push(write_side_text(name, &text, dir)?);
            }
            manifest.part = part(out, index);
            manifest.write(dir)?;
        }
        Ok(Prepared::open_in(out.dirs())?)
    }
}

/// What the manifest of a folder says of its part.
fn part(out: &Folders, index: usize) -> Option<PartEntry> {
    out.shares().map(|shares| PartEntry { index, shares: shares.clone() })
}

/// Deletes the weight files of a checkpoint and returns their names. To be called after its shards were
/// verified: there is no way back.
///
/// A file that is a link (as in the hub's cache) is deleted together with what it links to.
pub fn delete_weights(repo: Repo) -> Result<Vec<PathBuf>> {
    use crate::error::At;
    let paths = repo.files().to_vec();
    drop(repo);
    for path in &paths {
        if path.is_symlink() {
            let target = path.canonicalize().at(path, "following the link")?;
            std::fs::remove_file(&target).at(&target, "deleting")?;
        }
        std::fs::remove_file(path).at(path, "deleting")?;
    }
    Ok(paths)
}
