//! One process at a time in a folder.

use crate::error::At;
use crate::{Cancel, Error, Result};
use rustix::fs::{FlockOperation, flock};
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

const NAME: &str = ".airllm.lock";

/// An advisory lock (flock) on a folder. The system lets go of it when the process ends, however that
/// happens, so a lock never outlives its holder.
#[derive(Debug)]
pub(crate) struct Lock {
    path: PathBuf,
    _file: File,
}

impl Lock {
    /// Takes the lock if nobody holds it. The folder must exist.
    pub(crate) fn try_take(dir: &Path) -> Result<Option<Lock>> {
        let path = dir.join(NAME);
        loop {
            let file = File::options()
                .create(true)
                .truncate(false)
                .write(true)
                .open(&path)
                .at(&path, "opening the lock file")?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
                Err(errno) => {
                    return Err(Error::Io { path, doing: "locking the folder", source: errno.into() });
                }
            }
            // The last holder may have removed the file between our opening and locking it; then this
            // is a lock on nothing.
            let ours = file.metadata().at(&path, "looking at the lock file")?;
            match std::fs::metadata(&path) {
                Ok(now) if (now.dev(), now.ino()) == (ours.dev(), ours.ino()) => {
                    return Ok(Some(Lock { path, _file: file }));
                }
                _ => continue,
            }
        }
    }

    /// Takes the lock, waiting for its holder; calls `waiting` ten times a second meanwhile.
    pub(crate) fn take(dir: &Path, cancel: &Cancel, mut waiting: impl FnMut()) -> Result<Lock> {
        loop {
            std::fs::create_dir_all(dir).at(dir, "creating the folder")?;
            match Self::try_take(dir) {
                Ok(Some(lock)) => return Ok(lock),
                Ok(None) => {}
                // The holder may have removed the folder as a whole.
                Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
            cancel.check()?;
            waiting();
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Removed while still locked; a failure leaves an empty file that the next holder reuses.
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let lock = Lock::try_take(dir.path()).unwrap().unwrap();
        assert!(Lock::try_take(dir.path()).unwrap().is_none());
        drop(lock);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(Lock::try_take(dir.path()).unwrap().is_some());
    }

    #[test]
    fn waiting_can_be_cancelled() {
        let dir = tempfile::tempdir().unwrap();
        let _lock = Lock::try_take(dir.path()).unwrap().unwrap();
        let cancel = Cancel::new();
        let mut waits = 0;
        let result = Lock::take(dir.path(), &cancel, || {
            waits += 1;
            cancel.stop();
        });
        assert!(matches!(result, Err(Error::Interrupted)));
        assert_eq!(waits, 1);
    }

    #[test]
    fn many_threads_one_holder() {
        use std::sync::atomic::{AtomicUsize, Ordering};
        let dir = tempfile::tempdir().unwrap();
        let (inside, entered) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..20 {
                        if let Some(_lock) = Lock::try_take(dir.path()).unwrap() {
                            assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                            entered.fetch_add(1, Ordering::SeqCst);
                            std::thread::yield_now();
                            inside.fetch_sub(1, Ordering::SeqCst);
                        }
                    }
                });
            }
        });
        assert!(entered.load(Ordering::SeqCst) > 0);
    }
}
