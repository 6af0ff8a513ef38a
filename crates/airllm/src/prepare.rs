//! Preparing: a checkpoint becomes layer shards, once.
//!
//! Crash-safe and resumable: every shard appears under its name when it is whole, the manifest comes
//! last, and a second run accepts the shards of the first after checking every byte of them. The
//! result does not depend on how often it was interrupted.

use crate::lift::{self, UnitPlan};
use crate::lock::Lock;
use crate::pack::Packer;
use crate::progress::Meter;
use crate::{Cancel, Error, OnProgress, Result, Stage};
use airllm_format::shard::{ShardWriter, accept};
use airllm_format::{Bits, Manifest, Prepared, Recipe, Repo, SourceEntry, copy_file};
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
    threads: usize,
    block: usize,
    check_existing: bool,
    cancel: Cancel,
    progress: &'a OnProgress,
    free_space: &'a dyn Fn(&Path) -> airllm_format::Result<u64>,
}

impl<'a> Preparation<'a> {
    /// Prepares `repo` with the checkpoint's own precision, on one thread, without reports.
    pub fn new(repo: &'a Repo, config: &'a Config) -> Self {
        Preparation {
            repo,
            config,
            id: None,
            bits: Bits::Source,
            threads: 1,
            block: 8 << 20,
            check_existing: false,
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

    /// Threads that pack.
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads.max(1);
        self
    }

    /// The most memory for blocks of rows. A single row is never cut, so very long ones may take more.
    pub fn memory(mut self, bytes: u64) -> Self {
        // Three blocks are read or waiting, one is packed; a row widened to f32 may take twice its bytes.
        let share = usize::try_from(bytes / 6).unwrap_or(usize::MAX);
        self.block = share.clamp(64 << 10, 8 << 20);
        self
    }

    /// Reads every byte of shards that are there already, even of a finished folder, and writes damaged
    /// ones again. Without this a finished folder is taken as it is.
    pub fn check_existing(mut self, check: bool) -> Self {
        self.check_existing = check;
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
        let units = lift::units(self.repo, self.config, self.bits)?;
        Ok(units.iter().map(|u| u.bytes() + SHARD_EXTRA).sum())
    }

    /// Writes the shards to `out`, or finds them there.
    ///
    /// Waits while another process prepares the same folder. A folder that holds shards of another
    /// checkpoint or recipe is refused, not overwritten.
    pub fn run(&self, out: &Path) -> Result<Prepared> {
        let units = lift::units(self.repo, self.config, self.bits)?;
        let source = SourceEntry { id: self.id.clone(), fingerprint: self.repo.fingerprint()? };
        if let Some(done) = self.existing(out, &source)?.filter(|_| !self.check_existing) {
            return Ok(done);
        }
        let mut waiting = Meter::new(Stage::Wait, 0, self.progress);
        let _lock = Lock::take(out, &self.cancel, || waiting.tell(&out.display().to_string()))?;
        // Whoever held the lock may have finished the work.
        if let Some(done) = self.existing(out, &source)?.filter(|_| !self.check_existing) {
            return Ok(done);
        }
        self.check_space(out, &units)?;
        self.write(out, &units, source)
    }

    /// The finished folder, if it is one. An unfinished or damaged one is `None`, one that holds
    /// something else an error.
    fn existing(&self, out: &Path, source: &SourceEntry) -> Result<Option<Prepared>> {
        if !Prepared::is_prepared(out) {
            return Ok(None);
        }
        // A manifest that cannot be read says nothing about whose shards these are.
        let Ok(manifest) = Manifest::read(out) else { return Ok(None) };
        if manifest.source.fingerprint != source.fingerprint || manifest.recipe.bits != self.bits {
            let what = format!(
                "{}: holds shards of another checkpoint or recipe ({}, {} bits): choose another folder, or remove \
                 this one first",
                out.display(),
                manifest.source.id.as_deref().unwrap_or(&manifest.architecture),
                manifest.recipe.bits.name()
            );
            return Err(Error::Input { what });
        }
        match Prepared::open(out) {
            Ok(prepared) => Ok(Some(prepared)),
            Err(error) => {
                tracing::info!(%error, "prepared shards are damaged; they are written again");
                Ok(None)
            }
        }
    }

    fn check_space(&self, out: &Path, units: &[UnitPlan]) -> Result<()> {
        let there = |unit: &UnitPlan| std::fs::metadata(out.join(&unit.file)).map_or(0, |m| m.len());
        let side: u64 =
            self.repo.side_files()?.iter().map(|f| std::fs::metadata(f).map_or(0, |m| m.len())).sum();
        let shards: u64 = units.iter().map(|u| (u.bytes() + SHARD_EXTRA).saturating_sub(there(u))).sum();
        let (needed, free) = (shards + side, (self.free_space)(out)?);
        if needed > free {
            let what = format!("preparing {}", self.repo.dir().display());
            return Err(Error::NoSpace { path: out.to_path_buf(), what, needed, free });
        }
        Ok(())
    }

    fn write(&self, out: &Path, units: &[UnitPlan], source: SourceEntry) -> Result<Prepared> {
        // From here on the folder does not count as prepared until its manifest is written anew.
        Manifest::remove(out)?;
        let packer =
            Packer { repo: self.repo, threads: self.threads, block: self.block, cancel: &self.cancel };
        let total = units.iter().map(UnitPlan::bytes).sum();
        let mut meter = Meter::new(Stage::Prepare, total, self.progress);
        let architecture = self.config.arch.hf.first().copied().unwrap_or(self.config.arch.name);
        let recipe = Recipe { bits: self.bits };
        let mut manifest = Manifest::new(architecture.to_owned(), source, recipe, self.repo.config().clone());
        manifest.generation_config = self.repo.generation_config().cloned();
        for unit in units {
            self.cancel.check()?;
            meter.tell(&unit.name);
            let tag = unit.tag(&manifest.source.fingerprint, self.bits);
            let entry = match accept(out, &unit.file, &tag, &unit.specs())? {
                Some(entry) => {
                    meter.resume(&unit.name, unit.bytes());
                    entry
                }
                None => {
                    let mut writer = ShardWriter::create(out, &unit.file, &tag, unit.specs())?;
                    packer.unit(unit, &mut writer, &mut meter)?;
                    writer.finish()?
                }
            };
            manifest.shards.push(entry);
        }
        for file in self.repo.side_files()? {
            manifest.files.push(copy_file(&file, out)?);
        }
        manifest.write(out)?;
        Ok(Prepared::open(out)?)
    }
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
