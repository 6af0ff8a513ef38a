//! Writing a file from start to end in large blocks, past the page cache, while the next block is filled.

use crate::disk::{Advice, Aligned, advise, open_direct, reserve};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{Builder, JoinHandle};

/// Bytes of a block. Also the grain of the disk's work: large, so that it streams.
const BLOCK: usize = 4 << 20;

/// A file that is being written. One thread owns the file; two blocks go back and forth.
pub(super) struct Blocks {
    block: Option<Aligned>,
    used: usize,
    full: Option<Sender<(Aligned, usize)>>,
    free: Receiver<Aligned>,
    thread: Option<JoinHandle<io::Result<File>>>,
}

impl Blocks {
    /// Creates the file, or empties it, and reserves `len` bytes.
    ///
    /// Every block but the last is a multiple of 4096, and so must `len` be.
    pub(super) fn create(path: &Path, len: u64) -> io::Result<Self> {
        let file = File::create(path)?;
        reserve(&file, len)?;
        let (full, blocks) = channel();
        let (give_back, free) = channel();
        // Two blocks: one is filled while the other is on its way. A failed send cannot be: we hold `free`.
        let _ = give_back.send(Aligned::new(BLOCK));
        let target = Target {
            direct: open_direct(path, File::options().write(true)).ok(),
            file,
            path: path.to_path_buf(),
        };
        let thread = Builder::new()
            .name("airllm-shard-write".to_owned())
            .spawn(move || target.write_all(&blocks, &give_back))?;
        Ok(Self { block: Some(Aligned::new(BLOCK)), used: 0, full: Some(full), free, thread: Some(thread) })
    }

    /// Appends bytes. An error may be that of an earlier block.
    pub(super) fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let Some(block) = &mut self.block else { return Err(ended()) };
            let take = bytes.len().min(BLOCK - self.used);
            block.as_mut()[self.used..self.used + take].copy_from_slice(&bytes[..take]);
            self.used += take;
            bytes = &bytes[take..];
            if self.used == BLOCK {
                self.send()?;
                match self.free.recv() {
                    Ok(block) => self.block = Some(block),
                    Err(_) => return Err(self.join().err().unwrap_or_else(ended)),
                }
            }
        }
        Ok(())
    }

    /// Writes what is left and waits until everything is on the disk.
    pub(super) fn finish(&mut self) -> io::Result<()> {
        if self.used > 0 {
            self.send()?;
        }
        let file = self.join()?;
        file.sync_all()?;
        advise(&file, 0, 0, Advice::DontNeed);
        Ok(())
    }

    fn send(&mut self) -> io::Result<()> {
        let used = std::mem::take(&mut self.used);
        let sent = match (&self.full, self.block.take()) {
            (Some(full), Some(block)) => full.send((block, used)).is_ok(),
            _ => false,
        };
        if sent { Ok(()) } else { Err(self.join().err().unwrap_or_else(ended)) }
    }

    /// Ends the thread and returns what became of it.
    fn join(&mut self) -> io::Result<File> {
        self.full = None;
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => Err(ended()),
        }
    }
}

impl Drop for Blocks {
    fn drop(&mut self) {
        self.full = None;
        if let Some(thread) = self.thread.take() {
            // Whoever drops an unfinished file does not ask what became of it.
            let _ = thread.join();
        }
    }
}

/// The answer to a write after a failed one.
fn ended() -> io::Error {
    io::Error::other("an earlier write failed")
}

/// The file, on the side of the thread.
struct Target {
    direct: Option<File>,
    file: File,
    path: PathBuf,
}

impl Target {
    fn write_all(
        mut self,
        blocks: &Receiver<(Aligned, usize)>,
        give_back: &Sender<Aligned>,
    ) -> io::Result<File> {
        let mut at = 0;
        for (mut block, used) in blocks {
            self.write(&block.as_mut()[..used], at)?;
            at += used as u64;
            // The other side may have finished already.
            let _ = give_back.send(block);
        }
        Ok(self.file)
    }

    fn write(&mut self, bytes: &[u8], at: u64) -> io::Result<()> {
        if let Some(direct) = self.direct.as_ref().filter(|_| bytes.len().is_multiple_of(Aligned::ALIGNMENT))
        {
            match direct.write_all_at(bytes, at) {
                Err(e) if e.kind() == io::ErrorKind::InvalidInput => {
                    tracing::debug!(file = %self.path.display(), "direct writes are refused here; writing through the page cache");
                    self.direct = None;
                }
                done => return done,
            }
        }
        self.file.write_all_at(bytes, at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(len: usize, piece: usize) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let bytes: Vec<u8> = (0..len).map(|i| (i * 7 % 253) as u8).collect();
        let mut blocks = Blocks::create(&path, len as u64).unwrap();
        bytes.chunks(piece).for_each(|p| blocks.write(p).unwrap());
        blocks.finish().unwrap();
        assert!(std::fs::read(&path).unwrap() == bytes, "{len} bytes in pieces of {piece}");
    }

    #[test]
    fn what_goes_in_comes_out() {
        write(4096, 100);
        write(BLOCK, BLOCK);
        write(3 * BLOCK + 4096, 1 << 20);
        write(2 * BLOCK, 3 * BLOCK);
        // Not a multiple of 4096: still right, the last block goes through the page cache.
        write(BLOCK + 4097, 12_345);
    }

    #[test]
    fn a_dropped_file_ends_its_thread() {
        let dir = tempfile::tempdir().unwrap();
        let mut blocks = Blocks::create(&dir.path().join("x"), 1 << 20).unwrap();
        blocks.write(&[1; 5000]).unwrap();
        drop(blocks);
    }

    #[test]
    fn a_failed_write_is_told() {
        // A device that is always full: the block fails in the thread, a later call must say so.
        let full = Path::new("/dev/full");
        if !full.exists() {
            return;
        }
        let mut blocks = Blocks::create(full, 0).unwrap();
        let mut done = Ok(());
        for _ in 0..4 {
            done = done.and_then(|()| blocks.write(&vec![1; BLOCK]));
        }
        let done = done.and_then(|()| blocks.finish());
        assert_eq!(done.unwrap_err().kind(), io::ErrorKind::StorageFull);
    }
}
