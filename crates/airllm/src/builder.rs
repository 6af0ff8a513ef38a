//! Everything that can be chosen about how a model runs.

use crate::checkpoint::{Checkpoint, Form, Meaning, understand};
use crate::engine::{Engine, Runner};
use crate::error::At;
use crate::forecast::{Forecast, Want, alternatives, forecast};
use crate::progress::Meter;
use crate::source::Stoppable;
use crate::weights::Weights;
use crate::{
    AutoModel, Cache, Cancel, Error, OnProgress, Preparation, Progress, Result, Stage, env, hardware,
};
use airllm_format::hub::{Hub, Settings};
use airllm_format::{Bits, Prepared, ReadMode};
use airllm_kernels::Cpu;
use airllm_model::{Model, bind};
use airllm_stream::{Catalog, Hardware, Options, Pipeline, Request, Timeline};
use std::path::PathBuf;
use std::sync::Arc;

/// The device that computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Device {
    /// The processor.
    #[default]
    Cpu,
}

/// Choices for [`AutoModel`]. All have defaults: as much memory as is free, one thread a core, the
/// checkpoint's own precision, the usual folders.
///
/// ```no_run
/// use airllm::{AutoModel, Bits, Generation};
///
/// let model = AutoModel::builder().ram(8_000_000_000).bits(Bits::Q4).from_pretrained("org/name")?;
/// for piece in model.generate("Why is the sky blue?", &Generation::default())? {
///     print!("{}", piece?);
/// }
/// # Ok::<(), airllm::Error>(())
/// ```
#[derive(Clone)]
pub struct Builder {
    ram: Option<u64>,
    threads: Option<usize>,
    bits: Option<Bits>,
    device: Device,
    shards: Option<PathBuf>,
    home: Option<PathBuf>,
    hub: Option<Settings>,
    token: Option<String>,
    offline: bool,
    revision: Option<String>,
    context: Option<usize>,
    cache_tokens: Option<usize>,
    max_batch: usize,
    slots: Option<usize>,
    slot_bytes: Option<usize>,
    readers: usize,
    batch_tokens: Option<usize>,
    timeline: bool,
    check_existing: bool,
    cancel: Cancel,
    progress: Arc<OnProgress>,
}

impl Default for Builder {
    /// Looks up the usual places in the environment, by the rules of [`env`](mod@crate::env).
    fn default() -> Self {
        Builder {
            ram: None,
            threads: None,
            bits: None,
            device: Device::Cpu,
            shards: None,
            home: env::home(),
            hub: Settings::from_vars(env::var).ok(),
            token: None,
            offline: false,
            revision: None,
            context: None,
            cache_tokens: None,
            max_batch: 1,
            slots: None,
            slot_bytes: None,
            readers: 2,
            batch_tokens: None,
            timeline: false,
            check_existing: false,
            cancel: Cancel::new(),
            progress: Arc::new(|_: &Progress<'_>| {}),
        }
    }
}

/// Rates of this machine, and what follows from them.
struct Measured {
    hardware: Hardware,
    /// False where the files were too small, and the rate of the disk is a stand-in.
    disk: bool,
    /// The better way to read these files.
    mode: ReadMode,
}

/// Tokens of key/value cache a sequence where nothing else is said.
const CACHE_TOKENS: usize = 4096;

/// What is left to others where the budget is "all that is free": a sixteenth.
const LEFT_FREE: u64 = 16;

impl Builder {
    /// The most memory to use, in bytes. Without it: what is free, if the model does not need less.
    pub fn ram(mut self, bytes: u64) -> Self {
        self.ram = Some(bytes);
        self
    }

    /// Threads that compute; without it, one a core.
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = Some(threads.max(1));
        self
    }

    /// How matrices are stored; without it, as the checkpoint has them.
    pub fn bits(mut self, bits: Bits) -> Self {
        self.bits = Some(bits);
        self
    }

    /// What computes.
    pub fn device(mut self, device: Device) -> Self {
        self.device = device;
        self
    }

    /// A folder for this model's shards, instead of one in the cache. They are written if they are not there.
    pub fn shards(mut self, dir: impl Into<PathBuf>) -> Self {
        self.shards = Some(dir.into());
        self
    }

    /// The folder of the [`Cache`].
    pub fn home(mut self, dir: impl Into<PathBuf>) -> Self {
        self.home = Some(dir.into());
        self
    }

    /// How to reach the hub.
    pub fn hub(mut self, settings: Settings) -> Self {
        self.hub = Some(settings);
        self
    }

