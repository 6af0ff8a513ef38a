//! `airllm.json`: what a prepared folder holds.
//!
//! It is written last, so a folder that has it is complete. Its own last field is the `xxh3_128` of all
//! text in front of it, so that a damaged or edited manifest is refused as well.

mod check;
mod sensitivity;
#[cfg(test)]
mod tests;

pub use sensitivity::{Calibration, Sensitivity, TensorSensitivity, Together, WidthError};

use crate::disk::{
    is_plain_name, read_bounded, rename, sync_parent, temporary, write_atomically, write_error,
};
use crate::json::MAX_JSON;
use crate::shard::Spread;
use crate::{Error, NumFormat, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

/// Name of the manifest in a prepared folder.
pub const MANIFEST: &str = "airllm.json";

/// The value of `format`.
const FORMAT: &str = "airllm-shards";

/// The value of `version` that this program writes and reads.
const VERSION: u32 = 2;

/// The content of `airllm.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    format: String,
    version: u32,
    /// The architecture as `config.json` names it ("LlamaForCausalLM").
    pub architecture: String,
    /// The checkpoint it was made from.
    pub source: SourceEntry,
    /// How it was made.
    pub recipe: Recipe,
    /// The checkpoint's `config.json`, an object.
    pub config: Value,
    /// The checkpoint's `generation_config.json`, an object, if it had one.
    pub generation_config: Option<Value>,
    /// The shards, in the order of the units.
    pub shards: Vec<ShardEntry>,
    /// The side files that were copied.
    pub files: Vec<FileEntry>,
    /// Which part of the shards lies in this folder, where they are spread over several. The rest of the manifest is
    /// that of the whole, the same in all of them.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub part: Option<PartEntry>,
    /// What rounding does to the model, if that was measured.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub sensitivity: Option<Sensitivity>,
}

/// One of the folders that shards are spread over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PartEntry {
    /// Which of the parts, from 0.
    pub index: usize,
    /// How the bytes of each shard are dealt out to them.
    pub shares: Spread,
}

/// Where the weights came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceEntry {
    /// The name it was asked for by ("org/name"), if it had one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub id: Option<String>,
    /// [`Repo::fingerprint`](crate::Repo::fingerprint) of the checkpoint.
    pub fingerprint: String,
}

/// How the weights were packed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// The format of the matrices.
    pub bits: Bits,
    /// What chose the format of each matrix, where it is not one for all: "3.7bits", "2000000000bytes", "kl0.01".
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub target: Option<String>,
    /// `xxh3_128` of the text that rounding was calibrated on, 32 hexadecimal digits; `None` for rounding to
    /// nearest.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub calibration: Option<String>,
}

impl Recipe {
    /// One format for all matrices, rounded to nearest.
    pub const fn uniform(bits: Bits) -> Recipe {
        Recipe { bits, target: None, calibration: None }
    }

    /// A short name, of letters, digits, dots and dashes: "q4", "q3-calibrated-0a1b2c3d", "3.7bits-0a1b2c3d".
    pub fn name(&self) -> String {
        let text = self.calibration.as_deref().map(|hash| hash.get(..8).unwrap_or(hash));
        match (&self.target, text) {
            (None, None) => self.bits.name().to_owned(),
            (None, Some(text)) => format!("{}-calibrated-{text}", self.bits.name()),
            (Some(target), None) => target.clone(),
            (Some(target), Some(text)) => format!("{target}-{text}"),
        }
    }
}

/// The format that a recipe gives to matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Bits {
    /// As the checkpoint has them.
    Source,
    /// [`NumFormat::Q8`].
    Q8,
    /// [`NumFormat::Q6`].
    Q6,
    /// [`NumFormat::Q5`].
    Q5,
    /// [`NumFormat::Q4`].
    Q4,
    /// [`NumFormat::Q3`].
    Q3,
    /// [`NumFormat::Q2`].
    Q2,
    /// [`NumFormat::Nf4`].
    Nf4,
    /// Each matrix in a format of its own.
    Mixed,
}

impl Bits {
    /// The widths that weights can be rounded to, widest first. [`Nf4`](Self::Nf4), which is a second choice of
    /// four bits, is none of them.
    pub const NARROW: [Bits; 6] = [Self::Q8, Self::Q6, Self::Q5, Self::Q4, Self::Q3, Self::Q2];

    /// The format that matrices get; `None` where they keep their own, or each has another.
    pub const fn format(self) -> Option<NumFormat> {
        match self {
            Self::Source | Self::Mixed => None,
            Self::Q8 => Some(NumFormat::Q8),
            Self::Q6 => Some(NumFormat::Q6),
            Self::Q5 => Some(NumFormat::Q5),
            Self::Q4 => Some(NumFormat::Q4),
            Self::Q3 => Some(NumFormat::Q3),
            Self::Q2 => Some(NumFormat::Q2),
            Self::Nf4 => Some(NumFormat::Nf4),
        }
    }

