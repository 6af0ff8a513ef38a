//! The stand-in driver itself, through the raw calls of `cudarc`.

mod device;
mod graphs;
mod kernels;
mod memory;
mod order;

use airllm_standin::Standin;
use cudarc::driver::sys;
use std::ffi::{CString, c_void};
use std::ptr::{null, null_mut};

/// A call of the driver, and what it answers.
macro_rules! call {
    ($name:ident $($arguments:tt)*) => {{
        // SAFETY: the arguments are what the function takes; where they are wrong on purpose, the driver refuses them.
        #[allow(unused_unsafe, reason = "arguments may hold calls themselves")]
        unsafe { cudarc::driver::sys::$name $($arguments)* }
    }};
}
/// A call that must succeed.
macro_rules! ok {
    ($($call:tt)*) => {
        assert_eq!(call!($($call)*), cudarc::driver::sys::CUresult::CUDA_SUCCESS, "{}", stringify!($($call)*))
    };
}
/// A call that must fail, with this error.
macro_rules! fails {
    ($error:ident, $($call:tt)*) => {
        assert_eq!(call!($($call)*), cudarc::driver::sys::CUresult::$error, "{}", stringify!($($call)*))
    };
}
pub(crate) use {call, fails, ok};

/// What the kernels `add`, `copy` and those of `kernels/emu/checks.cu` take.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Flat {
    pub y: u64,
    pub x: u64,
    pub len: u64,
}

/// The device, with the primary context retained and current.
pub(crate) struct Device {
    pub standin: Standin,
    module: sys::CUmodule,
}

impl Device {
    pub(crate) fn new() -> Device {
        Device::with("")
    }

    pub(crate) fn with(switches: &str) -> Device {
        let standin = Standin::with(switches);
        ok!(cuInit(0));
        let mut context = null_mut();
        ok!(cuDevicePrimaryCtxRetain(&mut context, 0));
        ok!(cuCtxSetCurrent(context));
        let mut module = null_mut();
        ok!(cuModuleLoadData(&mut module, c"airllm stand-in".as_ptr().cast()));
        Device { standin, module }
    }

    pub(crate) fn function(&self, name: &str) -> Result<sys::CUfunction, sys::CUresult> {
        let name = CString::new(name).unwrap();
        let mut function = null_mut();
        match call!(cuModuleGetFunction(&mut function, self.module, name.as_ptr())) {
            sys::CUresult::CUDA_SUCCESS => Ok(function),
            error => Err(error),
        }
    }

    /// Queues a kernel of 64 threads.
    pub(crate) fn launch(&self, name: &str, params: Flat, stream: sys::CUstream) -> sys::CUresult {
        let function = self.function(name).unwrap();
        let mut list = [(&raw const params).cast_mut().cast::<c_void>()];
        call!(cuLaunchKernel(function, 1, 1, 1, 64, 1, 1, 0, stream, list.as_mut_ptr(), null_mut()))
    }

    pub(crate) fn stream(&self) -> sys::CUstream {
        let mut stream = null_mut();
        ok!(cuStreamCreate(&mut stream, sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32));
        stream
    }

    pub(crate) fn event(&self) -> sys::CUevent {
        let mut event = null_mut();
        ok!(cuEventCreate(&mut event, 0));
        event
    }

    /// Room for as many numbers.
    pub(crate) fn alloc(&self, count: usize) -> u64 {
        let mut at = 0;
        ok!(cuMemAlloc_v2(&mut at, count * 4));
        at
    }

    /// Page-locked numbers.
    pub(crate) fn pinned(&self, numbers: &[f32]) -> *mut f32 {
        let mut at = null_mut();
        ok!(cuMemHostAlloc(&mut at, size_of_val(numbers), 0));
        let at = at.cast::<f32>();
        for (i, &x) in numbers.iter().enumerate() {
            // SAFETY: there is room for all of them, and nobody else has it.
            unsafe { at.add(i).write(x) };
        }
        at
    }

    /// Numbers on the device, read by a blocking copy, which waits for no stream of `stream`.
    pub(crate) fn read(&self, at: u64, count: usize) -> Vec<f32> {
        let mut numbers = vec![0f32; count];
        ok!(cuMemcpyDtoH_v2(numbers.as_mut_ptr().cast(), at, count * 4));
        numbers
    }

    pub(crate) fn write(&self, at: u64, numbers: &[f32]) {
        ok!(cuMemcpyHtoD_v2(at, numbers.as_ptr().cast(), size_of_val(numbers)));
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // Errors that a test provoked are over.
        self.standin.reset();
        let released = call!(cuDevicePrimaryCtxRelease_v2(0));
        if !std::thread::panicking() {
            assert_eq!(released, sys::CUresult::CUDA_SUCCESS);
            ok!(cuCtxSetCurrent(null_mut()));
            assert_eq!(self.standin.used(), 0, "the context took its memory with it");
        }
    }
}

pub(crate) fn counted(count: usize) -> Vec<f32> {
    (0..count).map(|i| i as f32).collect()
}

#[test]
fn the_library_is_found_as_cudarc_looks_for_it() {
    let _standin = Standin::with("");
    // SAFETY: loading the library runs nothing that needs anything.
    assert!(unsafe { sys::is_culib_present() });
    let mut found: *mut c_void = null_mut();
    let name = c"cuMemAlloc";
    ok!(cuGetProcAddress_v2(name.as_ptr(), &mut found, 12_080, 0, null_mut()));
    assert!(!found.is_null());
    fails!(
        CUDA_ERROR_NOT_FOUND,
        cuGetProcAddress_v2(c"cuNothing".as_ptr(), &mut found, 12_080, 0, null_mut())
    );
    let mut text = null();
    ok!(cuGetErrorName(sys::CUresult::CUDA_ERROR_ILLEGAL_ADDRESS, &mut text));
    // SAFETY: the driver gives texts that end and stay.
    assert_eq!(unsafe { std::ffi::CStr::from_ptr(text) }, c"CUDA_ERROR_ILLEGAL_ADDRESS");
}
