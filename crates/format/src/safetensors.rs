//! The safetensors header: which tensors a file holds, and where.
//!
//! A file is `u64 n (little endian) ‖ n bytes of JSON ‖ data`. The JSON maps names to
//! `{"dtype", "shape", "data_offsets": [start, end]}`, offsets counted from the start of the data, and may
//! have a `__metadata__` object of strings. The tensors cover the data without holes or overlaps.
//! Specification: <https://huggingface.co/docs/safetensors/index#format>.
//!
//! Everything is checked when a header is read, so the rest of the program may take a [`TensorInfo`] at
//! its word.

mod dtype;
mod raw;
#[cfg(test)]
mod tests;

pub use dtype::Dtype;
pub(crate) use raw::UniqueStrings;

use crate::disk::{ReadAt, open_file};
use crate::json::utf8;
use crate::{Error, Result};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// The largest header, in bytes, that the specification allows.
pub const MAX_HEADER: u64 = 100_000_000;

/// One tensor of a safetensors file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its name in the file.
    pub name: String,
    /// What its elements are.
    pub dtype: Dtype,
    /// Its shape, outermost first; empty for a single number.
    pub shape: Vec<usize>,
    /// Offset of its first byte, counted from the start of the file.
    pub start: u64,
    /// Its length in bytes.
    pub bytes: u64,
}

/// The checked header of a safetensors file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    tensors: Vec<TensorInfo>,
    by_name: HashMap<String, usize>,
    metadata: BTreeMap<String, String>,
    data_start: u64,
    file_len: u64,
}

impl Header {
    /// Reads and checks the header of a file. The weights are not read.
    ///
    /// # Errors
    /// [`Error::Missing`] and [`Error::Io`] if it cannot be read, [`Error::Malformed`] if anything in it is
    /// not as the format says, the file's length included.
    pub fn read(path: &Path) -> Result<Self> {
        let (file, len) = open_file(path)?;
        Self::read_from(&file, len, path)
    }

    /// [`read`](Self::read) from an open file of `file_len` bytes.
    pub(crate) fn read_from(file: &impl ReadAt, file_len: u64, path: &Path) -> Result<Self> {
        Self::parse(&read_head(file, file_len, path)?, file_len, path)
    }

    /// Checks a header that is already in memory: `head` is the start of the file, at least up to the end
    /// of the header; `file_len` is the length of the whole file in bytes; `path` is for messages.
    ///
    /// # Errors
    /// [`Error::Malformed`] as for [`read`](Self::read).
    ///
    /// ```
    /// use airllm_format::safetensors::{Dtype, Header};
    /// use std::path::Path;
    ///
    /// let json = br#"{"w":{"dtype":"F16","shape":[2,3],"data_offsets":[0,12]}}"#;
    /// let mut file = (json.len() as u64).to_le_bytes().to_vec();
    /// file.extend_from_slice(json);
    /// file.extend_from_slice(&[0; 12]);
    ///
    /// let header = Header::parse(&file, file.len() as u64, Path::new("w.safetensors"))?;
    /// assert_eq!(header.get("w").map(|t| (t.dtype, t.bytes)), Some((Dtype::F16, 12)));
    /// assert!(Header::parse(&file, 70, Path::new("w.safetensors")).is_err()); // bytes are missing
    /// # Ok::<(), airllm_format::Error>(())
    /// ```
    pub fn parse(head: &[u8], file_len: u64, path: &Path) -> Result<Self> {
        let json_len = header_len(head, file_len, path)?;
        let data_start = 8 + json_len;
        let json = usize::try_from(data_start).ok().and_then(|end| head.get(8..end)).ok_or_else(|| {
            Error::malformed(
                path,
                format!("the header has {json_len} bytes, only {} are there", head.len() - 8),
            )
        })?;
        if json.first() != Some(&b'{') {
            return Err(Error::malformed(path, "the header does not start with `{`: not a safetensors file"));
        }
        let raw: raw::RawHeader = serde_json::from_str(utf8(json, path)?)
            .map_err(|e| Error::malformed(path, format!("the header is not valid: {e}")))?;
        let mut tensors = raw
            .tensors
            .into_iter()
            .map(|(name, raw)| check_tensor(name, raw, data_start, path))
            .collect::<Result<Vec<_>>>()?;
        tensors.sort_by(|a, b| (a.start, a.bytes, &a.name).cmp(&(b.start, b.bytes, &b.name)));
        check_cover(&tensors, data_start, file_len, path)?;
        let by_name = tensors.iter().enumerate().map(|(i, t)| (t.name.clone(), i)).collect();
        Ok(Self { tensors, by_name, metadata: raw.metadata, data_start, file_len })
    }

    /// The tensors, in the order of their bytes.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The tensor of that name.
    pub fn get(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(*self.by_name.get(name)?)
    }

