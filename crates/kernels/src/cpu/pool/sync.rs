//! The synchronisation primitives of the team, exchanged for loom's when it is checked.

#[cfg(feature = "loom")]
pub(super) use loom::{
    hint::spin_loop,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence},
    sync::{Arc, Condvar, Mutex, MutexGuard},
    thread::{Builder, JoinHandle},
};
#[cfg(not(feature = "loom"))]
pub(super) use std::{
    hint::spin_loop,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence},
    sync::{Arc, Condvar, Mutex, MutexGuard},
    thread::{Builder, JoinHandle},
};

/// Locks, and goes on after a panic elsewhere: every critical section here leaves the state whole.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Waits for a notification, under the same rule.
pub(super) fn wait<'a, T>(condvar: &Condvar, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
    condvar.wait(guard).unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// A cell whose accesses the team itself keeps apart.
#[derive(Debug)]
pub(super) struct Cell<T>(
    #[cfg(feature = "loom")] loom::cell::UnsafeCell<T>,
    #[cfg(not(feature = "loom"))] std::cell::UnsafeCell<T>,
);

impl<T: Copy> Cell<T> {
    pub(super) fn new(value: T) -> Cell<T> {
        #[cfg(feature = "loom")]
        let cell = loom::cell::UnsafeCell::new(value);
        #[cfg(not(feature = "loom"))]
        let cell = std::cell::UnsafeCell::new(value);
        Cell(cell)
    }

    /// # Safety
    /// Nobody writes meanwhile.
    pub(super) unsafe fn get(&self) -> T {
        // SAFETY: the caller's promise; the value is copied while it is borrowed.
        #[cfg(feature = "loom")]
        return self.0.with(|value| unsafe { *value });
        // SAFETY: as above.
        #[cfg(not(feature = "loom"))]
        return unsafe { *self.0.get() };
    }

    /// # Safety
    /// Nobody reads or writes meanwhile.
    pub(super) unsafe fn set(&self, to: T) {
        // SAFETY: the caller's promise; what was there is `Copy`, so that nothing is lost with it.
        #[cfg(feature = "loom")]
        self.0.with_mut(|value| unsafe { *value = to });
        // SAFETY: as above.
        #[cfg(not(feature = "loom"))]
        unsafe {
            *self.0.get() = to;
        }
    }
}
