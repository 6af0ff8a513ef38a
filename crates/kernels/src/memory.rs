//! What the streaming engine may see of a device: memory, copies and fences.

use crate::{Error, Result};
use std::ops::Range;
use std::ptr::NonNull;

/// Device memory: allocation, copies and the fences that order them.
///
/// Work is queued in order; on a device that computes asynchronously a call may return before it is
/// done, and a [`Fence`](Memory::Fence) says when. Offsets and lengths are bytes.
///
/// Beside that queue there is one for copies of weights, [`upload`](Memory::upload): fences alone order
/// the two. A device is given work by one thread at a time, which may be any thread. A buffer may be
/// dropped while queued work reads it: the device sees to it that its memory is not used otherwise before
/// that work is done.
pub trait Memory: Send + Sync + 'static {
    /// An owned allocation on the device. Sixty-four byte aligned or better.
    type Buf: Send + Sync + 'static;
    /// A point in one of the device's queues. What is done stays done.
    type Fence: Send + 'static;
    /// Borrowed bytes that the device can read, wherever they lie.
    type View<'a>: Copy + Send + Sync
    where
        Self: 'a;

    /// Whether weights are to be copied to the device. Where not, it computes from host memory, and
    /// [`host_view`](Memory::host_view) is `Some`.
    fn copies(&self) -> bool;

    /// A zero-filled buffer of `bytes` bytes. The zeros may be queued work: whoever [uploads](Memory::upload)
    /// to fresh memory passes a fence taken after it was made.
    fn alloc(&self, bytes: usize) -> Result<Self::Buf>;

    /// Says that buffers of so many bytes in all will be [allocated](Memory::alloc): a device that cuts them from larger
    /// pieces gets them in one, and loses nothing between buffers of many sizes.
    fn reserve(&self, bytes: usize) -> Result<()> {
        let _ = bytes;
        Ok(())
    }

    /// Size of a buffer in bytes, as asked for in [`alloc`](Memory::alloc).
    fn len(&self, buf: &Self::Buf) -> usize;

    /// Copies host bytes to `dst` at `offset`, behind the work queued so far; `bytes` are free on return.
    fn write(&self, dst: &mut Self::Buf, offset: usize, bytes: &[u8]) -> Result<()>;

    /// Copies device bytes at `offset` to the host; waits for the work that makes them.
    fn read(&self, src: &Self::Buf, offset: usize, out: &mut [u8]) -> Result<()>;

    /// A part of a buffer, to be passed to a verb.
    fn view<'a>(&'a self, buf: &'a Self::Buf, range: Range<usize>) -> Result<Self::View<'a>>;

    /// Host bytes as they are, where the device computes from host memory; `None` where they must be
    /// copied to it first. On a device that [copies](Memory::copies), verbs with such a view are computed on
    /// the host, beside the device.
    fn host_view<'a>(&'a self, bytes: &'a [u8]) -> Option<Self::View<'a>>;

    /// Tells the device of host memory that uploads come from, so that it can copy from there while the
    /// host goes on (it locks the pages), until the answer is dropped.
    ///
    /// # Safety
    ///
    /// `bytes` bytes at `start` stay mapped, and are not moved, until the answer is dropped.
    unsafe fn register(&self, start: NonNull<u8>, bytes: usize) -> Result<Box<dyn Send + Sync>> {
        let _ = (start, bytes);
        Ok(Box::new(()))
    }

    /// Starts to copy `bytes` to `dst` at `offset`, beside whatever is computed, but not before `after` is
    /// done. The answer is done when the copy is. The host waits for neither. After an error nothing is copied.
    ///
    /// Copies are made in the order in which they were asked for: where one is done, all before it are.
    /// Devices that do not [copy](Memory::copies) refuse, unless they say otherwise.
    ///
    /// # Safety
    ///
    /// Until the answer is done, `bytes` stay mapped and as they are, and `dst` is not dropped. Nothing reads
    /// or writes these bytes of `dst` but work that `after` stands for, work that was queued after
    /// [`follow`](Memory::follow) of the answer, and whoever has waited for the answer.
    unsafe fn upload(
        &self,
        dst: &Self::Buf,
        offset: usize,
        bytes: &[u8],
        after: Option<&Self::Fence>,
    ) -> Result<Self::Fence> {
        let _ = (dst, offset, after);
        let what =
            format!("{} bytes are to be copied to a device that computes from host memory", bytes.len());
        Err(Error::Argument { verb: "upload", what })
    }

    /// Work that is queued from now on starts after `fence` is done; the host does not wait.
    fn follow(&self, fence: &Self::Fence) -> Result<()>;

    /// Marks all work queued so far; not what is copied beside it, but for what that work follows.
    fn fence(&self) -> Result<Self::Fence>;

    /// Waits until everything before the fence is done.
    fn wait(&self, fence: &Self::Fence) -> Result<()>;

    /// Whether everything before the fence is done.
    fn is_done(&self, fence: &Self::Fence) -> Result<bool>;
}
