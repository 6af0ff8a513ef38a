//! The download of a list of files: one thread (the caller's) owns all files and locks, others read.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use sha2::Digest;

use super::Progress;
use super::cache::{Layout, Lock};
use super::http::Failure;
use super::listing::{Check, RemoteFile};
use super::part::Part;
use super::reader::{Job, Message, Reader, Target};
use crate::{Error, Result};

/// How often the cancel flag is looked at while nothing happens.
const TICK: Duration = Duration::from_millis(50);
/// How often the lock of another process is tried.
const LOCK_TICK: Duration = Duration::from_millis(200);

/// What to fetch, and where to.
pub(super) struct Order<'a> {
    pub layout: &'a Layout,
    pub commit: &'a str,
    /// Files with their addresses.
    pub files: Vec<(RemoteFile, String)>,
    pub connections: usize,
    pub segment: u64,
}

/// Why a download ended early.
pub(super) enum Stop {
    Cancelled,
    Error(Error),
    Failure { file: String, failure: Failure },
}

impl From<Error> for Stop {
    fn from(error: Error) -> Stop {
        Stop::Error(error)
    }
}

struct Active {
    // The part writes its journal when it is dropped, so it stands before the lock.
    part: Part,
    _lock: Lock,
    /// Ranges that no reader has yet.
    queue: Vec<(u64, u64)>,
    running: usize,
    probing: bool,
    /// Some bytes are from an earlier run.
    resumed: bool,
}

enum State {
    Waiting,
    Active(Box<Active>),
    Done,
}

struct Task {
    file: RemoteFile,
    target: Arc<Target>,
    state: State,
    /// Bytes that count as done.
    bytes: u64,
}

struct Fetch<'a> {
    order: &'a Order<'a>,
    tasks: Vec<Task>,
    reader: Reader,
    jobs: Sender<Job>,
    messages: (Sender<Message>, Receiver<Message>),
    /// Jobs that readers have.
    outstanding: usize,
    next_lock: Instant,
    /// It was said that another process is waited for.
    waited: bool,
    fetched: u64,
    /// The file that last made progress.
    current: usize,
    report: &'a mut dyn FnMut(&Progress<'_>),
}