    /// The strings under `__metadata__`.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Offset of the first byte of data, counted from the start of the file.
    pub fn data_start(&self) -> u64 {
        self.data_start
    }

    /// Length of the file in bytes.
    pub fn file_len(&self) -> u64 {
        self.file_len
    }
}

/// Reads length and JSON of a header, not more.
pub(crate) fn read_head(file: &impl ReadAt, file_len: u64, path: &Path) -> Result<Vec<u8>> {
    let mut head = vec![0; file_len.min(8) as usize];
    let read = |buf: &mut [u8], at: u64| {
        file.read_exact_at(buf, at)
            .map_err(Error::io(path, format!("reading the header, {} bytes at {at}", buf.len())))
    };
    read(&mut head, 0)?;
    let json_len = header_len(&head, file_len, path)?;
    head.resize(8 + json_len as usize, 0);
    read(&mut head[8..], 8)?;
    Ok(head)
}

/// The length field of a header, checked against the length of the file and the specification's limit.
fn header_len(head: &[u8], file_len: u64, path: &Path) -> Result<u64> {
    let field = head.first_chunk::<8>().ok_or_else(|| {
        Error::malformed(path, format!("the file has {} bytes, a safetensors file at least 8", head.len()))
    })?;
    let json_len = u64::from_le_bytes(*field);
    if json_len > file_len.saturating_sub(8) {
        return Err(Error::malformed(
            path,
            format!(
                "the header length is {json_len}, beyond the end of the file ({file_len} bytes): truncated, or not a safetensors file"
            ),
        ));
    }
    if json_len > MAX_HEADER {
        return Err(Error::malformed(
            path,
            format!("the header length is {json_len}, more than the {MAX_HEADER} that are allowed"),
        ));
    }
    Ok(json_len)
}

/// Checks what can be said about one tensor alone.
fn check_tensor(name: String, raw: raw::RawTensor, data_start: u64, path: &Path) -> Result<TensorInfo> {
    let [start, end] = raw.data_offsets;
    let fail = |what: String| Error::malformed(path, format!("tensor `{name}`: {what}"));
    let dtype = Dtype::from_name(&raw.dtype).ok_or_else(|| fail(format!("unknown dtype `{}`", raw.dtype)))?;
    let bytes =
        end.checked_sub(start).ok_or_else(|| fail(format!("data_offsets [{start}, {end}] run backwards")))?;
    let bits = raw
        .shape
        .iter()
        .try_fold(1u64, |n, &d| n.checked_mul(d))
        .and_then(|n| n.checked_mul(dtype.bits()))
        .ok_or_else(|| fail(format!("shape {:?} of {dtype} is more than 2^64 bits", raw.shape)))?;
    if bits % 8 != 0 {
        return Err(fail(format!("shape {:?} of {dtype} is {bits} bits, not whole bytes", raw.shape)));
    }
    if bits / 8 != bytes {
        return Err(fail(format!(
            "shape {:?} of {dtype} is {} bytes, data_offsets [{start}, {end}] are {bytes}",
            raw.shape,
            bits / 8
        )));
    }
    let shape = raw
        .shape
        .iter()
        .map(|&d| usize::try_from(d))
        .collect::<Result<_, _>>()
        .map_err(|_| fail(format!("shape {:?} is too large for this machine", raw.shape)))?;
    let start =
        start.checked_add(data_start).ok_or_else(|| fail(format!("offset {start} is out of range")))?;
    if start.checked_add(bytes).is_none() {
        return Err(fail(format!("offset {end} is out of range")));
    }
    Ok(TensorInfo { name, dtype, shape, start, bytes })
}

/// Checks that sorted tensors cover the data of a file, each byte once.
fn check_cover(tensors: &[TensorInfo], data_start: u64, file_len: u64, path: &Path) -> Result<()> {
    let data_len = file_len - data_start;
    let mut end = data_start;
    let mut last = "";
    for t in tensors {
        let (from, to) = (t.start - data_start, t.start - data_start + t.bytes);
        if t.start < end {
            return Err(Error::malformed(
                path,
                format!(
                    "tensor `{}` (bytes {from}..{to} of the data) overlaps `{last}`, which ends at {}",
                    t.name,
                    end - data_start
                ),
            ));
        }
        if t.start > end {
            return Err(Error::malformed(
                path,
                format!(
                    "bytes {}..{from} of the data, before tensor `{}`, belong to no tensor",
                    end - data_start,
                    t.name
                ),
            ));
        }
        if to > data_len {
            return Err(Error::malformed(
                path,
                format!(
                    "tensor `{}` ends at byte {to} of the data, the file has {data_len}: truncated",
                    t.name
                ),
            ));
        }
        end = t.start + t.bytes;
        last = &t.name;
    }
    if end < file_len {
        return Err(Error::malformed(
            path,
            format!(
                "{} bytes after the last tensor: the tensors end at {end}, the file at {file_len}",
                file_len - end
            ),
        ));
    }
    Ok(())
}
