//! Layers that lie in memory.

use crate::{Error, LayerSource, Result};
use std::path::Path;

/// A [`LayerSource`] over bytes in memory: tests, embedded models, conversions on the fly.
///
/// ```
/// use airllm_format::{LayerSource, MemorySource};
/// let source = MemorySource::new(vec![("a".to_owned(), vec![1, 2, 3, 4])]);
/// let mut two = [0; 2];
/// source.read_at(0, 1, &mut two)?;
/// assert_eq!(two, [2, 3]);
/// # Ok::<(), airllm_format::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct MemorySource {
    files: Vec<(String, Vec<u8>)>,
    alignment: usize,
}

impl MemorySource {
    /// A source over named files.
    pub fn new(files: Vec<(String, Vec<u8>)>) -> Self {
        Self { files, alignment: 1 }
    }

    /// The same source asking for an alignment, a power of two, and allowing reads past the end
    /// accordingly, as files do. A number that is no power of two is rounded up to one.
    #[must_use]
    pub fn with_alignment(mut self, alignment: usize) -> Self {
        self.alignment = alignment.next_power_of_two();
        self
    }
}

impl LayerSource for MemorySource {
    fn files(&self) -> usize {
        self.files.len()
    }

    fn name(&self, file: usize) -> &str {
        self.files.get(file).map_or("", |f| &f.0)
    }

    fn len(&self, file: usize) -> u64 {
        self.files.get(file).map_or(0, |f| f.1.len() as u64)
    }

    fn alignment(&self) -> usize {
        self.alignment
    }

    fn read_at(&self, file: usize, offset: u64, buf: &mut [u8]) -> Result<()> {
        let Some((name, bytes)) = self.files.get(file) else {
            return Err(no_file(file, self.files.len()));
        };
        check_range(name, bytes.len() as u64, self.alignment, offset, buf.len())?;
        let from = bytes.get(offset as usize..).unwrap_or_default();
        let n = from.len().min(buf.len());
        buf[..n].copy_from_slice(&from[..n]);
        buf[n..].fill(0);
        Ok(())
    }
}

/// Refuses a read that reaches past the end of a file by `alignment` bytes or more.
pub(super) fn check_range(name: &str, len: u64, alignment: usize, offset: u64, want: usize) -> Result<()> {
    let end = offset.checked_add(want as u64);
    if end.is_some_and(|end| end < len.saturating_add(alignment as u64)) {
        return Ok(());
    }
    Err(Error::malformed(
        Path::new(name),
        format!("{want} bytes at {offset} were asked for, the file has {len}"),
    ))
}

/// The refusal of a file number that does not exist.
pub(super) fn no_file(file: usize, files: usize) -> Error {
    Error::missing(Path::new("source"), format!("file number {file} was asked for, there are {files}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_to_the_end_and_not_further() {
        let source = MemorySource::new(vec![("a".into(), (0..10).collect())]);
        let mut buf = [9; 10];
        source.read_at(0, 0, &mut buf).unwrap();
        assert_eq!(buf, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
        assert!(source.read_at(0, 1, &mut buf).is_err());
        assert!(source.read_at(0, u64::MAX, &mut buf).is_err());
        assert!(source.read_at(1, 0, &mut buf).unwrap_err().to_string().contains("there are 1"));
        let source = source.with_alignment(8);
        source.read_at(0, 8, &mut buf[..8]).unwrap();
        assert_eq!(buf[..8], [8, 9, 0, 0, 0, 0, 0, 0]);
        assert!(source.read_at(0, 10, &mut buf[..8]).is_err());
    }
}
