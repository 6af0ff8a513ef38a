//! Run language models that are larger than the memory that computes them.
//!
//! A model is found by folder or hub id and streamed from disk through a fixed memory budget, token after
//! token: from the files it was published in, or, with fewer bits, from layer shards that are written once. [`AutoModel`] is the way in:
//!
//! ```no_run
//! use airllm::{AutoModel, Generation};
//!
//! let model = AutoModel::builder().ram(600_000_000).from_pretrained("path/to/checkpoint")?;
//! let options = Generation::default().max_new_tokens(64).temperature(0.7).seed(1);
//! let mut answer = model.generate("Once upon a time", &options)?;
//! for piece in answer.by_ref() {
//!     print!("{}", piece?);
//! }
//! eprintln!("{}", answer.physics());
//! # Ok::<(), airllm::Error>(())
//! ```
//!
//! - [`Builder`] holds every choice: [`Device`], budgets, threads, bits, folders, the network.
//! - [`Checkpoint`] is a model that was found and not yet loaded; [`Builder::plan`] says how it would run.
//! - [`Generation`] says how to choose tokens; a [`Generate`] is the run, with its [`Physics`].
//! - [`eval`] says how well a model predicts a text, and how far it is from another.
//! - [`Preparation`] writes shards, [`Cache`] is where they are kept.
//!
//! The budget changes how long a token takes, never which token it is.
//!
//! What is absent: printing, panics, and any look at the environment outside [`mod@env`].
#![forbid(unsafe_code)]

mod adapter;
mod auto;
mod builder;
mod cache;
mod calibrate;
mod chat;
mod checkpoint;
mod company;
mod device;
mod engine;
pub mod env;
mod error;
pub mod eval;
mod forecast;
mod generate;
mod hardware;
mod lift;
mod lock;
mod merge;
mod options;
mod pack;
mod physics;
mod prepare;
mod probe;
mod progress;
mod random;
mod sample;
mod size;
mod source;
mod stop;
mod weights;

pub use adapter::Adapter;
pub use airllm_format::hub::Settings as HubSettings;
pub use airllm_format::{
    Bits, Calibration, Manifest, NumFormat, Prepared, ReadMethod, Repo, Sensitivity, TensorSensitivity,
    Together, WidthError,
};
pub use airllm_model::{Config, KvFormat};
pub use airllm_stream::plan::{Gpu, Lane, LaneTime, Memory, UnitNeed};
pub use airllm_stream::{Catalog, Hardware, Plan};
pub use airllm_text::Tokenizer;
pub use auto::{AutoModel, Hidden, Logits};
pub use builder::Builder;
pub use cache::{Cache, CacheEntry};
pub use calibrate::{CalibrationText, Target, Widths};
pub use chat::{ChatFormat, Message};
pub use checkpoint::{Checkpoint, Form};
pub use company::Prompt;
pub use device::{CpuInfo, CudaInfo, Device, DeviceReport, Devices, available_vram, devices};
pub use error::{Error, ErrorKind, Result};
pub use eval::{Evaluating, Evaluation, Windows};
pub use forecast::{Alternative, Forecast};
pub use generate::{Answer, Answering, Generate, Piece, Timings};
pub use hardware::ProductRate;
pub use hardware::available_memory;
pub use merge::merge;
pub use options::{FinishReason, Generation, GenerationConfig};
pub use physics::{LaneUse, Physics};
pub use prepare::{Preparation, delete_weights};
pub use probe::{DiskRates, Fingerprint, GpuRates, Probe, Way};
pub use progress::{Cancel, OnProgress, Progress, Stage};
pub use sample::Sampler;
pub use size::Size;
pub use stop::Stops;
