//! GGUF files, written the way llama.cpp's converter writes them, from nothing or from a Hugging Face checkpoint.
//!
//! The writer shares no code with the engine's reader. It follows the published format, the names of tensors
//! and the changes that the converter makes to them (rows of queries and keys in another order, norms with
//! their 1 added, experts side by side).
//!
//! ```
//! use airllm_tests::gguf::{File, Kind};
//!
//! let mut file = File::new("llama");
//! file.entry("llama.block_count", 1u32);
//! file.tensor("output_norm.weight", &[4], Kind::F32, &[1.0; 4])?;
//! assert_eq!(&file.bytes()[..4], b"GGUF");
//! # Ok::<(), std::io::Error>(())
//! ```

mod convert;
mod rows;
mod vocabulary;

pub use convert::{Convert, convert};
pub use rows::Kind;
pub use vocabulary::vocabulary;

use serde_json::{Value as Json, json};
use std::io;
use std::path::{Path, PathBuf};

/// A GGUF file about to be written.
#[derive(Debug, Clone)]
pub struct File {
    /// Version of the format.
    pub version: u32,
    /// Where tensors begin: at multiples of this.
    pub alignment: u64,
    /// Keys and values, in order.
    pub entries: Vec<(String, Value)>,
    /// The tensors, in order.
    pub tensors: Vec<Tensor>,
}

/// A tensor of a file.
#[derive(Debug, Clone)]
pub struct Tensor {
    /// Its name in the file.
    pub name: String,
    /// Its shape, outermost first. Files have it the other way round.
    pub shape: Vec<u64>,
    /// The number of its type.
    pub kind: u32,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// The value of an entry.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "named after what they are")]
pub enum Value {
    U8(u8),
    U16(u16),
    U32(u32),
    I32(i32),
    U64(u64),
    F32(f32),
    F64(f64),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    U8s(Vec<u8>),
    U32s(Vec<u32>),
    I32s(Vec<i32>),
    F32s(Vec<f32>),
    Bools(Vec<bool>),
    Lists(Vec<Value>),
}

macro_rules! from {
    ($($type:ty => $variant:ident),*) => {
        $(impl From<$type> for Value {
            fn from(value: $type) -> Self {
                Self::$variant(value)
            }
        })*
    };
}

from!(u16 => U16, u32 => U32, i32 => I32, u64 => U64, f32 => F32, bool => Bool, String => Text);
from!(Vec<String> => Texts, Vec<i32> => I32s, Vec<f32> => F32s);

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Self::Text(value.to_owned())
    }
}

impl Value {
    /// The number of its type in a file.
    fn id(&self) -> u32 {
        match self {
            Self::U8(_) => 0,
            Self::U16(_) => 2,
            Self::U32(_) => 4,
            Self::I32(_) => 5,
            Self::F32(_) => 6,
            Self::Bool(_) => 7,
            Self::Text(_) => 8,
            Self::U64(_) => 10,
            Self::F64(_) => 12,
            Self::Texts(_)
            | Self::U8s(_)
            | Self::U32s(_)
            | Self::I32s(_)
            | Self::F32s(_)
            | Self::Bools(_)
            | Self::Lists(_) => 9,
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::U8(n) => out.push(*n),
            Self::U16(n) => out.extend(n.to_le_bytes()),
            Self::U32(n) => out.extend(n.to_le_bytes()),
            Self::I32(n) => out.extend(n.to_le_bytes()),
            Self::U64(n) => out.extend(n.to_le_bytes()),
            Self::F32(n) => out.extend(n.to_le_bytes()),
            Self::F64(n) => out.extend(n.to_le_bytes()),
            Self::Bool(flag) => out.push(u8::from(*flag)),
            Self::Text(text) => write_text(text, out),
            Self::Texts(texts) => {
                list(8, texts.len(), out);
                texts.iter().for_each(|text| write_text(text, out));
            }
            Self::U8s(numbers) => {
                list(0, numbers.len(), out);
                out.extend(numbers);
            }
            Self::U32s(numbers) => {
                list(4, numbers.len(), out);
                out.extend(numbers.iter().flat_map(|n| n.to_le_bytes()));
            }
            Self::I32s(numbers) => {
                list(5, numbers.len(), out);
                out.extend(numbers.iter().flat_map(|n| n.to_le_bytes()));
            }
            Self::F32s(numbers) => {
                list(6, numbers.len(), out);
                out.extend(numbers.iter().flat_map(|n| n.to_le_bytes()));
            }
            Self::Bools(flags) => {
                list(7, flags.len(), out);
                out.extend(flags.iter().map(|flag| u8::from(*flag)));
            }
            Self::Lists(lists) => {
                list(9, lists.len(), out);
                lists.iter().for_each(|inner| inner.write(out));
            }
        }
    }

