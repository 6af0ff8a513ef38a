//! What the streaming engine may see of a device: memory, copies and fences.

use crate::Result;
use std::ops::Range;

/// Device memory: allocation, copies and the fences that order them.
///
/// Work is queued in order; on a device that computes asynchronously a call may return before it is
/// done, and a [`Fence`](Memory::Fence) says when. Offsets and lengths are bytes.
pub trait Memory: Send + Sync + 'static {
    /// An owned allocation on the device. Sixty-four byte aligned or better.
    type Buf: Send + Sync + 'static;
    /// A point in the device's queue.
    type Fence: Send + 'static;
    /// Borrowed bytes that the device can read, wherever they lie.
    type View<'a>: Copy + Send + Sync
    where
        Self: 'a;

    /// A zero-filled buffer of `bytes` bytes.
    fn alloc(&self, bytes: usize) -> Result<Self::Buf>;

    /// Size of a buffer in bytes, as asked for in [`alloc`](Memory::alloc).
    fn len(&self, buf: &Self::Buf) -> usize;

    /// Copies host bytes to `dst` at `offset`.
    fn write(&self, dst: &mut Self::Buf, offset: usize, bytes: &[u8]) -> Result<()>;

    /// Copies device bytes at `offset` to the host; waits for the work that makes them.
    fn read(&self, src: &Self::Buf, offset: usize, out: &mut [u8]) -> Result<()>;

    /// A part of a buffer, to be passed to a verb.
    fn view<'a>(&'a self, buf: &'a Self::Buf, range: Range<usize>) -> Result<Self::View<'a>>;

    /// Host bytes as they are, where the device computes from host memory; `None` where they must be
    /// copied to it first.
    fn host_view<'a>(&'a self, bytes: &'a [u8]) -> Option<Self::View<'a>>;

    /// Marks all work queued so far.
    fn fence(&self) -> Result<Self::Fence>;

    /// Waits until everything before the fence is done.
    fn wait(&self, fence: &Self::Fence) -> Result<()>;

    /// Whether everything before the fence is done.
    fn is_done(&self, fence: &Self::Fence) -> Result<bool>;
}
