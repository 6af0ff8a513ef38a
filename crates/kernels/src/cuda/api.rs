//! The functions of the driver that are used, looked up all at once when the driver is first asked for.
//!
//! `cudarc` finds the library and knows the types. Its own functions are not called: they end the program where the
//! installed driver lacks one of them, and take the answer for one of the codes of their version of CUDA, which a newer
//! driver's need not be. A signature here that differs from cudarc's does not compile.

use super::devices::Unusable;
use cudarc::driver::sys;
pub(super) use cudarc::driver::sys::{
    CUcontext, CUdevice, CUdeviceptr, CUevent, CUfunction, CUmodule, CUstream,
};
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;

/// What a call of the driver answered.
#[must_use]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) call: &'static str,
    pub(super) code: u32,
}

/// Answers that are told apart.
pub(super) const OUT_OF_MEMORY: u32 = sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY as u32;
pub(super) const NO_DEVICE: u32 = sys::CUresult::CUDA_ERROR_NO_DEVICE as u32;
pub(super) const NOT_FOUND: u32 = sys::CUresult::CUDA_ERROR_NOT_FOUND as u32;
pub(super) const NOT_READY: u32 = sys::CUresult::CUDA_ERROR_NOT_READY as u32;

type ParameterInfo = unsafe extern "C" fn(CUfunction, usize, *mut usize, *mut usize) -> u32;
const _: unsafe fn(CUfunction, usize, *mut usize, *mut usize) -> sys::CUresult = sys::cuFuncGetParamInfo;

/// Takes any number, where cudarc's type is one of the codes of its version.
type TextOf = unsafe extern "C" fn(u32, *mut *const c_char) -> u32;
const _: [unsafe fn(sys::CUresult, *mut *const c_char) -> sys::CUresult; 2] =
    [sys::cuGetErrorName, sys::cuGetErrorString];
const _: () = assert!(size_of::<sys::CUresult>() == size_of::<u32>());

macro_rules! functions {
    ($($name:ident ( $($arg:ident: $kind:ty),* $(,)? ))*) => {
        /// The driver's functions by the names that its header gives them.
        #[derive(Debug)]
        #[allow(non_snake_case)]
        pub(super) struct Api {
            $($name: unsafe extern "C" fn($($kind),*) -> u32,)*
            cuGetErrorName: TextOf,
            cuGetErrorString: TextOf,
            /// May be missing: nothing depends on it but a check.
            cuFuncGetParamInfo: Option<ParameterInfo>,
        }

        #[allow(non_snake_case, clippy::too_many_arguments)]
        impl Api {
            /// Looks all functions up; the name of the first that is missing otherwise.
            fn load() -> Result<Api, &'static str> {
                // SAFETY: it was found that a library of this name can be loaded. It is loaded once and stays.
                let library = unsafe { sys::culib() };
                macro_rules! find {
                    ($function:expr) => {
                        // SAFETY: the driver's function of this name has this signature, as the checks in this file make
                        // sure; its answer is an enumeration of C, which is passed as a number of 32 bits.
                        *unsafe { library.get(concat!($function, "\0")) }.map_err(|_| $function)?
                    };
                }
                Ok(Api {
                    $($name: find!(stringify!($name)),)*
                    cuGetErrorName: find!("cuGetErrorName"),
                    cuGetErrorString: find!("cuGetErrorString"),
                    // SAFETY: as above.
                    cuFuncGetParamInfo: unsafe { library.get("cuFuncGetParamInfo\0") }.ok().map(|found| *found),
                })
            }

            $(
                /// # Safety
                ///
                /// Pointers lead to what the driver's documentation says; handles are alive.
                pub(super) unsafe fn $name(&self, $($arg: $kind),*) -> Outcome {
                    // SAFETY: the caller vouches for the arguments.
                    Outcome { call: stringify!($name), code: unsafe { (self.$name)($($arg),*) } }
                }
            )*
        }

        $(const _: unsafe fn($($kind),*) -> sys::CUresult = sys::$name;)*
    };
}

