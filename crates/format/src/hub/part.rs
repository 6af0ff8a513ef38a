//! A file that is being fetched: its bytes, and which of them are there.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::{Error, Result};

/// How much work a killed process loses at most.
const SAVE_EVERY: Duration = Duration::from_secs(1);

/// Disjoint byte ranges, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ranges(Vec<(u64, u64)>);

impl Ranges {
    /// Adds `start..end`; says how many of its bytes are new.
    pub fn add(&mut self, start: u64, end: u64) -> u64 {
        if start >= end {
            return 0;
        }
        let before = self.bytes();
        // All ranges that touch the new one melt into it.
        let first = self.0.partition_point(|r| r.1 < start);
        let last = self.0.partition_point(|r| r.0 <= end);
        let merged = self.0[first..last].iter().fold((start, end), |m, r| (m.0.min(r.0), m.1.max(r.1)));
        self.0.splice(first..last, [merged]);
        self.bytes() - before
    }

    pub fn bytes(&self) -> u64 {
        self.0.iter().map(|r| r.1 - r.0).sum()
    }

    /// What `0..size` lacks, in pieces of at most `piece` bytes.
    pub fn missing(&self, size: u64, piece: u64) -> Vec<(u64, u64)> {
        let mut out = Vec::new();
        let mut at = 0;
        for &(start, end) in self.0.iter().chain([&(size, size)]) {
            while at < start {
                let stop = start.min(at.saturating_add(piece.max(1)));
                out.push((at, stop));
                at = stop;
            }
            at = at.max(end);
        }
        out
    }

    /// Reads `[[start, end], …]`; `None` unless it is in order, disjoint and within `size`.
    fn parse(value: &Value, size: u64) -> Option<Ranges> {
        let mut ranges = Ranges::default();
        let mut at = 0;
        for pair in value.as_array()? {
            let [start, end] = pair.as_array()?.as_slice() else {
                return None;
            };
            let (start, end) = (start.as_u64()?, end.as_u64()?);
            if start < at || end <= start || end > size {
                return None;
            }
            ranges.0.push((start, end));
            at = end;
        }
        Some(ranges)
    }
}

/// The unfinished file. What it has is written down at most a second late, and when it is dropped.
pub(super) struct Part {
    path: PathBuf,
    journal: PathBuf,
    file: File,
    size: u64,
    done: Ranges,
    saved: Option<Instant>,
    dirty: bool,
}

impl Part {
    /// Opens or creates the file, with what an earlier run left in it.
    pub fn open(path: &Path, journal: &Path, size: u64) -> Result<Part> {
        let done = Part::progress(path, journal, size);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(Error::io(path, "creating the file"))?;
        let part = Part {
            path: path.to_owned(),
            journal: journal.to_owned(),
            file,
            size,
            done,
            saved: None,
            dirty: false,
        };
        // Whatever lies beyond the ranges is not ours to trust; the length is the file's in the end.
        if part.done.bytes() == 0 {
            part.set_len(0)?;
        }
        part.set_len(size)?;
        Ok(part)
    }

    /// What an earlier run left, without opening anything for writing.
    pub fn progress(path: &Path, journal: &Path, size: u64) -> Ranges {
        let read = || {
            let value: Value = serde_json::from_slice(&fs::read(journal).ok()?).ok()?;
            let length = fs::metadata(path).ok()?.len();
            let same = value.get("size")?.as_u64()? == size && length == size;
            same.then(|| Ranges::parse(value.get("done")?, size)).flatten()
        };
        read().unwrap_or_default()
    }

