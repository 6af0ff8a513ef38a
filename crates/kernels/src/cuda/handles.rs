//! What the driver gives and wants back, each in a type that gives it back when dropped.
//!
//! All but [`Context`] belong to the context that was current when they were made, and ask for it to be current again
//! when they are dropped. A failure to give back has nobody to be told to: whoever owns a device is gone by then.

use super::api::{Api, CUcontext, CUdevice, CUdeviceptr, CUevent, CUfunction, CUmodule, CUstream, Outcome};
use cudarc::driver::sys::{self, CUevent_flags, CUfunction_attribute, CUstream_flags};
use std::collections::BTreeMap;
use std::ffi::{CStr, c_int, c_void};
use std::ptr::{NonNull, null_mut};
use std::sync::{Mutex, PoisonError};

/// What a call of the driver gave, or how it failed.
pub(super) type Answer<T> = std::result::Result<T, Outcome>;

impl Outcome {
    /// The outcome as an error, if it is one.
    pub(super) fn done(self) -> Answer<()> {
        if self.code == 0 { Ok(()) } else { Err(self) }
    }
}

/// The primary context of a device, retained.
#[derive(Debug)]
pub(super) struct Context {
    api: &'static Api,
    device: CUdevice,
    raw: CUcontext,
}

impl Context {
    /// Retains the context of a device that the driver gave, and makes it current.
    pub(super) fn retain(api: &'static Api, device: CUdevice) -> Answer<Context> {
        let mut raw = null_mut();
        // SAFETY: the pointer leads to the handle.
        unsafe { api.cuDevicePrimaryCtxRetain(&mut raw, device) }.done()?;
        let context = Context { api, device, raw };
        context.enter()?;
        Ok(context)
    }

    /// Makes it current on this thread.
    pub(super) fn enter(&self) -> Answer<()> {
        // SAFETY: the context is retained as long as `self` is.
        unsafe { self.api.cuCtxSetCurrent(self.raw) }.done()
    }

    /// Lets no context be current on this thread.
    pub(super) fn leave(&self) {
        // SAFETY: a null context stands for none.
        let _ = unsafe { self.api.cuCtxSetCurrent(null_mut()) };
    }

    /// Bytes of the device's memory that are free, and all of them. The context must be current.
    pub(super) fn memory(&self) -> Answer<(u64, u64)> {
        let (mut free, mut total) = (0, 0);
        // SAFETY: the pointers lead to the numbers.
        unsafe { self.api.cuMemGetInfo_v2(&mut free, &mut total) }.done()?;
        Ok((free as u64, total as u64))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        self.leave();
        // SAFETY: retained once, released once.
        let _ = unsafe { self.api.cuDevicePrimaryCtxRelease_v2(self.device) };
    }
}

/// A queue of the device that does not wait for the default one.
#[derive(Debug)]
pub(super) struct Stream {
    api: &'static Api,
    raw: CUstream,
}

impl Stream {
    pub(super) fn create(api: &'static Api) -> Answer<Stream> {
        let mut raw = null_mut();
        // SAFETY: the pointer leads to the handle.
        unsafe { api.cuStreamCreate(&mut raw, CUstream_flags::CU_STREAM_NON_BLOCKING as u32) }.done()?;
        Ok(Stream { api, raw })
    }

    pub(super) fn raw(&self) -> CUstream {
        self.raw
    }

    /// Waits until all that is queued is done.
    pub(super) fn finish(&self) -> Answer<()> {
        // SAFETY: the stream is alive.
        unsafe { self.api.cuStreamSynchronize(self.raw) }.done()
    }

    /// What is queued from now on starts after the event.
    pub(super) fn follow(&self, event: &Event) -> Answer<()> {
        // SAFETY: both are alive; the driver remembers the event's point, not the event.
        unsafe { self.api.cuStreamWaitEvent(self.raw, event.raw, 0) }.done()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: created once, destroyed once.
        let _ = unsafe { self.api.cuStreamDestroy_v2(self.raw) };
    }
}

