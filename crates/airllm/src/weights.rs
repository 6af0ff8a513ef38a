//! What a model streams, and where from.

use crate::Result;
use crate::checkpoint::{Checkpoint, prepared_catalog};
use crate::lift::{LiftedSource, MadeFile};
use airllm_format::{Bits, FileSource, LayerSource, Prepared, ReadMode};
use airllm_stream::Catalog;
use std::path::PathBuf;

/// The weights of a model that is about to run.
pub(crate) struct Weights {
    /// What can be opened again: the folder with configuration and tokenizer, or the GGUF file.
    pub(crate) dir: PathBuf,
    /// Files to read.
    pub(crate) files: Vec<PathBuf>,
    pub(crate) catalog: Catalog,
    pub(crate) source: Source,
    /// Bytes of memory that making rows takes.
    pub(crate) making: u64,
}

/// How the bytes that a catalog names come from files.
pub(crate) enum Source {
    /// They lie there.
    Shards,
    /// Some are made.
    Checkpoint(Vec<MadeFile>),
}

impl Weights {
    /// Those of prepared shards.
    pub(crate) fn prepared(prepared: &Prepared, checkpoint: &Checkpoint) -> Result<Weights> {
        Ok(Weights {
            dir: prepared.dir().to_path_buf(),
            files: prepared.shard_paths(),
            catalog: prepared_catalog(prepared, checkpoint.config())?,
            source: Source::Shards,
            making: 0,
        })
    }

    /// Those of a checkpoint, from its own files, for `readers` threads.
    pub(crate) fn as_they_are(checkpoint: &Checkpoint, readers: usize) -> Result<Weights> {
        let lifted = checkpoint.lifted(Bits::Source)?;
        Ok(Weights {
            dir: checkpoint.path().to_path_buf(),
            files: checkpoint.files(),
            making: lifted.memory(readers),
            catalog: lifted.catalog,
            source: Source::Checkpoint(lifted.made),
        })
    }
}

impl Source {
    pub(crate) fn open(self, files: &[PathBuf], mode: ReadMode) -> Result<Box<dyn LayerSource>> {
        Ok(match self {
            Self::Shards => Box::new(FileSource::open(files, mode)?),
            Self::Checkpoint(made) => Box::new(LiftedSource::open(files, mode, made)?),
        })
    }
}
