//! cuBLAS as a measure, where the machine has it: products of f16 matrices with sums in f32.

use super::driver::{Context, Memory};
use super::{random, rounds};
use crate::median;
use libloading::Library;
use std::ffi::{c_int, c_void};
use std::ptr::null_mut;
use std::time::Instant;

/// Names under which systems have it.
const NAMES: [&str; 4] = ["libcublas.so.13", "libcublas.so.12", "libcublas.so", "libcublas.so.11"];

type Create = unsafe extern "C" fn(*mut *mut c_void) -> c_int;
type Destroy = unsafe extern "C" fn(*mut c_void) -> c_int;
type GemmEx = unsafe extern "C" fn(
    *mut c_void,
    c_int,
    c_int,
    c_int,
    c_int,
    c_int,
    *const c_void,
    *const c_void,
    c_int,
    c_int,
    *const c_void,
    c_int,
    c_int,
    *const c_void,
    *mut c_void,
    c_int,
    c_int,
    c_int,
    c_int,
) -> c_int;

/// A handle of the library.
pub struct Cublas {
    handle: *mut c_void,
    gemm: GemmEx,
    destroy: Destroy,
    context: Context,
    _library: Library,
}

impl Cublas {
    /// Loads it; a line says why not.
    pub fn open() -> Result<Cublas, String> {
        // SAFETY: the library is NVIDIA's, whose initialisers are made to be run this way.
        let library = NAMES.iter().find_map(|name| unsafe { Library::new(*name) }.ok());
        let library = library.ok_or("no libcublas on the library path: nothing to compare with")?;
        // SAFETY: the types are those of cublas_api.h.
        let symbols = unsafe {
            let create = library.get::<Create>(b"cublasCreate_v2\0").map(|symbol| *symbol);
            let destroy = library.get::<Destroy>(b"cublasDestroy_v2\0").map(|symbol| *symbol);
            let gemm = library.get::<GemmEx>(b"cublasGemmEx\0").map(|symbol| *symbol);
            (create, destroy, gemm)
        };
        let (Ok(create), Ok(destroy), Ok(gemm)) = symbols else {
            return Err("libcublas lacks cublasGemmEx: nothing to compare with".into());
        };
        let context = Context::enter();
        let mut handle = null_mut();
        // SAFETY: the pointer leads to the handle; a context is current.
        let status = unsafe { create(&mut handle) };
        if status != 0 {
            return Err(format!("cublasCreate: status {status}"));
        }
        Ok(Cublas { handle, gemm, destroy, context, _library: library })
    }

    /// Milliseconds of a product of `[rows, cols]` weights and `n` tokens: the median of several rounds. The weights of
    /// a call are followed by others, `pool` bytes in all. `None` where they find no room.
    pub fn milliseconds(&self, rows: usize, cols: usize, n: usize, pool: usize) -> Option<f64> {
        let bytes = rows * cols * 2;
        let count = pool.div_ceil(bytes).max(2);
        // Halves of 2^-5 to 1, of either sign: of the exponent one bit is random.
        let mut block = random(1 << 20, 3);
        for half in block.as_chunks_mut::<2>().0 {
            half[1] = (half[1] & 0x83) | 0x28 | (half[1] & 0x10);
        }
        let memory = |bytes| Memory::filled(&self.context, bytes, &block);
        let (weights, x, y) = (memory(count * bytes)?, memory(n * cols * 2)?, memory(n * rows * 2)?);
        let (one, zero) = (1f32, 0f32);
        let (rows, cols, n) = (rows as c_int, cols as c_int, n as c_int);
        let (half, f32_sums, default, transposed, plain) = (2, 68, -1, 1, 0);
        let mut next = 0;
        let mut call = || {
            let w = weights.address() + (next % count * bytes) as u64;
            next += 1;
            let (one, zero): (*const f32, *const f32) = (&one, &zero);
            // SAFETY: column by column, y[rows, n] = w[cols, rows]' x[cols, n], each as large as it is said to be above.
            let status = unsafe {
                (self.gemm)(
                    self.handle,
                    transposed,
                    plain,
                    rows,
                    n,
                    cols,
                    one.cast(),
                    w as *const c_void,
                    half,
                    cols,
                    x.address() as *const c_void,
                    half,
                    cols,
                    zero.cast(),
                    y.address() as *mut c_void,
                    half,
                    rows,
                    f32_sums,
                    default,
                )
            };
            assert!(status == 0, "cublasGemmEx: status {status}");
        };
        // Enough calls that starting and waiting do not count.
        let calls = count.max(20);
        let mut round = || {
            self.context.finish();
            let start = Instant::now();
            (0..calls).for_each(|_| call());
            self.context.finish();
            start.elapsed().as_secs_f64() * 1e3 / calls as f64
        };
        round();
        Some(median(&mut (0..rounds()).map(|_| round()).collect::<Vec<_>>()))
    }
}

impl Drop for Cublas {
    fn drop(&mut self) {
        // SAFETY: the handle is live, and its work was waited for.
        unsafe {
            (self.destroy)(self.handle);
        }
    }
}
