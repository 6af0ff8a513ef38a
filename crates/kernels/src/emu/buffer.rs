//! Memory of the emulated device.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;
use std::slice;

/// As much as CUDA promises of an allocation.
const ALIGN: usize = 256;

/// Memory of the [`Emu`](crate::Emu) device, of exactly the bytes asked for, so that address sanitizers see what lies
/// beyond.
#[derive(Debug)]
pub struct EmuBuf {
    start: NonNull<u8>,
    layout: Layout,
}

/// Bytes of a buffer of the [`Emu`](crate::Emu) device, for its kernels to read.
#[derive(Debug, Clone, Copy)]
pub struct EmuView<'a> {
    bytes: &'a [u8],
}

impl EmuBuf {
    pub(super) fn zeroed(bytes: usize) -> Option<EmuBuf> {
        let layout = Layout::from_size_align(bytes, ALIGN).ok()?;
        if bytes == 0 {
            return Some(EmuBuf { start: NonNull::<Aligned>::dangling().cast(), layout });
        }
        // SAFETY: the layout's size is not zero.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        Some(EmuBuf { start, layout })
    }

    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: `start` is aligned and leads to as many bytes as the layout says, which were zeroed and live as long
        // as the buffer; whoever changes them borrows the buffer as mutable.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.layout.size()) }
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`; the borrow of the buffer is the only one.
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), self.layout.size()) }
    }

    /// Where the buffer lies.
    pub(super) fn start(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Copies `from` to `offset`.
    ///
    /// # Safety
    ///
    /// The bytes from `offset` on lie in the buffer, and nobody reads or writes them meanwhile.
    pub(super) unsafe fn fill(&self, offset: usize, from: &[u8]) {
        // SAFETY: as the caller promises. `start` came from the allocator and may write all of the buffer; `from` is
        // borrowed from elsewhere, so that the two do not overlap.
        unsafe { self.start.as_ptr().add(offset).copy_from_nonoverlapping(from.as_ptr(), from.len()) }
    }
}

#[repr(align(256))]
struct Aligned;

impl Drop for EmuBuf {
    fn drop(&mut self) {
        if self.layout.size() > 0 {
            // SAFETY: `start` came from the allocator with this layout, and nobody has it after this.
            unsafe { dealloc(self.start.as_ptr(), self.layout) }
        }
    }
}

// SAFETY: the buffer owns its memory and gives it out under the rules of borrowing alone.
unsafe impl Send for EmuBuf {}
// SAFETY: as above; a shared buffer is only read.
unsafe impl Sync for EmuBuf {}

impl<'a> EmuView<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        EmuView { bytes }
    }

    pub(super) fn len(self) -> usize {
        self.bytes.len()
    }

    pub(super) fn start(self) -> *const u8 {
        self.bytes.as_ptr()
    }
}
