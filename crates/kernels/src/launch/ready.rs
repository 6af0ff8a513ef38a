//! The tokens of the last product, in the order or the numbers that its kernel takes.
//!
//! A matrix comes in several stripes, and several matrices are multiplied with the same tokens one after the other: they
//! are made ready once.

use super::{Grid, Launcher, floats};
use crate::{Result, abi};
use airllm_format::NumFormat;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// See the module.
#[derive(Debug)]
pub struct Ready<B>(Mutex<Option<(Key, Made<B>)>>);

impl<B> Default for Ready<B> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<B> Ready<B> {
    /// A buffer was written to, or is about to be: nothing is ready.
    pub fn forget(&self) {
        *self.lock() = None;
    }

    /// The buffer at this address is about to be written to by a product.
    pub(super) fn forget_from(&self, start: *const f32) {
        let mut ready = self.lock();
        if ready.as_ref().is_some_and(|(key, _)| key.buffer == start.addr()) {
            *ready = None;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<(Key, Made<B>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whose tokens, and made ready for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Key {
    /// Where their buffer starts.
    buffer: usize,
    first: usize,
    n: usize,
    cols: usize,
    form: Form,
}

/// What kernels take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// f32 in the order in which lanes of `gemv` read them.
    Spread,
    /// Halves, for weights that were rounded by more than that.
    Half,
    /// Two halves each, for weights that are taken as a checkpoint has them.
    Halves,
}

impl Form {
    /// What `gemm_mma` takes for weights of a format; `None` where it does not take them.
    pub(crate) fn of_prompt(format: NumFormat) -> Option<Form> {
        match format {
            NumFormat::F32 => None,
            NumFormat::Q8 | NumFormat::Q6 | NumFormat::Q5 | NumFormat::Q4 | NumFormat::Q3 | NumFormat::Q2 => {
                Some(Form::Half)
            }
            _ => Some(Form::Halves),
        }
    }

    /// Parts that each number comes in.
    pub(crate) fn parts(self) -> usize {
        match self {
            Form::Spread | Form::Half => 1,
            Form::Halves => 2,
        }
    }
}

#[derive(Debug)]
struct Made<B> {
    to: B,
    factors: Option<B>,
}

/// Tokens to be made ready.
#[derive(Debug, Clone, Copy)]
pub(super) struct Source {
    /// Where their buffer starts.
    pub(super) buffer: *const f32,
    pub(super) first: usize,
    pub(super) n: usize,
    pub(super) cols: usize,
}

/// Columns that rows of halves are padded to.
pub(super) fn padded(cols: usize) -> usize {
    cols.next_multiple_of(abi::MMA_COLS)
}

/// Makes tokens ready, unless they are, and gives `launch` where they lie: numbers, and factors of the tokens.
///
/// # Safety
///
/// The buffer holds the tokens.
pub(super) unsafe fn with<D: Launcher>(
    device: &D,
    source: Source,
    form: Form,
    launch: impl FnOnce(*const u8, *const f32) -> Result<()>,
) -> Result<()> {
    let Source { buffer, first, n, cols } = source;
    let key = Key { buffer: buffer.addr(), first, n, cols, form };
    let mut ready = device.ready().lock();
    if ready.as_ref().is_none_or(|(made_for, _)| *made_for != key) {
        // Its memory may serve again.
        *ready = None;
        // SAFETY: the caller vouches for the tokens.
        *ready = Some((key, unsafe { make(device, source, form)? }));
    }
    match &*ready {
        Some((_, made)) => {
            let factors =
                made.factors.as_ref().map_or(std::ptr::null(), |buf| floats(device, buf).cast_const());
            launch(device.address(&made.to), factors)
        }
        None => Ok(()),
    }
}

/// # Safety
///
/// As for [`with`].
unsafe fn make<D: Launcher>(device: &D, source: Source, form: Form) -> Result<Made<D::Buf>> {
    const VERB: &str = "matmul";
    let Source { buffer, first, n, cols } = source;
    let x = buffer.wrapping_add(first * cols);
    if form == Form::Spread {
        // Four numbers a thread.
        let fours = n * cols.div_ceil(abi::SLICE) * (abi::SLICE / 4);
        let to = device.temporary(fours * 16)?;
        let params = abi::Spread { x, to: floats(device, &to), n: n as u64, cols: cols as u64 };
        // SAFETY: the caller vouches for `x`; `to` was just made for what the kernel writes.
        unsafe { device.launch(VERB, "gemv_spread", &params, Grid::flat(fours))? };
        return Ok(Made { to, factors: None });
    }
    let padded = padded(cols);
    let to = device.temporary(form.parts() * n * padded * 2)?;
    let factors = device.temporary(n * 4)?;
    let params = abi::Prepare {
        x,
        to: device.address(&to),
        factors: floats(device, &factors),
        n: n as u64,
        cols: cols as u64,
        padded: padded as u64,
        parts: form.parts() as u32,
        unused: 0,
    };
    let grid = Grid { blocks: [n, 1], threads: abi::PREPARE_THREADS, shared: 0 };
    // SAFETY: the caller vouches for `x`; the others were just made for what the kernel writes.
    unsafe { device.launch(VERB, "gemm_prepare", &params, grid)? };
    Ok(Made { to, factors: Some(factors) })
}
