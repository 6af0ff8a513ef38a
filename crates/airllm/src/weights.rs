//! What a model streams, and where from.

use crate::Result;
use crate::checkpoint::{Checkpoint, prepared_catalog};
use crate::lift::{LiftedSource, MadeFile};
use airllm_format::shard::Spread;
use airllm_format::{Bits, LayerSource, Prepared, ReadMethod};
use airllm_stream::{Catalog, SpreadSource, open_files};
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
    /// They lie there, spread over as many folders.
    Spread(Spread),
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
            source: Source::of(prepared),
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
    /// That of prepared shards.
    pub(crate) fn of(prepared: &Prepared) -> Source {
        prepared.folders().shares().map_or(Self::Shards, |spread| Self::Spread(spread.clone()))
    }

    /// How files are dealt out to folders, if they are.
    pub(crate) fn shares(&self) -> Option<&Spread> {
        match self {
            Self::Spread(spread) => Some(spread),
            Self::Shards | Self::Checkpoint(_) => None,
        }
    }

    /// How many folders the files lie in, in equal numbers, one folder after the other.
    pub(crate) fn folders(&self) -> usize {
        self.shares().map_or(1, |spread| spread.shares().len())
    }

    /// Opens the files, to be read by a method for each folder, and by so many threads for each where there are several.
    pub(crate) fn open(
        self,
        files: &[PathBuf],
        methods: &[ReadMethod],
        threads: usize,
    ) -> Result<Box<dyn LayerSource>> {
        let method = methods.first().copied().unwrap_or_default();
        Ok(match self {
            Self::Spread(spread) => {
                let each = files.len() / spread.shares().len();
                let mut parts: Vec<Box<dyn LayerSource>> = Vec::new();
                for (index, files) in files.chunks(each.max(1)).enumerate() {
                    let method = methods.get(index).copied().unwrap_or(method);
                    parts.push(Box::new(open_files(files, method)?));
                }
                Box::new(SpreadSource::new(parts, spread, threads)?)
            }
            Self::Shards => Box::new(open_files(files, method)?),
            Self::Checkpoint(made) => Box::new(LiftedSource::open(files, method, made)?),
        })
    }
}
