//! Threads that do one job at a time, together with the thread that asks for it.
//!
//! A decode step asks for hundreds of jobs of some ten to some hundred microseconds. So a helper that has ended one looks out for
//! the next for a little while before it sleeps, and so does the caller for the end of the last helper. Who sleeps
//! costs nothing, and who looks out stops before a thread that reads would be kept waiting.
//!
//! A job's number, [`Shared::number`], is raised after the job was written; helpers that see the new number read the
//! job. Each of them ends each job, with or without a part in it, and only then the next may be written.
//! Whoever is about to sleep says so first and looks once more; whoever has something to say looks for sleepers afterwards.
//! With a fence between the two on either side, one of them sees the other. Loom checks it (`cargo test -p airllm-kernels --lib
//! --features loom`).

use super::place::Places;
use super::sync::{
    Arc, AtomicBool, AtomicUsize, Builder, Cell, Condvar, JoinHandle, Mutex, Ordering, fence, lock,
    spin_loop, wait,
};
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// How often a thread looks for news before it sleeps: some 50 µs, about what waking one takes.
#[cfg(not(feature = "loom"))]
const LOOKS: usize = 2000;
#[cfg(feature = "loom")]
const LOOKS: usize = 1;

/// What is done: called with the number of each hand, 0 being the caller.
type Work<'a> = dyn Fn(usize) + Sync + 'a;

#[derive(Clone, Copy)]
enum Job {
    /// Nothing any more.
    End,
    Do(*const Work<'static>),
}

/// Where threads meet.
struct Shared {
    /// Counts jobs.
    number: AtomicUsize,
    /// The job of that number.
    job: Cell<Job>,
    /// Helpers that have not ended it.
    busy: AtomicUsize,
    /// Helpers that sleep, or are about to.
    asleep: AtomicUsize,
    bed: Mutex<()>,
    wake: Condvar,
    /// Whether the caller sleeps, or is about to.
    waits: AtomicBool,
    chair: Mutex<()>,
    ended: Condvar,
    /// What a helper panicked with.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: `job` holds a pointer to something `Sync`. It is written only while no helper is between seeing a new number and
// ending the job, which `busy` tells, and read only in between; all else is `Sync` by itself.
unsafe impl Sync for Shared {}
// SAFETY: the pointer is to something `Sync`, which may be used from any thread.
unsafe impl Send for Shared {}

/// Helpers for one caller at a time.
pub(super) struct Team {
    shared: Arc<Shared>,
    helpers: Vec<JoinHandle<()>>,
    turn: Mutex<()>,
}

impl Team {
    /// As many helpers, or as many as the system grants.
    pub(super) fn new(helpers: usize, places: &Places) -> Team {
        let shared = Arc::new(Shared {
            number: AtomicUsize::new(0),
            job: Cell::new(Job::End),
            busy: AtomicUsize::new(0),
            asleep: AtomicUsize::new(0),
            bed: Mutex::new(()),
            wake: Condvar::new(),
            waits: AtomicBool::new(false),
            chair: Mutex::new(()),
            ended: Condvar::new(),
            panic: Mutex::new(None),
        });
        let start = |hand: usize| {
            let shared = Arc::clone(&shared);
            let place = places.of(hand);
            Builder::new().name(format!("airllm-cpu-{hand}")).spawn(move || {
                place.take();
                help(&shared, hand);
            })
        };
        let helpers = (1..=helpers).map_while(|hand| start(hand).ok()).collect();
        Team { shared, helpers, turn: Mutex::new(()) }
    }

    /// Helpers, without the caller.
    pub(super) fn helpers(&self) -> usize {
        self.helpers.len()
    }

    /// Calls `work(0)` here and, unless the team works for somebody else, `work(i)` in helper `i` at the same time. Returns
    /// when all calls have. A panic in any of them goes on here.
    pub(super) fn run(&self, work: &Work<'_>) {
        let turn = match self.turn.try_lock() {
            Ok(turn) => turn,
            Err(std::sync::TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(std::sync::TryLockError::WouldBlock) => return work(0),
        };
        let shared = &*self.shared;
        let job: *const Work<'_> = work;
        // SAFETY: the two types differ in a lifetime alone. The pointer is used by helpers between seeing the job's number and
        // ending the job, and this function does not return or unwind before all have ended it.
        let job = unsafe { std::mem::transmute::<*const Work<'_>, *const Work<'static>>(job) };
        // SAFETY: who has the turn is the only one to give jobs, and all helpers have ended the last one.
        unsafe { shared.give(Job::Do(job), self.helpers.len()) };
        let own = catch_unwind(AssertUnwindSafe(|| work(0)));
        shared.wait_for_helpers();
        let other = lock(&shared.panic).take();
        drop(turn);
        if let Some(panic) = own.err().or(other) {
            resume_unwind(panic);
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        // SAFETY: nobody else has this team, so that all helpers have ended the last job.
        unsafe { self.shared.give(Job::End, self.helpers.len()) };
        for helper in self.helpers.drain(..) {
            // Helpers catch panics, so that this is never an error.
            let _ = helper.join();
        }
    }
}

impl Shared {
    /// Makes a job known to all helpers.
    ///
    /// # Safety
    /// All helpers have ended the last job, nobody else gives one, and what it points to stays until they have ended this one.
    unsafe fn give(&self, job: Job, helpers: usize) {
        // SAFETY: helpers read it only between seeing a new number and ending the job, and all have ended the last one.
        unsafe { self.job.set(job) };
        self.busy.store(helpers, Ordering::Relaxed);
        self.number.fetch_add(1, Ordering::Release);
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::Relaxed) > 0 {
            drop(lock(&self.bed));
            self.wake.notify_all();
        }
    }

    /// Waits for a job after that of number `seen`.
    fn wait_for_job(&self, seen: usize) {
        let news = || self.number.load(Ordering::Acquire) != seen;
        if looks(news) {
            return;
        }
        let mut bed = lock(&self.bed);
        self.asleep.fetch_add(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        while !news() {
            bed = wait(&self.wake, bed);
        }
        self.asleep.fetch_sub(1, Ordering::Relaxed);
    }

    /// Says that a helper has ended the job.
    fn end(&self) {
        if self.busy.fetch_sub(1, Ordering::AcqRel) == 1 {
            fence(Ordering::SeqCst);
            if self.waits.load(Ordering::Relaxed) {
                drop(lock(&self.chair));
                self.ended.notify_one();
            }
        }
    }

    /// Waits until all helpers have ended the job.
    fn wait_for_helpers(&self) {
        let over = || self.busy.load(Ordering::Acquire) == 0;
        if looks(over) {
            return;
        }
        let mut chair = lock(&self.chair);
        self.waits.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        while !over() {
            chair = wait(&self.ended, chair);
        }
        self.waits.store(false, Ordering::Relaxed);
    }
}

/// Looks for a while whether something has come true.
fn looks(news: impl Fn() -> bool) -> bool {
    for _ in 0..LOOKS {
        if news() {
            return true;
        }
        spin_loop();
    }
    false
}

/// A helper's life.
fn help(shared: &Shared, hand: usize) {
    let mut seen = 0;
    loop {
        shared.wait_for_job(seen);
        // No job is given before this helper has ended the last, so that it misses none.
        seen = seen.wrapping_add(1);
        // SAFETY: the job was written before its number, and the next is not written before this helper has ended it.
        let work = match unsafe { shared.job.get() } {
            Job::End => return,
            Job::Do(work) => work,
        };
        // SAFETY: whoever gave the job keeps it until this helper has ended it, below.
        let work = unsafe { &*work };
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| work(hand))) {
            *lock(&shared.panic) = Some(panic);
        }
        shared.end();
    }
}

#[cfg(all(test, feature = "loom"))]
mod interleavings {
    use super::*;
    use loom::cell::UnsafeCell;

