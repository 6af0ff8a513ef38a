//! How fast the files of a folder can be read, by which method and how many threads: measured, because machines
//! differ. On one, reads past the page cache are twice as fast as those through it, on another half.

use crate::arena::{self, Filling, Slot};
use crate::uring;
use crate::{Error, Result};
use airllm_format::{FileSource, LayerSource, ReadMethod};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Reads are measured in blocks of this many bytes.
const BLOCK: usize = 8 << 20;

/// Bytes of the file that is written where there is none to read.
const OWN_BYTES: u64 = 256 << 20;

/// Turns that each method gets: disks drift, and a median of turns spread over the whole time forgives one bad one.
const TURNS: u32 = 4;

/// What is measured. More threads than these were never faster: a thread has up to sixteen megabytes in flight.
const CASES: [(ReadMethod, usize); 5] = [
    (ReadMethod::Direct, 1),
    (ReadMethod::Direct, 2),
    (ReadMethod::Uring, 1),
    (ReadMethod::Buffered, 1),
    (ReadMethod::Buffered, 2),
];

/// The rate of one way of reading.
#[derive(Debug, Clone, PartialEq)]
pub struct MethodRate {
    /// How.
    pub method: ReadMethod,
    /// With how many threads.
    pub threads: usize,
    /// Bytes a second, the median over the turns; 0 where nothing could be read.
    pub rate: f64,
    /// Bytes read for it.
    pub bytes: u64,
    /// Why this method is not to be had here, in a line.
    pub refused: Option<String>,
}

/// What [`probe_reads`] measured, in the order in which methods are preferred where they are as fast.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ReadRates {
    /// All ways of reading.
    pub methods: Vec<MethodRate>,
}

impl ReadRates {
    /// The fastest; of those that are within a twentieth of it the first, because what goes past the page cache costs
    /// less of the processor. `None` where nothing could be measured.
    ///
    /// ```
    /// use airllm_format::ReadMethod;
    /// use airllm_stream::{MethodRate, ReadRates};
    /// let of = |method, rate| MethodRate { method, threads: 1, rate, bytes: 1, refused: None };
    /// let (direct, buffered) = (of(ReadMethod::Direct, 97.0), of(ReadMethod::Buffered, 100.0));
    /// let rates = ReadRates { methods: vec![direct.clone(), buffered] };
    /// assert_eq!(rates.best(), Some(&direct));
    /// ```
    pub fn best(&self) -> Option<&MethodRate> {
        const AS_GOOD: f64 = 0.95;
        let most = self.methods.iter().map(|it| it.rate).fold(0.0, f64::max);
        self.methods.iter().find(|it| it.rate > 0.0 && it.rate >= AS_GOOD * most)
    }

    /// The best rate of one method with any number of threads; 0 where it is not to be had.
    pub fn of(&self, method: ReadMethod) -> f64 {
        self.methods.iter().filter(|it| it.method == method).map(|it| it.rate).fold(0.0, f64::max)
    }
}

/// Opens files to be read by a method. [`ReadMethod::Uring`] falls back to direct reads where the system has no
/// io_uring, which is logged.
///
/// # Errors
/// As [`FileSource::open`].
pub fn open_files(paths: &[PathBuf], method: ReadMethod) -> airllm_format::Result<FileSource> {
    let queue = match method {
        ReadMethod::Uring => uring::shared().map_err(|why| {
            static SAID: std::sync::Once = std::sync::Once::new();
            SAID.call_once(|| tracing::warn!(why, "there is no io_uring here; reading without it"));
        }),
        _ => Err(()),
    };
    FileSource::open_with(paths, method, queue.ok())
}

