//! The threads of a device, and how they share the pieces of a verb.

use rayon::{ThreadPool, ThreadPoolBuilder};
use std::num::NonZeroUsize;
use std::sync::{Mutex, PoisonError};

/// Below this much arithmetic, waking a thread takes longer than the work.
const WORTH_SHARING: u64 = 200_000;

/// Threads that wait for work.
#[derive(Debug)]
pub(crate) struct Pool {
    /// The caller's thread takes part, so these are one fewer than asked for.
    helpers: Option<ThreadPool>,
}

impl Pool {
    /// `threads` threads with the caller's; 0 for as many as can run at once.
    pub(crate) fn new(threads: usize) -> Pool {
        let threads = match threads {
            0 => std::thread::available_parallelism().map_or(1, NonZeroUsize::get),
            n => n,
        };
        if threads == 1 {
            return Pool { helpers: None };
        }
        let builder = ThreadPoolBuilder::new()
            .num_threads(threads - 1)
            .thread_name(|i| format!("airllm-cpu-{}", i + 1));
        Pool { helpers: builder.build().ok() }
    }

    pub(crate) fn threads(&self) -> usize {
        1 + self.helpers.as_ref().map_or(0, ThreadPool::current_num_threads)
    }

    /// How many threads are worth their waking for this much arithmetic.
    pub(crate) fn hands(&self, flops: u64) -> usize {
        if flops < WORTH_SHARING { 1 } else { self.threads() }
    }

    /// Runs `work` once for each of `hands`, at the same time, on as many threads; the iterators that
    /// they get share out `items`, each piece going to whoever asks next. Returns when all are done.
    pub(crate) fn share<H: Send, T: Send>(
        &self,
        hands: &mut [H],
        mut items: impl Iterator<Item = T> + Send,
        work: impl Fn(&mut H, &mut dyn Iterator<Item = T>) + Sync,
    ) {
        let Some((own, others)) = hands.split_first_mut() else { return };
        let Some(helpers) = self.helpers.as_ref().filter(|_| !others.is_empty()) else {
            return work(own, &mut items);
        };
        let items = Mutex::new(items);
        let next = || items.lock().unwrap_or_else(PoisonError::into_inner).next();
        let (next, work) = (&next, &work);
        helpers.in_place_scope(|scope| {
            for hand in others {
                scope.spawn(move |_| work(hand, &mut std::iter::from_fn(next)));
            }
            work(own, &mut std::iter::from_fn(next));
        });
    }
}
