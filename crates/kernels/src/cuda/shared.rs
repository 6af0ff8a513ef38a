//! What a device, its buffers and its fences have in common: the context, the queues, the memory. Lives until the last
//! of them is dropped.

use super::DeviceMemory;
use super::api::{Api, CUdevice, NOT_READY, OUT_OF_MEMORY, Outcome};
use super::devices::{self, Device, Unusable};
use super::handles::{Answer, Chunk, Context, Event, Stream};
use super::health::{Failure, Health};
use super::launch::Loaded;
use super::memory::Staging;
use super::pool::{PAGE, Pool, Span};
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What other programs have is not told from what the driver has for this one; a context takes less than this.
const MOST_OVERHEAD: u64 = 1 << 30;

/// The fields are dropped in their order: what belongs to the context before it.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) api: &'static Api,
    pub(super) health: Health,
    pub(super) host_waits: AtomicU64,
    /// Events that no fence has at the moment.
    events: Mutex<Vec<Event>>,
    /// Page-locked memory that small copies pass through.
    pub(super) staging: Mutex<Staging>,
    memory: Mutex<Held>,
    pub(super) kernels: Loaded,
    /// Host memory that was page-locked by `register`, by addresses.
    pub(super) registered: Mutex<Vec<Range<usize>>>,
    /// Computes, and copies what is small, in the order of the calls.
    pub(super) compute: Stream,
    /// Copies weights beside it.
    pub(super) copy: Stream,
    device: CUdevice,
    /// Bytes that the driver takes for this program.
    overhead: u64,
    context: Context,
}

/// Chunks of device memory and what of them is in use.
#[derive(Debug)]
struct Held {
    pool: Pool,
    chunks: BTreeMap<u64, Chunk>,
}

impl Shared {
    /// Makes the context, loads the kernels, and measures what the driver took for that.
    pub(super) fn open(api: &'static Api, device: &Device, vram: Option<u64>) -> Result<Shared> {
        let image = devices::image()?;
        let done = |outcome: Outcome| Error::Device { call: outcome.call, what: api.text(outcome.code) };
        let context = Context::retain(api, device.raw).map_err(done)?;
        let kernels = Loaded::load(api, image, device.shared).map_err(done)?;
        let (compute, copy) = (Stream::create(api).map_err(done)?, Stream::create(api).map_err(done)?);
        let staging = Staging::alloc(api).map_err(done)?;
        let (free, total, held) = Chunk::around(&context).map_err(done)?;
        let measured = total.saturating_sub(free).saturating_sub(held).min(MOST_OVERHEAD);
        let overhead = measured + (measured / 16).min(16 << 20);
        let budget = match vram {
            Some(vram) => vram.min(total),
            None => overhead + free - margin(free, total),
        };
        if budget < overhead + PAGE {
            return Err(Unusable::Budget { budget, overhead }.into());
        }
        let memory = Held { pool: Pool::new(budget - overhead), chunks: BTreeMap::new() };
        Ok(Shared {
            api,
            health: Health::default(),
            host_waits: AtomicU64::new(0),
            events: Mutex::default(),
            staging: Mutex::new(staging),
            memory: Mutex::new(memory),
            kernels,
            registered: Mutex::default(),
            compute,
            copy,
            device: device.raw,
            overhead,
            context,
        })
    }

    /// Begins a call: an error where the device is lost; otherwise its context is current.
    pub(super) fn enter(&self) -> Result<()> {
        self.health.check()?;
        self.told(self.context.enter())
    }

    /// Begins a call that has nobody to tell of an error.
    pub(super) fn enter_to_drop(&self) -> Answer<()> {
        self.context.enter()
    }

    /// What the driver answered, its failures with all that is known about them.
    pub(super) fn told<T>(&self, answer: Answer<T>) -> Result<T> {
        answer.map_err(|outcome| self.health.failed(self.failure(outcome)))
    }

    /// Keeps a failure for the next call.
    pub(super) fn keep<T>(&self, answer: Answer<T>) -> Option<T> {
        answer.map_err(|outcome| self.health.keep(self.failure(outcome))).ok()
    }

    fn failure(&self, outcome: Outcome) -> Failure {
        Failure { call: outcome.call, code: outcome.code, text: self.api.text(outcome.code) }
    }