/// Fetches all files into the cache and links them into the snapshot, `config.json` last: a snapshot with
/// a config is whole.
pub(super) fn fetch(
    order: &Order<'_>,
    reader: Reader,
    cancel: &AtomicBool,
    report: &mut dyn FnMut(&Progress<'_>),
) -> std::result::Result<(), Stop> {
    let (jobs, job_list) = unbounded();
    // Readers that stall must not fill the memory: a few chunks each.
    let messages = bounded(order.connections * 4);
    for number in 0..order.connections {
        let (reader, jobs, out) = (reader.clone(), job_list.clone(), messages.0.clone());
        // Not joined: a reader may sit in a silent connection until its time is up. It owns no file.
        thread::Builder::new()
            .name(format!("hub-{number}"))
            .spawn(move || reader.run(&jobs, &out))
            .map_err(Error::io(order.layout.repo(), "starting a thread"))?;
    }
    drop(job_list);
    let tasks = order.files.iter().map(|(file, url)| Task {
        file: file.clone(),
        target: Arc::new(Target {
            url: url.clone(),
            size: file.size,
            commit: order.commit.to_owned(),
            sha256: match &file.check {
                Check::Sha256(sum) => Some(sum.clone()),
                _ => None,
            },
        }),
        state: State::Waiting,
        bytes: resumable(order.layout, file),
    });
    let mut fetch = Fetch {
        order,
        tasks: tasks.collect(),
        reader,
        jobs,
        messages,
        outstanding: 0,
        next_lock: Instant::now(),
        waited: false,
        fetched: 0,
        current: 0,
        report,
    };
    let result = fetch.run(cancel);
    fetch.reader.stop.store(true, Ordering::Relaxed);
    if result.is_err() {
        fetch.keep();
    }
    result
}

/// Bytes of a file that need not be fetched, as far as can be seen without its lock.
pub(super) fn resumable(layout: &Layout, file: &RemoteFile) -> u64 {
    if file.check == Check::Length {
        return 0;
    }
    let (path, journal) = layout.part(&file.etag);
    Part::progress(&path, &journal, file.size).bytes()
}

impl Fetch<'_> {
    fn run(&mut self, cancel: &AtomicBool) -> std::result::Result<(), Stop> {
        loop {
            self.dispatch()?;
            self.tell();
            if self.tasks.iter().all(|t| matches!(t.state, State::Done)) {
                break;
            }
            let first = loop {
                if cancel.load(Ordering::Relaxed) {
                    return Err(Stop::Cancelled);
                }
                match self.messages.1.recv_timeout(TICK) {
                    Ok(message) => break Some(message),
                    Err(RecvTimeoutError::Timeout) if self.idle() => break None,
                    Err(_) => {}
                }
            };
            if let Some(message) = first {
                self.handle(message)?;
            }
        }
        for task in &self.tasks {
            self.order.layout.link(self.order.commit, &task.file)?;
        }
        Ok(())
    }

    /// Writes what the readers had brought when the download ended early.
    fn keep(&mut self) {
        for message in self.messages.1.clone().try_iter().take(self.order.connections * 4) {
            if matches!(message, Message::Data { .. }) && self.handle(message).is_err() {
                return;
            }
        }
    }

    /// Whether a lock may have become free in the meantime.
    fn idle(&self) -> bool {
        self.outstanding < self.order.connections && Instant::now() >= self.next_lock
    }

    /// Gives the readers work while they have too little.
    fn dispatch(&mut self) -> Result<()> {
        while self.outstanding < self.order.connections {
            let ready = |t: &Task| matches!(&t.state, State::Active(a) if !a.probing && !a.queue.is_empty());
            let index = match self.tasks.iter().position(ready) {
                Some(index) => index,
                None => match self.activate()? {
                    Some(index) => index,
                    None => return Ok(()),
                },
            };
            let task = &mut self.tasks[index];
            let State::Active(active) = &mut task.state else {
                continue;
            };
            if active.queue.is_empty() {
                continue;
            }
            let (start, end) = active.queue.remove(0);
            let probe = active.running == 0 && !active.queue.is_empty();
            active.probing = probe;
            active.running += 1;
            self.outstanding += 1;
            let job = Job { file: index, target: Arc::clone(&task.target), start, end, probe };
            self.jobs.send(job).map_err(|_| Error::Hub {
                url: task.target.url.clone(),
                what: "the reader threads ended".to_owned(),
            })?;
        }
        Ok(())
    }

    /// Opens the next file whose lock is free. `None`: none is, or none is left.
    fn activate(&mut self) -> Result<Option<usize>> {
        if Instant::now() < self.next_lock {
            return Ok(None);
        }
        let waiting: Vec<usize> =
            (0..self.tasks.len()).filter(|&i| matches!(self.tasks[i].state, State::Waiting)).collect();
        let mut locked = false;
        for &index in &waiting {
            let layout = self.order.layout;
            let file = self.tasks[index].file.clone();
            if layout.has_blob(&file) {
                self.close(index)?;
                continue;
            }
            let Some(lock) = layout.try_lock(&file.etag)? else {
                locked = true;
                continue;
            };
            // Between the look and the lock another process may have finished it.
            if layout.has_blob(&file) {
                drop(lock);
                self.close(index)?;
                continue;
            }
            let (path, journal) = layout.part(&file.etag);
            let mut part = Part::open(&path, &journal, file.size)?;
            // After a power cut the journal may know more than the disk. A checksum would find out.
            if file.check == Check::Length && part.done().bytes() > 0 {
                part.clear()?;
            }
            let queue = part.done().missing(file.size, self.order.segment);
            let task = &mut self.tasks[index];
            task.bytes = part.done().bytes();
            let resumed = task.bytes > 0;
            let whole = queue.is_empty();
            task.state = State::Active(Box::new(Active {
                part,
                _lock: lock,
                queue,
                running: 0,
                probing: false,
                resumed,
            }));
            if whole {
                self.check(index)?;
                continue;
            }
            return Ok(Some(index));
        }
        if locked {
            if !self.waited {
                self.waited = true;
                tracing::info!("the same files are being fetched elsewhere; waiting for them");
            }
            self.next_lock = Instant::now() + LOCK_TICK;
        }
        Ok(None)
    }

    fn handle(&mut self, message: Message) -> std::result::Result<(), Stop> {
        match message {
            Message::Probed { file, parts } => {
                if let State::Active(active) = &mut self.tasks[file].state {
                    active.probing = false;
                    if !parts {
                        active.queue.clear();
                    }
                }
            }
            Message::Data { file, offset, bytes } => {
                let task = &mut self.tasks[file];
                if let State::Active(active) = &mut task.state {
                    let new = active.part.write(offset, &bytes)?;
                    task.bytes += new;
                    self.fetched += bytes.len() as u64;
                    self.current = file;
                }
            }
            Message::Ended { file } => {
                self.outstanding -= 1;
                let segment = self.order.segment;
                let task = &mut self.tasks[file];
                let State::Active(active) = &mut task.state else {
                    return Ok(());
                };
                active.running -= 1;
                if active.running == 0 && active.queue.is_empty() {
                    active.queue = active.part.done().missing(task.file.size, segment);
                    if active.queue.is_empty() {
                        self.check(file)?;
                    }
                }
            }
            Message::Failed { file, failure } => {
                let file = self.tasks[file].file.name.clone();
                return Err(Stop::Failure { file, failure });
            }
            Message::Checked { file, result } => self.checked(file, result?)?,
        }
        Ok(())
    }

    /// Starts the check of a file whose bytes are all there. It runs beside the downloads.
    fn check(&mut self, index: usize) -> Result<()> {
        let task = &self.tasks[index];
        let State::Active(active) = &task.state else {
            return Ok(());
        };
        let path = active.part.path().to_owned();
        let (check, size) = (task.file.check.clone(), task.file.size);
        let (out, stop) = (self.messages.0.clone(), Arc::clone(&self.reader.stop));
        thread::Builder::new()
            .name("hub-check".to_owned())
            .spawn(move || {
                let result = verify(&path, &check, size, &stop);
                // Nobody listening means that the download was given up.
                let _ = out.send(Message::Checked { file: index, result });
            })
            .map_err(Error::io(active.part.path(), "starting a thread"))?;
        Ok(())
    }

    fn checked(&mut self, index: usize, result: std::result::Result<(), String>) -> Result<()> {
        let task = &mut self.tasks[index];
        let State::Active(mut active) = std::mem::replace(&mut task.state, State::Waiting) else {
            return Ok(());
        };
        let Err(what) = result else {
            active.part.finish(&self.order.layout.blob(&task.file.etag))?;
            // The lock goes only now: whoever gets it next finds the blob.
            return self.close(index);
        };
        if active.resumed {
            tracing::warn!(file = task.file.name, %what, "what an earlier run left is wrong; fetching it anew");
            active.part.clear()?;
            active.resumed = false;
            active.queue = active.part.done().missing(task.file.size, self.order.segment);
            task.bytes = 0;
            task.state = State::Active(active);
            return Ok(());
        }
        active.part.discard()?;
        Err(Error::Hub {
            url: task.target.url.clone(),
            what: format!("{what}; the download was damaged or the file changed, and was deleted: try again"),
        })
    }

    /// Notes that the blob is there, and links it unless it is the one that comes last.
    fn close(&mut self, index: usize) -> Result<()> {
        let task = &mut self.tasks[index];
        task.state = State::Done;
        task.bytes = task.file.size;
        if task.file.name != "config.json" {
            self.order.layout.link(self.order.commit, &task.file)?;
        }
        Ok(())
    }

    fn tell(&mut self) {
        let Some(current) = self.tasks.get(self.current) else {
            return;
        };
        let done = |t: &&Task| matches!(t.state, State::Done);
        (self.report)(&Progress {
            file: &current.file.name,
            done: self.tasks.iter().map(|t| t.bytes).sum(),
            total: self.tasks.iter().map(|t| t.file.size).sum(),
            fetched: self.fetched,
            files_done: self.tasks.iter().filter(done).count(),
            files: self.tasks.len(),
        });
    }
}

