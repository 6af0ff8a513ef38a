//! Reading the head, byte by byte, with every length checked before it is believed.

use super::tensors::{self, Row};
use super::value::{Kind, List, Metadata, Numbers, Value};
use super::{Gguf, MAX_HEAD};
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::path::Path;

/// Why there is no head.
pub(super) enum Stop {
    /// It goes on after the bytes that are there.
    More,
    /// It is not as the format says.
    Wrong(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Wrong(error)
    }
}

const MAGIC: [u8; 4] = *b"GGUF";
/// The alignment of data where no entry says otherwise.
const ALIGNMENT: u64 = 32;
const LARGEST_ALIGNMENT: u64 = 1 << 20;
/// Lists within lists. Published files have none.
const DEEPEST: usize = 4;
/// The least bytes of an entry (key length, type, value), of a text and of a list.
const LEAST_ENTRY: u64 = 8 + 4 + 1;
const LEAST_TEXT: u64 = 8;
const LEAST_LIST: u64 = 4 + 8;
/// The least bytes of a row of the table: name length, number of sizes, one size, type, offset.
const LEAST_ROW: u64 = 8 + 4 + 8 + 4 + 8;

/// The head that begins `head`, of a file of `file_len` bytes.
pub(super) fn parse(head: &[u8], file_len: u64, path: &Path) -> Result<Gguf, Stop> {
    let mut reader = Reader { head, at: 0, file_len, path };
    let version = reader.version()?;
    let tensors = reader.u64("the number of tensors")?;
    let entries = reader.u64("the number of entries")?;
    reader.fits(entries, LEAST_ENTRY, "entries")?;
    reader.fits(tensors, LEAST_ROW, "tensors")?;

    let mut metadata = BTreeMap::new();
    for _ in 0..entries {
        let key = reader.text("a key")?;
        let value = reader.value(&key)?;
        if metadata.contains_key(&key) {
            return Err(reader.wrong(format!("the key `{key}` comes twice")));
        }
        metadata.insert(key, value);
    }
    let metadata = Metadata(metadata);
    let entries_end = reader.at as u64;

    let alignment = alignment(&metadata).map_err(|what| reader.wrong(what))?;
    let mut rows = Vec::new();
    for _ in 0..tensors {
        rows.push(reader.row()?);
    }
    let data_start = (reader.at as u64).next_multiple_of(alignment);
    let tensors = tensors::check(rows, data_start, alignment, file_len, path)?;
    let path = path.to_path_buf();
    Ok(Gguf { path, version, entries, entries_end, metadata, tensors, data_start, file_len })
}

fn alignment(metadata: &Metadata) -> Result<u64, String> {
    let Some(value) = metadata.get("general.alignment") else { return Ok(ALIGNMENT) };
    match value.whole() {
        Some(n) if n.is_power_of_two() && n <= LARGEST_ALIGNMENT => Ok(n),
        Some(n) => Err(format!(
            "`general.alignment` is {n}; it should be a power of two, at most {LARGEST_ALIGNMENT}"
        )),
        None => Err(format!("`general.alignment`: expected a whole number, found {}", value.kind())),
    }
}

struct Reader<'a> {
    head: &'a [u8],
    at: usize,
    file_len: u64,
    path: &'a Path,
}

impl<'a> Reader<'a> {
    fn wrong(&self, what: impl Into<String>) -> Stop {
        Stop::Wrong(Error::malformed(self.path, what))
    }

