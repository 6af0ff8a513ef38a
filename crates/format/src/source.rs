//! Where the bytes of layers come from.

use crate::Result;

/// Random-access bytes of a fixed list of files.
///
/// Implementations are read by several threads at once. A read either fills the whole buffer or fails;
/// short reads of the operating system are the implementation's business.
pub trait LayerSource: Send + Sync + 'static {
    /// Number of files.
    fn files(&self) -> usize;

    /// Name of a file, for messages.
    fn name(&self, file: usize) -> &str;

    /// Length of a file in bytes.
    fn len(&self, file: usize) -> u64;

    /// The alignment, a power of two, that `offset`, the buffer's address and its length should have for
    /// the fastest path. 1 where it does not matter. Unaligned reads are still answered.
    fn alignment(&self) -> usize;

    /// Fills `buf` with the bytes at `offset`.
    ///
    /// A read may reach past the end of the file by less than [`alignment`](Self::alignment); those
    /// bytes come back as zeros.
    fn read_at(&self, file: usize, offset: u64, buf: &mut [u8]) -> Result<()>;
}

impl LayerSource for Box<dyn LayerSource> {
    fn files(&self) -> usize {
        (**self).files()
    }

    fn name(&self, file: usize) -> &str {
        (**self).name(file)
    }

    fn len(&self, file: usize) -> u64 {
        (**self).len(file)
    }

    fn alignment(&self) -> usize {
        (**self).alignment()
    }

    fn read_at(&self, file: usize, offset: u64, buf: &mut [u8]) -> Result<()> {
        (**self).read_at(file, offset, buf)
    }
}
