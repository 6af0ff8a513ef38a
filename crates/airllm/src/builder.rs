//! Everything that can be chosen about how a model runs.

mod load;
mod round;

use crate::calibrate::{CalibrationText, Target};
use crate::checkpoint::{Checkpoint, Meaning, understand};
use crate::eval::{Shape, Windows};
use crate::progress::Meter;
use crate::{AutoModel, Cache, Cancel, Device, Error, OnProgress, Progress, Prompt, Result, Stage, env};
use airllm_format::hub::{Hub, Settings};
use airllm_format::{Bits, Prepared, ReadMethod};
use airllm_model::KvFormat;
use std::path::PathBuf;
use std::sync::Arc;

/// Choices for [`AutoModel`]. All have defaults: a GPU if there is one, as much memory as is free, one thread a core,
/// the checkpoint's own precision, the usual folders.
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
    vram: Option<u64>,
    host_layers: Option<usize>,
    threads: Option<usize>,
    bits: Option<Bits>,
    target: Option<Target>,
    calibration: Option<CalibrationText>,
    calibration_tokens: usize,
    device: Device,
    shards: Vec<PathBuf>,
    home: Option<PathBuf>,
    hub: Option<Settings>,
    token: Option<String>,
    offline: bool,
    revision: Option<String>,
    context: Option<usize>,
    cache_tokens: Option<usize>,
    kv: KvFormat,
    max_batch: usize,
    /// Tokens of each prompt that is to be answered, and the most that are added.
    prompts: Option<Arc<[(usize, usize)]>>,
    active: Option<usize>,
    slots: Option<usize>,
    slot_bytes: Option<usize>,
    readers: usize,
    read: ReadMethod,
    batch_tokens: Option<usize>,
    windows: Option<Shape>,
    timeline: bool,
    adapters: Vec<PathBuf>,
    check_existing: bool,
    cancel: Cancel,
    progress: Arc<OnProgress>,
}

impl Default for Builder {
    /// Looks up the usual places in the environment, by the rules of [`env`](mod@crate::env).
    fn default() -> Self {
        Builder {
            ram: None,
            vram: None,
            host_layers: Some(0),
            threads: None,
            bits: None,
            target: None,
            calibration: None,
            calibration_tokens: crate::calibrate::TOKENS,
            device: Device::Auto,
            shards: Vec::new(),
            home: env::home(),
            hub: Settings::from_vars(env::var).ok(),
            token: None,
            offline: false,
            revision: None,
            context: None,
            cache_tokens: None,
            kv: KvFormat::default(),
            max_batch: 1,
            prompts: None,
            active: None,
            slots: None,
            slot_bytes: None,
            readers: 2,
            read: ReadMethod::Auto,
            batch_tokens: None,
            windows: None,
            timeline: false,
            adapters: Vec::new(),
            check_existing: false,
            cancel: Cancel::new(),
            progress: Arc::new(|_: &Progress<'_>| {}),
        }
    }
}

impl Builder {
    /// The most memory of the host to use, in bytes. Without it: what is free, if the model does not need less.
    pub fn ram(mut self, bytes: u64) -> Self {
        self.ram = Some(bytes);
        self
    }

    /// The most memory of a GPU to use, in bytes, with all that the driver takes of it for this program. Without it: what is
    /// free. With it, that no GPU can be used is an error.
    pub fn vram(mut self, bytes: u64) -> Self {
        self.vram = Some(bytes);
        self
    }

    /// Layers that the processor computes beside a GPU, of those that lie in the host's memory: so many do not have to
    /// be uploaded. `None` lets the plan choose, by the rates of this machine. Without it there are none: processor and
    /// GPU round differently, so their number shows in the last bits of logits.
    pub fn host_layers(mut self, layers: Option<usize>) -> Self {
        self.host_layers = layers;
        self
    }

    /// Threads that compute; without it, one a core.
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = Some(threads.max(1));
        self
    }

    /// How matrices are stored: all in one format. Without it, as the checkpoint has them.
    pub fn bits(self, bits: Bits) -> Self {
        self.target(Target::Uniform(bits))
    }

    /// How small the model shall be. For anything but [one format](Target::Uniform) the format of each matrix is
    /// chosen by how much the model suffers from it, and rounding is [calibrated](Self::calibration).
    pub fn target(mut self, target: Target) -> Self {
        self.bits = Some(target.bits());
        self.target = Some(target).filter(|target| !matches!(target, Target::Uniform(_)));
        self
    }

    /// Rounds with a look at what the matrices are multiplied with while this text is read: better at equal size,
    /// and slower. Without it, one format is rounded to nearest; several are calibrated on a built-in text.
    pub fn calibration(mut self, text: CalibrationText) -> Self {
        self.calibration = Some(text);
        self
    }

    /// The most tokens that are taken of a calibration text, from all over it. 32768.
    pub fn calibration_tokens(mut self, tokens: usize) -> Self {
        self.calibration_tokens = tokens.max(1);
        self
    }

    /// What computes. [`Device::Auto`] without it.
    pub fn device(mut self, device: Device) -> Self {
        self.device = device;
        self
    }

