//! The ways of reading files.

use std::fs::File;
use std::io;
use std::str::FromStr;

/// How files are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ReadMethod {
    /// What is known or measured to be fastest; [`Direct`](Self::Direct) where nothing is.
    #[default]
    Auto,
    /// Past the page cache (`O_DIRECT`): the disk writes into the buffer. Where a file system refuses
    /// that, reads fall back to [`Buffered`](Self::Buffered), which is logged once.
    Direct,
    /// As [`Direct`](Self::Direct), with several requests in flight from one thread (io_uring). Where the system has no
    /// such thing or forbids it, as containers do, reads fall back to [`Direct`](Self::Direct), which is logged once.
    Uring,
    /// Through the page cache with read-ahead; what was read is dropped from the cache again, so that
    /// streaming a model larger than memory pushes nothing else out.
    Buffered,
}

impl ReadMethod {
    /// The methods there are, which [`Auto`](Self::Auto) is not.
    pub const ALL: [ReadMethod; 3] = [Self::Direct, Self::Uring, Self::Buffered];

    /// The name in tables ("auto", "direct", "uring", "buffered").
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Direct => "direct",
            Self::Uring => "uring",
            Self::Buffered => "buffered",
        }
    }
}

impl std::fmt::Display for ReadMethod {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for ReadMethod {
    type Err = String;

    /// ```
    /// use airllm_format::ReadMethod;
    /// assert_eq!("uring".parse(), Ok(ReadMethod::Uring));
    /// assert!("mmap".parse::<ReadMethod>().is_err());
    /// ```
    fn from_str(name: &str) -> Result<Self, String> {
        let all = [Self::Auto, Self::Direct, Self::Uring, Self::Buffered];
        all.into_iter()
            .find(|method| method.name() == name)
            .ok_or_else(|| format!("{name:?} is no way of reading: expected auto, direct, uring or buffered"))
    }
}

/// Reads of one file with several requests in flight at once. It is given from outside, because the system's call for
/// that takes memory by address, which this crate never does.
pub trait QueuedReads: Send + Sync + std::fmt::Debug + 'static {
    /// Reads into `buf`, whose address and length are multiples of 4096, from `offset`, which is one too, and says how
    /// many bytes were read: fewer where the file ends, and where a request after the first bytes failed.
    ///
    /// # Errors
    /// What the system says of the first bytes. No request is in flight any more then.
    fn read_at(&self, file: &File, offset: u64, buf: &mut [u8]) -> io::Result<usize>;
}
