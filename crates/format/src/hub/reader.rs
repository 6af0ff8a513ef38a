//! The threads that talk to the server. They know nothing of files: bytes go to the coordinator as messages.

use std::io::{ErrorKind, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};

use super::http::{Client, Failure, Kind, pause};

/// Bytes of one message: large enough that messages cost nothing, small enough to lose.
const CHUNK: usize = 256 << 10;
/// A slow connection hands over what it has this often.
const FLUSH: Duration = Duration::from_millis(100);

/// What a reader needs to know of a file.
#[derive(Debug)]
pub(super) struct Target {
    pub url: String,
    pub size: u64,
    pub commit: String,
    /// Set if the content is known by its sha256.
    pub sha256: Option<String>,
}

/// Bytes to fetch.
#[derive(Clone, Debug)]
pub(super) struct Job {
    /// Index of the file, handed back with every message.
    pub file: usize,
    pub target: Arc<Target>,
    pub start: u64,
    pub end: u64,
    /// The first request for this file: no other runs before its answer, which shows whether the server
    /// can send parts. If not, this job reads on to the file's end.
    pub probe: bool,
}

/// What the coordinator hears.
pub(super) enum Message {
    /// The answer to a probe.
    Probed {
        file: usize,
        parts: bool,
    },
    Data {
        file: usize,
        offset: u64,
        bytes: Vec<u8>,
    },
    /// The job is over, all its bytes were sent.
    Ended {
        file: usize,
    },
    Failed {
        file: usize,
        failure: Failure,
    },
    /// The check of a whole file: `Err` says what differs.
    Checked {
        file: usize,
        result: crate::Result<Result<(), String>>,
    },
}

#[derive(Clone)]
pub(super) struct Reader {
    pub client: Arc<Client>,
    pub stop: Arc<AtomicBool>,
    pub retries: u32,
    pub backoff: Duration,
}

impl Reader {
    /// Works until there are no jobs or nobody listens.
    pub fn run(&self, jobs: &Receiver<Job>, out: &Sender<Message>) {
        while let Ok(job) = jobs.recv() {
            let file = job.file;
            let _alarm = Alarm { file, out };
            let last = match self.fetch(job, out) {
                Ok(()) => Message::Ended { file },
                Err(Some(failure)) => Message::Failed { file, failure },
                Err(None) => return,
            };
            if out.send(last).is_err() {
                return;
            }
        }
    }

    /// Calls until it works, or fails in a way that will not change, or too often.
    pub fn retry<T>(&self, mut call: impl FnMut() -> Result<T, Failure>) -> Result<T, Failure> {
        let mut attempt = 0;
        loop {
            match call() {
                Ok(value) => return Ok(value),
                Err(failure) => {
                    attempt += 1;
                    self.rest(attempt, failure)?;
                }
            }
        }
    }

    /// Fetches all bytes of a job. `Err(None)`: nobody wants them any more.
    fn fetch(&self, mut job: Job, out: &Sender<Message>) -> Result<(), Option<Failure>> {
        let mut attempt = 0;
        while job.start < job.end {
            let before = job.start;
            let Err(failure) = self.attempt(&mut job, out) else {
                break;
            };
            let failure = failure.ok_or(None)?;
            // A request that brought bytes was no failure, however it ended.
            attempt = if job.start > before { 1 } else { attempt + 1 };
            tracing::debug!(url = job.target.url, at = job.start, what = failure.what, "request failed");
            self.rest(attempt, failure)?;
        }
        Ok(())
    }

    fn attempt(&self, job: &mut Job, out: &Sender<Message>) -> Result<(), Option<Failure>> {
        let send = |message| out.send(message).map_err(|_| None);
        let target = Arc::clone(&job.target);
        let (response, linked, parts) = self.client.range(&target.url, (job.start, job.end, target.size))?;
        if linked.commit.as_ref().is_some_and(|commit| *commit != target.commit) {
            return Err(Some(Failure::new(Kind::Refused, "the server sends another commit than it listed")));
        }
        if let (Some(found), Some(expected)) = (&linked.sha256, &target.sha256)
            && found != expected
        {
            let what = format!("the server sends sha256 {found}, it listed {expected}");
            return Err(Some(Failure::new(Kind::Refused, what)));
        }
        if job.probe {
            job.probe = false;
            if !parts {
                job.end = target.size;
            }
            send(Message::Probed { file: job.file, parts })?;
        }
        let mut body = response.into_body().into_reader();
        if !parts {
            self.discard(&mut body, job.start)?;
        }
        while job.start < job.end {
            let want = usize::try_from(job.end - job.start).unwrap_or(CHUNK).min(CHUNK);
            let mut bytes = vec![0; want];
            let mut filled = 0;
            let since = Instant::now();
            let mut failure = None;
            while filled < want && failure.is_none() && since.elapsed() < FLUSH {
                if self.stop.load(Ordering::Relaxed) {
                    return Err(None);
                }
                match body.read(&mut bytes[filled..]) {
                    Ok(0) => failure = Some(cut(job.start + filled as u64, job.end)),
                    Ok(n) => filled += n,
                    Err(e) if e.kind() == ErrorKind::Interrupted => {}
                    Err(e) => failure = Some(broken(e)),
                }
            }
            if filled > 0 {
                bytes.truncate(filled);
                send(Message::Data { file: job.file, offset: job.start, bytes })?;
                job.start += filled as u64;
            }
            if let Some(failure) = failure.filter(|_| job.start < job.end) {
                return Err(Some(failure));
            }
        }
        Ok(())
    }

    /// Reads past the bytes that are there already, where the server cannot leave them out.
    fn discard(&self, body: &mut impl Read, mut count: u64) -> Result<(), Option<Failure>> {
        let mut sink = vec![0; CHUNK];
        while count > 0 {
            if self.stop.load(Ordering::Relaxed) {
                return Err(None);
            }
            let want = usize::try_from(count).unwrap_or(CHUNK).min(CHUNK);
            match body.read(&mut sink[..want]) {
                Ok(0) => return Err(Some(cut(0, count))),
                Ok(n) => count -= n as u64,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(Some(broken(e))),
            }
        }
        Ok(())
    }

    /// Waits before attempt `attempt`; gives the failure back if there should be none.
    fn rest(&self, attempt: u32, failure: Failure) -> Result<(), Failure> {
        if !failure.again() || attempt > self.retries {
            return Err(failure);
        }
        let until = Instant::now() + pause(self.backoff, attempt, failure.wait);
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            if self.stop.load(Ordering::Relaxed) {
                return Err(failure);
            }
            thread::sleep(left.min(Duration::from_millis(50)));
        }
    }
}

/// Tells the coordinator should this thread die: it would wait for ever.
struct Alarm<'a> {
    file: usize,
    out: &'a Sender<Message>,
}

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            let failure = Failure::new(Kind::Refused, "the thread that read it failed; please report this");
            let _ = self.out.send(Message::Failed { file: self.file, failure });
        }
    }
}

fn cut(at: u64, end: u64) -> Failure {
    Failure::new(Kind::Broken, format!("the connection ended at byte {at} of {end}"))
}

fn broken(error: std::io::Error) -> Failure {
    // ureq hands its own errors through as the inside of an I/O error.
    match error.get_ref().and_then(|inner| inner.downcast_ref::<ureq::Error>()) {
        Some(inner) => Failure::new(Kind::Broken, inner.to_string()),
        None => Failure::new(Kind::Broken, error.to_string()),
    }
}
