//! What can go wrong, in one enum, and what kind of thing each is.

use crate::Size;
use airllm_stream::plan::Memory;
use std::path::PathBuf;

/// Errors of the facade and of everything below it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A parameter outside its range.
    #[error("{what}")]
    Argument {
        /// What was given and what is allowed.
        what: String,
    },
    /// A file's content or a prompt that cannot be used.
    #[error("{what}")]
    Input {
        /// What was expected, what was found, and where.
        what: String,
    },
    /// Neither a folder nor the id of a model.
    #[error("{model}: {what}")]
    NotFound {
        /// What was asked for.
        model: String,
        /// Where it was looked for and what would help.
        what: String,
    },
    /// The operating system refused.
    #[error("{}: {doing}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
    /// Not enough room on the disk.
    #[error(
        "{}: {what} takes {} ({needed} bytes), {} ({free} bytes) are free: free some space, choose another \
         folder, or store fewer bits",
        path.display(), Size(*needed), Size(*free)
    )]
    NoSpace {
        /// The folder on the disk in question.
        path: PathBuf,
        /// What would have been written.
        what: String,
        /// Bytes needed.
        needed: u64,
        /// Bytes free.
        free: u64,
    },
    /// A prompt and its answer do not fit the context.
    #[error(
        "the prompt has {prompt} tokens, the context holds {context}{}: shorten the prompt or raise the context",
        if *prompt < *context { format!(" and {new} more were asked for") } else { String::new() }
    )]
    Context {
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens that were to be added.
        new: usize,
        /// Tokens that fit.
        context: usize,
    },
    /// The memory budget is too small.
    #[error(
        "the {memory} budget of {} is too small: {} ({need} bytes) is the least that works, of which {} are for {} \
         and {} for the ring of weights: grant more, or ask for less context",
        Size(*have), Size(*need), Size(*fixed), contents(*memory, *on_gpu, *context), Size(*ring)
    )]
    Budget {
        /// The memory that is too small.
        memory: Memory,
        /// Whether a GPU computes, which has activations and cache in its own memory.
        on_gpu: bool,
        /// The smallest budget that works, in bytes.
        need: u64,
        /// The budget given.
        have: u64,
        /// The part of `need` that does not depend on the ring: activations and key/value cache, and on a GPU what
        /// the driver takes.
        fixed: u64,
        /// The part of `need` for the smallest ring.
        ring: u64,
        /// Tokens that the key/value cache was to hold.
        context: usize,
    },
    /// The GPU that was asked for cannot be used.
    #[error("{asked}: {why}")]
    NoGpu {
        /// What was asked for.
        asked: String,
        /// Why it cannot be had.
        why: String,
    },
    /// The model computed something that is no number.
    #[error(
        "the logit of token {token} of {vocab} is not a number: the weights or the arithmetic are broken"
    )]
    Logits {
        /// The token.
        token: usize,
        /// Tokens there are.
        vocab: usize,
    },
    /// The model is already at work for somebody else.
    #[error("the model is busy with another generation: finish or drop that one first")]
    Busy,
    /// A thread that worked on the model panicked; its state cannot be trusted.
    #[error("an earlier run of this model ended in a panic: load it again")]
    Poisoned,
    /// The caller asked to stop.
    #[error("interrupted")]
    Interrupted,
    /// Files: checkpoints, shards, downloads.
    #[error(transparent)]
    Format(#[from] airllm_format::Error),
    /// A device.
    #[error(transparent)]
    Device(#[from] airllm_kernels::Error),
    /// The stream of weights.
    #[error(transparent)]
    Stream(#[from] airllm_stream::Error),
    /// A configuration, or the forward.
    #[error(transparent)]
    Model(#[from] airllm_model::Error),
    /// A tokenizer or a chat template.
    #[error(transparent)]
    Text(#[from] airllm_text::Error),
}

/// What kind of trouble an [`Error`] is, for programs that act on it (exit codes, HTTP statuses).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The caller's arguments.
    Usage,
    /// It does not fit: memory, disk space or context.
    DoesNotFit,
    /// A checkpoint, shard or prompt that is missing, damaged or not supported.
    Input,
    /// A download failed.
    Download,
    /// The caller asked to stop.
    Interrupted,
    /// Everything else: the system, the device.
    Other,
}

impl Error {
    /// What kind of trouble this is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Argument { .. } => ErrorKind::Usage,
            Self::Input { .. } | Self::NotFound { .. } | Self::Logits { .. } | Self::Text(_) => {
                ErrorKind::Input
            }
            Self::NoSpace { .. } | Self::Context { .. } | Self::Budget { .. } => ErrorKind::DoesNotFit,
            Self::Interrupted => ErrorKind::Interrupted,
            Self::Io { source, .. } if is_full(source) => ErrorKind::DoesNotFit,
            Self::Io { .. } | Self::Busy | Self::Poisoned | Self::NoGpu { .. } | Self::Device(_) => {
                ErrorKind::Other
            }
            Self::Format(error) => format_kind(error),
            Self::Stream(error) => stream_kind(error),
            Self::Model(error) => match error {
                airllm_model::Error::Stream(error) => stream_kind(error),
                airllm_model::Error::Device(_) => ErrorKind::Other,
                _ => ErrorKind::Input,
            },
        }
    }
}

/// What a memory holds besides weights.
fn contents(memory: Memory, on_gpu: bool, context: usize) -> String {
    let cache = format!("activations and the key/value cache of {context} tokens");
    match (memory, on_gpu) {
        (Memory::Vram, _) => format!("the driver, {cache}"),
        (Memory::Ram, true) => "logits and copies to the GPU".to_owned(),
        (Memory::Ram, false) => cache,
    }
}

fn format_kind(error: &airllm_format::Error) -> ErrorKind {
    use airllm_format::Error as F;
    match error {
        F::Malformed { .. } | F::Missing { .. } | F::Checksum { .. } => ErrorKind::Input,
        F::NoSpace { .. } => ErrorKind::DoesNotFit,
        F::Hub { .. } => ErrorKind::Download,
        F::Cancelled { .. } => ErrorKind::Interrupted,
        F::Io { source, .. } if is_full(source) => ErrorKind::DoesNotFit,
        _ => ErrorKind::Other,
    }
}

fn stream_kind(error: &airllm_stream::Error) -> ErrorKind {
    match error {
        airllm_stream::Error::Checksum { .. } => ErrorKind::Input,
        airllm_stream::Error::Source(error) => format_kind(error),
        _ => ErrorKind::Other,
    }
}

fn is_full(error: &std::io::Error) -> bool {
    use std::io::ErrorKind as K;
    matches!(error.kind(), K::StorageFull | K::QuotaExceeded | K::FileTooLarge)
}

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Adds the path and the deed to an answer of the system.
pub(crate) trait At<T> {
    fn at(self, path: impl Into<PathBuf>, doing: &'static str) -> Result<T>;
}

impl<T> At<T> for std::io::Result<T> {
    fn at(self, path: impl Into<PathBuf>, doing: &'static str) -> Result<T> {
        self.map_err(|source| Error::Io { path: path.into(), doing, source })
    }
}