    /// The value as JSON has it.
    pub fn to_json(&self) -> Json {
        match self {
            Self::U8(n) => json!(n),
            Self::U16(n) => json!(n),
            Self::U32(n) => json!(n),
            Self::I32(n) => json!(n),
            Self::U64(n) => json!(n),
            Self::F32(n) => json!(n),
            Self::F64(n) => json!(n),
            Self::Bool(flag) => json!(flag),
            Self::Text(text) => json!(text),
            Self::Texts(texts) => json!(texts),
            Self::U8s(numbers) => json!(numbers),
            Self::U32s(numbers) => json!(numbers),
            Self::I32s(numbers) => json!(numbers),
            Self::F32s(numbers) => json!(numbers),
            Self::Bools(flags) => json!(flags),
            Self::Lists(lists) => lists.iter().map(Self::to_json).collect(),
        }
    }
}

fn list(id: u32, len: usize, out: &mut Vec<u8>) {
    out.extend(id.to_le_bytes());
    out.extend((len as u64).to_le_bytes());
}

fn write_text(text: &str, out: &mut Vec<u8>) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

impl File {
    /// An empty file of version 3 for a model of that architecture.
    pub fn new(architecture: &str) -> Self {
        let entries = vec![("general.architecture".to_owned(), architecture.into())];
        Self { version: 3, alignment: 32, entries, tensors: Vec::new() }
    }

    /// Adds an entry.
    pub fn entry(&mut self, key: &str, value: impl Into<Value>) {
        self.entries.push((key.to_owned(), value.into()));
    }

    /// Adds a tensor of that shape (outermost first), its numbers rounded to a type.
    ///
    /// # Errors
    /// Rows that are no whole blocks of the type, or another number of numbers.
    pub fn tensor(&mut self, name: &str, shape: &[usize], kind: Kind, numbers: &[f32]) -> io::Result<()> {
        let cols = shape.last().copied().unwrap_or(0);
        if shape.iter().product::<usize>() != numbers.len() || !cols.is_multiple_of(kind.block()) {
            let what = format!("{name}: {} numbers as {shape:?} of {kind:?}", numbers.len());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        self.tensors.push(Tensor {
            name: name.to_owned(),
            shape: shape.iter().map(|size| *size as u64).collect(),
            kind: kind.id(),
            bytes: kind.encode(numbers),
        });
        Ok(())
    }

    /// The bytes of the file.
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        let alignment = (self.alignment != 32)
            .then(|| ("general.alignment".to_owned(), Value::U32(self.alignment as u32)));
        out.extend(((self.entries.len() + usize::from(alignment.is_some())) as u64).to_le_bytes());
        for (key, value) in self.entries.iter().chain(&alignment) {
            write_text(key, &mut out);
            out.extend(value.id().to_le_bytes());
            value.write(&mut out);
        }
        let mut offset = 0u64;
        for tensor in &self.tensors {
            write_text(&tensor.name, &mut out);
            out.extend((tensor.shape.len() as u32).to_le_bytes());
            out.extend(tensor.shape.iter().rev().flat_map(|size| size.to_le_bytes()));
            out.extend(tensor.kind.to_le_bytes());
            out.extend(offset.to_le_bytes());
            offset = (offset + tensor.bytes.len() as u64).next_multiple_of(self.alignment);
        }
        let pad = |out: &mut Vec<u8>| out.resize(out.len().next_multiple_of(self.alignment as usize), 0);
        for tensor in &self.tensors {
            pad(&mut out);
            out.extend(&tensor.bytes);
        }
        pad(&mut out);
        out
    }

    /// Writes the file.
    ///
    /// # Errors
    /// What the disk says.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        std::fs::write(path, self.bytes())
    }

    /// Writes the file in `parts` parts as `STEM-00001-of-0000N.gguf`, the entries in the first.
    ///
    /// # Errors
    /// What the disk says.
    pub fn write_split(&self, dir: &Path, stem: &str, parts: usize) -> io::Result<Vec<PathBuf>> {
        let each = self.tensors.len().div_ceil(parts);
        let mut paths = Vec::new();
        for part in 0..parts {
            let mut file = Self { tensors: Vec::new(), ..self.clone() };
            if part > 0 {
                file.entries.clear();
            }
            file.tensors.extend(self.tensors.iter().skip(part * each).take(each).cloned());
            file.entry("split.no", part as u16);
            file.entry("split.count", parts as u16);
            file.entry("split.tensors.count", self.tensors.len() as i32);
            let path = dir.join(format!("{stem}-{:05}-of-{parts:05}.gguf", part + 1));
            file.write(&path)?;
            paths.push(path);
        }
        Ok(paths)
    }
}
