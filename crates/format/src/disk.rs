//! Small matters of files: bounded reads, crash-safe writes, free space, advice to the page cache.

use crate::{Error, Result};
use memmap2::MmapMut;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Bytes that a process may still write to the file system that holds `path`.
///
/// The path itself need not exist yet: its nearest existing parent is asked.
///
/// # Errors
/// [`Error::Io`] if the file system does not answer.
///
/// ```
/// let free = airllm_format::free_space(std::path::Path::new("."))?;
/// assert!(free > 0);
/// # Ok::<(), airllm_format::Error>(())
/// ```
pub fn free_space(path: &Path) -> Result<u64> {
    let absolute = std::path::absolute(path).map_err(Error::io(path, "finding the folder"))?;
    let there = absolute.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
    let stat = rustix::fs::statvfs(there).map_err(|e| Error::io(there, "asking for free space")(e.into()))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Checks that `needed` bytes can still be written to the file system that holds `path`.
///
/// # Errors
/// [`Error::NoSpace`] with both numbers if not.
pub fn need_space(path: &Path, needed: u64) -> Result<()> {
    let free = free_space(path)?;
    if needed > free {
        return Err(Error::NoSpace { path: path.to_path_buf(), needed, free });
    }
    Ok(())
}

/// Where a file is written before it gets its name. Never taken for a finished file.
pub(crate) fn temporary(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.part"))
}

/// Writes a small file so that after a crash there is either the old one or the new one.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let part = temporary(path);
    let write = || -> Result<()> {
        let mut file = File::create(&part).map_err(Error::io(&part, "creating"))?;
        file.write_all(bytes).map_err(|e| write_error(&part, bytes.len() as u64, e))?;
        file.sync_all().map_err(|e| write_error(&part, bytes.len() as u64, e))?;
        rename(&part, path)
    };
    write().inspect_err(|_| drop(fs::remove_file(&part)))
}

/// Gives a finished file its name, durably.
pub(crate) fn rename(part: &Path, path: &Path) -> Result<()> {
    fs::rename(part, path).map_err(Error::io(path, "giving the finished file its name"))?;
    sync_parent(path)
}

/// Makes the entry of `path` in its folder durable.
pub(crate) fn sync_parent(path: &Path) -> Result<()> {
    let parent = match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    File::open(parent).and_then(|f| f.sync_all()).map_err(Error::io(parent, "syncing the folder"))
}

/// The error of a failed write: a full disk gets its numbers, anything else the system's answer.
pub(crate) fn write_error(path: &Path, needed: u64, error: io::Error) -> Error {
    if error.kind() == io::ErrorKind::StorageFull {
        let free = path.parent().and_then(|p| free_space(p).ok()).unwrap_or(0);
        return Error::NoSpace { path: path.to_path_buf(), needed, free };
    }
    Error::io(path, "writing")(error)
}

/// Opens a regular file and returns it with its length.
pub(crate) fn open_file(path: &Path) -> Result<(File, u64)> {
    let file = File::open(path).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => Error::missing(path, "no such file"),
        _ => Error::io(path, "opening")(e),
    })?;
    let meta = file.metadata().map_err(Error::io(path, "asking for the length"))?;
    if !meta.is_file() {
        return Err(Error::malformed(path, "expected a regular file"));
    }
    Ok((file, meta.len()))
}

/// Reads a whole file of at most `limit` bytes.
pub(crate) fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let (file, len) = open_file(path)?;
    let too_large = || {
        Error::malformed(
            path,
            format!("the file is larger than {limit} bytes, far more than such files have"),
        )
    };
    if len > limit {
        return Err(too_large());
    }
    let mut bytes = Vec::with_capacity(len as usize);
    file.take(limit + 1).read_to_end(&mut bytes).map_err(Error::io(path, "reading"))?;
    if bytes.len() as u64 > limit {
        return Err(too_large());
    }
    Ok(bytes)
}

/// Something that bytes can be read from at any place, and that lies in files.
pub(crate) trait ReadAt {
    fn read_exact_at(&self, buf: &mut [u8], at: u64) -> io::Result<()>;

    /// Tells the page cache about `len` bytes at `at` (0: to the end).
    fn advise(&self, at: u64, len: u64, advice: Advice);
}

impl ReadAt for File {
    fn read_exact_at(&self, buf: &mut [u8], at: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, buf, at)
    }

    fn advise(&self, at: u64, len: u64, advice: Advice) {
        advise(self, at, len, advice);
    }
}

/// Reads a file of `len` bytes from start to end in large blocks, leaving the page cache as it was.
pub(crate) fn read_through(
    (file, len): (&impl ReadAt, u64),
    path: &Path,
    mut each: impl FnMut(&[u8]) -> Result<()>,
) -> Result<u64> {
    // The page cache drops whole folios only, and they have up to 2 MiB.
    const BLOCK: usize = 4 << 20;
    file.advise(0, 0, Advice::Sequential);
    let mut block = vec![0; BLOCK.min(len as usize)];
    let mut at = 0;
    while at < len {
        let take = (len - at).min(BLOCK as u64) as usize;
        let part = &mut block[..take];
        file.read_exact_at(part, at).map_err(Error::io(path, format!("reading {take} bytes at {at}")))?;
        file.advise(at, take as u64, Advice::DontNeed);
        each(part)?;
        at += take as u64;
    }
    Ok(len)
}

