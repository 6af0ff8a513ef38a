//! Checkpoints and layer shards: bytes <-> named tensors.
//!
//! - [`safetensors`] and [`gguf`] read and check headers, [`Repo`] a whole checkpoint of either form.
//! - [`shard`] writes layer shards, [`Manifest`] says what a prepared folder holds, [`Prepared`] opens one.
//! - [`hub`] downloads checkpoints into the Hugging Face cache.
//! - [`LayerSource`] is what streaming reads from: [`FileSource`], [`MemorySource`], and [`FaultSource`] for
//!   tests.
//!
//! Nothing here does arithmetic on weights, and nothing half-written is ever taken for whole: files get
//! their names after their bytes are on the disk, and the manifest comes last.
//!
//! ```
//! use airllm_format::shard::{ShardTag, ShardWriter, TensorSpec};
//! use airllm_format::{Bits, FileSource, LayerSource, Manifest, NumFormat, Prepared, ReadMethod, Recipe, SourceEntry};
//!
//! let dir = std::env::temp_dir().join(format!("airllm-format-example-{}", std::process::id()));
//! let tag = ShardTag { unit: "layer.0".into(), source: "abc".into(), recipe: Recipe::uniform(Bits::Source).name() };
//! let spec = TensorSpec { name: "q".into(), format: NumFormat::F32, shape: vec![2, 4] };
//! let mut writer = ShardWriter::create(&dir, "layer.0.safetensors", &tag, vec![spec])?;
//! writer.write(&[7; 16])?; // row 0
//! writer.write(&[9; 16])?; // row 1
//! let shard = writer.finish()?;
//!
//! let source = SourceEntry { id: None, fingerprint: "abc".into() };
//! let recipe = Recipe::uniform(Bits::Source);
//! let mut manifest = Manifest::new("LlamaForCausalLM".into(), source, recipe, serde_json::json!({}));
//! manifest.shards.push(shard);
//! manifest.write(&dir)?;
//!
//! let prepared = Prepared::open(&dir)?;
//! prepared.verify(&mut |_done, _total| {})?;
//! let q = &prepared.manifest().shards[0].tensors[0];
//! let source = FileSource::open(&prepared.shard_paths(), ReadMethod::Buffered)?;
//! let mut rows = vec![0; q.bytes as usize];
//! source.read_at(0, q.offset, &mut rows)?;
//! assert_eq!(rows[16..], [9; 16]);
//! # std::fs::remove_dir_all(&dir).unwrap();
//! # Ok::<(), airllm_format::Error>(())
//! ```
#![forbid(unsafe_code)]

mod disk;
mod error;
pub mod gguf;
pub mod hub;
mod json;
mod manifest;
mod number;
mod prepared;
mod repo;
pub mod safetensors;
pub mod shard;
mod source;
mod sources;

pub use disk::{free_space, need_space, write_atomically};
pub use error::{Error, Result};
pub use json::{parse_json, read_json_object};
pub use manifest::{
    Bits, Calibration, FileEntry, MANIFEST, Manifest, PartEntry, Recipe, Sensitivity, ShardEntry,
    SourceEntry, TensorEntry, TensorSensitivity, Together, WidthError, copy_file, write_side_text,
};
pub use number::{Layout, NumFormat};
pub use prepared::Prepared;
pub use repo::{Index, Located, Repo};
pub use source::LayerSource;
pub use sources::{FaultSource, FileSource, MemorySource, Probe, QueuedReads, Rate, ReadMethod};
