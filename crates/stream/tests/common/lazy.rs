//! A device that does nothing before somebody waits for it: whatever is not ordered by a fence goes wrong.
//!
//! Work and copies stand in two queues. A fence that is waited for runs its queue up to there, and of the other one
//! what that follows, nothing more. A copy reads its source when it runs. Fresh memory is poison, and becomes so only
//! when the queue comes to it.

use airllm_kernels::{Memory, Result as DeviceResult};
use std::collections::VecDeque;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex};

/// What fresh memory holds.
pub const POISON: u8 = 0xDB;

/// Rules that a test takes away, to see that something breaks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Broken {
    /// `follow` does nothing.
    pub follow: bool,
    /// Copies do not wait for what they come after.
    pub after: bool,
}

pub struct Lazy {
    /// One question in so many whether something is done does it; 0: none does.
    willing: u64,
    /// Whether verbs can be given bytes of the host.
    host: bool,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// Queued operations, and how many of each queue are done.
    queues: [VecDeque<Op>; 2],
    done: [u64; 2],
    broken: Broken,
    questions: u64,
    /// What verbs saw, in order.
    seen: Vec<Vec<u8>>,
    /// Ranges that were registered and are not dropped.
    registered: Vec<Range<usize>>,
    /// Promises of callers that were not kept.
    violations: Vec<String>,
}

const COMPUTE: usize = 0;
const COPIES: usize = 1;

#[derive(Debug, Clone, Copy)]
pub struct LazyFence {
    queue: usize,
    /// Operations of the queue before it.
    number: u64,
}

type Bytes = Arc<Mutex<Vec<u8>>>;

pub struct LazyBuf {
    bytes: Bytes,
    state: Arc<Mutex<State>>,
}

