//! Kernels: found by their names once, and launched with one structure.

use super::Cuda;
use super::api::{Api, NOT_FOUND, Outcome};
use super::handles::{Answer, Function, Module};
use super::shared::locked;
use crate::{Error, Result};
use cudarc::driver::sys::CUfunction_attribute as Attribute;
use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::ptr::{from_ref, null_mut};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

/// Shared memory that a block has without asking.
const UNASKED: usize = 48 << 10;

/// All kernels of this build, loaded.
#[derive(Debug)]
pub(super) struct Loaded {
    module: Module,
    /// Most bytes of shared memory that a block can have.
    shared: usize,
    /// Kernels that have been asked for.
    found: Mutex<HashMap<String, Arc<Kernel>>>,
}

#[derive(Debug)]
struct Kernel {
    name: Arc<str>,
    function: Function,
    /// Bytes of its parameter, where the driver tells.
    parameter: Option<usize>,
    /// Bytes of shared memory that it declares.
    declared: usize,
    /// Bytes of shared memory beside those that launches may ask for.
    allowed: AtomicUsize,
}

impl Loaded {
    /// Loads an image for the current context.
    pub(super) fn load(api: &'static Api, image: &'static [u8], shared: usize) -> Answer<Loaded> {
        Ok(Loaded { module: Module::load(api, image)?, shared, found: Mutex::default() })
    }

    /// The kernel of this name, `None` where there is none.
    fn get(&self, name: &str) -> Answer<Option<Arc<Kernel>>> {
        let mut found = locked(&self.found);
        if let Some(kernel) = found.get(name) {
            return Ok(Some(Arc::clone(kernel)));
        }
        let Ok(text) = CString::new(name) else { return Ok(None) };
        let function = match self.module.function(&text) {
            Err(Outcome { code: NOT_FOUND, .. }) => return Ok(None),
            other => other?,
        };
        let declared = function.attribute(Attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)?;
        let kernel = Arc::new(Kernel {
            name: name.into(),
            parameter: function.parameter(),
            function,
            declared,
            allowed: AtomicUsize::new(UNASKED.saturating_sub(declared)),
        });
        found.insert(name.into(), Arc::clone(&kernel));
        Ok(Some(kernel))
    }
}

impl Cuda {
    /// Queues a kernel on so many blocks of so many threads, with `shared` bytes of shared memory beside what it
    /// declares.
    ///
    /// # Safety
    ///
    /// `params` are what the kernel of this name takes. Every pointer in them leads to as much device memory as the
    /// kernel touches for the sizes in them; other work that uses it is ordered before or after what is queued now.
    pub(super) unsafe fn queue<P: Copy>(
        &self,
        verb: &'static str,
        kernel: &str,
        params: &P,
        blocks: [u32; 2],
        threads: u32,
        shared: usize,
    ) -> Result<()> {
        let all = &self.shared;
        all.enter()?;
        let failed = |what: String| Error::Kernel { verb, kernel: kernel.into(), what };
        let Some(found) = all.told(all.kernels.get(kernel))? else {
            return Err(failed("this build has no such kernel".into()));
        };
        let given = size_of::<P>();
        if let Some(takes) = found.parameter.filter(|&takes| takes != given) {
            return Err(failed(format!("takes {takes} bytes of parameters, not {given}")));
        }
        if shared > found.allowed.load(Relaxed) {
            let most = all.kernels.shared.saturating_sub(found.declared);
            if shared > most {
                return Err(failed(format!("{shared} bytes of shared memory, a block can have {most}")));
            }
            all.told(found.function.allow_shared(shared))?;
            found.allowed.store(shared, Relaxed);
        }
        let mut pointers: [*mut c_void; 1] = [from_ref(params).cast_mut().cast()];
        let [x, y] = blocks;
        // SAFETY: the kernel has one parameter, a structure like `P`, and the driver copies it before it returns. The
        // caller vouches for that, and for what the kernel does with it.
        let launched = unsafe {
            all.api.cuLaunchKernel(
                found.function.raw(),
                x,
                y,
                1,
                threads,
                1,
                1,
                shared as u32,
                all.compute.raw(),
                pointers.as_mut_ptr(),
                null_mut(),
            )
        };
        match all.told(launched.done()) {
            Ok(()) => {
                all.health.launched(verb, &found.name);
                Ok(())
            }
            // The launch was refused, or an earlier kernel failed: the text tells which.
            Err(Error::Device { call, what }) => Err(failed(format!("{call}: {what}"))),
            Err(error) => Err(error),
        }
    }
}
