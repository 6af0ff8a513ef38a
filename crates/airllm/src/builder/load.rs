//! From what was chosen to a model that runs: prepare, plan, start the stream.

use super::Builder;
use crate::adapter::open_all;
use crate::checkpoint::{Checkpoint, Form, prepared_catalog};
use crate::company::Company;
use crate::device::{Chosen, Opened};
use crate::engine::{Engine, Runner};
use crate::error::At;
use crate::forecast::{Forecast, Want, alternatives, forecast, repacked};
use crate::hardware::{self, ProductRate};
use crate::probe::Ask;
use crate::source::Stoppable;
use crate::weights::Weights;
use crate::{Adapter, AutoModel, Cache, Error, Fingerprint, Preparation, Probe, Result};
use airllm_format::shard::{Folders, Spread, dealt};
use airllm_format::{Bits, NumFormat, Prepared, ReadMethod, Repo};
use airllm_kernels::{Cpu, Ops};
use airllm_model::{Binding, Config, KvFormat, LowRank, Model, bind};
use airllm_stream::{Catalog, Hardware, Options, Pipeline, Request, Timeline, probe_reads};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// Rates of this machine, and what follows from them.
pub(super) struct Measured {
    pub(super) hardware: Hardware,
    /// Those of products, by format; none for a small model.
    pub(super) products: Arc<[ProductRate]>,
    /// False where the files were too small, and the rate of the disk is a stand-in.
    disk: bool,
    /// How these files are to be read, by folder.
    methods: Vec<ReadMethod>,
}

/// Tokens of key/value cache a sequence where nothing else is said.
const CACHE_TOKENS: usize = 4096;

/// Bytes of weights from which on it is worth while to time products.
const WORTH_TIMING: usize = 64 << 20;

/// How long a drive is measured before shards are spread.
const PROBE: Duration = Duration::from_secs(3);

/// What is left to others where the budget is "all that is free": a sixteenth.
const LEFT_FREE: u64 = 16;

/// What an engine starts with, whatever the device.
struct Start<'a> {
    source: Arc<Stoppable>,
    catalog: Catalog,
    options: Options,
    config: Config,
    binding: Binding,
    batch_tokens: usize,
    kv: KvFormat,
    /// Bytes of a GPU's memory that the plan takes, but for what the driver has already.
    device_bytes: usize,
    additions: &'a [LowRank],
    stop: Arc<AtomicBool>,
}

impl Start<'_> {
    fn on<D: Ops>(self, device: Arc<D>) -> Result<Box<dyn Engine>> {
        device.reserve(self.device_bytes)?;
        let mut weights = Pipeline::start(device.clone(), self.source, self.catalog, &self.options)?;
        weights.stop_when(self.stop);
        let mut model = Model::new(device, self.config, self.binding, self.batch_tokens)?;
        model.adapt(self.additions)?;
        Ok(Box::new(Runner::new(model, weights, self.kv)))
    }
}

impl Builder {
    /// Makes sure that there are shards of a model: those it has, those in the cache, or new ones.
    pub fn prepare(&self, checkpoint: &Checkpoint) -> Result<Prepared> {
        let repo = match checkpoint.form() {
            Form::Prepared(prepared) => {
                let have = &prepared.manifest().recipe;
                let other = || {
                    self.recipe() != *have && (self.bits, self.is_calibrated()) != (Some(have.bits), false)
                };
                if (self.bits.is_some() || self.is_calibrated()) && other() {
                    let what = format!(
                        "{}: these shards are stored as {}, {} was asked for: prepare the checkpoint again with \
                         those bits",
                        prepared.dir().display(),
                        have.name(),
                        self.recipe().name()
                    );
                    return Err(Error::Input { what });
                }
                return Ok(prepared.clone());
            }
            Form::Published(repo) => repo,
        };
        let out = self.folders(&self.dirs_of(checkpoint)?)?;
        self.write_shards(checkpoint, repo, &out, &[])
    }

