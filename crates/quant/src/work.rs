//! Work shared among threads.

use std::sync::{Mutex, PoisonError};

/// Does `work` on each job, on at most `threads` threads including this one. Jobs are begun in their order.
pub(crate) fn share<J: Send>(jobs: Vec<J>, threads: usize, work: impl Fn(J) + Sync) {
    let more = threads.min(jobs.len()).saturating_sub(1);
    let jobs = Mutex::new(jobs.into_iter());
    let next = || jobs.lock().unwrap_or_else(PoisonError::into_inner).next();
    let run = || {
        while let Some(job) = next() {
            work(job);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..more {
            // Without another thread this one does it all.
            let _ = std::thread::Builder::new().spawn_scoped(scope, run);
        }
        run();
    });
}
