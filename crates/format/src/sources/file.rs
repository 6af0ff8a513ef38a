//! Layers that lie in files.

use super::fill::{Stop, fill};
use super::memory::{check_range, no_file};
use super::method::{QueuedReads, ReadMethod};
use crate::disk::{Advice, Aligned, advise, open_direct, open_file};
use crate::{Error, LayerSource, Result};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Unaligned reads of at least this size go past the page cache too, by way of an aligned block.
const BOUNCE_FROM: usize = 1 << 20;

/// Bytes of such a block.
const BOUNCE: usize = 4 << 20;

/// Smaller reads leave their pages in the cache: single rows of an embedding come again.
const EVICT_FROM: usize = 256 << 10;

/// Large reads leave the cache in steps of this many bytes, at multiples of it. The cache holds a file in
/// folios of up to this size and drops only whole ones: with smaller steps it drops nothing at all.
const EVICT_STEP: u64 = 2 << 20;

/// So far behind the reads that run, pages may be left: more than a few reads and what is read ahead of them.
const SWEEP: u64 = 128 << 20;

/// A [`LayerSource`] over files, read by any number of threads at once.
///
/// ```no_run
/// use airllm_format::{FileSource, LayerSource, Prepared, ReadMethod};
/// let prepared = Prepared::open("prepared".as_ref())?;
/// let source = FileSource::open(&prepared.shard_paths(), ReadMethod::Direct)?;
/// let mut head = vec![0; 4096];
/// source.read_at(0, 0, &mut head)?;
/// # Ok::<(), airllm_format::Error>(())
/// ```
#[derive(Debug)]
pub struct FileSource {
    files: Vec<OneFile>,
    method: ReadMethod,
    /// Set when the file system has refused direct reads.
    refused: AtomicBool,
    /// What has several requests in flight, for [`ReadMethod::Uring`].
    queue: Option<Arc<dyn QueuedReads>>,
    /// Set when the system has refused those.
    queue_refused: AtomicBool,
    /// Aligned blocks for direct reads into buffers that are not; as many as were ever needed at once.
    spare: Mutex<Vec<Aligned>>,
}

#[derive(Debug)]
struct OneFile {
    path: PathBuf,
    name: String,
    len: u64,
    buffered: File,
    /// Opened with `O_DIRECT`; `None` for buffered reads and where that is refused.
    direct: Option<File>,
    /// Where the large buffered reads that run now began.
    active: Mutex<Vec<u64>>,
    /// Set when one of them has come to the end of the file.
    ended: AtomicBool,
}

impl FileSource {
    /// Opens files; their order is their number. Without what [`open_with`](Self::open_with) can be given,
    /// [`ReadMethod::Uring`] is [`ReadMethod::Direct`].
    ///
    /// # Errors
    /// [`Error::Missing`] and [`Error::Io`] for a file that cannot be opened.
    pub fn open(paths: &[PathBuf], method: ReadMethod) -> Result<Self> {
        Self::open_with(paths, method, None)
    }

