//! The threads of a device, and how they share the pieces of a verb.

mod place;
mod sync;
mod team;

use std::fmt;
use std::sync::{Mutex, PoisonError};
use team::Team;

/// Below this much arithmetic, waking a thread takes longer than the work.
const WORTH_SHARING: u64 = 200_000;

/// Threads that wait for work.
pub(crate) struct Pool {
    /// The caller's thread takes part, so these are one fewer than asked for.
    team: Team,
}

/// Threads of a device for which no number was asked.
pub(crate) fn own_threads() -> usize {
    place::machine().0
}

impl Pool {
    /// `threads` threads with the caller's; 0 for one on each physical core that the process may use.
    pub(crate) fn new(threads: usize) -> Pool {
        let (own, places) = place::machine();
        let threads = if threads == 0 { *own } else { threads };
        Pool { team: Team::new(threads - 1, places) }
    }

    pub(crate) fn threads(&self) -> usize {
        1 + self.team.helpers()
    }

    /// How many threads are worth their waking for this much arithmetic.
    pub(crate) fn hands(&self, flops: u64) -> usize {
        if flops < WORTH_SHARING { 1 } else { self.threads() }
    }

    /// Runs `work` once for each of `hands`, at the same time, on as many threads; the iterators that
    /// they get share out `items`, each piece going to whoever asks next. Returns when all are done. While the threads
    /// work for another caller, the first of `hands` does everything.
    pub(crate) fn share<H: Send, T: Send>(
        &self,
        hands: &mut [H],
        mut items: impl Iterator<Item = T> + Send,
        work: impl Fn(&mut H, &mut dyn Iterator<Item = T>) + Sync,
    ) {
        if let [own] = hands {
            return work(own, &mut items);
        }
        let items = Mutex::new(items);
        let next = || items.lock().unwrap_or_else(PoisonError::into_inner).next();
        // Each is locked once, by the thread whose it is.
        let hands: Vec<Mutex<&mut H>> = hands.iter_mut().map(Mutex::new).collect();
        self.team.run(&|number| {
            if let Some(hand) = hands.get(number) {
                let mut hand = hand.lock().unwrap_or_else(PoisonError::into_inner);
                work(&mut hand, &mut std::iter::from_fn(next));
            }
        });
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("threads", &self.threads()).finish()
    }
}

#[cfg(all(test, not(feature = "loom")))]
mod tests {
    use super::*;

    #[test]
    fn each_piece_is_done_once_by_one_hand() {
        let pool = Pool::new(3);
        assert_eq!((pool.threads(), pool.hands(10), pool.hands(1 << 30)), (3, 1, 3));
        for hands in 0..5 {
            let mut sums = vec![0u64; hands];
            let mut done = vec![0u8; 1000];
            pool.share(&mut sums, done.iter_mut().enumerate(), |sum, pieces| {
                for (i, piece) in pieces {
                    *piece += 1;
                    *sum += i as u64;
                }
            });
            let all = u64::from(hands > 0) * 499_500;
            assert_eq!(sums.iter().sum::<u64>(), all);
            assert!(done.iter().all(|&times| times == u8::from(hands > 0)));
        }
    }
}
