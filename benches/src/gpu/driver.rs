//! Calls of the driver that the engine does not make: every kind of host memory, copies both ways, memory for cuBLAS.
//!
//! All of it is in the primary context of the first device, which `Cuda` has opened.

use cudarc::driver::sys::{self, CUresult};
use std::ffi::c_void;
use std::ptr::null_mut;

const PAGE: usize = 4096;

fn done(call: &str, result: CUresult) {
    assert!(result == CUresult::CUDA_SUCCESS, "{call}: {result:?}");
}

/// The primary context of the first device, current in this thread.
pub struct Context(sys::CUdevice);

impl Context {
    /// Makes it current.
    pub fn enter() -> Context {
        let mut device = 0;
        let mut context = null_mut();
        // SAFETY: the pointers lead to what is written; the driver was initialised when `Cuda` was opened.
        unsafe {
            done("cuDeviceGet", sys::cuDeviceGet(&mut device, 0));
            done("cuDevicePrimaryCtxRetain", sys::cuDevicePrimaryCtxRetain(&mut context, device));
            done("cuCtxSetCurrent", sys::cuCtxSetCurrent(context));
        }
        Context(device)
    }

    /// Waits for all work.
    pub fn finish(&self) {
        // SAFETY: takes nothing.
        done("cuCtxSynchronize", unsafe { sys::cuCtxSynchronize() });
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: it was retained once by `enter`. What is left of it is the process's, which is about to end.
        unsafe {
            let _ = sys::cuDevicePrimaryCtxRelease_v2(self.0);
        }
    }
}

/// Memory of the device.
pub struct Memory {
    address: sys::CUdeviceptr,
    bytes: usize,
}

impl Memory {
    /// Holds `block` over and over. `None` where the device has not so much.
    pub fn filled(_: &Context, bytes: usize, block: &[u8]) -> Option<Memory> {
        let mut address = 0;
        // SAFETY: the pointer leads to the address.
        if unsafe { sys::cuMemAlloc_v2(&mut address, bytes) } != CUresult::CUDA_SUCCESS {
            return None;
        }
        let memory = Memory { address, bytes };
        for at in (0..bytes).step_by(block.len()) {
            let part = block.len().min(bytes - at);
            // SAFETY: both sides have `part` bytes, and the call ends when they are copied.
            let result = unsafe { sys::cuMemcpyHtoD_v2(address + at as u64, block.as_ptr().cast(), part) };
            done("cuMemcpyHtoD", result);
        }
        Some(memory)
    }

    /// Its address on the device.
    pub fn address(&self) -> u64 {
        self.address
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: nobody has the address any more; freeing waits for work that uses it.
        unsafe {
            let _ = sys::cuMemFree_v2(self.address);
        }
    }
}

/// How the driver knows host memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Not at all: it copies through buffers of its own.
    Pageable,
    /// It has allocated it.
    Pinned,
    /// It was told of it, and has locked its pages.
    Registered,
}

/// Memory of the host.
pub struct Host {
    start: *mut u8,
    bytes: usize,
    kind: Kind,
    /// What `start` leads to where the driver has not allocated it.
    own: Vec<u8>,
}

impl Host {
    /// Filled with random bytes. `None` where the driver refuses so much.
    pub fn new(_: &Context, kind: Kind, bytes: usize, block: &[u8]) -> Option<Host> {
        let mut host = Host { start: null_mut(), bytes, kind, own: Vec::new() };
        if kind == Kind::Pinned {
            let mut start: *mut c_void = null_mut();
            // SAFETY: the pointer leads to the address.
            let result = unsafe { sys::cuMemHostAlloc(&mut start, bytes, 0) };
            if result != CUresult::CUDA_SUCCESS {
                return None;
            }
            host.start = start.cast();
        } else {
            // Whole pages: the driver locks no page twice.
            host.own = vec![1; bytes.next_multiple_of(PAGE) + PAGE];
            let skip = host.own.as_ptr().align_offset(PAGE);
            host.start = host.own[skip..].as_mut_ptr();
        }
        if kind == Kind::Registered {
            // SAFETY: the memory is there until `drop`, which takes it away from the driver first.
            let result = unsafe { sys::cuMemHostRegister_v2(host.start.cast(), bytes, 0) };
            if result != CUresult::CUDA_SUCCESS {
                host.kind = Kind::Pageable;
                return None;
            }
        }
        for at in (0..bytes).step_by(block.len()) {
            let part = block.len().min(bytes - at);
            // SAFETY: `part` bytes are there behind `at`, and nobody else has the memory yet.
            unsafe { std::ptr::copy_nonoverlapping(block.as_ptr(), host.start.add(at), part) };
        }
        Some(host)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // SAFETY: allocated or registered by `new`; copies from it have been waited for, as `Stream::finish` says.
        unsafe {
            let _ = match self.kind {
                Kind::Pageable => CUresult::CUDA_SUCCESS,
                Kind::Pinned => sys::cuMemFreeHost(self.start.cast()),
                Kind::Registered => sys::cuMemHostUnregister(self.start.cast()),
            };
        }
    }
}

/// A queue of copies.
pub struct Stream(sys::CUstream);

impl Stream {
    /// An empty one.
    pub fn new(_: &Context) -> Stream {
        let mut stream = null_mut();
        // SAFETY: the pointer leads to the handle. 1: it does not wait for the default stream.
        done("cuStreamCreate", unsafe { sys::cuStreamCreate(&mut stream, 1) });
        Stream(stream)
    }

    /// Queues a copy to the device. [`finish`](Self::finish) before either is dropped.
    pub fn up(&self, from: &Host, to: &Memory, at: usize, bytes: usize) {
        assert!(at + bytes <= from.bytes && at + bytes <= to.bytes, "a part of both");
        // SAFETY: both have so many bytes there; the benches wait before they drop or read them.
        let result = unsafe {
            sys::cuMemcpyHtoDAsync_v2(to.address + at as u64, from.start.add(at).cast(), bytes, self.0)
        };
        done("cuMemcpyHtoDAsync", result);
    }

    /// Queues a copy to the host. [`finish`](Self::finish) before either is dropped.
    pub fn down(&self, from: &Memory, to: &mut Host, at: usize, bytes: usize) {
        assert!(at + bytes <= from.bytes && at + bytes <= to.bytes, "a part of both");
        // SAFETY: as in `up`.
        let result = unsafe {
            sys::cuMemcpyDtoHAsync_v2(to.start.add(at).cast(), from.address + at as u64, bytes, self.0)
        };
        done("cuMemcpyDtoHAsync", result);
    }

    /// Waits for everything queued.
    pub fn finish(&self) {
        // SAFETY: the handle is live.
        done("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(self.0) });
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: the handle is live and given up here.
        unsafe {
            let _ = sys::cuStreamDestroy_v2(self.0);
        }
    }
}
