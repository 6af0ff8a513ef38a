//! What tests set and ask of the driver.

use libloading::{Library, Symbol};
use std::ffi::{CString, c_char, c_int};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

/// The folder that holds `libcuda.so` and `libcuda.so.1`: for the `LD_LIBRARY_PATH` of programs that are not started by
/// cargo, nor by what cargo started.
pub fn folder() -> &'static Path {
    Path::new(env!("OUT_DIR"))
}

fn library() -> &'static Library {
    static LIBRARY: OnceLock<Library> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let path = folder().join("libcuda.so");
        // SAFETY: what the library runs when it is loaded sets up its list of kernels, which needs nothing.
        unsafe { Library::new(&path) }.unwrap_or_else(|error| panic!("loading {}: {error}", path.display()))
    })
}

fn function<F>(name: &str) -> Symbol<'static, F> {
    // SAFETY: callers name functions of `driver/switches.cpp` with the types that they have there.
    unsafe { library().get(name.as_bytes()) }.unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn text(of: &str) -> CString {
    CString::new(of).unwrap_or_else(|error| panic!("{of:?}: {error}"))
}

/// The driver of this process, for one test at a time: others wait until this is dropped.
#[derive(Debug)]
pub struct Standin {
    _alone: MutexGuard<'static, ()>,
}

impl Standin {
    /// Takes the driver, with these switches (`NAME=value`, with spaces between them; all others as the environment has
    /// them), no errors, and all counts at zero.
    ///
    /// # Panics
    ///
    /// If there is no such switch, or it cannot have this value; the driver prints which.
    pub fn with(switches: &str) -> Standin {
        static ALONE: Mutex<()> = Mutex::new(());
        // A test that failed leaves nothing behind that matters.
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let standin = Standin { _alone: alone };
        standin.configure(switches);
        standin.reset();
        standin
    }

    /// Sets the switches anew; see [`Standin::with`].
    ///
    /// # Panics
    ///
    /// As [`Standin::with`].
    pub fn configure(&self, switches: &str) {
        let configure = function::<unsafe extern "C" fn(*const c_char) -> c_int>("airllm_standin_configure");
        let text = text(switches);
        // SAFETY: the text ends with a zero, and is read in the call only.
        let code = unsafe { configure(text.as_ptr()) };
        assert_eq!(code, 0, "the stand-in driver does not take the switches {switches:?}");
    }

    /// Gives up queued work, forgets errors and counts; the peak becomes what is taken now.
    pub fn reset(&self) {
        let reset = function::<unsafe extern "C" fn()>("airllm_standin_reset");
        // SAFETY: the function can be called at any time.
        unsafe { reset() }
    }

    /// How often the driver's function of this name was called.
    pub fn calls(&self, name: &str) -> u64 {
        let calls = function::<unsafe extern "C" fn(*const c_char) -> u64>("airllm_standin_calls");
        let name = text(name);
        // SAFETY: the name ends with a zero, and is read in the call only.
        unsafe { calls(name.as_ptr()) }
    }

    /// Most bytes of device memory that were taken at a time.
    pub fn peak(&self) -> u64 {
        // SAFETY: the function can be called at any time.
        unsafe { function::<unsafe extern "C" fn() -> u64>("airllm_standin_peak")() }
    }

    /// Bytes of device memory that are taken.
    pub fn used(&self) -> u64 {
        // SAFETY: the function can be called at any time.
        unsafe { function::<unsafe extern "C" fn() -> u64>("airllm_standin_used")() }
    }

    /// What happened when the driver has an error that stays; empty if it has none.
    pub fn message(&self) -> String {
        let message = function::<unsafe extern "C" fn(*mut c_char, usize)>("airllm_standin_message");
        let mut bytes = [0u8; 2048];
        // SAFETY: there is room for as many bytes as the function is told.
        unsafe { message(bytes.as_mut_ptr().cast(), bytes.len()) }
        let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
        String::from_utf8_lossy(&bytes[..end]).into_owned()
    }
}

impl Drop for Standin {
    fn drop(&mut self) {
        self.configure("");
        self.reset();
    }
}
