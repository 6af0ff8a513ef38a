//! Layers that lie in files.

use super::fill::{Stop, fill};
use super::memory::{check_range, no_file};
use crate::disk::{Advice, Aligned, advise, open_direct, open_file};
use crate::{Error, LayerSource, Result};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// How files are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ReadMode {
    /// Past the page cache (`O_DIRECT`): the disk writes into the buffer. Where a file system refuses
    /// that, reads fall back to [`Buffered`](Self::Buffered), which is logged once.
    Direct,
    /// Through the page cache with read-ahead; what was read is dropped from the cache again, so that
    /// streaming a model larger than memory pushes nothing else out.
    Buffered,
}

impl ReadMode {
    /// The name in tables ("direct", "buffered").
    pub const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Buffered => "buffered",
        }
    }
}

/// Unaligned reads of at least this size go past the page cache too, by way of an aligned block.
const BOUNCE_FROM: usize = 1 << 20;

/// Bytes of such a block.
const BOUNCE: usize = 4 << 20;

/// Smaller reads leave their pages in the cache: single rows of an embedding come again.
const EVICT_FROM: usize = 256 << 10;

/// Large reads leave the cache in steps of this many bytes, at multiples of it. The cache holds a file in
/// folios of up to this size and drops only whole ones: with smaller steps it drops nothing at all.
const EVICT_STEP: u64 = 2 << 20;

/// A [`LayerSource`] over files, read by any number of threads at once.
///
/// ```no_run
/// use airllm_format::{FileSource, LayerSource, Prepared, ReadMode};
/// let prepared = Prepared::open("prepared".as_ref())?;
/// let source = FileSource::open(&prepared.shard_paths(), ReadMode::Direct)?;
/// let mut head = vec![0; 4096];
/// source.read_at(0, 0, &mut head)?;
/// # Ok::<(), airllm_format::Error>(())
/// ```
#[derive(Debug)]
pub struct FileSource {
    files: Vec<OneFile>,
    mode: ReadMode,
    /// Set when the file system has refused direct reads.
    refused: AtomicBool,
    /// Aligned blocks for direct reads into buffers that are not; as many as were ever needed at once.
    spare: Mutex<Vec<Aligned>>,
}

#[derive(Debug)]
struct OneFile {
    path: PathBuf,
    name: String,
    len: u64,
    buffered: File,
    /// Opened with `O_DIRECT`; `None` in buffered mode and where that is refused.
    direct: Option<File>,
}

impl FileSource {
    /// Opens files; their order is their number.
    ///
    /// # Errors
    /// [`Error::Missing`] and [`Error::Io`] for a file that cannot be opened.
    pub fn open(paths: &[PathBuf], mode: ReadMode) -> Result<Self> {
        let mut source = Self {
            files: Vec::with_capacity(paths.len()),
            mode,
            refused: AtomicBool::new(false),
            spare: Mutex::new(Vec::new()),
        };
        for path in paths {
            let (buffered, len) = open_file(path)?;
            let direct = match mode {
                ReadMode::Buffered => {
                    advise(&buffered, 0, 0, Advice::Sequential);
                    None
                }
                ReadMode::Direct => match open_direct(path, File::options().read(true)) {
                    Ok(file) => Some(file),
                    Err(e) => {
                        source.refuse(path, &e);
                        None
                    }
                },
            };
            let name = path.display().to_string();
            source.files.push(OneFile { path: path.clone(), name, len, buffered, direct });
        }
        Ok(source)
    }

