//! Buffers, copies and fences.
//!
//! Small copies pass through page-locked memory (`ring`) and are queued among the work. Weights come from memory that the
//! caller has registered, on a queue of their own. Fences are events.

use super::Cuda;
use super::api::{Api, NOT_READY, Outcome};
use super::handles::{Answer, Event, Pinned, Stream};
use super::pool::Span;
use super::ring::Ring;
use super::shared::{Shared, locked};
use crate::shape;
use crate::{Error, Memory, Result};
use std::marker::PhantomData;
use std::ops::Range;
use std::ptr::NonNull;
use std::slice;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Page-locked bytes that writes pass through.
const WRITING: usize = 4 << 20;
/// Page-locked bytes for reads: so many at first, and as many as are read at once up to the second.
const READING: usize = 1 << 20;
const MOST_READING: usize = 32 << 20;

/// Device memory of a [`Cuda`] device.
#[derive(Debug)]
pub struct CudaBuf {
    span: Span,
    bytes: usize,
    /// Whether the queue that copies has ever been told to write to it.
    uploaded: AtomicBool,
    shared: Arc<Shared>,
}

impl CudaBuf {
    /// Its address on the device.
    pub(crate) fn address(&self) -> *mut u8 {
        self.span.start as usize as *mut u8
    }
}

impl Drop for CudaBuf {
    fn drop(&mut self) {
        if self.uploaded.load(Relaxed) {
            // Whoever gets the span works behind what was queued so far on the computing queue, and so behind all
            // uploads to it. If that cannot be made sure, nobody gets it.
            let shared = &self.shared;
            let ordered = shared.enter_to_drop().and_then(|()| {
                let event = shared.mark(&shared.copy)?;
                let followed = shared.compute.follow(&event);
                shared.give_event(event);
                followed
            });
            if shared.keep(ordered).is_none() {
                return;
            }
        }
        self.shared.give(self.span);
    }
}

/// A point in one of the two queues of a [`Cuda`] device.
#[derive(Debug)]
pub struct CudaFence {
    /// There until the fence is dropped.
    event: Option<Event>,
    /// Kernels launched before it on the queue that computes; none are known to have ended where a copy has.
    launches: u64,
    shared: Arc<Shared>,
}

impl CudaFence {
    fn new(shared: &Arc<Shared>, stream: &Stream, launches: u64) -> Result<CudaFence> {
        let event = shared.told(shared.mark(stream))?;
        Ok(CudaFence { event: Some(event), launches, shared: Arc::clone(shared) })
    }
}

impl Drop for CudaFence {
    fn drop(&mut self) {
        if let Some(event) = self.event.take() {
            self.shared.give_event(event);
        }
    }
}

/// Bytes that verbs of a [`Cuda`] device read: on the device, or on the host, where the verb is then computed.
#[derive(Debug, Clone, Copy)]
pub struct CudaView<'a>(Lies<'a>);

/// Where the bytes of a view lie.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Lies<'a> {
    /// From this address of the device on, so many, as long as the buffer is borrowed.
    Device(u64, usize, PhantomData<&'a CudaBuf>),
    /// On the host.
    Host(&'a [u8]),
}

impl<'a> CudaView<'a> {
    pub(crate) fn lies(self) -> Lies<'a> {
        self.0
    }
}

/// Page-locked memory for copies in both directions.
#[derive(Debug)]
pub(super) struct Staging {
    writing: Pinned,
    ring: Ring<Event>,
    reading: Pinned,
}

impl Staging {
    pub(super) fn alloc(api: &'static Api) -> Answer<Staging> {
        let ring = Ring::new(WRITING);
        Ok(Staging {
            writing: Pinned::alloc(api, ring.bytes())?,
            ring,
            reading: Pinned::alloc(api, READING)?,
        })
    }
}

/// Registered memory; known to the driver until dropped.
struct Registration {
    start: usize,
    shared: Arc<Shared>,
}

impl Drop for Registration {
    fn drop(&mut self) {
        let shared = &self.shared;
        locked(&shared.registered).retain(|range| range.start != self.start);
        let answer = shared.enter_to_drop().and_then(|()| {
            // No copy may be on its way when the pages are let go.
            shared.finish()?;
            // SAFETY: the range that starts here was registered, and is no longer used.
            unsafe { shared.api.cuMemHostUnregister(self.start as *mut _) }.done()
        });
        shared.keep(answer);
    }
}

impl Cuda {
    /// Memory for the kernels of one verb, holding anything; when it is dropped, whoever gets it next comes behind them
    /// in the queue.
    pub(super) fn scratch(&self, bytes: usize) -> Result<CudaBuf> {
        self.shared.enter()?;
        self.buffer(bytes)
    }

    /// Device memory that holds `bytes` for all that is queued from now on until the answer is dropped.
    pub(super) fn staged(&self, bytes: &[u8]) -> Result<CudaBuf> {
        self.shared.enter()?;
        let buf = self.buffer(bytes.len())?;
        self.put(&buf, 0, bytes)?;
        Ok(buf)
    }