    fn check(helpers: usize, jobs: usize) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(3);
        builder.check(move || {
            let team = Team::new(helpers, &Places::none());
            for _ in 0..jobs {
                // Loom finds it out if two touch one cell, or if the caller looks before all have ended.
                let cells: Vec<_> = (0..=helpers).map(|_| UnsafeCell::new(0)).collect();
                let cells = Cells(cells);
                team.run(&|hand| {
                    // SAFETY: a cell for each hand.
                    cells.at(hand).with_mut(|cell| unsafe { *cell += hand + 1 });
                });
                for hand in 0..=helpers {
                    // SAFETY: all calls have returned.
                    assert_eq!(cells.at(hand).with(|cell| unsafe { *cell }), hand + 1);
                }
            }
        });
    }

    struct Cells(Vec<UnsafeCell<usize>>);

    impl Cells {
        fn at(&self, hand: usize) -> &UnsafeCell<usize> {
            &self.0[hand]
        }
    }

    // SAFETY: each hand uses a cell of its own; loom checks it.
    unsafe impl Sync for Cells {}

    #[test]
    fn a_helper_does_its_part_of_each_job() {
        check(1, 2);
    }

    #[test]
    fn two_helpers_sleep_and_wake() {
        check(2, 1);
    }
}

#[cfg(all(test, not(feature = "loom")))]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;
    use std::time::Duration;

    #[test]
    fn all_hands_work_at_the_same_time_again_and_again() {
        let team = Team::new(3, &Places::none());
        assert_eq!(team.helpers(), 3);
        let calls = [0; 4].map(AtomicU64::new);
        for round in 0..2000 {
            if round % 500 == 0 {
                // Long enough for all to fall asleep.
                std::thread::sleep(Duration::from_millis(5));
            }
            let together = AtomicU64::new(0);
            team.run(&|hand| {
                calls[hand].fetch_add(1, Ordering::Relaxed);
                together.fetch_add(1, Ordering::Relaxed);
                while round % 500 == 0 && together.load(Ordering::Relaxed) < 4 {
                    std::thread::yield_now();
                }
            });
            assert_eq!(together.into_inner(), 4);
        }
        assert_eq!(calls.map(AtomicU64::into_inner), [2000; 4]);
    }

    #[test]
    fn a_panic_goes_on_in_the_caller_after_all_have_ended() {
        let team = Team::new(2, &Places::none());
        for bad in 0..3 {
            let ended = AtomicU64::new(0);
            let caught = catch_unwind(AssertUnwindSafe(|| {
                team.run(&|hand| {
                    assert!(hand != bad, "hand {hand}");
                    std::thread::sleep(Duration::from_millis(2));
                    ended.fetch_add(1, Ordering::Relaxed);
                });
            }));
            let panic = caught.expect_err("one hand panicked");
            assert_eq!(panic.downcast_ref::<String>().map(String::as_str), Some(&*format!("hand {bad}")));
            assert_eq!(ended.into_inner(), 2);
        }
        let calls = AtomicU64::new(0);
        team.run(&|_| _ = calls.fetch_add(1, Ordering::Relaxed));
        assert_eq!(calls.into_inner(), 3);
    }

    #[test]
    fn who_asks_while_the_team_is_taken_works_alone() {
        let team = Team::new(1, &Places::none());
        let calls = AtomicU64::new(0);
        team.run(&|_| {
            team.run(&|hand| {
                assert_eq!(hand, 0);
                calls.fetch_add(1, Ordering::Relaxed);
            });
        });
        assert_eq!(calls.into_inner(), 2);
        assert_eq!(Team::new(0, &Places::none()).helpers(), 0);
    }
}