/// Measures how fast files can be read that are not in memory, for about `room` in all: every method in turn, several
/// times, each on parts of its own that are dropped from the page cache before.
///
/// `files` are what to read, or as many of the first of them as can be read in that time; without any, a file of 256 MB
/// is written to `dir` and removed afterwards. Memory: two buffers of 8 MiB.
///
/// # Errors
/// [`Error::Source`] where a file cannot be opened or read, or where `dir` has no room for one; [`Error::Memory`] where
/// there is none for buffers.
///
/// ```no_run
/// use airllm_stream::probe_reads;
/// let rates = probe_reads("/models".as_ref(), &[], std::time::Duration::from_secs(5))?;
/// if let Some(best) = rates.best() {
///     println!("{} with {} threads: {:.2} GB/s", best.method, best.threads, best.rate / 1e9);
/// }
/// # Ok::<(), airllm_stream::Error>(())
/// ```
pub fn probe_reads(dir: &Path, files: &[PathBuf], room: Duration) -> Result<ReadRates> {
    let own = if files.is_empty() { Some(Own::write(dir)?) } else { None };
    let files = own.as_ref().map_or(files, |own| std::slice::from_ref(&own.path));
    let mut cases = Vec::with_capacity(CASES.len());
    for (method, threads) in CASES {
        cases.push(Case::open(files, method, threads)?);
    }
    let threads = CASES.iter().map(|(_, threads)| *threads).max().unwrap_or(1);
    let mut buffers = Vec::with_capacity(threads);
    for mut slot in arena::carve(&vec![BLOCK; threads])?.into_iter().map(Slot::fill) {
        // Touched before the clock starts: first touch of memory is not the disk's time.
        slot.bytes_mut().fill(1);
        buffers.push(slot);
    }
    let mut blocks = Blocks::of(&cases[0].source);
    let slice = room / (TURNS * cases.len() as u32);
    for turn in 0..TURNS as usize {
        for index in 0..cases.len() {
            // Another one begins each time.
            let at = (index + turn) % cases.len();
            cases[at].turn(&mut blocks, &mut buffers, slice)?;
        }
    }
    Ok(ReadRates { methods: cases.into_iter().map(Case::rate).collect() })
}

/// One way of reading that is being measured.
struct Case {
    source: FileSource,
    method: ReadMethod,
    threads: usize,
    refused: Option<String>,
    rates: Vec<f64>,
    bytes: u64,
}

impl Case {
    fn open(files: &[PathBuf], method: ReadMethod, threads: usize) -> Result<Self> {
        let (queue, refused) = match method {
            ReadMethod::Uring => match uring::shared() {
                Ok(queue) => (Some(queue), None),
                Err(why) => (None, Some(why.to_owned())),
            },
            _ => (None, None),
        };
        let source = FileSource::open_with(files, method, queue)?;
        Ok(Self { source, method, threads, refused, rates: Vec::new(), bytes: 0 })
    }

    /// Reads the next blocks for about as long as `slice`.
    fn turn(&mut self, blocks: &mut Blocks, buffers: &mut [Slot<Filling>], slice: Duration) -> Result<()> {
        if self.refused.is_none() && self.source.method() != self.method {
            self.refused = Some("the file system refuses it".to_owned());
        }
        if self.refused.is_some() || blocks.all.is_empty() {
            return Ok(());
        }
        // What an earlier turn, or somebody else, left in memory is not the disk's merit.
        let ahead = blocks.peek(self.most(slice));
        ahead.iter().for_each(|&(file, offset)| self.source.forget(file, offset, BLOCK as u64));
        let next = AtomicUsize::new(0);
        let begun = Instant::now();
        std::thread::scope(|scope| {
            let readers: Vec<_> = buffers[..self.threads]
                .iter_mut()
                .map(|buffer| {
                    scope.spawn(|| -> Result<u64> {
                        let mut bytes = 0;
                        // One block at least, so that a slow disk gives a figure too.
                        while bytes == 0 || begun.elapsed() < slice {
                            let Some(&(file, offset)) = ahead.get(next.fetch_add(1, Ordering::Relaxed))
                            else {
                                break;
                            };
                            self.source.read_at(file, offset, buffer.bytes_mut())?;
                            bytes += BLOCK as u64;
                        }
                        Ok(bytes)
                    })
                })
                .collect();
            let mut bytes = 0;
            for reader in readers {
                bytes += match reader.join() {
                    Ok(read) => read?,
                    Err(panic) => std::panic::resume_unwind(panic),
                };
            }
            Ok::<u64, Error>(bytes)
        })
        .map(|bytes| {
            self.rates.push(bytes as f64 / begun.elapsed().as_secs_f64().max(1e-9));
            self.bytes += bytes;
            // What was read ahead and not used is of no use to anybody.
            let used = next.into_inner().min(ahead.len());
            if self.method == ReadMethod::Buffered {
                for &(file, offset) in &ahead[used.saturating_sub(self.threads)..] {
                    self.source.forget(file, offset, BLOCK as u64);
                }
            }
            blocks.pass(used);
        })
    }

    /// Blocks that a turn may come to: a disk of 20 GB/s has not enough of them, and is measured for a shorter time.
    fn most(&self, slice: Duration) -> usize {
        ((slice.as_secs_f64() * 20e9 / BLOCK as f64) as usize).max(2 * self.threads)
    }

