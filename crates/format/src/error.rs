//! What can be wrong with a checkpoint, a shard or a download.

use std::io;
use std::path::{Path, PathBuf};

/// Errors of this crate. Each says what was expected, what was found and where.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused.
    #[error("{}: {doing}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was being done ("reading 4096 bytes at 8192").
        doing: String,
        /// The system's answer.
        source: io::Error,
    },
    /// A file's content is not what its format says.
    #[error("{}: {what}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What was expected and what was found.
        what: String,
    },
    /// Something that should be there is not.
    #[error("{}: {what}", path.display())]
    Missing {
        /// The file or folder that was looked at.
        path: PathBuf,
        /// What is missing and what would help.
        what: String,
    },
    /// A checksum differs: the file changed after it was written.
    #[error("{}: checksum of {what} is {found}, the manifest says {expected}", path.display())]
    Checksum {
        /// The file.
        path: PathBuf,
        /// The part that was summed.
        what: String,
        /// The manifest's value.
        expected: String,
        /// The file's value.
        found: String,
    },
    /// Not enough room on the disk.
    #[error("{}: {needed} bytes are needed, {free} are free", path.display())]
    NoSpace {
        /// Where the bytes should have gone.
        path: PathBuf,
        /// Bytes needed.
        needed: u64,
        /// Bytes free.
        free: u64,
    },
    /// A download failed.
    #[error("{url}: {what}")]
    Hub {
        /// What was asked for, without credentials.
        url: String,
        /// What came back and what to do about it.
        what: String,
    },
    /// The caller's cancel flag was set. What was done so far is kept where it can be gone on with.
    #[error("{what} was stopped")]
    Cancelled {
        /// The work that was going on.
        what: String,
    },
}

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Wraps the system's answer; `doing` names the attempt.
    pub(crate) fn io(path: &Path, doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let (path, doing) = (path.to_path_buf(), doing.into());
        move |source| Self::Io { path, doing, source }
    }

    /// A file whose content is not what its format says.
    pub(crate) fn malformed(path: &Path, what: impl Into<String>) -> Self {
        Self::Malformed { path: path.to_path_buf(), what: what.into() }
    }

    /// Something that should be there is not.
    pub(crate) fn missing(path: &Path, what: impl Into<String>) -> Self {
        Self::Missing { path: path.to_path_buf(), what: what.into() }
    }
}