    /// Writes bytes; says how many were not there before.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<u64> {
        let len = bytes.len() as u64;
        let end = offset.checked_add(len).filter(|end| *end <= self.size).ok_or_else(|| {
            Error::malformed(&self.path, format!("{len} bytes at {offset} of {}", self.size))
        })?;
        self.file
            .write_all_at(bytes, offset)
            .map_err(Error::io(&self.path, format!("writing {len} bytes at {offset}")))?;
        let new = self.done.add(offset, end);
        self.dirty = true;
        if self.saved.is_none_or(|at| at.elapsed() >= SAVE_EVERY) {
            self.save()?;
        }
        Ok(new)
    }

    pub fn done(&self) -> &Ranges {
        &self.done
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Forgets all bytes.
    pub fn clear(&mut self) -> Result<()> {
        self.done = Ranges::default();
        self.save()?;
        self.set_len(0)?;
        self.set_len(self.size)
    }

    /// Gives the whole, checked file its final name.
    pub fn finish(mut self, target: &Path) -> Result<()> {
        fs::rename(&self.path, target).map_err(Error::io(target, "naming the finished file"))?;
        self.dirty = false;
        remove(&self.journal)
    }

    /// Deletes the file and all that is known of it.
    pub fn discard(mut self) -> Result<()> {
        self.dirty = false;
        remove(&self.journal)?;
        remove(&self.path)
    }

    fn save(&mut self) -> Result<()> {
        let text = json!({ "size": self.size, "done": self.done.0 }).to_string();
        let mut temporary = self.journal.clone().into_os_string();
        temporary.push(".new");
        let temporary = PathBuf::from(temporary);
        fs::write(&temporary, text).map_err(Error::io(&temporary, "noting the progress"))?;
        fs::rename(&temporary, &self.journal).map_err(Error::io(&self.journal, "noting the progress"))?;
        self.saved = Some(Instant::now());
        self.dirty = false;
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<()> {
        self.file.set_len(len).map_err(Error::io(&self.path, format!("setting the length to {len}")))
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if self.dirty
            && let Err(error) = self.save()
        {
            tracing::warn!(%error, "the progress of a download is lost");
        }
    }
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(path, "deleting the file")(e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ranges_melt() {
        let mut r = Ranges::default();
        assert_eq!(r.add(10, 20), 10);
        assert_eq!(r.add(30, 40), 10);
        assert_eq!(r.add(20, 30), 10);
        assert_eq!(r.0, [(10, 40)]);
        assert_eq!(r.add(0, 50), 20);
        assert_eq!(r.add(5, 5), 0);
        assert_eq!(r.missing(50, 7), []);
        assert_eq!(Ranges(vec![(2, 4)]).missing(9, 3), [(0, 2), (4, 7), (7, 9)]);
    }

    proptest! {
        #[test]
        fn ranges_are_a_set_of_bytes(list in prop::collection::vec((0u64..40, 0u64..12), 0..12), piece in 1u64..9) {
            let mut ranges = Ranges::default();
            let mut set = std::collections::BTreeSet::new();
            for (start, len) in list {
                let before = set.len();
                set.extend(start..start + len);
                prop_assert_eq!(ranges.add(start, start + len), (set.len() - before) as u64);
            }
            let missing: Vec<u64> = ranges.missing(52, piece).into_iter().flat_map(|(a, b)| a..b).collect();
            let expected: Vec<u64> = (0..52).filter(|i| !set.contains(i)).collect();
            prop_assert_eq!(missing, expected);
            prop_assert!(ranges.missing(52, piece).iter().all(|(a, b)| b - a <= piece));
        }
    }

    #[test]
    fn a_part_goes_on_where_it_stopped() {
        let dir = tempfile::tempdir().unwrap();
        let (path, journal) = (dir.path().join("p"), dir.path().join("j"));
        let mut part = Part::open(&path, &journal, 10).unwrap();
        assert_eq!(part.write(6, b"ghij").unwrap(), 4);
        assert!(part.write(8, b"xyz").is_err());
        drop(part);
        let mut part = Part::open(&path, &journal, 10).unwrap();
        assert_eq!(part.done().missing(10, 100), [(0, 6)]);
        part.write(0, b"abcdef").unwrap();
        part.finish(&dir.path().join("done")).unwrap();
        assert_eq!(fs::read(dir.path().join("done")).unwrap(), b"abcdefghij");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_doubtful_journal_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let (path, journal) = (dir.path().join("p"), dir.path().join("j"));
        fs::write(&path, b"0123456789").unwrap();
        for bad in [
            "",
            "{}",
            r#"{"size":9,"done":[[0,5]]}"#,
            r#"{"size":10,"done":[[0,11]]}"#,
            r#"{"size":10,"done":[[5,4]]}"#,
            r#"{"size":10,"done":[[4,6],[5,7]]}"#,
            r#"{"size":10,"done":[[0]]}"#,
        ] {
            fs::write(&journal, bad).unwrap();
            assert_eq!(Part::progress(&path, &journal, 10).bytes(), 0, "{bad}");
        }
        fs::write(&journal, r#"{"size":10,"done":[[0,5]]}"#).unwrap();
        assert_eq!(Part::progress(&path, &journal, 10).bytes(), 5);
        fs::write(&path, b"short").unwrap();
        assert_eq!(Part::progress(&path, &journal, 10).bytes(), 0);
    }
}