    fn rate(mut self) -> MethodRate {
        // What fell back in the middle of a turn is no figure of this method.
        if self.source.method() != self.method {
            self.refused.get_or_insert_with(|| "the file system refuses it".to_owned());
        }
        self.rates.sort_by(f64::total_cmp);
        let middle = match (self.rates.len(), &self.refused) {
            (0, _) | (_, Some(_)) => 0.0,
            (n, None) => (self.rates[(n - 1) / 2] + self.rates[n / 2]) / 2.0,
        };
        MethodRate {
            method: self.method,
            threads: self.threads,
            rate: middle,
            bytes: self.bytes,
            refused: self.refused,
        }
    }
}

/// The whole blocks of all files, read round and round.
struct Blocks {
    all: Vec<(usize, u64)>,
    next: usize,
}

impl Blocks {
    fn of(source: &FileSource) -> Self {
        let blocks =
            |file| (0..source.len(file) / BLOCK as u64).map(move |block| (file, block * BLOCK as u64));
        Self { all: (0..source.files()).flat_map(blocks).collect(), next: 0 }
    }

    /// The next ones, each once.
    fn peek(&self, most: usize) -> Vec<(usize, u64)> {
        self.all.iter().cycle().skip(self.next).take(most.min(self.all.len())).copied().collect()
    }

    fn pass(&mut self, count: usize) {
        self.next = (self.next + count) % self.all.len().max(1);
    }
}

/// A file to be measured, removed when it is dropped.
struct Own {
    path: PathBuf,
}

impl Own {
    fn write(dir: &Path) -> Result<Self> {
        airllm_format::need_space(dir, OWN_BYTES)?;
        let own = Self { path: dir.join(format!(".airllm-probe-{}.part", std::process::id())) };
        let failed = |doing: &str, error| airllm_format::Error::Io {
            path: own.path.clone(),
            doing: doing.to_owned(),
            source: error,
        };
        let mut file = File::create(&own.path).map_err(|error| failed("creating", error))?;
        // No disk can make less of these bytes than they are.
        let mut state = 0x9E37_79B9_7F4A_7C15u64;
        let mut block = vec![0; 1 << 20];
        for _ in 0..OWN_BYTES / block.len() as u64 {
            for word in block.chunks_exact_mut(8) {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                word.copy_from_slice(&state.to_le_bytes());
            }
            file.write_all(&block).map_err(|error| failed("writing", error))?;
        }
        // What is not on the disk cannot be dropped from memory.
        file.sync_all().map_err(|error| failed("writing", error))?;
        Ok(own)
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        // There is nobody to tell; the name says whose it was.
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(all(test, not(feature = "loom")))]
mod tests {
    use super::*;

    #[test]
    fn every_method_has_a_rate_or_a_reason() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path();
        let path = dir.join("large");
        std::fs::write(&path, vec![5; 5 * BLOCK + 100]).unwrap();
        File::open(&path).unwrap().sync_all().unwrap();
        let rates = probe_reads(dir, std::slice::from_ref(&path), Duration::from_millis(200)).unwrap();
        assert_eq!(rates.methods.len(), CASES.len());
        for it in &rates.methods {
            assert!(
                (it.rate > 0.0 && it.bytes >= u64::from(TURNS) * BLOCK as u64) != it.refused.is_some(),
                "{it:?}"
            );
        }
        assert!(rates.of(ReadMethod::Buffered) > 0.0);
        assert!(rates.best().unwrap().rate >= 0.95 * rates.of(ReadMethod::Buffered));
        // Too small to be timed.
        std::fs::write(&path, b"tiny").unwrap();
        let rates = probe_reads(dir, &[path], Duration::from_millis(100)).unwrap();
        assert_eq!(rates.best(), None);
    }

    #[test]
    fn without_files_one_is_written_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path();
        let rates = probe_reads(dir, &[], Duration::from_millis(300)).unwrap();
        assert!(rates.best().is_some());
        assert_eq!(std::fs::read_dir(dir).unwrap().count(), 0);
        assert!(probe_reads(&dir.join("nowhere"), &[], Duration::from_millis(10)).is_err());
    }

    #[test]
    fn blocks_go_round() {
        let mut blocks = Blocks { all: (0..5).map(|at| (0, at)).collect(), next: 0 };
        assert_eq!(blocks.peek(2), [(0, 0), (0, 1)]);
        blocks.pass(4);
        assert_eq!(blocks.peek(3), [(0, 4), (0, 0), (0, 1)]);
        assert_eq!(blocks.peek(99).len(), 5);
        blocks.pass(7);
        assert_eq!(blocks.next, 1);
    }
}
