//! Which way of reading is faster on the disk at hand: measured, because it differs between machines.

use super::file::FileSource;
use super::method::ReadMethod;
use crate::disk::Aligned;
use crate::{LayerSource, Result};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Reads are measured in blocks of this many bytes.
const BLOCK: u64 = 4 << 20;

/// Bytes moved in a time.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Rate {
    /// Bytes moved.
    pub bytes: u64,
    /// The time it took.
    pub time: Duration,
}

impl Rate {
    /// Bytes per second; 0 if nothing was measured.
    pub fn per_second(self) -> f64 {
        if self.time.is_zero() { 0.0 } else { self.bytes as f64 / self.time.as_secs_f64() }
    }
}

/// What [`FileSource::probe`] measured.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Probe {
    /// Reads past the page cache; nothing if the file system refuses them.
    pub direct: Rate,
    /// Reads through the page cache, emptied of these files before.
    pub buffered: Rate,
}

impl Probe {
    /// The method to read with: the faster one, and direct reads where they are as good, because they cost
    /// less processor time and leave the page cache to others.
    ///
    /// ```
    /// use airllm_format::{Probe, Rate, ReadMethod};
    /// use std::time::Duration;
    /// let rate = |bytes| Rate { bytes, time: Duration::from_secs(1) };
    /// assert_eq!(Probe { direct: rate(99), buffered: rate(100) }.choose(), ReadMethod::Direct);
    /// assert_eq!(Probe { direct: rate(50), buffered: rate(100) }.choose(), ReadMethod::Buffered);
    /// ```
    pub fn choose(&self) -> ReadMethod {
        const AS_GOOD: f64 = 0.95;
        if self.direct.bytes > 0 && self.direct.per_second() >= AS_GOOD * self.buffered.per_second() {
            ReadMethod::Direct
        } else {
            ReadMethod::Buffered
        }
    }

    /// The rate of the method that [`choose`](Self::choose) picks, in bytes per second.
    pub fn best(&self) -> f64 {
        match self.choose() {
            ReadMethod::Buffered => self.buffered.per_second(),
            _ => self.direct.per_second(),
        }
    }
}

impl FileSource {
    /// Times both modes side by side on parts of the files, with `readers` threads.
    ///
    /// Each mode reads at most `limit` bytes (64 to 128 MiB give a steady figure), each its own parts, which
    /// are dropped from the page cache first. Files with less than four blocks of 4 MiB give no figures;
    /// [`Probe::choose`] then picks the page cache, which is right for small files.
    ///
    /// # Errors
    /// As [`open`](Self::open) and [`read_at`](LayerSource::read_at).
    pub fn probe(paths: &[PathBuf], limit: u64, readers: usize) -> Result<Probe> {
        let direct = FileSource::open(paths, ReadMethod::Direct)?;
        let buffered = FileSource::open(paths, ReadMethod::Buffered)?;
        let blocks = choose_blocks(&direct, limit);
        let forget = || blocks.iter().for_each(|&(file, offset)| buffered.forget(file, offset, BLOCK));
        forget();
        let mut probe = Probe::default();
        // Half of the direct reads, all buffered ones, the other half: a disk that drifts favours neither,
        // and the read-ahead of the page cache has one long run, as it has when layers stream.
        let quarter = blocks.len() / 4;
        let (before, rest) = blocks.split_at(quarter);
        let (middle, after) = rest.split_at(rest.len() - quarter);
        time(&direct, before, readers, &mut probe.direct)?;
        time(&buffered, middle, readers, &mut probe.buffered)?;
        // What was read ahead and not used is of no use to anybody.
        forget();
        time(&direct, after, readers, &mut probe.direct)?;
        if direct.method() == ReadMethod::Buffered {
            // What was measured as direct fell back; it is one more buffered figure.
            probe.direct = Rate::default();
        }
        tracing::debug!(
            direct = probe.direct.per_second(),
            buffered = probe.buffered.per_second(),
            "bytes per second of the disk"
        );
        Ok(probe)
    }
}

/// Whole blocks that follow each other, from the middle of the files, enough for both modes: a multiple
/// of four.
fn choose_blocks(source: &FileSource, limit: u64) -> Vec<(usize, u64)> {
    let all: Vec<(usize, u64)> = (0..source.files())
        .flat_map(|file| (0..source.len(file) / BLOCK).map(move |block| (file, block * BLOCK)))
        .collect();
    let want = usize::try_from(limit / BLOCK).unwrap_or(usize::MAX).saturating_mul(2);
    let count = want.min(all.len()) / 4 * 4;
    let from = (all.len() - count) / 2;
    all[from..from + count].to_vec()
}

/// Reads blocks with several threads and adds bytes and time.
fn time(source: &FileSource, blocks: &[(usize, u64)], readers: usize, rate: &mut Rate) -> Result<()> {
    if blocks.is_empty() {
        return Ok(());
    }
    let readers = readers.clamp(1, blocks.len());
    // Touched before the clock starts: first touch of memory is not the disk's time.
    let mut buffers: Vec<Aligned> = (0..readers).map(|_| Aligned::new(BLOCK as usize)).collect();
    buffers.iter_mut().for_each(|b| b.as_mut().fill(1));
    let next = AtomicUsize::new(0);
    let start = Instant::now();
    std::thread::scope(|scope| {
        let threads: Vec<_> = buffers
            .iter_mut()
            .map(|buffer| {
                scope.spawn(|| {
                    while let Some(&(file, offset)) = blocks.get(next.fetch_add(1, Ordering::Relaxed)) {
                        source.read_at(file, offset, buffer.as_mut())?;
                    }
                    Ok(())
                })
            })
            .collect();
        threads.into_iter().try_for_each(|thread| match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    })?;
    rate.time += start.elapsed();
    rate.bytes += BLOCK * blocks.len() as u64;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measures_both_modes_or_neither() {
        let dir = tempfile::tempdir().unwrap();
        let large = dir.path().join("large");
        std::fs::write(&large, vec![5; 7 * BLOCK as usize + 100]).unwrap();
        std::fs::File::open(&large).unwrap().sync_all().unwrap();
        let probe = FileSource::probe(std::slice::from_ref(&large), 2 * BLOCK, 2).unwrap();
        assert!(probe.buffered.bytes >= BLOCK && probe.buffered.per_second() > 0.0);
        assert!(probe.buffered.bytes + probe.direct.bytes <= 7 * BLOCK);
        assert!(probe.best() > 0.0);

        let small = dir.path().join("small");
        std::fs::write(&small, b"tiny").unwrap();
        let probe = FileSource::probe(&[small], 1 << 20, 2).unwrap();
        assert_eq!(probe, Probe::default());
        assert_eq!(probe.choose(), ReadMethod::Buffered);
    }

    #[test]
    fn blocks_stay_within_the_limit_and_in_the_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sparse");
        std::fs::File::create(&path).unwrap().set_len(100 * BLOCK + 7).unwrap();
        let source = FileSource::open(&[path], ReadMethod::Buffered).unwrap();
        for (limit, count) in [(1, 0), (BLOCK, 0), (2 * BLOCK, 4), (16 * BLOCK, 32), (1000 * BLOCK, 100)] {
            let blocks = choose_blocks(&source, limit);
            assert_eq!(blocks.len(), count);
            assert!(blocks.iter().all(|&(_, o)| o + BLOCK <= source.len(0)));
            assert!(blocks.windows(2).all(|w| w[0] < w[1]), "each block once, in order");
        }
    }
}