    /// The same with something that has several requests in flight, used by [`ReadMethod::Uring`] alone.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_with(
        paths: &[PathBuf],
        method: ReadMethod,
        queue: Option<Arc<dyn QueuedReads>>,
    ) -> Result<Self> {
        let mut source = Self {
            files: Vec::with_capacity(paths.len()),
            method,
            refused: AtomicBool::new(false),
            queue: queue.filter(|_| method == ReadMethod::Uring),
            queue_refused: AtomicBool::new(false),
            spare: Mutex::new(Vec::new()),
        };
        for path in paths {
            let (buffered, len) = open_file(path)?;
            let direct = match method {
                ReadMethod::Buffered => {
                    advise(&buffered, 0, 0, Advice::Sequential);
                    None
                }
                ReadMethod::Auto | ReadMethod::Direct | ReadMethod::Uring => {
                    match open_direct(path, File::options().read(true)) {
                        Ok(file) => Some(file),
                        Err(e) => {
                            source.refuse(path, &e);
                            None
                        }
                    }
                }
            };
            let name = path.display().to_string();
            let (active, ended) = (Mutex::default(), AtomicBool::new(false));
            source.files.push(OneFile { path: path.clone(), name, len, buffered, direct, active, ended });
        }
        Ok(source)
    }

    /// How large reads are done now: by the method asked for, or by the one that it fell back to.
    pub fn method(&self) -> ReadMethod {
        if self.refused.load(Ordering::Relaxed) {
            return ReadMethod::Buffered;
        }
        match self.method {
            ReadMethod::Buffered => ReadMethod::Buffered,
            ReadMethod::Uring if self.queue().is_some() => ReadMethod::Uring,
            ReadMethod::Auto | ReadMethod::Direct | ReadMethod::Uring => ReadMethod::Direct,
        }
    }

    fn queue(&self) -> Option<&dyn QueuedReads> {
        self.queue.as_deref().filter(|_| !self.queue_refused.load(Ordering::Relaxed))
    }

    /// Notes that direct reads do not work here, and says so the first time.
    fn refuse(&self, path: &std::path::Path, error: &io::Error) {
        if !self.refused.swap(true, Ordering::Relaxed) {
            tracing::warn!(file = %path.display(), %error, "direct reads are refused here; reading through the page cache");
        }
    }

    /// A direct read, if the mode, the file and the size allow one. `false`: read otherwise.
    fn read_direct(&self, file: &OneFile, offset: u64, buf: &mut [u8]) -> Result<bool, Stop> {
        const ALIGNMENT: usize = Aligned::ALIGNMENT;
        let Some(direct) = file.direct.as_ref().filter(|_| self.method() != ReadMethod::Buffered) else {
            return Ok(false);
        };
        let in_place =
            offset.is_multiple_of(ALIGNMENT as u64) && buf.as_ptr().addr().is_multiple_of(ALIGNMENT);
        let done = if in_place && buf.len() >= ALIGNMENT {
            let (blocks, rest) = buf.split_at_mut(buf.len() / ALIGNMENT * ALIGNMENT);
            let end = offset + blocks.len() as u64;
            self.fill_direct(direct, file, offset, blocks).and_then(|()| match rest {
                [] => Ok(()),
                rest => read_buffered(file, end, rest),
            })
        } else if buf.len() >= BOUNCE_FROM {
            let mut block = self.spare().pop().unwrap_or_else(|| Aligned::new(BOUNCE));
            let done = self.read_bounced(direct, file, offset, buf, block.as_mut());
            self.spare().push(block);
            done
        } else {
            return Ok(false);
        };
        match done {
            Err(Stop::Io(_, e)) if e.kind() == io::ErrorKind::InvalidInput => {
                self.refuse(&file.path, &e);
                Ok(false)
            }
            other => other.map(|()| true),
        }
    }

    /// A direct read into an aligned buffer of whole blocks.
    fn fill_direct(&self, direct: &File, file: &OneFile, offset: u64, buf: &mut [u8]) -> Result<(), Stop> {
        fill(file.len, offset, buf, |part, at| {
            // After a read that ended between blocks the rest goes through the page cache.
            if !at.is_multiple_of(Aligned::ALIGNMENT as u64) {
                return file.buffered.read_at(part, at);
            }
            match self.queue().map(|queue| queue.read_at(direct, at, part)) {
                None => direct.read_at(part, at),
                // What the disk says, and that the file system has no direct reads, a plain read says as well.
                Some(Err(e)) if e.kind() != io::ErrorKind::InvalidInput => {
                    if !self.queue_refused.swap(true, Ordering::Relaxed) {
                        tracing::warn!(file = %file.path.display(), error = %e, "io_uring fails here; reading without it");
                    }
                    direct.read_at(part, at)
                }
                Some(done) => done,
            }
        })
    }

    /// Direct reads into `block`, copied from there to a buffer that need not be aligned.
    fn read_bounced(
        &self,
        direct: &File,
        file: &OneFile,
        offset: u64,
        buf: &mut [u8],
        block: &mut [u8],
    ) -> Result<(), Stop> {
        const ALIGNMENT: usize = Aligned::ALIGNMENT;
        let mut have = 0;
        while have < buf.len() {
            let at = offset + have as u64;
            let skip = (at % ALIGNMENT as u64) as usize;
            let want = (skip + buf.len() - have).next_multiple_of(ALIGNMENT).min(block.len());
            self.fill_direct(direct, file, at - skip as u64, &mut block[..want])?;
            let take = (want - skip).min(buf.len() - have);
            buf[have..have + take].copy_from_slice(&block[skip..skip + take]);
            have += take;
        }
        Ok(())
    }

    fn spare(&self) -> std::sync::MutexGuard<'_, Vec<Aligned>> {
        // A list of buffers is right whatever happened to the thread that held it.
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Drops a part of a file from the page cache (0: to the end). Only advice: a part that others use may stay.
    pub fn forget(&self, file: usize, offset: u64, len: u64) {
        if let Some(file) = self.files.get(file) {
            advise(&file.buffered, offset, len, Advice::DontNeed);
        }
    }
}

