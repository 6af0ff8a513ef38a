//! What went wrong on a device, and what may have done it.
//!
//! Kernels fail after their launch has returned, and the next call that asks the driver anything is told. So the kernels
//! launched since the queue was last known to be good are named with every failure. A context in which a kernel failed
//! is lost: each later call fails with the reason of the first.

use crate::{Error, Result};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How many kernels are remembered.
const REMEMBERED: usize = 16;

/// Errors after which a context answers nothing else: what kernels die of (illegal addresses, misaligned ones, illegal
/// instructions, assertions, time), memory that lost bits, lost devices and links, and what the driver has no name for.
const STICKY: [u32; 16] = [46, 214, 220, 226, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 721, 999];

/// A call of the driver that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) call: &'static str,
    pub(super) code: u32,
    /// Name and text of the code.
    pub(super) text: String,
}

/// The state of a device's queue as far as it is known.
#[derive(Debug, Default)]
pub(super) struct Health(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Call and reason of the first failure after which nothing works.
    lost: Option<(&'static str, String)>,
    /// A failure that nobody could be told of when it happened.
    untold: Option<(&'static str, String)>,
    /// Verb and kernel of the last launches.
    recent: VecDeque<(&'static str, Arc<str>)>,
    /// How many launches there were.
    launches: u64,
}

impl Health {
    /// An error where the device is lost, or where something failed that nobody was told of.
    pub(super) fn check(&self) -> Result<()> {
        let mut state = self.state();
        let what = state.lost.clone().or_else(|| state.untold.take());
        what.map_or(Ok(()), |(call, what)| Err(Error::Device { call, what }))
    }

    /// The error for a failure.
    pub(super) fn failed(&self, failure: Failure) -> Error {
        let (call, what) = self.state().take_in(failure);
        Error::Device { call, what }
    }

    /// Keeps a failure for the next call.
    pub(super) fn keep(&self, failure: Failure) {
        let mut state = self.state();
        let told = state.take_in(failure);
        state.untold.get_or_insert(told);
    }

    pub(super) fn launched(&self, verb: &'static str, kernel: &Arc<str>) {
        let mut state = self.state();
        state.launches += 1;
        if state.recent.len() == REMEMBERED {
            state.recent.pop_front();
        }
        state.recent.push_back((verb, Arc::clone(kernel)));
    }

    /// How many kernels have been launched.
    pub(super) fn launches(&self) -> u64 {
        self.state().launches
    }

    /// The first `launches` launches have ended well.
    pub(super) fn good(&self, launches: u64) {
        let mut state = self.state();
        let after = state.launches.saturating_sub(launches).min(REMEMBERED as u64) as usize;
        while state.recent.len() > after {
            state.recent.pop_front();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Call and reason to tell of a failure.
    fn take_in(&mut self, failure: Failure) -> (&'static str, String) {
        if let Some(first) = &self.lost {
            return first.clone();
        }
        let Failure { call, code, mut text } = failure;
        if STICKY.contains(&code) {
            let kernels: Vec<String> =
                self.recent.iter().map(|(verb, kernel)| format!("{verb} {kernel}")).collect();
            text += "; kernels (verb, name) launched since the queue was last known to be good: ";
            if self.launches > 0 && kernels.len() == REMEMBERED {
                text += "..., ";
            }
            text += if kernels.is_empty() { "none" } else { "" };
            text += &kernels.join(", ");
            self.lost = Some((call, text.clone()));
        }
        (call, text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(call: &'static str, code: u32) -> Failure {
        Failure { call, code, text: format!("CUDA_ERROR_{code}: words") }
    }

    #[test]
    fn a_lost_device_names_the_first_failure_and_the_kernels_before_it() {
        let health = Health::default();
        for i in 0..20 {
            health.launched("matmul", &format!("gemv_{i}").into());
        }
        assert_eq!(health.launches(), 20);
        health.good(18);
        let said = health.failed(failure("cuEventSynchronize", 700)).to_string();
        assert_eq!(
            said,
            "cuEventSynchronize: CUDA_ERROR_700: words; kernels (verb, name) launched since the queue was last known \
             to be good: matmul gemv_18, matmul gemv_19"
        );
        // Nothing that follows hides it.
        assert_eq!(health.check().unwrap_err().to_string(), said);
        assert_eq!(health.failed(failure("cuMemAlloc", 719)).to_string(), said);
        health.good(20);
        assert_eq!(health.check().unwrap_err().to_string(), said);
    }

    #[test]
    fn only_so_many_kernels_are_remembered() {
        let health = Health::default();
        for i in 0..40 {
            health.launched("add", &format!("k{i}").into());
        }
        // Older than all that are remembered: nothing to forget.
        health.good(3);
        let said = health.failed(failure("cuStreamSynchronize", 716)).to_string();
        assert!(said.contains("good: ..., add k24, add k25") && said.ends_with("add k39"), "{said}");
    }

    #[test]
    fn what_nobody_was_told_is_told_once() {
        let health = Health::default();
        health.check().unwrap();
        health.keep(failure("cuMemHostUnregister", 713));
        health.keep(failure("cuEventRecord", 400));
        let said = health.check().unwrap_err().to_string();
        assert_eq!(said, "cuMemHostUnregister: CUDA_ERROR_713: words");
        health.check().unwrap();
        // A failure that is no loss is told to its caller alone.
        assert!(matches!(health.failed(failure("cuMemAlloc_v2", 2)), Error::Device { .. }));
        health.check().unwrap();
    }
}