    /// The token for models of the hub that ask for one.
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(token.into());
        self
    }

    /// Never uses the network.
    pub fn offline(mut self, offline: bool) -> Self {
        self.offline = offline;
        self
    }

    /// Branch, tag or commit of a hub id.
    pub fn revision(mut self, revision: impl Into<String>) -> Self {
        self.revision = Some(revision.into());
        self
    }

    /// The most tokens of a sequence, prompt and answer together; without it, what the model was made
    /// for.
    pub fn context(mut self, tokens: usize) -> Self {
        self.context = Some(tokens.max(1));
        self
    }

    /// Tokens of key/value cache to make room for, all sequences together; without it, up to 4096 a
    /// sequence, less where the budget is small.
    pub fn cache_tokens(mut self, tokens: usize) -> Self {
        self.cache_tokens = Some(tokens.max(1));
        self
    }

    /// Sequences to make room for side by side. 1.
    pub fn max_batch(mut self, sequences: usize) -> Self {
        self.max_batch = sequences.max(1);
        self
    }

    /// Slots of the ring; without it, the plan chooses.
    pub fn slots(mut self, slots: usize) -> Self {
        self.slots = Some(slots.max(1));
        self
    }

    /// Bytes of a slot; without it, the plan chooses.
    pub fn slot_bytes(mut self, bytes: usize) -> Self {
        self.slot_bytes = Some(bytes);
        self
    }

    /// Threads that read. 2.
    pub fn readers(mut self, threads: usize) -> Self {
        self.readers = threads.max(1);
        self
    }

    /// The most tokens of a pass; without it, the plan chooses.
    pub fn batch_tokens(mut self, tokens: usize) -> Self {
        self.batch_tokens = Some(tokens.max(1));
        self
    }

    /// Records who was busy when, for [`Generate::gantt`](crate::Generate::gantt) and
    /// [`Generate::chrome_trace`](crate::Generate::chrome_trace).
    pub fn timeline(mut self, record: bool) -> Self {
        self.timeline = record;
        self
    }

    /// Before shards that are there already are used, reads every byte of them, and writes damaged ones
    /// again.
    pub fn check_existing(mut self, check: bool) -> Self {
        self.check_existing = check;
        self
    }

    /// A flag that ends downloading, preparing and generating soon after it is set. It cannot be unset:
    /// the model is done then. To end one generation alone, drop it.
    pub fn cancel(mut self, cancel: &Cancel) -> Self {
        self.cancel = cancel.clone();
        self
    }

    /// Who is told of the progress of downloading and preparing.
    pub fn on_progress(mut self, report: impl Fn(&Progress<'_>) + Send + Sync + 'static) -> Self {
        self.progress = Arc::new(report);
        self
    }

    /// Finds a model, downloads it if need be, and makes it ready to run, as [`load`](Self::load) does.
    ///
    /// `model` is a folder (a checkpoint, or prepared shards) or a hub id `org/name`.
    pub fn from_pretrained(&self, model: &str) -> Result<AutoModel> {
        self.load(&self.find(model)?)
    }

    /// Finds a model and downloads it if need be.
    pub fn find(&self, model: &str) -> Result<Checkpoint> {
        match understand(model)? {
            Meaning::Folder(dir) => Checkpoint::open(&dir, None),
            Meaning::Id(id) => Checkpoint::open(&self.download(id)?, Some(id)),
        }
    }

    /// The cache of prepared shards.
    pub fn cache(&self) -> Result<Cache> {
        let home = self.home.as_ref().ok_or_else(|| Error::Argument {
            what: "there is no folder for prepared shards: set AIRLLM_HOME (or HOME)".to_owned(),
        })?;
        Ok(Cache::new(home))
    }

    /// Makes sure that there are shards of a model: those it has, those in the cache, or new ones.
    pub fn prepare(&self, checkpoint: &Checkpoint) -> Result<Prepared> {
        let repo = match checkpoint.form() {
            Form::Prepared(prepared) => {
                let have = prepared.manifest().recipe.bits;
                if let Some(bits) = self.bits.filter(|bits| *bits != have) {
                    let what = format!(
                        "{}: these shards are stored as {}, {} was asked for: prepare the checkpoint again with \
                         those bits",
                        prepared.dir().display(),
                        have.name(),
                        bits.name()
                    );
                    return Err(Error::Input { what });
                }
                return Ok(prepared.clone());
            }
            Form::Published(repo) => repo,
        };
        let out = self.shards_of(checkpoint)?;
        std::fs::create_dir_all(&out).at(&out, "creating the folder for shards")?;
        let mut preparation = Preparation::new(repo, checkpoint.config())
            .id(checkpoint.id().map(str::to_owned))
            .bits(self.bits.unwrap_or(Bits::Source))
            .threads(self.thread_count())
            .check_existing(self.check_existing)
            .cancel(&self.cancel)
            .progress(&*self.progress);
        if let Some(ram) = self.ram {
            preparation = preparation.memory(ram);
        }
        preparation.run(&out)
    }

    /// The folder in which a checkpoint's shards are, or will be.
    pub fn shards_of(&self, checkpoint: &Checkpoint) -> Result<PathBuf> {
        let repo = match checkpoint.form() {
            Form::Prepared(prepared) => return Ok(prepared.dir().to_path_buf()),
            Form::Published(repo) => repo,
        };
        if let Some(dir) = &self.shards {
            return Ok(dir.clone());
        }
        let bits = self.bits.unwrap_or(Bits::Source).name();
        Ok(self.cache()?.entry(checkpoint.name(), &repo.fingerprint()?, bits))
    }

    /// Says where every unit will live, how fast that will be, and what fewer bits would bring. Nothing
    /// is prepared for it; the disk is measured on the files at hand.
    pub fn plan(&self, checkpoint: &Checkpoint) -> Result<Forecast> {
        let ready = self.ready(checkpoint)?;
        let files = ready.as_ref().map_or_else(|| checkpoint.files(), Prepared::shard_paths);
        let live = ready.is_none() && self.as_it_is(checkpoint);
        let (catalog, making) = match live.then(|| Weights::as_they_are(checkpoint, self.readers)) {
            Some(weights) => weights.map(|weights| (weights.catalog, weights.making))?,
            None => (checkpoint.catalog(self.bits)?, 0),
        };
        let measured = self.measure(&files)?;
        let want = self.want(checkpoint, &catalog, making);
        let mut forecast = forecast(checkpoint.config(), &catalog, measured.hardware, &want)?;
        forecast.disk_measured = measured.disk;
        let fewer: Result<Vec<(Bits, Catalog)>> = [Bits::Q8, Bits::Q4]
            .into_iter()
            .map(|bits| Ok((bits, checkpoint.catalog(Some(bits))?)))
            .collect();
        forecast.fewer_bits = alternatives(&forecast, checkpoint.config(), fewer?, &want);
        Ok(forecast)
    }

    /// Makes a model ready to run: plans, and starts the stream.
    ///
    /// A checkpoint at its own precision runs from its own files, unless there are finished shards of it or
    /// [`shards`](Self::shards) asks for some; with other bits it is prepared first, if need be.
    pub fn load(&self, checkpoint: &Checkpoint) -> Result<AutoModel> {
        let config = checkpoint.config().clone();
        let weights = self.weights(checkpoint)?;
        let binding = bind(&config, &weights.catalog)?;
        let measured = self.measure(&weights.files)?;
        let want = self.want(checkpoint, &weights.catalog, weights.making);
        let catalog = weights.catalog;
        let mut forecast = forecast(&config, &catalog, measured.hardware, &want)?;
        forecast.disk_measured = measured.disk;
        let source = weights.source.open(&weights.files, measured.mode)?;
        let source = Arc::new(Stoppable::new(source, self.cancel.clone()));
        let options = Options::of(&forecast.plan, Arc::new(Timeline::new(self.timeline)));
        let engine: Box<dyn Engine> = match self.device {
            Device::Cpu => {
                let device = Arc::new(Cpu::new(self.thread_count()));
                let mut weights = Pipeline::start(device.clone(), source, catalog, &options)?;
                weights.stop_when(self.cancel.shared());
                let model = Model::new(device, config.clone(), binding, forecast.batch_tokens)?;
                Box::new(Runner::new(model, weights))
            }
        };
        let tokenizer = airllm_text::Tokenizer::open(&weights.dir).map_err(|error| error.to_string());
        Ok(AutoModel::new(crate::auto::Parts {
            engine,
            config,
            tokenizer,
            dir: weights.dir,
            eos: checkpoint.generation_config().eos.clone(),
            limit: self.limit(checkpoint),
            cancel: self.cancel.clone(),
            forecast,
        }))
    }

    /// The most tokens a sequence of this model may have; `None` where only memory is a limit.
    pub fn limit(&self, checkpoint: &Checkpoint) -> Option<usize> {
        self.context.or(checkpoint.context())
    }

    /// Whether a checkpoint is to run from its own files, as far as what was asked for goes.
    fn as_it_is(&self, checkpoint: &Checkpoint) -> bool {
        let own = matches!(self.bits, None | Some(Bits::Source));
        matches!(checkpoint.form(), Form::Published(_)) && own && self.shards.is_none()
    }

    /// What will be streamed: shards, prepared now if need be, or the checkpoint as it is.
    fn weights(&self, checkpoint: &Checkpoint) -> Result<Weights> {
        if self.as_it_is(checkpoint) && self.ready(checkpoint)?.is_none() {
            Weights::as_they_are(checkpoint, self.readers)
        } else {
            Weights::prepared(&self.prepare(checkpoint)?, checkpoint)
        }
    }

    fn download(&self, id: &str) -> Result<PathBuf> {
        let mut settings = match &self.hub {
            Some(settings) => settings.clone(),
            // Says which variable to set.
            None => Settings::from_vars(env::var)?,
        };
        settings.offline |= self.offline;
        settings.token = self.token.clone().or(settings.token);
        let hub = Hub::new(settings)?;
        let mut meter = Meter::new(Stage::Download, 0, &*self.progress);
        let mut told = |p: &airllm_format::hub::Progress<'_>| {
            meter.set(p.file, p.done, p.total, p.done.saturating_sub(p.fetched));
        };
        Ok(hub.snapshot(id, self.revision.as_deref(), self.cancel.flag(), &mut told)?)
    }

    /// Finished shards of a checkpoint, if there are any.
    fn ready(&self, checkpoint: &Checkpoint) -> Result<Option<Prepared>> {
        let bits = self.bits.unwrap_or(Bits::Source).name();
        // A fingerprint takes a look at every tensor; none is needed where no entry could be this one's.
        let none = |cache: Cache| !cache.has_some_of(checkpoint.name(), bits);
        if self.shards.is_none() && checkpoint.bits().is_none() && self.cache().map_or(true, none) {
            return Ok(None);
        }
        let Ok(dir) = self.shards_of(checkpoint) else { return Ok(None) };
        Ok(Prepared::is_prepared(&dir).then(|| Prepared::open(&dir).ok()).flatten())
    }

    fn thread_count(&self) -> usize {
        let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        self.threads.unwrap_or_else(cores)
    }

    /// The rates of disk and memory, and the better way to read these files.
    fn measure(&self, files: &[PathBuf]) -> Result<Measured> {
        let (disk, mode) = hardware::disk(files, self.readers)?;
        let memory = hardware::memory(self.thread_count(), self.ram.map_or(u64::MAX, |ram| ram / 4));
        let measured = disk > 0.0;
        // Files too small to be timed are read about as fast as memory is copied.
        let disk = if measured { disk } else { memory / 2.0 };
        Ok(Measured { hardware: Hardware { disk, memory }, disk: measured, mode })
    }

    fn want(&self, checkpoint: &Checkpoint, catalog: &Catalog, making: u64) -> Want {
        let weights: usize = catalog.units.iter().map(airllm_stream::Unit::bytes).sum();
        let limit = self.limit(checkpoint).unwrap_or(CACHE_TOKENS);
        let sequence = if self.context.is_some() { limit } else { limit.min(CACHE_TOKENS) };
        let request = Request {
            ram: self.ram.or_else(|| self.free_memory(weights as u64)),
            readers: self.readers,
            slots: self.slots,
            slot_bytes: self.slot_bytes,
        };
        Want {
            request,
            cache_tokens: self.cache_tokens.unwrap_or(sequence.saturating_mul(self.max_batch)),
            cache_may_shrink: self.cache_tokens.is_none() && self.context.is_none(),
            batch_tokens: self.batch_tokens,
            logit_rows: self.max_batch,
            additions: Arc::from([]),
            making,
        }
    }

    /// The budget where the user has named none; `None` if the system does not say what is free, or if
    /// the weights fit twice over, so that the plan need not look at it.
    fn free_memory(&self, weights: u64) -> Option<u64> {
        let free = hardware::available_memory()?;
        let most = free - free / LEFT_FREE;
        (weights > most / 2).then_some(most)
    }
}

impl std::fmt::Debug for Builder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Builder")
            .field("ram", &self.ram)
            .field("threads", &self.threads)
            .field("bits", &self.bits)
            .field("home", &self.home)
            .finish_non_exhaustive()
    }
}