functions! {
    cuInit(flags: c_uint)
    cuDriverGetVersion(version: *mut c_int)
    cuDeviceGetCount(count: *mut c_int)
    cuDeviceGet(device: *mut CUdevice, ordinal: c_int)
    cuDeviceGetName(name: *mut c_char, bytes: c_int, device: CUdevice)
    cuDeviceGetAttribute(value: *mut c_int, attribute: sys::CUdevice_attribute, device: CUdevice)
    cuDeviceTotalMem_v2(bytes: *mut usize, device: CUdevice)
    cuDevicePrimaryCtxRetain(context: *mut CUcontext, device: CUdevice)
    cuDevicePrimaryCtxRelease_v2(device: CUdevice)
    cuCtxSetCurrent(context: CUcontext)
    cuMemGetInfo_v2(free: *mut usize, total: *mut usize)
    cuMemAlloc_v2(start: *mut CUdeviceptr, bytes: usize)
    cuMemFree_v2(start: CUdeviceptr)
    cuMemHostAlloc(start: *mut *mut c_void, bytes: usize, flags: c_uint)
    cuMemFreeHost(start: *mut c_void)
    cuMemHostRegister_v2(start: *mut c_void, bytes: usize, flags: c_uint)
    cuMemHostUnregister(start: *mut c_void)
    cuMemsetD8Async(start: CUdeviceptr, value: u8, bytes: usize, stream: CUstream)
    cuMemcpyHtoDAsync_v2(to: CUdeviceptr, from: *const c_void, bytes: usize, stream: CUstream)
    cuMemcpyDtoHAsync_v2(to: *mut c_void, from: CUdeviceptr, bytes: usize, stream: CUstream)
    cuMemcpyDtoDAsync_v2(to: CUdeviceptr, from: CUdeviceptr, bytes: usize, stream: CUstream)
    cuStreamCreate(stream: *mut CUstream, flags: c_uint)
    cuStreamDestroy_v2(stream: CUstream)
    cuStreamSynchronize(stream: CUstream)
    cuStreamWaitEvent(stream: CUstream, event: CUevent, flags: c_uint)
    cuEventCreate(event: *mut CUevent, flags: c_uint)
    cuEventDestroy_v2(event: CUevent)
    cuEventRecord(event: CUevent, stream: CUstream)
    cuEventQuery(event: CUevent)
    cuEventSynchronize(event: CUevent)
    cuEventElapsedTime(milliseconds: *mut f32, start: CUevent, end: CUevent)
    cuModuleLoadData(module: *mut CUmodule, image: *const c_void)
    cuModuleUnload(module: CUmodule)
    cuModuleGetFunction(function: *mut CUfunction, module: CUmodule, name: *const c_char)
    cuFuncGetAttribute(value: *mut c_int, attribute: sys::CUfunction_attribute, function: CUfunction)
    cuFuncSetAttribute(function: CUfunction, attribute: sys::CUfunction_attribute, value: c_int)
    cuLaunchKernel(
        function: CUfunction,
        blocks_x: c_uint, blocks_y: c_uint, blocks_z: c_uint,
        threads_x: c_uint, threads_y: c_uint, threads_z: c_uint,
        shared: c_uint, stream: CUstream, params: *mut *mut c_void, extra: *mut *mut c_void,
    )
}

impl Api {
    /// The installed driver, initialised.
    pub(super) fn get() -> Result<&'static Api, Unusable> {
        static API: OnceLock<Result<Api, Unusable>> = OnceLock::new();
        API.get_or_init(Api::open).as_ref().map_err(Unusable::clone)
    }

    fn open() -> Result<Api, Unusable> {
        // SAFETY: loading the library runs its initialisers, as it would in any program that is linked to it.
        if !unsafe { sys::is_culib_present() } {
            return Err(Unusable::NoDriver);
        }
        let api = Api::load().map_err(|function| Unusable::Incomplete { function })?;
        // SAFETY: the function takes a number, which must be 0.
        match unsafe { api.cuInit(0) } {
            Outcome { code: 0, .. } => Ok(api),
            Outcome { code: NO_DEVICE, .. } => Err(Unusable::NoDevice),
            outcome => Err(Unusable::Driver { call: outcome.call, what: api.text(outcome.code) }),
        }
    }

    /// Where a kernel's parameter lies and how large it is; `None` where the driver lacks the function.
    ///
    /// # Safety
    ///
    /// The kernel's module is loaded; the pointers lead to two numbers.
    pub(super) unsafe fn parameter_info(
        &self,
        function: CUfunction,
        index: usize,
        offset: *mut usize,
        bytes: *mut usize,
    ) -> Option<Outcome> {
        // SAFETY: the caller vouches for the arguments.
        let code = unsafe { self.cuFuncGetParamInfo?(function, index, offset, bytes) };
        Some(Outcome { call: "cuFuncGetParamInfo", code })
    }

    /// Name and text of an error.
    pub(super) fn text(&self, code: u32) -> String {
        let ask = |function: TextOf| {
            let mut text = std::ptr::null();
            // SAFETY: both functions take the number of any error, and give a text that stays or none.
            let answer = unsafe { function(code, &mut text) };
            let text = (answer == 0 && !text.is_null()).then_some(text)?;
            // SAFETY: the driver's texts end with a zero and stay.
            Some(unsafe { CStr::from_ptr(text) }.to_string_lossy())
        };
        let (name, text) = (ask(self.cuGetErrorName), ask(self.cuGetErrorString));
        match (name, text) {
            (Some(name), Some(text)) => format!("{name}: {text}"),
            (Some(name), None) => name.into_owned(),
            _ => format!("error {code}"),
        }
    }
}