    /// The shards that [`prepare`](Self::prepare) would find finished; `None` where it would write them.
    ///
    /// # Errors
    /// A folder with shards of another checkpoint or recipe: known here before anything is measured.
    pub fn made(&self, checkpoint: &Checkpoint) -> Result<Option<Prepared>> {
        match checkpoint.form() {
            Form::Prepared(prepared) => Ok(Some(prepared.clone())),
            Form::Published(repo) => {
                let preparation = Preparation::new(repo, checkpoint.config()).recipe(self.recipe());
                let dirs = self.dirs_of(checkpoint)?;
                match dirs.iter().any(|dir| Prepared::is_prepared(dir)) {
                    true => preparation.made(&self.folders(&dirs)?),
                    false => Ok(None),
                }
            }
        }
    }

    /// The folder in which a checkpoint's shards are, or will be; the first one of several.
    pub fn shards_of(&self, checkpoint: &Checkpoint) -> Result<PathBuf> {
        Ok(self.dirs_of(checkpoint)?.swap_remove(0))
    }

    /// All folders of a checkpoint's shards, at least one.
    fn dirs_of(&self, checkpoint: &Checkpoint) -> Result<Vec<PathBuf>> {
        let repo = match checkpoint.form() {
            Form::Prepared(prepared) => return Ok(prepared.folders().dirs().to_vec()),
            Form::Published(repo) => repo,
        };
        if !self.shards.is_empty() {
            return Ok(self.shards.clone());
        }
        Ok(vec![self.cache()?.entry(checkpoint.name(), &repo.fingerprint()?, &self.recipe().name())])
    }

    /// How shards lie in these folders, or are to lie there: as an earlier run has begun, else as the drives are fast.
    fn folders(&self, dirs: &[PathBuf]) -> Result<Folders> {
        let [first, _, ..] = dirs else { return Ok(Folders::one(&dirs[0])) };
        if let Ok(prepared) = Prepared::open_in(dirs) {
            return Ok(prepared.folders().clone());
        }
        let begun = std::fs::read_dir(first).into_iter().flatten().flatten();
        let mut begun = begun.filter_map(|entry| dealt(&entry.path()));
        if let Some(spread) = begun.find(|spread| spread.shares().len() == dirs.len()) {
            return Ok(Folders::spread(dirs.to_vec(), spread)?);
        }
        let mut rates = Vec::with_capacity(dirs.len());
        for dir in dirs {
            std::fs::create_dir_all(dir).at(dir, "creating the folder for shards")?;
            let measured = probe_reads(dir, &[], PROBE)?;
            let rate = match self.read {
                ReadMethod::Auto => measured.best().map_or(0.0, |best| best.rate),
                method => measured.of(method),
            };
            tracing::info!(folder = %dir.display(), rate, "bytes per second of the drive");
            rates.push(rate);
        }
        let fail = || Error::Argument {
            what: format!(
                "shards can be spread over 2 to 32 folders that can be read, these are {}",
                dirs.len()
            ),
        };
        Ok(Folders::spread(dirs.to_vec(), Spread::by_rates(&rates).ok_or_else(fail)?)?)
    }

    /// Says where every unit will live, how fast that will be, and what fewer bits would bring. Nothing
    /// is prepared for it; the disk is measured on the files at hand.
    pub fn plan(&self, checkpoint: &Checkpoint) -> Result<Forecast> {
        let ready = self.ready(checkpoint)?;
        let files = ready.as_ref().map_or_else(|| checkpoint.files(), Prepared::shard_paths);
        let live = ready.is_none() && self.as_it_is(checkpoint);
        let (catalog, making) = match live.then(|| Weights::as_they_are(checkpoint, self.readers)) {
            Some(weights) => weights.map(|weights| (weights.catalog, weights.making))?,
            None => match (&ready, checkpoint.form()) {
                (Some(prepared), Form::Published(_)) => (prepared_catalog(prepared, checkpoint.config())?, 0),
                _ => (self.catalog(checkpoint)?, 0),
            },
        };
        let chosen = self.open_device()?;
        chosen.check_cache(self.kv)?;
        let shares = ready.as_ref().or(match checkpoint.form() {
            Form::Prepared(prepared) => Some(prepared),
            Form::Published(_) => None,
        });
        let shares = shares.and_then(|prepared| prepared.folders().shares());
        let measured = self.measure(&files, &catalog, shares, &chosen)?;
        let mut want = self.want(checkpoint, &catalog, making, &chosen);
        want.request.readers *= shares.map_or(1, |spread| spread.shares().len());
        want.additions = self.additions(checkpoint)?;
        want.products = measured.products.clone();
        let mut forecast = forecast(checkpoint.config(), &catalog, measured.hardware, &want)?;
        forecast.disk_measured = measured.disk;
        if live {
            forecast.repacked = repacked(&forecast, &catalog, files.len());
        }
        let fewer: Result<Vec<(Bits, Catalog)>> =
            Bits::NARROW.into_iter().map(|bits| Ok((bits, checkpoint.catalog(Some(bits))?))).collect();
        forecast.fewer_bits = alternatives(&forecast, checkpoint.config(), fewer?, &want);
        Ok(forecast)
    }