/// A point in a queue.
#[derive(Debug)]
pub(super) struct Event {
    api: &'static Api,
    raw: CUevent,
}

impl Event {
    /// Events that are timed cost more to record.
    pub(super) fn create(api: &'static Api, timed: bool) -> Answer<Event> {
        let flags =
            if timed { CUevent_flags::CU_EVENT_DEFAULT } else { CUevent_flags::CU_EVENT_DISABLE_TIMING };
        let mut raw = null_mut();
        // SAFETY: the pointer leads to the handle.
        unsafe { api.cuEventCreate(&mut raw, flags as u32) }.done()?;
        Ok(Event { api, raw })
    }

    /// The event is the queue's point from now on, whatever it was before.
    pub(super) fn record(&self, stream: &Stream) -> Answer<()> {
        // SAFETY: both are alive.
        unsafe { self.api.cuEventRecord(self.raw, stream.raw) }.done()
    }

    /// 0 where the point has been passed, `NOT_READY` where not yet.
    pub(super) fn query(&self) -> Outcome {
        // SAFETY: the event is alive.
        unsafe { self.api.cuEventQuery(self.raw) }
    }

    pub(super) fn wait(&self) -> Answer<()> {
        // SAFETY: the event is alive.
        unsafe { self.api.cuEventSynchronize(self.raw) }.done()
    }

    /// Milliseconds from one timed event to another; both have been waited for.
    pub(super) fn elapsed(start: &Event, end: &Event) -> Answer<f64> {
        let mut milliseconds = 0f32;
        // SAFETY: the pointer leads to the number, the events are alive.
        unsafe { start.api.cuEventElapsedTime(&mut milliseconds, start.raw, end.raw) }.done()?;
        Ok(f64::from(milliseconds))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: created once, destroyed once; the driver keeps what it still needs.
        let _ = unsafe { self.api.cuEventDestroy_v2(self.raw) };
    }
}

/// Page-locked memory of the host, which the device copies from and to without the host's help.
#[derive(Debug)]
pub(super) struct Pinned {
    api: &'static Api,
    start: NonNull<u8>,
    bytes: usize,
}

impl Pinned {
    pub(super) fn alloc(api: &'static Api, bytes: usize) -> Answer<Pinned> {
        let mut start = null_mut();
        // SAFETY: the pointer leads to the pointer.
        let outcome = unsafe { api.cuMemHostAlloc(&mut start, bytes, sys::CU_MEMHOSTALLOC_PORTABLE) };
        outcome.done()?;
        let start =
            NonNull::new(start.cast()).ok_or(Outcome { code: super::api::OUT_OF_MEMORY, ..outcome })?;
        // SAFETY: so many bytes were just given, and nobody else has them. Written, so that they may be read.
        unsafe { start.write_bytes(0, bytes) };
        Ok(Pinned { api, start, bytes })
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn start(&self) -> NonNull<u8> {
        self.start
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: allocated once, freed once. Whoever drops it sees to it that no copy still uses it.
        let _ = unsafe { self.api.cuMemFreeHost(self.start.as_ptr().cast()) };
    }
}

/// Device memory as the driver gives it.
#[derive(Debug)]
pub(super) struct Chunk {
    api: &'static Api,
    device: CUdevice,
    start: CUdeviceptr,
    bytes: u64,
}

/// Bytes of all chunks of this process, by device: contexts are shared, so that one [`Cuda`](super::Cuda) measures what
/// it takes beside the chunks of others.
static HELD: Mutex<BTreeMap<CUdevice, u64>> = Mutex::new(BTreeMap::new());

impl Chunk {
    pub(super) fn alloc(api: &'static Api, device: CUdevice, bytes: u64) -> Answer<Chunk> {
        let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
        let mut start = 0;
        // SAFETY: the pointer leads to the address.
        unsafe { api.cuMemAlloc_v2(&mut start, bytes as usize) }.done()?;
        *held.entry(device).or_default() += bytes;
        Ok(Chunk { api, device, start, bytes })
    }

