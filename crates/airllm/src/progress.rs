//! Signs of life for long work, and the way to stop it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A flag that asks long work to stop soon. Clones share it.
///
/// ```
/// let cancel = airllm::Cancel::new();
/// let seen_by_the_work = cancel.clone();
/// cancel.stop();
/// assert!(seen_by_the_work.is_stopped());
/// ```
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// A flag that is not set.
    pub fn new() -> Cancel {
        Cancel::default()
    }

    /// Asks to stop. Safe to call from a signal handler's thread.
    pub fn stop(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether somebody asked to stop.
    pub fn is_stopped(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn flag(&self) -> &AtomicBool {
        &self.0
    }

    pub(crate) fn shared(&self) -> Arc<AtomicBool> {
        self.0.clone()
    }

    pub(crate) fn check(&self) -> crate::Result<()> {
        if self.is_stopped() { Err(crate::Error::Interrupted) } else { Ok(()) }
    }
}

/// What long work is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Stage {
    /// Fetching a checkpoint.
    Download,
    /// Waiting for another process that prepares the same shards.
    Wait,
    /// Measuring what rounding does to each matrix.
    Measure,
    /// Writing shards.
    Prepare,
    /// Reading everything again to check it.
    Verify,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Download => "downloading",
            Self::Wait => "waiting for another process",
            Self::Measure => "measuring",
            Self::Prepare => "preparing",
            Self::Verify => "verifying",
        })
    }
}

/// How far long work has come.
#[derive(Debug, Clone, PartialEq)]
pub struct Progress<'a> {
    /// What is being done.
    pub stage: Stage,
    /// To which part ("layer.17", a file's name).
    pub item: &'a str,
    /// Bytes that are done.
    pub done: u64,
    /// Bytes in all; 0 where not known.
    pub total: u64,
    /// Bytes of `done` that an earlier run had done already.
    pub resumed: u64,
    /// Time since the stage began.
    pub elapsed: Duration,
}

impl Progress<'_> {
    /// Bytes a second since the stage began, without those of an earlier run; 0 at the start.
    pub fn rate(&self) -> f64 {
        let seconds = self.elapsed.as_secs_f64();
        if seconds > 0.0 { self.done.saturating_sub(self.resumed) as f64 / seconds } else { 0.0 }
    }

    /// Time left at the rate so far; `None` while nothing can be said.
    pub fn left(&self) -> Option<Duration> {
        let rate = self.rate();
        let bytes = self.total.checked_sub(self.done)?;
        if rate <= 0.0 || self.total == 0 {
            return None;
        }
        Duration::try_from_secs_f64(bytes as f64 / rate).ok()
    }
}

/// A function that is told of progress; called a few times a second at least while bytes move.
pub type OnProgress = dyn Fn(&Progress<'_>) + Send + Sync;

/// Counts bytes of one stage and reports them.
pub(crate) struct Meter<'a> {
    stage: Stage,
    done: u64,
    total: u64,
    resumed: u64,
    start: Instant,
    report: &'a OnProgress,
}

impl<'a> Meter<'a> {
    pub(crate) fn new(stage: Stage, total: u64, report: &'a OnProgress) -> Self {
        Meter { stage, done: 0, total, resumed: 0, start: Instant::now(), report }
    }

    pub(crate) fn add(&mut self, item: &str, bytes: u64) {
        self.done += bytes;
        self.tell(item);
    }

    /// Counts bytes that an earlier run had done.
    pub(crate) fn resume(&mut self, item: &str, bytes: u64) {
        self.resumed += bytes;
        self.add(item, bytes);
    }

    /// Takes over a count kept elsewhere.
    pub(crate) fn set(&mut self, item: &str, done: u64, total: u64, resumed: u64) {
        (self.done, self.total, self.resumed) = (done, total, resumed);
        self.tell(item);
    }

    pub(crate) fn tell(&mut self, item: &str) {
        let Meter { stage, done, total, resumed, .. } = *self;
        let elapsed = self.start.elapsed();
        (self.report)(&Progress { stage, item, done, total, resumed, elapsed });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates() {
        let mut progress = Progress {
            stage: Stage::Prepare,
            item: "layer.0",
            done: 600,
            total: 1000,
            resumed: 400,
            elapsed: Duration::from_secs(2),
        };
        assert_eq!(progress.rate(), 100.0);
        assert_eq!(progress.left(), Some(Duration::from_secs(4)));
        progress.resumed = 600;
        assert_eq!(progress.left(), None);
        progress.total = 0;
        assert_eq!(progress.left(), None);
    }
}