    /// Makes a model ready to run: plans, and starts the stream.
    ///
    /// A checkpoint at its own precision runs from its own files, unless there are finished shards of it or
    /// [`shards`](Self::shards) asks for some; with other bits it is prepared first, if need be.
    pub fn load(&self, checkpoint: &Checkpoint) -> Result<AutoModel> {
        let config = checkpoint.config().clone();
        // First: without the device that was asked for nothing needs to be prepared.
        let chosen = self.open_device()?;
        chosen.check_cache(self.kv)?;
        let weights = self.weights(checkpoint)?;
        let binding = bind(&config, &weights.catalog)?;
        let measured = self.measure(&weights.files, &weights.catalog, weights.source.shares(), &chosen)?;
        let mut want = self.want(checkpoint, &weights.catalog, weights.making, &chosen);
        want.request.readers *= weights.source.folders();
        want.additions = self.additions(checkpoint)?;
        want.products = measured.products.clone();
        let catalog = weights.catalog;
        let mut forecast = forecast(&config, &catalog, measured.hardware, &want)?;
        forecast.disk_measured = measured.disk;
        let source = weights.source.open(&weights.files, &measured.methods, self.readers)?;
        let source = Arc::new(Stoppable::new(source, self.cancel.clone()));
        let options = Options::of(&forecast.plan, Arc::new(Timeline::new(self.timeline)));
        let start = Start {
            source,
            catalog,
            options,
            config: config.clone(),
            binding,
            batch_tokens: forecast.batch_tokens,
            kv: forecast.kv,
            device_bytes: usize::try_from(forecast.device_bytes()).unwrap_or(usize::MAX),
            additions: &want.additions,
            stop: self.cancel.shared(),
        };
        let engine = match chosen.opened {
            Opened::Cpu => start.on(Arc::new(Cpu::new(self.thread_count())))?,
            Opened::Cuda(cuda) => start.on(cuda)?,
        };
        // Where memory is no concern, sequences need no limit but the cache.
        let bounded = forecast.budget.is_some() || want.company.is_some();
        let active = if bounded { forecast.sequences } else { usize::MAX };
        let tokenizer = checkpoint.tokenizer().map_err(|error| error.to_string());
        Ok(AutoModel::new(crate::auto::Parts {
            engine,
            config,
            tokenizer,
            dir: weights.dir,
            eos: checkpoint.generation_config().eos.clone(),
            limit: self.limit(checkpoint),
            active,
            cancel: self.cancel.clone(),
            forecast,
        }))
    }

    /// The most tokens a sequence of this model may have; `None` where only memory is a limit.
    pub fn limit(&self, checkpoint: &Checkpoint) -> Option<usize> {
        self.context.or(checkpoint.context())
    }

    /// What the adapters add to the matrices of a model.
    fn additions(&self, checkpoint: &Checkpoint) -> Result<Arc<[LowRank]>> {
        let mut additions = Vec::new();
        for adapter in open_all(&self.adapters)? {
            additions.extend(adapter.low_rank(checkpoint.config())?);
        }
        Ok(additions.into())
    }

    /// Writes a checkpoint with the adapters folded in as shards, to the folder of [`shards`](Self::shards).
    pub fn merge_into_shards(&self, checkpoint: &Checkpoint) -> Result<Prepared> {
        let (false, Form::Published(repo)) = (self.shards.is_empty(), checkpoint.form()) else {
            let what = format!(
                "{}: adapters are folded into a checkpoint as published, and into a folder that is named",
                checkpoint.dir().display()
            );
            return Err(Error::Argument { what });
        };
        let adapters = open_all(&self.adapters)?;
        self.write_shards(checkpoint, repo, &self.folders(&self.shards)?, &adapters)
    }