#[derive(Clone, Copy)]
pub enum LazyView<'a> {
    Device(&'a LazyBuf, usize, usize),
    Host(&'a [u8]),
}

enum Op {
    Write(Bytes, usize, Vec<u8>),
    Follow(LazyFence),
    Copy { to: Bytes, at: usize, from: Source, sum: u64, after: Option<LazyFence> },
    See(Seen),
}

enum Seen {
    Device(Bytes, Range<usize>),
    Host(Source, u64),
}

/// Bytes of the host that somebody promised to leave alone.
#[derive(Clone, Copy)]
struct Source(usize, usize);

impl Source {
    fn of(bytes: &[u8]) -> Self {
        Self(bytes.as_ptr() as usize, bytes.len())
    }
    fn read(self) -> Vec<u8> {
        // SAFETY: whoever queued this promised that the bytes stay mapped, and as they are, until it is done.
        unsafe { std::slice::from_raw_parts(self.0 as *const u8, self.1) }.to_vec()
    }
}

fn sum(bytes: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64_with_seed(bytes, 0)
}

impl Lazy {
    pub fn new(willing: u64, host: bool, broken: Broken) -> Self {
        let state = State { broken, ..State::default() };
        Self { willing, host, state: Arc::new(Mutex::new(state)) }
    }

    /// A verb: looks at bytes when the queue comes to it.
    pub fn see(&self, view: LazyView<'_>) {
        let seen = match view {
            LazyView::Device(buf, from, to) => Seen::Device(buf.bytes.clone(), from..to),
            LazyView::Host(bytes) => Seen::Host(Source::of(bytes), sum(bytes)),
        };
        self.state.lock().unwrap().queues[COMPUTE].push_back(Op::See(seen));
    }

    /// Does all that is queued and returns what verbs saw.
    pub fn take_seen(&self) -> Vec<Vec<u8>> {
        let mut state = self.state.lock().unwrap();
        let end = state.end(COMPUTE);
        state.run(end);
        std::mem::take(&mut state.seen)
    }

    /// Copies that were asked for and not made.
    pub fn pending_copies(&self) -> usize {
        self.state.lock().unwrap().queues[COPIES].len()
    }

    pub fn violations(&self) -> Vec<String> {
        self.state.lock().unwrap().violations.clone()
    }
}

impl State {
    fn end(&self, queue: usize) -> LazyFence {
        LazyFence { queue, number: self.done[queue] + self.queues[queue].len() as u64 }
    }

    fn is_done(&self, fence: LazyFence) -> bool {
        self.done[fence.queue] >= fence.number
    }

    fn run(&mut self, fence: LazyFence) {
        while !self.is_done(fence) {
            let op = self.queues[fence.queue].pop_front().expect("a fence of this device");
            match op {
                Op::Write(to, at, bytes) => to.lock().unwrap()[at..at + bytes.len()].copy_from_slice(&bytes),
                Op::Follow(fence) if !self.broken.follow => self.run(fence),
                Op::Follow(_) => {}
                Op::Copy { to, at, from, sum: before, after } => {
                    if let Some(after) = after.filter(|_| !self.broken.after) {
                        self.run(after);
                    }
                    let bytes = from.read();
                    self.expect(sum(&bytes) == before, "the source of a copy changed before it was made");
                    to.lock().unwrap()[at..at + bytes.len()].copy_from_slice(&bytes);
                }
                Op::See(Seen::Device(bytes, range)) => {
                    let bytes = bytes.lock().unwrap()[range].to_vec();
                    self.seen.push(bytes);
                }
                Op::See(Seen::Host(source, before)) => {
                    let bytes = source.read();
                    self.expect(sum(&bytes) == before, "bytes of the host changed before they were used");
                    self.seen.push(bytes);
                }
            }
            self.done[fence.queue] += 1;
        }
    }

    fn expect(&mut self, kept: bool, promise: &str) {
        if !kept {
            self.violations.push(promise.to_owned());
        }
    }
}

/// What a registration is until it is dropped.
struct Registered(Range<usize>, Arc<Mutex<State>>);

impl Drop for Registered {
    fn drop(&mut self) {
        let mut state = self.1.lock().unwrap();
        state.registered.retain(|range| *range != self.0);
        let waits = |op: &Op| matches!(op, Op::Copy { from, .. } if self.0.contains(&from.0));
        let gone = state.queues[COPIES].iter().any(waits);
        state.expect(!gone, "memory went before it was copied");
    }
}

impl Drop for LazyBuf {
    fn drop(&mut self) {
        let mut state = self.state.lock().unwrap();
        let waits = |op: &Op| matches!(op, Op::Copy { to, .. } if Arc::ptr_eq(to, &self.bytes));
        let gone = state.queues[COPIES].iter().any(waits);
        state.expect(!gone, "a buffer went before it was copied to");
    }
}

impl Memory for Lazy {
    type Buf = LazyBuf;
    type Fence = LazyFence;
    type View<'a> = LazyView<'a>;

    fn copies(&self) -> bool {
        true
    }
    fn alloc(&self, bytes: usize) -> DeviceResult<LazyBuf> {
        let fresh: Bytes = Arc::new(Mutex::new(vec![0; bytes]));
        let mut state = self.state.lock().unwrap();
        state.queues[COMPUTE].push_back(Op::Write(fresh.clone(), 0, vec![POISON; bytes]));
        Ok(LazyBuf { bytes: fresh, state: self.state.clone() })
    }
    fn len(&self, buf: &LazyBuf) -> usize {
        buf.bytes.lock().unwrap().len()
    }
    fn write(&self, dst: &mut LazyBuf, offset: usize, bytes: &[u8]) -> DeviceResult<()> {
        let op = Op::Write(dst.bytes.clone(), offset, bytes.to_vec());
        self.state.lock().unwrap().queues[COMPUTE].push_back(op);
        Ok(())
    }
    fn read(&self, src: &LazyBuf, offset: usize, out: &mut [u8]) -> DeviceResult<()> {
        let mut state = self.state.lock().unwrap();
        let end = state.end(COMPUTE);
        state.run(end);
        out.copy_from_slice(&src.bytes.lock().unwrap()[offset..offset + out.len()]);
        Ok(())
    }
    fn view<'a>(&'a self, buf: &'a LazyBuf, range: Range<usize>) -> DeviceResult<LazyView<'a>> {
        assert!(range.end <= self.len(buf));
        Ok(LazyView::Device(buf, range.start, range.end))
    }
    fn host_view<'a>(&'a self, bytes: &'a [u8]) -> Option<LazyView<'a>> {
        self.host.then_some(LazyView::Host(bytes))
    }
    unsafe fn register(&self, start: NonNull<u8>, bytes: usize) -> DeviceResult<Box<dyn Send + Sync>> {
        let range = start.as_ptr() as usize..start.as_ptr() as usize + bytes;
        self.state.lock().unwrap().registered.push(range.clone());
        Ok(Box::new(Registered(range, self.state.clone())))
    }
    unsafe fn upload(
        &self,
        dst: &LazyBuf,
        offset: usize,
        bytes: &[u8],
        after: Option<&LazyFence>,
    ) -> DeviceResult<LazyFence> {
        let mut state = self.state.lock().unwrap();
        let from = Source::of(bytes);
        let known =
            state.registered.iter().any(|range| range.contains(&from.0) && from.0 + from.1 <= range.end);
        state.expect(known, "a copy from memory that was not registered");
        let (to, sum) = (dst.bytes.clone(), sum(bytes));
        assert!(offset + bytes.len() <= to.lock().unwrap().len());
        state.queues[COPIES].push_back(Op::Copy { to, at: offset, from, sum, after: after.copied() });
        Ok(state.end(COPIES))
    }
    fn follow(&self, fence: &LazyFence) -> DeviceResult<()> {
        self.state.lock().unwrap().queues[COMPUTE].push_back(Op::Follow(*fence));
        Ok(())
    }
    fn fence(&self) -> DeviceResult<LazyFence> {
        Ok(self.state.lock().unwrap().end(COMPUTE))
    }
    fn wait(&self, fence: &LazyFence) -> DeviceResult<()> {
        self.state.lock().unwrap().run(*fence);
        Ok(())
    }
    fn is_done(&self, fence: &LazyFence) -> DeviceResult<bool> {
        let mut state = self.state.lock().unwrap();
        state.questions += 1;
        if self.willing > 0 && state.questions.is_multiple_of(self.willing) {
            state.run(*fence);
        }
        Ok(state.is_done(*fence))
    }
}