    /// A folder for this model's shards, instead of one in the cache. They are written if they are not there.
    pub fn shards(mut self, dir: impl Into<PathBuf>) -> Self {
        self.shards = vec![dir.into()];
        self
    }

    /// Several folders, on several drives, for this model's shards: each has a part of every shard, as large as its drive
    /// is fast, so that all of them are read at the same time. The shares are measured when the shards are written, and
    /// stay. Each folder is needed to run the model.
    pub fn shards_over(mut self, dirs: &[PathBuf]) -> Self {
        self.shards = dirs.to_vec();
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

    /// How the key/value cache is stored. [`KvFormat::F32`] without it: keys and values as they were computed. f16 is half
    /// of that, and eight bits with scales (`q8`) 3.2 times less than f32 for heads of 64 numbers, 3.6 times for 128. Heads
    /// are padded to multiples of 64, so that `q8` is no smaller than f16 for heads of up to 40 numbers. Four bits with a
    /// scale for each 32 numbers (`q4`) are 7.1 times less than f32, on the processor only; it costs 0.012 nats
    /// a token on the model that ships with the program (mean KL divergence from f32, over the built-in calibration text
    /// in windows of 256), where `q8` costs 0.00006.
    pub fn kv(mut self, format: KvFormat) -> Self {
        self.kv = format;
        self
    }

    /// Sequences to make room for side by side. 1. Under a budget no more than these are under way at once.
    pub fn max_batch(mut self, sequences: usize) -> Self {
        self.max_batch = sequences.max(1);
        self
    }

    /// Makes room for [`AutoModel::answer`] of these prompts, in place of [`cache_tokens`](Self::cache_tokens) and
    /// [`max_batch`](Self::max_batch): for as many side by side, and as many tokens a pass, as the budget holds and as make
    /// all of them end first.
    ///
    /// A pass over the weights serves all sequences that are under way; their caches, for prompt and answer, take memory
    /// that could hold weights. So a prompt that fits the budget beside the ring is read in one pass, and sequences are as
    /// many as is worth it, up to half of the budget for their caches.
    pub fn answering(mut self, prompts: &[Prompt]) -> Self {
        self.prompts =
            Some(prompts.iter().map(|prompt| (prompt.ids.len(), prompt.options.max_new_tokens)).collect());
        self
    }

    /// The most sequences side by side of those that [`answering`](Self::answering) makes room for.
    pub fn active(mut self, sequences: usize) -> Self {
        self.active = Some(sequences.max(1));
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

    /// How files are read; without it, as is faster on them.
    pub fn read(mut self, method: ReadMethod) -> Self {
        self.read = method;
        self
    }

    /// The most tokens of a pass; without it, the plan chooses.
    pub fn batch_tokens(mut self, tokens: usize) -> Self {
        self.batch_tokens = Some(tokens.max(1));
        self
    }

    /// Makes room for [`AutoModel::evaluate`] of these windows, instead of for generation: for as many side by side
    /// as share a pass, and for the logits of half a pass.
    pub fn evaluating(mut self, windows: &Windows) -> Self {
        self.windows = Some(windows.shape());
        self
    }

    /// Records who was busy when, for [`Generate::gantt`](crate::Generate::gantt) and
    /// [`Generate::chrome_trace`](crate::Generate::chrome_trace).
    pub fn timeline(mut self, record: bool) -> Self {
        self.timeline = record;
        self
    }

    /// Adds the folder of a LoRA adapter, applied beside the weights, which stay as they are. May be called
    /// for several.
    pub fn adapter(mut self, dir: impl Into<PathBuf>) -> Self {
        self.adapters.push(dir.into());
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
            // One of the folders that its shards are spread over.
            Meaning::Folder(dir) if self.shards.len() > 1 && self.shards.contains(&dir) => {
                Checkpoint::open_shards(&self.shards)
            }
            Meaning::Folder(dir) => Checkpoint::open(&dir, None),
            Meaning::Id(id) => Checkpoint::open(&self.download(id)?, Some(id)),
        }
    }

    /// The model whose shards lie in the folders of [`shards_over`](Self::shards_over), where no other model was named;
    /// `None` where these folders hold nothing yet.
    pub fn find_shards(&self) -> Result<Option<Checkpoint>> {
        match self.shards.iter().any(|dir| Prepared::is_prepared(dir)) {
            true => Checkpoint::open_shards(&self.shards).map(Some),
            false => Ok(None),
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

    /// The cache of prepared shards.
    pub fn cache(&self) -> Result<Cache> {
        let home = self.home.as_ref().ok_or_else(|| Error::Argument {
            what: "there is no folder for prepared shards: set AIRLLM_HOME (or HOME)".to_owned(),
        })?;
        Ok(Cache::new(home))
    }
}

impl std::fmt::Debug for Builder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Builder")
            .field("device", &self.device)
            .field("ram", &self.ram)
            .field("vram", &self.vram)
            .field("threads", &self.threads)
            .field("bits", &self.bits)
            .field("home", &self.home)
            .finish_non_exhaustive()
    }
}