    fn write_shards(
        &self,
        checkpoint: &Checkpoint,
        repo: &Repo,
        out: &Folders,
        adapters: &[Adapter],
    ) -> Result<Prepared> {
        let mut preparation = Preparation::new(repo, checkpoint.config())
            .id(checkpoint.id().map(str::to_owned))
            .adapters(adapters)
            .threads(self.thread_count())
            .check_existing(self.check_existing)
            .cancel(&self.cancel)
            .progress(&*self.progress);
        if let Some(ram) = self.ram {
            preparation = preparation.memory(ram);
        }
        preparation = match self.is_calibrated() {
            false => preparation.bits(self.bits.unwrap_or(Bits::Source)),
            true => {
                preparation = preparation.recipe(self.recipe());
                // What is there already needs no second look at what it was made by, and what must not be
                // overwritten is known at once.
                if let Some(done) = preparation.made(out)?.filter(|_| !self.check_existing) {
                    return Ok(done);
                }
                preparation.rounding(self.rounding(checkpoint, repo, adapters, out.first())?)
            }
        };
        for dir in out.dirs() {
            std::fs::create_dir_all(dir).at(dir, "creating the folder for shards")?;
        }
        preparation.run_in(out)
    }

    /// Whether a checkpoint is to run from its own files, as far as what was asked for goes.
    fn as_it_is(&self, checkpoint: &Checkpoint) -> bool {
        let own = matches!(self.bits, None | Some(Bits::Source));
        matches!(checkpoint.form(), Form::Published(_)) && own && self.shards.is_empty()
    }

    /// What will be streamed: shards, prepared now if need be, or the checkpoint as it is.
    fn weights(&self, checkpoint: &Checkpoint) -> Result<Weights> {
        if self.as_it_is(checkpoint) && self.ready(checkpoint)?.is_none() {
            Weights::as_they_are(checkpoint, self.readers)
        } else {
            Weights::prepared(&self.prepare(checkpoint)?, checkpoint)
        }
    }

    /// Finished shards of a checkpoint, if there are any.
    fn ready(&self, checkpoint: &Checkpoint) -> Result<Option<Prepared>> {
        let recipe = self.recipe().name();
        // A fingerprint takes a look at every tensor; none is needed where no entry could be this one's.
        let none = |cache: Cache| !cache.has_some_of(checkpoint.name(), &recipe);
        if self.shards.is_empty() && checkpoint.bits().is_none() && self.cache().map_or(true, none) {
            return Ok(None);
        }
        let Ok(dirs) = self.dirs_of(checkpoint) else { return Ok(None) };
        Ok(Prepared::is_prepared(&dirs[0]).then(|| Prepared::open_in(&dirs).ok()).flatten())
    }

    pub(super) fn thread_count(&self) -> usize {
        self.threads.unwrap_or_else(hardware::cores)
    }

    /// Opens the device.
    pub(super) fn open_device(&self) -> Result<Chosen> {
        Chosen::new(self.device, self.vram, self.thread_count())
    }

    /// The rates of disk, memory, processor and device, and the better way to read these files: as they are kept, if they are of
    /// this machine, else measured now.
    pub(super) fn measure(
        &self,
        files: &[PathBuf],
        catalog: &Catalog,
        shares: Option<&Spread>,
        chosen: &Chosen,
    ) -> Result<Measured> {
        let most = self.ram.map_or(u64::MAX, |ram| ram / 4);
        // What cannot be read is no reason not to run.
        let kept = self.home.as_ref().and_then(|home| Probe::load(home).ok().flatten());
        let kept = kept.filter(|kept| kept.machine == Fingerprint::here(self.thread_count()));
        let on_disk = || kept.as_ref()?.disk_of(files.first()?)?.choose(self.read);
        let (disk, methods) = match (shares, on_disk()) {
            (Some(spread), _) => hardware::disks(files, spread.shares(), self.readers, self.read)?,
            (None, Some((rate, method))) => (rate, vec![method]),
            (None, None) => {
                hardware::disk(files, self.readers, self.read).map(|(rate, method)| (rate, vec![method]))?
            }
        };
        let memory =
            kept.as_ref().map_or_else(|| hardware::memory(self.thread_count(), most), |kept| kept.memory);
        let products = match kept {
            Some(kept) => kept.products,
            None => self.products(catalog, most)?,
        };
        let measured = disk > 0.0;
        // Files too small to be timed are read about as fast as memory is copied.
        let disk = if measured { disk } else { memory / 2.0 };
        let hardware = Hardware { disk, memory, gpu: chosen.gpu };
        Ok(Measured { hardware, products: Arc::from(products), disk: measured, methods })
    }