impl LayerSource for FileSource {
    fn files(&self) -> usize {
        self.files.len()
    }

    fn name(&self, file: usize) -> &str {
        self.files.get(file).map_or("", |f| &f.name)
    }

    fn len(&self, file: usize) -> u64 {
        self.files.get(file).map_or(0, |f| f.len)
    }

    fn alignment(&self) -> usize {
        Aligned::ALIGNMENT
    }

    fn read_at(&self, file: usize, offset: u64, buf: &mut [u8]) -> Result<()> {
        let Some(file) = self.files.get(file) else {
            return Err(no_file(file, self.files.len()));
        };
        check_range(&file.name, file.len, Aligned::ALIGNMENT, offset, buf.len())?;
        let read = self.read_direct(file, offset, buf).and_then(|done| match done {
            true => Ok(()),
            false => read_buffered(file, offset, buf),
        });
        read.map_err(|stop| match stop {
            Stop::Io(at, e) => {
                Error::io(&file.path, format!("reading {} bytes at {offset}, at {at}", buf.len()))(e)
            }
            Stop::Ended(at) => Error::malformed(
                &file.path,
                format!("the file ends at {at}, it had {} bytes when it was opened", file.len),
            ),
        })
    }
}

/// A read through the page cache. A large one is dropped from it step by step as it is copied, so that the
/// read-ahead which the kernel does meanwhile takes the same few pages again and again: faster than fresh ones.
/// (Asking with `WILLNEED` for what comes next, in whatever portions, was measured at half the rate: the kernel's own
/// read-ahead takes large folios, and asking takes single pages.)
fn read_buffered(file: &OneFile, offset: u64, buf: &mut [u8]) -> Result<(), Stop> {
    if buf.len() < EVICT_FROM {
        return fill(file.len, offset, buf, |part, at| file.buffered.read_at(part, at));
    }
    let len = buf.len() as u64;
    let active = || file.active.lock().unwrap_or_else(PoisonError::into_inner);
    active().push(offset);
    let done = read_and_drop(file, offset, buf);
    // Read-ahead goes on behind the end of a read, also where another thread has been meanwhile: what lies behind all reads
    // that run now is dropped once more.
    let mut active = active();
    if let Some(own) = active.iter().position(|&start| start == offset) {
        active.swap_remove(own);
    }
    let end = active.iter().copied().min();
    drop(active);
    file.ended.fetch_or(offset.saturating_add(len) >= file.len, Ordering::Relaxed);
    let end = match end {
        // Nobody reads, and the pass through this file is over.
        None if file.ended.swap(false, Ordering::Relaxed) => file.len,
        // What is read ahead of the last read is for the next one.
        None => offset,
        Some(end) => end.min(offset),
    };
    let from = end.saturating_sub(SWEEP) / EVICT_STEP * EVICT_STEP;
    if end > from {
        advise(&file.buffered, from, end - from, Advice::DontNeed);
    }
    done
}