    /// How large reads are done now: the mode asked for, or [`ReadMode::Buffered`] after a refusal.
    pub fn mode(&self) -> ReadMode {
        if self.refused.load(Ordering::Relaxed) { ReadMode::Buffered } else { self.mode }
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
        let Some(direct) = file.direct.as_ref().filter(|_| self.mode() == ReadMode::Direct) else {
            return Ok(false);
        };
        let in_place =
            offset.is_multiple_of(ALIGNMENT as u64) && buf.as_ptr().addr().is_multiple_of(ALIGNMENT);
        let done = if in_place && buf.len() >= ALIGNMENT {
            let (blocks, rest) = buf.split_at_mut(buf.len() / ALIGNMENT * ALIGNMENT);
            let end = offset + blocks.len() as u64;
            fill_direct(direct, file, offset, blocks).and_then(|()| match rest {
                [] => Ok(()),
                rest => read_buffered(file, end, rest),
            })
        } else if buf.len() >= BOUNCE_FROM {
            let mut block = self.spare().pop().unwrap_or_else(|| Aligned::new(BOUNCE));
            let done = read_bounced(direct, file, offset, buf, block.as_mut());
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

    fn spare(&self) -> std::sync::MutexGuard<'_, Vec<Aligned>> {
        // A list of buffers is right whatever happened to the thread that held it.
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Drops a part of a file from the page cache.
    pub(crate) fn forget(&self, file: usize, offset: u64, len: u64) {
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

/// A direct read into an aligned buffer of whole blocks.
fn fill_direct(direct: &File, file: &OneFile, offset: u64, buf: &mut [u8]) -> Result<(), Stop> {
    fill(file.len, offset, buf, |part, at| {
        // After a read that ended between blocks the rest goes through the page cache.
        if at.is_multiple_of(Aligned::ALIGNMENT as u64) {
            direct.read_at(part, at)
        } else {
            file.buffered.read_at(part, at)
        }
    })
}

/// Direct reads into `block`, copied from there to a buffer that need not be aligned.
fn read_bounced(
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
        fill_direct(direct, file, at - skip as u64, &mut block[..want])?;
        let take = (want - skip).min(buf.len() - have);
        buf[have..have + take].copy_from_slice(&block[skip..skip + take]);
        have += take;
    }
    Ok(())
}

/// A read through the page cache. A large one is dropped from it step by step as it is copied, so that the
/// read-ahead which the kernel does meanwhile takes the same few pages again and again: faster than fresh ones.
/// (Asking for the whole range with `WILLNEED` first was measured at half the rate.)
fn read_buffered(file: &OneFile, offset: u64, buf: &mut [u8]) -> Result<(), Stop> {
    if buf.len() < EVICT_FROM {
        return fill(file.len, offset, buf, |part, at| file.buffered.read_at(part, at));
    }
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
        let mode = if direct { ReadMode::Direct } else { ReadMode::Buffered };
        let source = FileSource::open(paths, mode).unwrap();
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
        fn small_reads_in_any_mode(direct: bool, file in 0usize..5, offset in 0u64..12_000, len in 0usize..9000) {
            check_read(direct, file, offset, len)?;
        }

        #[test]
        fn any_read_in_any_mode(direct: bool, file in 0usize..5, offset in 0u64..9_100_000, len in 0usize..9_000_000) {
            check_read(direct, file, offset, len)?;
        }

        #[test]
        fn aligned_reads_in_any_mode(direct: bool, file in 0usize..5, block in 0u64..172, blocks in 0usize..172) {
            let (_, paths, bytes) = sample();
            let mode = if direct { ReadMode::Direct } else { ReadMode::Buffered };
            let source = FileSource::open(paths, mode).unwrap();
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
        for mode in [ReadMode::Direct, ReadMode::Buffered] {
            std::fs::write(&path, vec![1; 20_000]).unwrap();
            let source = FileSource::open(std::slice::from_ref(&path), mode).unwrap();
            File::options().write(true).open(&path).unwrap().set_len(5000).unwrap();
            let mut buf = Aligned::new(20_480);
            let error = source.read_at(0, 0, buf.as_mut()).unwrap_err().to_string();
            assert!(error.contains("ends at 5000"), "{error}");
        }
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = FileSource::open(&["/nowhere/layer.0".into()], ReadMode::Direct).unwrap_err();
        assert_eq!(error.to_string(), "/nowhere/layer.0: no such file");
    }

    #[test]
    fn many_threads_read_at_once() {
        let (_, paths, bytes) = sample();
        for mode in [ReadMode::Direct, ReadMode::Buffered] {
            let source = FileSource::open(paths, mode).unwrap();
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