    /// Free and total bytes of the device's memory, and how many bytes chunks of this process have of it.
    pub(super) fn around(context: &Context) -> Answer<(u64, u64, u64)> {
        let held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
        let (free, total) = context.memory()?;
        Ok((free, total, held.get(&context.device).copied().unwrap_or(0)))
    }

    pub(super) fn start(&self) -> CUdeviceptr {
        self.start
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: allocated once, freed once. Whoever drops it sees to it that no work still uses it.
        let _ = unsafe { self.api.cuMemFree_v2(self.start) };
        if let Some(held) = held.get_mut(&self.device) {
            *held -= self.bytes;
        }
    }
}

/// Kernels that have been loaded.
#[derive(Debug)]
pub(super) struct Module {
    api: &'static Api,
    raw: CUmodule,
}

impl Module {
    /// Loads an image: a fat binary, a cubin, or what a stand-in for the driver takes for one.
    pub(super) fn load(api: &'static Api, image: &[u8]) -> Answer<Module> {
        let mut raw = null_mut();
        // SAFETY: the pointers lead to the handle and to an image, which says itself how long it is. Images are made by
        // this project's build, which checks them.
        unsafe { api.cuModuleLoadData(&mut raw, image.as_ptr().cast::<c_void>()) }.done()?;
        Ok(Module { api, raw })
    }

    /// The kernel of this name, which lives as long as the module.
    pub(super) fn function(&self, name: &CStr) -> Answer<Function> {
        let mut raw = null_mut();
        // SAFETY: the pointers lead to the handle and to a text that ends; the module is loaded.
        unsafe { self.api.cuModuleGetFunction(&mut raw, self.raw, name.as_ptr()) }.done()?;
        Ok(Function { api: self.api, raw })
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: loaded once, unloaded once.
        let _ = unsafe { self.api.cuModuleUnload(self.raw) };
    }
}

/// A kernel of a module that stays loaded.
#[derive(Debug)]
pub(super) struct Function {
    api: &'static Api,
    raw: CUfunction,
}

impl Function {
    pub(super) fn raw(&self) -> CUfunction {
        self.raw
    }

    pub(super) fn attribute(&self, attribute: CUfunction_attribute) -> Answer<usize> {
        let mut value: c_int = 0;
        // SAFETY: the pointer leads to the number, the module is loaded.
        unsafe { self.api.cuFuncGetAttribute(&mut value, attribute, self.raw) }.done()?;
        Ok(value.max(0) as usize)
    }

    /// Allows launches with so many bytes of shared memory beside what the kernel declares.
    pub(super) fn allow_shared(&self, bytes: usize) -> Answer<()> {
        let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the module is loaded.
        unsafe { self.api.cuFuncSetAttribute(self.raw, attribute, bytes as c_int) }.done()
    }

    /// Bytes of the kernel's parameters, of which it has one; `None` where the driver does not tell.
    pub(super) fn parameter(&self) -> Option<usize> {
        let of = |index| {
            let (mut offset, mut bytes) = (0, 0);
            // SAFETY: the pointers lead to the numbers, the module is loaded.
            let answer = unsafe { self.api.parameter_info(self.raw, index, &mut offset, &mut bytes) }?;
            answer.done().ok().map(|()| offset + bytes)
        };
        // With a second parameter no structure is of the right size.
        let first = of(0)?;
        Some(of(1).map_or(first, |_| usize::MAX))
    }
}

macro_rules! any_thread {
    ($($name:ident)*) => {$(
        // SAFETY: the driver lets any thread use its handles, several at once, as long as their context is current; the
        // memory of those that stand for memory is owned, and given out under the rules of borrowing or to the device.
        unsafe impl Send for $name {}
        // SAFETY: as above.
        unsafe impl Sync for $name {}
    )*};
}

any_thread!(Context Stream Event Pinned Module Function);