    pub(super) fn buffer(&self, bytes: usize) -> Result<CudaBuf> {
        let span = self.shared.take(bytes)?;
        Ok(CudaBuf { span, bytes, uploaded: AtomicBool::new(false), shared: Arc::clone(&self.shared) })
    }

    /// Queues a copy of `bytes` to `offset`, which the caller has seen to have room for them.
    fn put(&self, dst: &CudaBuf, offset: usize, mut bytes: &[u8]) -> Result<()> {
        let shared = &self.shared;
        let mut staging = locked(&shared.staging);
        let Staging { writing, ring, .. } = &mut *staging;
        let mut to = dst.span.start + offset as u64;
        while !bytes.is_empty() {
            let piece = ring.take(
                bytes.len(),
                || shared.told(shared.mark(&shared.compute)),
                |mark| shared.wait(mark, 0),
            )?;
            let (now, rest) = bytes.split_at(piece.len());
            // SAFETY: the piece lies in the page-locked memory, which has as many bytes as the ring. Nothing reads the
            // piece: the ring waits for copies from it before it gives it out again. `bytes` are the caller's.
            let from = unsafe {
                let from = writing.start().add(piece.start);
                from.copy_from_nonoverlapping(NonNull::from(now).cast(), now.len());
                from
            };
            // SAFETY: the page-locked bytes stay as they are until the ring has seen the copy done. The buffer has room
            // for them, and what is queued on this queue uses it before or after the copy.
            let copied = unsafe {
                shared.api.cuMemcpyHtoDAsync_v2(to, from.as_ptr().cast(), now.len(), shared.compute.raw())
            };
            shared.told(copied.done())?;
            to += now.len() as u64;
            bytes = rest;
        }
        Ok(())
    }

    /// Copies device bytes to page-locked memory of the host and waits until they are there.
    ///
    /// # Safety
    ///
    /// So many bytes lie at `from` in a buffer of this device. Those at `to` are page-locked and this call's alone.
    unsafe fn fetch(&self, from: u64, to: NonNull<u8>, bytes: usize) -> Result<()> {
        let shared = &self.shared;
        let launches = shared.health.launches();
        // SAFETY: as the caller promises; below, this call does not end before the copy has.
        let copied =
            unsafe { shared.api.cuMemcpyDtoHAsync_v2(to.as_ptr().cast(), from, bytes, shared.compute.raw()) };
        shared.told(copied.done())?;
        let event = shared.mark(&shared.compute);
        shared.host_waits.fetch_add(1, Relaxed);
        let waited = match &event {
            Ok(event) => event.wait(),
            // The copy must end before the memory is somebody else's.
            Err(outcome) => shared.compute.finish().and(Err(*outcome)),
        };
        if let Ok(event) = event {
            shared.give_event(event);
        }
        shared.told(waited)?;
        shared.health.good(launches);
        Ok(())
    }

    /// Refuses buffers and fences of other devices: their memory, or their context, may be gone.
    fn ours(&self, verb: &'static str, shared: &Arc<Shared>) -> Result<()> {
        if Arc::ptr_eq(&self.shared, shared) {
            return Ok(());
        }
        Err(Error::Argument { verb, what: "a buffer or fence of another device".into() })
    }

    /// The event of a fence, which must be of this device.
    fn event<'a>(&self, verb: &'static str, fence: &'a CudaFence) -> Result<&'a Event> {
        self.ours(verb, &fence.shared)?;
        fence.event.as_ref().ok_or_else(|| Error::Argument { verb, what: "a fence that was dropped".into() })
    }
}

impl Memory for Cuda {
    type Buf = CudaBuf;
    type Fence = CudaFence;
    type View<'a> = CudaView<'a>;

    fn copies(&self) -> bool {
        true
    }

    fn alloc(&self, bytes: usize) -> Result<CudaBuf> {
        self.ready.forget();
        let buf = self.scratch(bytes)?;
        if bytes > 0 {
            let shared = &self.shared;
            // SAFETY: the span has so many bytes; who had it before queued all work with it before this.
            let zeroed =
                unsafe { shared.api.cuMemsetD8Async(buf.span.start, 0, bytes, shared.compute.raw()) };
            shared.told(zeroed.done())?;
        }
        Ok(buf)
    }

    fn reserve(&self, bytes: usize) -> Result<()> {
        // Given back at once, the pool has it in one piece.
        self.shared.enter()?;
        self.buffer(bytes).map(drop)
    }

    fn len(&self, buf: &CudaBuf) -> usize {
        buf.bytes
    }

    fn write(&self, dst: &mut CudaBuf, offset: usize, bytes: &[u8]) -> Result<()> {
        self.ready.forget();
        shape::need("write", "buffer", offset.saturating_add(bytes.len()), dst.bytes)?;
        self.ours("write", &dst.shared)?;
        self.shared.enter()?;
        self.put(dst, offset, bytes)
    }