    /// Bits of a code, 16 standing for the checkpoint's own numbers and 0 for several.
    pub const fn width(self) -> u32 {
        match self {
            Self::Mixed => 0,
            Self::Source => 16,
            Self::Q8 => 8,
            Self::Q6 => 6,
            Self::Q5 => 5,
            Self::Q4 | Self::Nf4 => 4,
            Self::Q3 => 3,
            Self::Q2 => 2,
        }
    }

    /// The name in files.
    pub const fn name(self) -> &'static str {
        match self.format() {
            None if matches!(self, Self::Mixed) => "mixed",
            None => "source",
            Some(format) => format.name(),
        }
    }
}

/// One shard file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardEntry {
    /// Its name in the folder.
    pub file: String,
    /// The unit it holds: "embed", "layer.N" or "head".
    pub unit: String,
    /// Its length in bytes, a multiple of 4096.
    pub bytes: u64,
    /// `xxh3_128` of the whole file, 32 hexadecimal digits.
    pub xxh3: String,
    /// Its tensors, in the order of their bytes and of their use.
    pub tensors: Vec<TensorEntry>,
}

/// One tensor of a shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorEntry {
    /// Its role ("q", "attn_norm").
    pub name: String,
    /// How its rows are packed.
    pub format: NumFormat,
    /// `[d]` or `[rows, cols]`, in numbers.
    pub shape: Vec<usize>,
    /// Offset of its first byte, counted from the start of the file; a multiple of 256.
    pub offset: u64,
    /// Its length in bytes.
    pub bytes: u64,
    /// Its checksum as [`shard`](crate::shard) defines it, 16 hexadecimal digits.
    pub checksum: String,
}

/// One copied side file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Its name in the folder.
    pub file: String,
    /// Its length in bytes.
    pub bytes: u64,
    /// `xxh3_128` of its content, 32 hexadecimal digits.
    pub xxh3: String,
}

impl Manifest {
    /// A manifest without shards and files, to be filled and written.
    pub fn new(architecture: String, source: SourceEntry, recipe: Recipe, config: Value) -> Self {
        Self {
            format: FORMAT.to_owned(),
            version: VERSION,
            architecture,
            source,
            recipe,
            config,
            generation_config: None,
            shards: Vec::new(),
            files: Vec::new(),
            part: None,
            sensitivity: None,
        }
    }

    /// Reads and checks the manifest of a folder. The shards are not looked at;
    /// [`Prepared::open`](crate::Prepared::open) does that.
    ///
    /// # Errors
    /// [`Error::Missing`] and [`Error::Io`] if it cannot be read, [`Error::Malformed`] as
    /// [`parse`](Self::parse).
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(MANIFEST);
        if dir.is_dir() && !path.exists() {
            return Err(Error::missing(
                dir,
                format!("no {MANIFEST}: not a prepared folder, or not finished; run `prepare` (again)"),
            ));
        }
        Self::parse(&read_bounded(&path, MAX_JSON)?, &path)
    }

    /// Checks the bytes of a manifest: its own checksum, its form, and that names, shapes, offsets and
    /// sizes agree with each other; `path` is for messages.
    ///
    /// # Errors
    /// [`Error::Malformed`] with what was expected and what was found.
    pub fn parse(bytes: &[u8], path: &Path) -> Result<Self> {
        let body = seal::open(bytes).map_err(|what| Error::malformed(path, what))?;
        Self::parse_body(&body, path)
    }

    /// [`parse`](Self::parse) for text without the checksum.
    ///
    /// # Errors
    /// As [`parse`](Self::parse).
    pub fn parse_body(body: &[u8], path: &Path) -> Result<Self> {
        /// Enough to tell a manifest of another version from a damaged one.
        #[derive(Deserialize)]
        struct Head {
            format: String,
            version: u32,
        }
        let invalid = |e| Error::malformed(path, format!("not a valid manifest: {e}"));
        let head: Head = serde_json::from_slice(body).map_err(invalid)?;
        if head.format != FORMAT {
            return Err(Error::malformed(path, format!("format is {:?}, expected {FORMAT:?}", head.format)));
        }
        if head.version != VERSION {
            return Err(Error::malformed(
                path,
                format!(
                    "version is {}, this program reads version {VERSION}: prepare the checkpoint again",
                    head.version
                ),
            ));
        }
        let manifest: Self = serde_json::from_slice(body).map_err(invalid)?;
        manifest.check().map_err(|what| Error::malformed(path, what))?;
        Ok(manifest)
    }

    /// The text of the file, checksum included.
    ///
    /// # Errors
    /// [`Error::Malformed`] if the manifest contradicts itself.
    pub fn to_bytes(&self, path: &Path) -> Result<Vec<u8>> {
        self.check().map_err(|what| Error::malformed(path, what))?;
        let text = serde_json::to_string_pretty(self).map_err(|e| Error::malformed(path, e.to_string()))?;
        Ok(seal::close(&text))
    }

    /// Writes `airllm.json`: a temporary name, made durable, then renamed.
    ///
    /// # Errors
    /// [`Error::Malformed`] if the manifest contradicts itself, [`Error::NoSpace`] and [`Error::Io`] if it
    /// cannot be written.
    pub fn write(&self, dir: &Path) -> Result<()> {
        let path = dir.join(MANIFEST);
        write_atomically(&path, &self.to_bytes(&path)?)
    }

    /// Removes the manifest of a folder, if there is one: the first step of changing the folder, after
    /// which it no longer counts as prepared.
    ///
    /// # Errors
    /// [`Error::Io`] where the system refuses.
    pub fn remove(dir: &Path) -> Result<()> {
        let path = dir.join(MANIFEST);
        match fs::remove_file(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(Error::io(&path, "removing")(e)),
            Ok(()) => sync_parent(&path),
        }
    }

    /// Bytes of all shards.
    pub fn bytes(&self) -> u64 {
        self.shards.iter().map(|s| s.bytes).sum()
    }
}

