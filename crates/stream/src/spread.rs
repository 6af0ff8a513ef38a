//! Shards that lie spread over several folders, read from all of their drives at the same time.

use airllm_format::shard::{PART_HEAD, Spread};
use airllm_format::{Error, LayerSource, Result};
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// A [`LayerSource`] over the parts of shards: file `i` is what the files `i` of all parts are together.
///
/// Every read has bytes of every drive in it, as many as their shares say, and each drive has threads and a queue of its
/// own. So a drive that stumbles keeps back the reads that wait for it, and the other one goes on with those behind; how far,
/// is a matter of how many reads are asked for at once.
///
/// ```
/// use airllm_format::shard::{PART_HEAD, Spread};
/// use airllm_format::{LayerSource, MemorySource};
/// use airllm_stream::SpreadSource;
/// let spread = Spread::by_rates(&[1.0, 1.0]).ok_or("two drives")?;
/// let part = |byte| MemorySource::new(vec![("a".to_owned(), vec![byte; PART_HEAD as usize + (2 << 20)])]);
/// let source = SpreadSource::new(vec![Box::new(part(1)), Box::new(part(2))], spread, 1)?;
/// let mut all = vec![0; 4 << 20];
/// source.read_at(0, 0, &mut all)?;
/// assert_eq!((all[0], all[4 << 19], source.read_by_drive()), (1, 2, vec![2 << 20, 2 << 20]));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct SpreadSource {
    drives: Vec<Drive>,
    spread: Spread,
    lens: Vec<u64>,
}

struct Drive {
    files: Box<dyn LayerSource>,
    threads: ThreadPool,
    bytes: AtomicU64,
}

impl std::fmt::Debug for SpreadSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SpreadSource").field("spread", &self.spread).finish_non_exhaustive()
    }
}

/// A run of bytes that is to be read from a drive, and where to.
type Job<'a> = (u64, &'a mut [u8]);

impl SpreadSource {
    /// The parts in their order, each with the same files in the same order, read by so many threads a drive.
    ///
    /// # Errors
    /// [`Error::Malformed`] where the parts do not belong together, [`Error::Io`] where there are no threads to be had.
    pub fn new(parts: Vec<Box<dyn LayerSource>>, spread: Spread, threads: usize) -> Result<Self> {
        let fail = |name: &str, what: String| Error::Malformed { path: name.into(), what };
        let files = parts.first().map_or(0, |part| part.files());
        if parts.len() != spread.shares().len() || parts.iter().any(|part| part.files() != files) {
            let counts: Vec<_> = parts.iter().map(|part| part.files()).collect();
            let what =
                format!("parts with {counts:?} files do not belong to {} shares", spread.shares().len());
            return Err(fail("", what));
        }
        let mut lens = Vec::with_capacity(files);
        for file in 0..files {
            let own = |part: &dyn LayerSource| part.len(file).saturating_sub(PART_HEAD);
            let len = parts.iter().map(|part| own(&**part)).sum();
            for (index, part) in parts.iter().enumerate() {
                if own(&**part) != spread.part_len(index, len) {
                    let expected = PART_HEAD + spread.part_len(index, len);
                    let what = format!("the file has {} bytes, {expected} are its part", part.len(file));
                    return Err(fail(part.name(file), what));
                }
            }
            lens.push(len);
        }
        let drive = |(index, files): (usize, Box<dyn LayerSource>)| -> Result<Drive> {
            let threads = ThreadPoolBuilder::new()
                .num_threads(threads.max(1))
                .thread_name(move |thread| format!("airllm-drive-{index}-{thread}"))
                .build()
                .map_err(|error| Error::Io {
                    path: files.name(0).into(),
                    doing: "starting threads that read".to_owned(),
                    source: std::io::Error::other(error),
                })?;
            Ok(Drive { files, threads, bytes: AtomicU64::new(0) })
        };
        let drives = parts.into_iter().enumerate().map(drive).collect::<Result<_>>()?;
        Ok(Self { drives, spread, lens })
    }

    /// Bytes read from each drive so far, in the order of the parts.
    pub fn read_by_drive(&self) -> Vec<u64> {
        self.drives.iter().map(|drive| drive.bytes.load(Ordering::Relaxed)).collect()
    }
}

impl LayerSource for SpreadSource {
    fn files(&self) -> usize {
        self.lens.len()
    }

    fn name(&self, file: usize) -> &str {
        self.drives.first().map_or("", |drive| drive.files.name(file))
    }

    fn len(&self, file: usize) -> u64 {
        self.lens.get(file).copied().unwrap_or(0)
    }

    fn alignment(&self) -> usize {
        self.drives.iter().map(|drive| drive.files.alignment()).max().unwrap_or(1)
    }

    fn read_at(&self, file: usize, offset: u64, buf: &mut [u8]) -> Result<()> {
        let (len, files) = (self.len(file), self.files());
        let end = offset.checked_add(buf.len() as u64);
        if file >= files || end.is_none_or(|end| end >= len.saturating_add(self.alignment() as u64)) {
            let what = format!(
                "{} bytes at {offset} of file {file} of {files} were asked for, it has {len}",
                buf.len()
            );
            return Err(Error::Malformed { path: Path::new(self.name(file)).to_path_buf(), what });
        }
        let there = buf.len().min(usize::try_from(len.saturating_sub(offset)).unwrap_or(usize::MAX));
        let (mut rest, beyond) = buf.split_at_mut(there);
        beyond.fill(0);
        let pieces = self.spread.pieces(offset, there);
        // A single row of an embedding is not worth another thread.
        if let [piece] = &pieces[..] {
            return self.drives[piece.part].read(file, (piece.at, rest));
        }
        let mut jobs: Vec<Vec<Job<'_>>> = self.drives.iter().map(|_| Vec::new()).collect();
        for piece in pieces {
            let (part, behind) = rest.split_at_mut(piece.range.len());
            jobs[piece.part].push((piece.at, part));
            rest = behind;
        }
        let failure = Mutex::new(None);
        on_all(&self.drives, file, jobs.into_iter(), &failure);
        failure.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }
}

/// Queues the jobs of every drive, and waits for all of them.
fn on_all<'a>(
    drives: &'a [Drive],
    file: usize,
    mut jobs: impl Iterator<Item = Vec<Job<'a>>>,
    failure: &Mutex<Option<Error>>,
) {
    let (Some((drive, others)), Some(own)) = (drives.split_first(), jobs.next()) else { return };
    drive.threads.in_place_scope_fifo(|scope| {
        for job in own {
            scope.spawn_fifo(move |_| {
                if let Err(error) = drive.read(file, job) {
                    failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                }
            });
        }
        on_all(others, file, jobs, failure);
    });
}

impl Drive {
    fn read(&self, file: usize, (offset, buf): Job<'_>) -> Result<()> {
        self.files.read_at(file, offset, buf)?;
        self.bytes.fetch_add(buf.len() as u64, Ordering::Relaxed);
        Ok(())
    }
}