/// Reads a file whole, compares it, and brings it safely to the disk.
fn verify(
    path: &Path,
    check: &Check,
    size: u64,
    stop: &AtomicBool,
) -> Result<std::result::Result<(), String>> {
    let mut file = File::open(path).map_err(Error::io(path, "opening for the check"))?;
    let (name, expected, found) = match check {
        Check::Length => ("length", size.to_string(), length(&file, path)?.to_string()),
        Check::Sha256(sum) => ("sha256", sum.clone(), digest(sha2::Sha256::new(), &mut file, path, stop)?),
        Check::Git(id) => {
            let hash = sha1::Sha1::new_with_prefix(format!("blob {size}\0"));
            ("git object id", id.clone(), digest(hash, &mut file, path, stop)?)
        }
    };
    if found != expected {
        return Ok(Err(format!("expected {name} {expected}, found {found}")));
    }
    file.sync_all().map_err(Error::io(path, "writing to the disk"))?;
    Ok(Ok(()))
}

fn length(file: &File, path: &Path) -> Result<u64> {
    Ok(file.metadata().map_err(Error::io(path, "reading the length"))?.len())
}

fn digest(mut hash: impl Digest, file: &mut File, path: &Path, stop: &AtomicBool) -> Result<String> {
    let mut buffer = vec![0; 1 << 20];
    loop {
        if stop.load(Ordering::Relaxed) {
            return Err(Error::Cancelled { what: "the check of a download".to_owned() });
        }
        match file.read(&mut buffer).map_err(Error::io(path, "reading for the check"))? {
            0 => break,
            n => hash.update(&buffer[..n]),
        }
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