    /// The next bytes of the file; `what` they are is for the message.
    fn take(&mut self, len: u64, what: &str) -> Result<&'a [u8], Stop> {
        let left = self.file_len.saturating_sub(self.at as u64);
        if len > left {
            return Err(self.wrong(format!(
                "{what}: {len} bytes at {}, but the file ends at {}: truncated or damaged",
                self.at, self.file_len
            )));
        }
        if self.at as u64 + len > MAX_HEAD {
            return Err(self.wrong(format!(
                "{what}: {len} bytes at {} are past the {MAX_HEAD} that a head may have",
                self.at
            )));
        }
        let end = self.at + len as usize;
        let bytes = self.head.get(self.at..end).ok_or(Stop::More)?;
        self.at = end;
        Ok(bytes)
    }

    /// Refuses a number of things, each at least so long, that cannot be in the rest of the file.
    fn fits(&self, count: u64, least: u64, what: &str) -> Result<(), Stop> {
        let left = self.file_len.saturating_sub(self.at as u64);
        if count > left / least {
            return Err(self.wrong(format!(
                "{count} {what} are said to follow at {}, but only {left} bytes do: truncated or damaged",
                self.at
            )));
        }
        Ok(())
    }

    fn u32(&mut self, what: &str) -> Result<u32, Stop> {
        let bytes = self.take(4, what)?;
        Ok(bytes.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes)))
    }

    fn u64(&mut self, what: &str) -> Result<u64, Stop> {
        let bytes = self.take(8, what)?;
        Ok(bytes.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes)))
    }

    fn version(&mut self) -> Result<u32, Stop> {
        let magic = self.take(4, "the mark of a GGUF file")?;
        if magic != MAGIC {
            return Err(self.wrong(format!("it begins with {magic:02x?}, not with \"GGUF\": no GGUF file")));
        }
        let version = self.u32("the version")?;
        match version {
            2 | 3 => Ok(version),
            1 => Err(self.wrong("GGUF version 1 (of August 2023); 2 and 3 are read: convert the model anew")),
            other if matches!(other.swap_bytes(), 1..=3) => {
                Err(self.wrong("a big-endian GGUF file; only little-endian ones are read"))
            }
            other => Err(self.wrong(format!("GGUF version {other}; 2 and 3 are read"))),
        }
    }

    fn text(&mut self, what: &str) -> Result<String, Stop> {
        let len = self.u64(what)?;
        let start = self.at;
        let bytes = self.take(len, what)?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(error) => {
                Err(self.wrong(format!("{what} is not UTF-8 at byte {}", start + error.valid_up_to())))
            }
        }
    }

    fn value(&mut self, key: &str) -> Result<Value, Stop> {
        match self.u32(key)? {
            8 => Ok(Value::Text(self.text(key)?)),
            9 => Ok(Value::List(self.list(key, 1)?)),
            id => {
                let kind = self.kind(id, key)?;
                let bytes = self.take(kind.bytes() as u64, key)?;
                self.bools(kind, bytes, key)?;
                Ok(kind.value(bytes))
            }
        }
    }

    fn list(&mut self, key: &str, depth: usize) -> Result<List, Stop> {
        let id = self.u32(key)?;
        let count = self.u64(key)?;
        match id {
            8 => {
                self.fits(count, LEAST_TEXT, &format!("texts of `{key}`"))?;
                (0..count).map(|_| self.text(key)).collect::<Result<_, _>>().map(List::Texts)
            }
            9 if depth == DEEPEST => {
                Err(self.wrong(format!("`{key}`: lists nested more than {DEEPEST} deep")))
            }
            9 => {
                self.fits(count, LEAST_LIST, &format!("lists of `{key}`"))?;
                (0..count).map(|_| self.list(key, depth + 1)).collect::<Result<_, _>>().map(List::Lists)
            }
            id => {
                let kind = self.kind(id, key)?;
                self.fits(count, kind.bytes() as u64, &format!("numbers of `{key}`"))?;
                let bytes = self.take(count * kind.bytes() as u64, key)?;
                self.bools(kind, bytes, key)?;
                Ok(List::Numbers(Numbers { kind, bytes: bytes.to_vec() }))
            }
        }
    }

    fn kind(&self, id: u32, key: &str) -> Result<Kind, Stop> {
        Kind::from_id(id).ok_or_else(|| self.wrong(format!("`{key}`: values of type {id} are not known")))
    }

    fn bools(&self, kind: Kind, bytes: &[u8], key: &str) -> Result<(), Stop> {
        match bytes.iter().find(|byte| kind == Kind::Bool && **byte > 1) {
            Some(byte) => Err(self.wrong(format!("`{key}`: a truth value is {byte}, neither 0 nor 1"))),
            None => Ok(()),
        }
    }

    fn row(&mut self) -> Result<Row, Stop> {
        const MOST_SIZES: u32 = 4;
        let name = self.text("the name of a tensor")?;
        let count = self.u32(&name)?;
        if !(1..=MOST_SIZES).contains(&count) {
            let what = format!("tensor `{name}` has {count} dimensions; 1 to {MOST_SIZES} are possible");
            return Err(self.wrong(what));
        }
        let sizes = (0..count).map(|_| self.u64(&name)).collect::<Result<_, _>>()?;
        let kind = self.u32(&name)?;
        let offset = self.u64(&name)?;
        Ok(Row { name, sizes, kind, offset })
    }
}