/// Writes a text as a side file of a prepared folder, crash-safe as everything else in it.
///
/// # Errors
/// [`Error::NoSpace`] and [`Error::Io`] where writing fails.
pub fn write_side_text(name: &str, text: &str, dir: &Path) -> Result<FileEntry> {
    let to = dir.join(name);
    if !is_plain_name(name) || name == MANIFEST {
        return Err(Error::malformed(&to, "a side file cannot have this name"));
    }
    let (part, bytes) = (temporary(&to), text.len() as u64);
    let write = || -> Result<FileEntry> {
        let mut output = File::create(&part).map_err(Error::io(&part, "creating"))?;
        output.write_all(text.as_bytes()).map_err(|e| write_error(&part, bytes, e))?;
        output.sync_all().map_err(|e| write_error(&part, bytes, e))?;
        rename(&part, &to)?;
        let mut hash = Xxh3::new();
        hash.update(text.as_bytes());
        Ok(FileEntry { file: name.to_owned(), bytes, xxh3: format!("{:032x}", hash.digest128()) })
    };
    write().inspect_err(|_| drop(fs::remove_file(&part)))
}

/// Copies a side file into a prepared folder, crash-safe as everything else in it.
///
/// # Errors
/// [`Error::Missing`], [`Error::NoSpace`] and [`Error::Io`] where the copy fails.
pub fn copy_file(from: &Path, dir: &Path) -> Result<FileEntry> {
    let name = from.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if !is_plain_name(&name) || name == MANIFEST {
        return Err(Error::malformed(from, "a side file cannot have this name"));
    }
    let to = dir.join(&name);
    let part = temporary(&to);
    let copy = || -> Result<FileEntry> {
        let (mut input, len) = crate::disk::open_file(from)?;
        let mut output = File::create(&part).map_err(Error::io(&part, "creating"))?;
        let mut hash = Xxh3::new();
        let mut block = vec![0; 1 << 20];
        let mut bytes = 0;
        loop {
            let n = match input.read(&mut block) {
                Ok(0) => break,
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(Error::io(from, format!("reading at {bytes}"))(e)),
            };
            hash.update(&block[..n]);
            output.write_all(&block[..n]).map_err(|e| write_error(&part, len.saturating_sub(bytes), e))?;
            bytes += n as u64;
        }
        output.sync_all().map_err(|e| write_error(&part, len, e))?;
        rename(&part, &to)?;
        Ok(FileEntry { file: name.clone(), bytes, xxh3: format!("{:032x}", hash.digest128()) })
    };
    copy().inspect_err(|_| drop(fs::remove_file(&part)))
}

/// The manifest's checksum of itself: the last field, over all bytes in front of it.
mod seal {
    use super::xxh3_128;

    const BEFORE: &str = ",\n  \"xxh3\": \"";
    const AFTER: &str = "\"\n}\n";

    /// Adds the checksum to the pretty text of an object.
    pub(super) fn close(text: &str) -> Vec<u8> {
        let body = text.trim_end().trim_end_matches('}').trim_end();
        format!("{body}{BEFORE}{:032x}{AFTER}", xxh3_128(body.as_bytes())).into_bytes()
    }

    /// Checks the checksum and returns the object without it.
    pub(super) fn open(bytes: &[u8]) -> Result<Vec<u8>, String> {
        let (body, hex) = bytes
            .strip_suffix(AFTER.as_bytes())
            .and_then(|b| b.split_last_chunk::<32>())
            .and_then(|(b, hex)| Some((b.strip_suffix(BEFORE.as_bytes())?, hex)))
            .ok_or("not a manifest, or cut off: it does not end with its checksum")?;
        let found = format!("{:032x}", xxh3_128(body));
        if found.as_bytes() != hex {
            return Err(format!(
                "the text has checksum {found}, its last line says {}: damaged or edited; run `prepare` again",
                String::from_utf8_lossy(hex)
            ));
        }
        let mut body = body.to_vec();
        body.extend_from_slice(b"\n}");
        Ok(body)
    }
}