    /// An event at the end of a queue.
    pub(super) fn mark(&self, stream: &Stream) -> Answer<Event> {
        let kept = locked(&self.events).pop();
        let event = kept.map_or_else(|| Event::create(self.api, false), Ok)?;
        match event.record(stream) {
            Ok(()) => Ok(event),
            Err(outcome) => {
                self.give_event(event);
                Err(outcome)
            }
        }
    }

    /// Keeps an event for the next mark. Queues that wait for it wait for the point it was at when they were told to.
    pub(super) fn give_event(&self, event: Event) {
        locked(&self.events).push(event);
    }

    /// Waits for an event of a queue on which `launches` kernels had been launched.
    pub(super) fn wait(&self, event: &Event, launches: u64) -> Result<()> {
        match event.query() {
            Outcome { code: 0, .. } => {}
            Outcome { code: NOT_READY, .. } => {
                self.host_waits.fetch_add(1, Relaxed);
                self.told(event.wait())?;
            }
            outcome => return self.told(Err(outcome)),
        }
        self.health.good(launches);
        Ok(())
    }

    /// Waits for both queues.
    pub(super) fn finish(&self) -> Answer<()> {
        self.host_waits.fetch_add(1, Relaxed);
        self.copy.finish()?;
        self.compute.finish()
    }

    /// A span of device memory, holding anything.
    pub(super) fn take(&self, bytes: usize) -> Result<Span> {
        let mut memory = locked(&self.memory);
        if let Some(span) = memory.pool.take(bytes as u64) {
            return Ok(span);
        }
        let mut within = self.grow(&mut memory, bytes as u64)?;
        if memory.pool.is_short_of(bytes as u64) {
            // Chunks of other sizes may stand in the way. The driver has them back once nothing uses them any more.
            let unused = memory.pool.remove_unused();
            if !unused.is_empty() {
                self.told(self.finish())?;
                memory.chunks.retain(|start, _| !unused.contains(start));
                within = self.grow(&mut memory, bytes as u64)?;
            }
        }
        let sums = memory.pool.sums();
        memory.pool.take(bytes as u64).ok_or(match within {
            true => Error::OutOfMemory { bytes, device: "cuda" },
            false => Error::Budget {
                bytes,
                device: "cuda",
                left: sums.budget - sums.used,
                budget: sums.budget + self.overhead,
            },
        })
    }

    /// Gets a chunk for so many bytes from the driver, if it can be had; whether the budget allows for one.
    fn grow(&self, memory: &mut Held, bytes: u64) -> Result<bool> {
        let Some(wish) = memory.pool.wish(bytes) else { return Ok(false) };
        for size in [wish.good, wish.least] {
            match Chunk::alloc(self.api, self.device, size) {
                Ok(chunk) => {
                    memory.pool.add(chunk.start(), size);
                    memory.chunks.insert(chunk.start(), chunk);
                    break;
                }
                Err(Outcome { code: OUT_OF_MEMORY, .. }) => {}
                Err(outcome) => return self.told(Err(outcome)),
            }
        }
        Ok(true)
    }

    /// Takes a span back, for the next call to use.
    ///
    /// No work that uses it need be done: whoever gets the span queues work behind it on the queue that computes, and the
    /// queue that copies is told to wait where it writes to memory (`upload`). A span that the copying queue may still
    /// write to is given back after the computing queue was told to follow it ([`CudaBuf`](super::CudaBuf)).
    pub(super) fn give(&self, span: Span) {
        locked(&self.memory).pool.give(span);
    }

    pub(super) fn memory(&self) -> Result<DeviceMemory> {
        let (free, total) = self.told(self.context.memory())?;
        let sums = locked(&self.memory).pool.sums();
        Ok(DeviceMemory {
            total,
            free,
            budget: sums.budget + self.overhead,
            overhead: self.overhead,
            chunks: sums.chunks,
            used: sums.used,
            peak: sums.peak_chunks + self.overhead,
            peak_used: sums.peak_used,
        })
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // Nothing may use what is given back now. There is nobody left to tell of a failure.
        let _ = self.enter_to_drop().and_then(|()| self.finish());
    }
}

/// Locks what no panic leaves in pieces.
pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Free bytes to leave for others, where no budget is set: what a desktop takes now and then.
fn margin(free: u64, total: u64) -> u64 {
    (total / 50).clamp(256 << 20, 1 << 30).min(free / 4)
}