fn read_and_drop(file: &OneFile, offset: u64, buf: &mut [u8]) -> Result<(), Stop> {
    let (mut at, mut rest) = (offset, buf);
    while !rest.is_empty() {
        let from = at - at % EVICT_STEP;
        let (part, behind) = rest.split_at_mut(rest.len().min((from + EVICT_STEP - at) as usize));
        fill(file.len, at, part, |part, at| file.buffered.read_at(part, at))?;
        at += part.len() as u64;
        advise(&file.buffered, from, at - from, Advice::DontNeed);
        rest = behind;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::OnceLock;

    fn sample() -> &'static (tempfile::TempDir, Vec<PathBuf>, Vec<Vec<u8>>) {
        static SAMPLE: OnceLock<(tempfile::TempDir, Vec<PathBuf>, Vec<Vec<u8>>)> = OnceLock::new();
        SAMPLE.get_or_init(|| {
            let dir = tempfile::tempdir().unwrap();
            let sizes = [0, 1, 4096, 10_000, 9_000_001];
            let bytes = sizes.map(|n| (0..n).map(|i| (i * 31 % 251) as u8).collect::<Vec<u8>>()).to_vec();
            let paths: Vec<PathBuf> = (0..sizes.len()).map(|i| dir.path().join(format!("f{i}"))).collect();
            paths.iter().zip(&bytes).for_each(|(p, b)| std::fs::write(p, b).unwrap());
            (dir, paths, bytes)
        })
    }

    fn expected(bytes: &[u8], offset: u64, len: usize) -> Vec<u8> {
        (0..len).map(|i| bytes.get(offset as usize + i).copied().unwrap_or(0)).collect()
    }

    /// A read is answered, rightly, exactly if it ends less than an alignment past the end of the file.
    fn check_read(direct: bool, file: usize, offset: u64, len: usize) -> Result<(), TestCaseError> {
        let (_, paths, bytes) = sample();
        let method = if direct { ReadMethod::Direct } else { ReadMethod::Buffered };
        let source = FileSource::open(paths, method).unwrap();
        let mut buf = vec![0xAA; len];
        let inside = offset + (len as u64) < bytes[file].len() as u64 + 4096;
        prop_assert_eq!(source.read_at(file, offset, &mut buf).is_ok(), inside);
        if inside {
            prop_assert!(buf == expected(&bytes[file], offset, len));
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn small_reads_by_any_method(direct: bool, file in 0usize..5, offset in 0u64..12_000, len in 0usize..9000) {
            check_read(direct, file, offset, len)?;
        }

        #[test]
        fn any_read_by_any_method(direct: bool, file in 0usize..5, offset in 0u64..9_100_000, len in 0usize..9_000_000) {
            check_read(direct, file, offset, len)?;
        }

        #[test]
        fn aligned_reads_by_any_method(direct: bool, file in 0usize..5, block in 0u64..172, blocks in 0usize..172) {
            let (_, paths, bytes) = sample();
            let method = if direct { ReadMethod::Direct } else { ReadMethod::Buffered };
            let source = FileSource::open(paths, method).unwrap();
            let mut buf = Aligned::new(blocks * 4096);
            let offset = block * 4096;
            if offset + ((blocks * 4096) as u64) < bytes[file].len() as u64 + 4096 {
                source.read_at(file, offset, buf.as_mut()).unwrap();
                prop_assert_eq!(&*buf.as_mut(), &expected(&bytes[file], offset, blocks * 4096)[..]);
            }
        }
    }

    #[test]
    fn a_file_that_shrinks_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        std::fs::write(&path, vec![1; 20_000]).unwrap();
        for method in [ReadMethod::Direct, ReadMethod::Buffered] {
            std::fs::write(&path, vec![1; 20_000]).unwrap();
            let source = FileSource::open(std::slice::from_ref(&path), method).unwrap();
            File::options().write(true).open(&path).unwrap().set_len(5000).unwrap();
            let mut buf = Aligned::new(20_480);
            let error = source.read_at(0, 0, buf.as_mut()).unwrap_err().to_string();
            assert!(error.contains("ends at 5000"), "{error}");
        }
    }

    /// Bytes of a file that are in the page cache, counted in blocks of 4096: a read that must not wait finds a page or
    /// fails, and with `Random` nothing is read ahead for the next one. The kernel may fetch the page itself all the same,
    /// so that the file is dropped from the cache afterwards.
    #[cfg(target_os = "linux")]
    fn cached(path: &std::path::Path) -> u64 {
        let file = File::open(path).unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random).unwrap();
        let mut byte = [0; 1];
        let mut there = |at: &u64| {
            let mut into = [io::IoSliceMut::new(&mut byte)];
            rustix::io::preadv2(&file, &mut into, *at, rustix::io::ReadWriteFlags::NOWAIT) == Ok(1)
        };
        let found =
            (0..file.metadata().unwrap().len()).step_by(4096).filter(|at| there(at)).count() as u64 * 4096;
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        found
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_pass_by_any_method_leaves_the_page_cache_as_it_was() {
        const LEN: u64 = 96 << 20;
        // Beside the sources, not in a folder for temporary files, which may lie in memory.
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = dir.path().join("large");
        std::fs::write(&path, vec![3; LEN as usize]).unwrap();
        let file = File::open(&path).unwrap();
        file.sync_all().unwrap();
        if cached(&path) < LEN / 2 {
            return println!("skipped: this file system does not say what is in the page cache");
        }
        if cached(&path) > 0 {
            return println!("skipped: this file system drops nothing from the page cache");
        }
        for method in ReadMethod::ALL {
            let source = FileSource::open(std::slice::from_ref(&path), method).unwrap();
            std::thread::scope(|scope| {
                for reader in 0..2 {
                    let source = &source;
                    scope.spawn(move || {
                        // Stripes as the ring reads them: turn by turn, of a size that is not that of folios.
                        let mut slot = Aligned::new(5 << 20);
                        for at in (0..LEN).step_by(5 << 20).skip(reader).step_by(2) {
                            let len = (LEN - at).min(5 << 20) as usize;
                            source.read_at(0, at, &mut slot.as_mut()[..len]).unwrap();
                            assert!(slot.as_mut()[..len].iter().all(|&byte| byte == 3));
                        }
                    });
                }
            });
            let left = cached(&path);
            assert!(left <= 8 << 20, "{method} leaves {left} of {LEN} bytes in the page cache");
        }
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = FileSource::open(&["/nowhere/layer.0".into()], ReadMethod::Direct).unwrap_err();
        assert_eq!(error.to_string(), "/nowhere/layer.0: no such file");
    }

    #[test]
    fn many_threads_read_at_once() {
        let (_, paths, bytes) = sample();
        for method in [ReadMethod::Direct, ReadMethod::Buffered] {
            let source = FileSource::open(paths, method).unwrap();
            std::thread::scope(|scope| {
                for t in 0..4u64 {
                    let source = &source;
                    scope.spawn(move || {
                        let mut buf = Aligned::new(8192);
                        for i in 0..40 {
                            let offset = (t * 40 + i) * 4096;
                            source.read_at(4, offset, buf.as_mut()).unwrap();
                            assert_eq!(&*buf.as_mut(), &expected(&bytes[4], offset, 8192)[..]);
                        }
                    });
                }
            });
        }
    }
}
