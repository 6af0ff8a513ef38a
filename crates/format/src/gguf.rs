//! GGUF files: weights, configuration and tokenizer in one file, as llama.cpp and its kin use them.
//!
//! A file is `"GGUF" ‖ u32 version ‖ u64 number of tensors ‖ u64 number of entries ‖ entries ‖ table of tensors
//! ‖ padding ‖ data`, all little endian. An entry is a key, a type and a value; a row of the table is a name,
//! the sizes (innermost first), a type and an offset into the data. Versions 2 and 3 are read; version 3 differs
//! only in that it may be big endian, which is refused.
//! Specification: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.
//!
//! Everything is checked when a head is read, as in [`safetensors`](crate::safetensors). A
//! [`Repo`](crate::Repo) shows such a file as a Hugging Face checkpoint: see [`Repo::open`](crate::Repo::open).

mod config;
mod families;
mod names;
mod parse;
mod set;
mod tensors;
#[cfg(test)]
mod tests;
mod value;

pub use value::{List, Metadata, Numbers, Value};

pub(crate) use set::{Set, find, is_gguf};

use crate::disk::{open_file, write_atomically};
use crate::safetensors::TensorInfo;
use crate::{Error, Result};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// The largest head (entries and table), in bytes, that is read. Those of published files stay below a tenth.
pub const MAX_HEAD: u64 = 256 << 20;

/// The checked head of a GGUF file.
#[derive(Debug, Clone, PartialEq)]
pub struct Gguf {
    path: PathBuf,
    version: u32,
    entries: u64,
    /// Where the entries end.
    entries_end: u64,
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
    data_start: u64,
    file_len: u64,
}

impl Gguf {
    /// Reads and checks the head of a file. The weights are not read.
    ///
    /// # Errors
    /// [`Error::Missing`] and [`Error::Io`] if it cannot be read, [`Error::Malformed`] if anything in it is not
    /// as the format says, or a tensor is of a type that is not known here.
    pub fn read(path: &Path) -> Result<Self> {
        let (file, file_len) = open_file(path)?;
        let mut head = Vec::new();
        let mut len = file_len.min(1 << 20);
        loop {
            // The length of a head is known only when it has been read.
            let have = head.len();
            head.resize(len as usize, 0);
            file.read_exact_at(&mut head[have..], have as u64).map_err(Error::io(
                path,
                format!("reading the head, {} bytes at {have}", len - have as u64),
            ))?;
            match parse::parse(&head, file_len, path) {
                Err(parse::Stop::Wrong(error)) => return Err(error),
                Err(parse::Stop::More) if len < file_len.min(MAX_HEAD) => {
                    len = (len * 4).min(file_len).min(MAX_HEAD);
                }
                Err(parse::Stop::More) => {
                    return Err(Error::malformed(path, format!("the head is longer than {MAX_HEAD} bytes")));
                }
                Ok(gguf) => return Ok(gguf),
            }
        }
    }

    /// Checks a head that is already in memory: `head` is the start of the file, at least up to the end of the
    /// table of tensors; `file_len` is the length of the whole file in bytes; `path` is for messages.
    ///
    /// # Errors
    /// [`Error::Malformed`] as for [`read`](Self::read).
    pub fn parse(head: &[u8], file_len: u64, path: &Path) -> Result<Self> {
        parse::parse(head, file_len, path).map_err(|stop| match stop {
            parse::Stop::Wrong(error) => error,
            parse::Stop::More => Error::malformed(
                path,
                format!("the head is longer than the {} bytes of it that are there", head.len()),
            ),
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Version of the format: 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// All entries.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The tensors under their names in the file, in the order of their bytes. Shapes are outermost first;
    /// offsets count from the start of the file.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The tensor of that name in the file.
    pub fn get(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.iter().find(|tensor| tensor.name == name)
    }

    /// Offset of the first byte of data, counted from the start of the file.
    pub fn data_start(&self) -> u64 {
        self.data_start
    }

    /// Length of the file in bytes.
    pub fn file_len(&self) -> u64 {
        self.file_len
    }

    /// Writes a GGUF file with the entries of this one, byte for byte, and no tensors.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::NoSpace`] where the system refuses.
    pub fn write_metadata(&self, to: &Path) -> Result<()> {
        let (file, _) = open_file(&self.path)?;
        let mut bytes = b"GGUF".to_vec();
        bytes.extend_from_slice(&self.version.to_le_bytes());
        bytes.extend_from_slice(&0u64.to_le_bytes());
        bytes.extend_from_slice(&self.entries.to_le_bytes());
        let start = bytes.len();
        bytes.resize(self.entries_end as usize, 0);
        let doing = format!("reading {} bytes at {start}", bytes.len() - start);
        file.read_exact_at(&mut bytes[start..], start as u64).map_err(Error::io(&self.path, doing))?;
        write_atomically(to, &bytes)
    }
}