    fn read(&self, src: &CudaBuf, offset: usize, out: &mut [u8]) -> Result<()> {
        shape::need("read", "buffer", offset.saturating_add(out.len()), src.bytes)?;
        self.ours("read", &src.shared)?;
        self.shared.enter()?;
        if out.is_empty() {
            return Ok(());
        }
        let from = src.span.start + offset as u64;
        let range = out.as_ptr_range();
        let range = range.start.addr()..range.end.addr();
        let inside = |held: &Range<usize>| held.start <= range.start && range.end <= held.end;
        if locked(&self.shared.registered).iter().any(inside) {
            // SAFETY: the bytes lie in the buffer; `out` is borrowed as mutable, and in registered memory.
            return unsafe { self.fetch(from, NonNull::from(&mut *out).cast(), out.len()) };
        }
        let mut staging = locked(&self.shared.staging);
        let wanted = out.len().min(MOST_READING);
        if staging.reading.bytes() < wanted {
            let bytes = wanted.next_power_of_two();
            staging.reading = self.shared.told(Pinned::alloc(self.shared.api, bytes))?;
        }
        let reading = &mut staging.reading;
        let pieces = out.chunks_mut(reading.bytes());
        for (from, piece) in (from..).step_by(reading.bytes()).zip(pieces) {
            // SAFETY: the piece's bytes lie in the buffer, the page-locked memory has room for them and is locked for
            // this call. It was written when it was made, and is read after the copy has ended.
            let bytes = unsafe {
                self.fetch(from, reading.start(), piece.len())?;
                slice::from_raw_parts(reading.start().as_ptr(), piece.len())
            };
            piece.copy_from_slice(bytes);
        }
        Ok(())
    }

    fn view<'a>(&'a self, buf: &'a CudaBuf, range: Range<usize>) -> Result<CudaView<'a>> {
        shape::range("view", &range, buf.bytes)?;
        self.ours("view", &buf.shared)?;
        let start = buf.span.start + range.start as u64;
        Ok(CudaView(Lies::Device(start, range.len(), PhantomData)))
    }

    fn host_view<'a>(&'a self, bytes: &'a [u8]) -> Option<CudaView<'a>> {
        self.beside.as_ref().map(|_| CudaView(Lies::Host(bytes)))
    }

    unsafe fn register(&self, start: NonNull<u8>, bytes: usize) -> Result<Box<dyn Send + Sync>> {
        const PORTABLE: u32 = cudarc::driver::sys::CU_MEMHOSTREGISTER_PORTABLE;
        if bytes == 0 {
            return Ok(Box::new(()));
        }
        let shared = &self.shared;
        shared.enter()?;
        // SAFETY: the caller promises that the bytes stay mapped until the registration is dropped, which ends it.
        let registered = unsafe { shared.api.cuMemHostRegister_v2(start.as_ptr().cast(), bytes, PORTABLE) };
        shared.told(registered.done())?;
        let start = start.addr().get();
        locked(&shared.registered).push(start..start + bytes);
        Ok(Box::new(Registration { start, shared: Arc::clone(shared) }))
    }

    unsafe fn upload(
        &self,
        dst: &CudaBuf,
        offset: usize,
        bytes: &[u8],
        after: Option<&CudaFence>,
    ) -> Result<CudaFence> {
        shape::need("upload", "buffer", offset.saturating_add(bytes.len()), dst.bytes)?;
        self.ours("upload", &dst.shared)?;
        let after = after.map(|fence| self.event("upload", fence)).transpose()?;
        let shared = &self.shared;
        shared.enter()?;
        if let Some(after) = after {
            shared.told(shared.copy.follow(after))?;
        }
        if !bytes.is_empty() {
            dst.uploaded.store(true, Relaxed);
            let to = dst.span.start + offset as u64;
            // SAFETY: the buffer has room for the bytes. The caller promises that they stay as they are until the copy
            // is done, and that whatever else uses these bytes of the buffer is ordered by `after` and by the answer.
            let copied = unsafe {
                shared.api.cuMemcpyHtoDAsync_v2(to, bytes.as_ptr().cast(), bytes.len(), shared.copy.raw())
            };
            shared.told(copied.done())?;
        }
        let fence = CudaFence::new(shared, &shared.copy, 0);
        if fence.is_err() {
            // Without a fence nobody could know when the bytes are free.
            shared.keep(shared.finish());
        }
        fence
    }

    fn follow(&self, fence: &CudaFence) -> Result<()> {
        let event = self.event("follow", fence)?;
        self.shared.enter()?;
        self.shared.told(self.shared.compute.follow(event))
    }

    fn fence(&self) -> Result<CudaFence> {
        self.shared.enter()?;
        CudaFence::new(&self.shared, &self.shared.compute, self.shared.health.launches())
    }

    fn wait(&self, fence: &CudaFence) -> Result<()> {
        let event = self.event("wait", fence)?;
        self.shared.enter()?;
        self.shared.wait(event, fence.launches)
    }

    fn is_done(&self, fence: &CudaFence) -> Result<bool> {
        let event = self.event("is_done", fence)?;
        self.shared.enter()?;
        match event.query() {
            Outcome { code: 0, .. } => Ok(true),
            Outcome { code: NOT_READY, .. } => Ok(false),
            outcome => self.shared.told(Err(outcome)),
        }
    }
}