/// What the page cache is told about a part of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Advice {
    Sequential,
    DontNeed,
}

/// Tells the page cache about `len` bytes at `offset` (0: to the end). Only advice: a refusal is no error.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) fn advise(file: &File, offset: u64, len: u64, advice: Advice) {
    let advice = match advice {
        Advice::Sequential => rustix::fs::Advice::Sequential,
        Advice::DontNeed => rustix::fs::Advice::DontNeed,
    };
    let _ = rustix::fs::fadvise(file, offset, std::num::NonZeroU64::new(len), advice);
}

/// Other systems have no such call.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(crate) fn advise(_: &File, _: u64, _: u64, _: Advice) {}

/// Reserves the whole length of a file that is about to be written, so that a full disk shows at once.
///
/// # Errors
/// The system's answer if there is not enough room. A file system that cannot reserve is no error.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) fn reserve(file: &File, len: u64) -> io::Result<()> {
    match rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, len) {
        Err(rustix::io::Errno::NOSPC) => Err(rustix::io::Errno::NOSPC.into()),
        _ => Ok(()),
    }
}

/// Other systems reserve as they write.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(crate) fn reserve(_: &File, _: u64) -> io::Result<()> {
    Ok(())
}

/// Opens a file for reads or writes past the page cache.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) fn open_direct(path: &Path, options: &mut fs::OpenOptions) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    options.custom_flags(rustix::fs::OFlags::DIRECT.bits() as i32).open(path)
}

/// Other systems have no such flag.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(crate) fn open_direct(_: &Path, _: &mut fs::OpenOptions) -> io::Result<File> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Checks that a name from a file is a plain file name: nothing that could lead out of the folder.
pub(crate) fn is_plain_name(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\\', '\0'])
}

/// Bytes whose first one lies at a multiple of 4096, as direct reads want it, in huge pages where the
/// system has them: a direct read pins every page it writes to, and 4 KiB pages make it three times slower.
#[derive(Debug)]
pub(crate) struct Aligned {
    memory: Memory,
    start: usize,
    len: usize,
}

#[derive(Debug)]
enum Memory {
    Mapped(MmapMut),
    /// Where the system maps nothing more.
    Heap(Vec<u8>),
}

impl Aligned {
    pub(crate) const ALIGNMENT: usize = 4096;
    const HUGE_PAGE: usize = 2 << 20;

    /// `len` zero bytes.
    pub(crate) fn new(len: usize) -> Self {
        let alignment = if len < Self::HUGE_PAGE { Self::ALIGNMENT } else { Self::HUGE_PAGE };
        let mut memory = match MmapMut::map_anon(len + alignment) {
            Ok(map) => {
                // A refusal (no huge pages in this kernel) costs speed, not correctness.
                let _ = map.advise(memmap2::Advice::HugePage);
                Memory::Mapped(map)
            }
            Err(_) => Memory::Heap(vec![0; len + alignment]),
        };
        let start = memory.bytes().as_ptr().addr().wrapping_neg() % alignment;
        Self { memory, start, len }
    }

    pub(crate) fn as_mut(&mut self) -> &mut [u8] {
        let (start, end) = (self.start, self.start + self.len);
        &mut self.memory.bytes()[start..end]
    }
}

impl Memory {
    fn bytes(&mut self) -> &mut [u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Heap(bytes) => bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn atomic_writes_replace() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        write_atomically(&path, b"one").unwrap();
        write_atomically(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert!(!temporary(&path).exists());
    }

    #[test]
    fn a_failed_write_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("taken");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("x"), b"").unwrap();
        let error = write_atomically(&path, b"one").unwrap_err();
        assert!(error.to_string().contains("finished file"), "{error}");
        assert!(!temporary(&path).exists());
    }

    #[test]
    fn a_full_disk_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = write_error(&dir.path().join("x"), 77, rustix::io::Errno::NOSPC.into());
        assert!(matches!(error, Error::NoSpace { needed: 77, free, .. } if free > 0), "{error}");
        let huge = need_space(&dir.path().join("not/yet/there"), u64::MAX).unwrap_err();
        assert!(matches!(huge, Error::NoSpace { .. }), "{huge}");
        need_space(dir.path(), 1).unwrap();
    }

    #[test]
    fn files_too_large_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        fs::write(&path, [7; 100]).unwrap();
        assert_eq!(read_bounded(&path, 100).unwrap(), [7; 100]);
        assert!(read_bounded(&path, 99).is_err());
        assert!(matches!(read_bounded(dir.path(), 9), Err(Error::Malformed { .. })));
        assert!(matches!(read_bounded(&dir.path().join("no"), 9), Err(Error::Missing { .. })));
    }

    #[test]
    fn aligned_is_aligned() {
        for len in [0, 1, 4096, 10_000] {
            let mut a = Aligned::new(len);
            assert_eq!(a.as_mut().len(), len);
            assert_eq!(a.as_mut().as_ptr().addr() % Aligned::ALIGNMENT, 0);
        }
    }
}