    /// The rates of products in the formats that most of a model's bytes are in, measured in a moment. A small model is not
    /// worth it.
    fn products(&self, catalog: &Catalog, most: u64) -> Result<Vec<ProductRate>> {
        const TIME: Duration = Duration::from_millis(30);
        let mut bytes: BTreeMap<NumFormat, usize> = BTreeMap::new();
        for tensor in catalog.units.iter().flat_map(|unit| &unit.tensors) {
            *bytes.entry(tensor.format).or_default() += tensor.bytes();
        }
        let all: usize = bytes.values().sum();
        if all < WORTH_TIMING {
            return Ok(Vec::new());
        }
        let formats: Vec<NumFormat> =
            bytes.into_iter().filter(|(_, bytes)| *bytes > all / 50).map(|(format, _)| format).collect();
        hardware::products(&formats, self.thread_count(), most, TIME)
    }

    /// Measures for some seconds what the machine can do, and keeps it below [`home`](Self::home), so that plans count with it
    /// from now on: disks below `dirs`, memory, products of each number format, a GPU where there is one.
    ///
    /// # Errors
    /// A folder that cannot be written to, or a GPU that was asked for and cannot be used.
    pub fn probe(&self, dirs: &[PathBuf]) -> Result<Probe> {
        let home = self.home.as_ref().ok_or_else(|| Error::Argument {
            what: "there is no folder to keep rates in: give one".to_owned(),
        })?;
        let chosen = self.open_device()?;
        let gpu = chosen.gpu.map(|gpu| (chosen.report.device.clone(), gpu));
        let threads = self.thread_count();
        let mut probe = Probe::measure(&Ask { threads, dirs, gpu, cancel: &self.cancel })?;
        probe.keep(home)?;
        Ok(probe)
    }

    pub(super) fn want(
        &self,
        checkpoint: &Checkpoint,
        catalog: &Catalog,
        making: u64,
        chosen: &Chosen,
    ) -> Want {
        let weights: usize = catalog.units.iter().map(airllm_stream::Unit::bytes).sum();
        let limit = self.limit(checkpoint).unwrap_or(CACHE_TOKENS);
        let may_shrink = self.cache_tokens.is_none() && self.context.is_none() && self.windows.is_none();
        let sequence = if self.context.is_some() { limit } else { limit.min(CACHE_TOKENS) };
        let request = Request {
            ram: self.ram.or_else(|| self.free_memory(weights as u64)),
            vram: chosen.vram,
            host_layers: self.host_layers,
            readers: self.readers,
            slots: self.slots,
            slot_bytes: self.slot_bytes,
        };
        Want {
            request,
            cache_tokens: self.cache_tokens.unwrap_or(sequence.saturating_mul(self.max_batch)),
            cache_may_shrink: may_shrink,
            kv: self.kv,
            batch_tokens: self.batch_tokens,
            sequences: self.max_batch,
            pass_tokens: None,
            company: self.company(checkpoint),
            free: hardware::available_memory()
                .map(|free| (free - free / LEFT_FREE).saturating_sub(weights as u64)),
            windows: self.windows,
            additions: Arc::from([]),
            products: Arc::from([]),
            making,
            device: chosen.report.clone(),
        }
    }

    /// The prompts that are to be answered, where they are known.
    fn company(&self, checkpoint: &Checkpoint) -> Option<Company> {
        let limit = self.limit(checkpoint).unwrap_or(usize::MAX);
        self.prompts.as_ref().map(|prompts| Company::new(prompts, limit, self.active))
    }

    /// The budget where the user has named none; `None` if the system does not say what is free, or if
    /// the weights fit twice over, so that the plan need not look at it.
    fn free_memory(&self, weights: u64) -> Option<u64> {
        let free = hardware::available_memory()?;
        let most = free - free / LEFT_FREE;
        (weights > most / 2).then_some(most)
    }
}
