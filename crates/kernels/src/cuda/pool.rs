//! Bookkeeping of device memory: which parts of which chunks are free. Asks no driver anything.
//!
//! Chunks come from the driver and are cut into spans. A chunk is as large as what is asked for, or as several of that
//! where they are small: up to an eighth of the chunks there are, between [`LEAST`] and [`MOST`]. So the bytes that stay
//! unused are a small share of the pool, a large buffer gets a chunk to itself, and the driver, whose allocations are
//! slow, is asked seldom.

use std::collections::BTreeMap;

/// Spans start at multiples of this, and are multiples of it: what CUDA promises of its own allocations.
pub(super) const ALIGN: u64 = 256;
/// The driver's pages: chunks are multiples of it.
pub(super) const PAGE: u64 = 2 << 20;
/// Smallest and largest chunk for buffers that are smaller than it.
const LEAST: u64 = 4 << 20;
const MOST: u64 = 64 << 20;

/// Chunks of device memory, and which of their bytes are free.
#[derive(Debug)]
pub(super) struct Pool {
    /// Most bytes of all chunks.
    budget: u64,
    chunks: BTreeMap<u64, Chunk>,
    chunk_bytes: u64,
    used: u64,
    peak_chunks: u64,
    peak_used: u64,
}

#[derive(Debug)]
struct Chunk {
    bytes: u64,
    /// Bytes of each free part, by its address. No two parts touch.
    free: BTreeMap<u64, u64>,
}

/// A part of a chunk that has been given out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    /// The chunk's address.
    pub(super) chunk: u64,
    pub(super) start: u64,
    pub(super) bytes: u64,
}

/// How large a chunk may be got from the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wish {
    /// The size to ask for first.
    pub(super) good: u64,
    /// The size that does, if the driver has no more.
    pub(super) least: u64,
}

/// Sums over the pool, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sums {
    pub(super) budget: u64,
    pub(super) chunks: u64,
    pub(super) used: u64,
    pub(super) peak_chunks: u64,
    pub(super) peak_used: u64,
}

impl Pool {
    /// An empty pool whose chunks never sum up to more than `budget` bytes.
    pub(super) fn new(budget: u64) -> Pool {
        Pool { budget, chunks: BTreeMap::new(), chunk_bytes: 0, used: 0, peak_chunks: 0, peak_used: 0 }
    }

    /// A span of at least `bytes` bytes from the chunks there are: from the smallest free part that is large enough.
    pub(super) fn take(&mut self, bytes: u64) -> Option<Span> {
        let bytes = rounded(bytes)?;
        let parts = self
            .chunks
            .iter()
            .flat_map(|(&chunk, held)| held.free.iter().map(move |(&start, &size)| (size, chunk, start)));
        let (size, chunk, start) = parts.filter(|&(size, ..)| size >= bytes).min()?;
        let free = &mut self.chunks.get_mut(&chunk)?.free;
        free.remove(&start);
        if size > bytes {
            free.insert(start + bytes, size - bytes);
        }
        self.used += bytes;
        self.peak_used = self.peak_used.max(self.used);
        Some(Span { chunk, start, bytes })
    }

    /// Whether no free part is large enough.
    pub(super) fn is_short_of(&self, bytes: u64) -> bool {
        let parts = self.chunks.values().flat_map(|chunk| chunk.free.values());
        rounded(bytes).is_none_or(|bytes| parts.max().is_none_or(|&most| most < bytes))
    }

    /// Gives a span back, which joins the free parts beside it.
    pub(super) fn give(&mut self, span: Span) {
        let Some(chunk) = self.chunks.get_mut(&span.chunk) else { return };
        self.used -= span.bytes;
        let (mut start, mut bytes) = (span.start, span.bytes);
        if let Some(after) = chunk.free.remove(&(start + bytes)) {
            bytes += after;
        }
        if let Some((&before, &size)) = chunk.free.range(..start).next_back()
            && before + size == start
        {
            chunk.free.remove(&before);
            (start, bytes) = (before, bytes + size);
        }
        chunk.free.insert(start, bytes);
    }

    /// The chunk to get for a span of `bytes` bytes; `None` where the budget has no room for one.
    pub(super) fn wish(&self, bytes: u64) -> Option<Wish> {
        let left = self.left() / PAGE * PAGE;
        let bytes = rounded(bytes)?;
        let least = bytes.checked_next_multiple_of(PAGE)?;
        if least > left {
            return None;
        }
        // Buffers often come in dozens of one size: the chunk has room for a number of them, with less than a page to spare.
        let usual = (self.chunk_bytes / 8).clamp(LEAST, MOST);
        let several = (usual / bytes).max(1) * bytes;
        Some(Wish { good: several.next_multiple_of(PAGE).min(left), least })
    }

    /// Bytes of the budget that no chunk has.
    pub(super) fn left(&self) -> u64 {
        self.budget.saturating_sub(self.chunk_bytes)
    }

    /// Takes in a chunk that the driver gave.
    pub(super) fn add(&mut self, start: u64, bytes: u64) {
        self.chunks.insert(start, Chunk { bytes, free: BTreeMap::from([(start, bytes)]) });
        self.chunk_bytes += bytes;
        self.peak_chunks = self.peak_chunks.max(self.chunk_bytes);
    }

    /// Gives up chunks of which no byte is in use; the answer has their addresses.
    pub(super) fn remove_unused(&mut self) -> Vec<u64> {
        let unused = |(&start, chunk): (&u64, &Chunk)| {
            (chunk.free.get(&start) == Some(&chunk.bytes)).then_some((start, chunk.bytes))
        };
        let gone: Vec<(u64, u64)> = self.chunks.iter().filter_map(unused).collect();
        for (start, bytes) in &gone {
            self.chunks.remove(start);
            self.chunk_bytes -= bytes;
        }
        gone.into_iter().map(|(start, _)| start).collect()
    }

    pub(super) fn sums(&self) -> Sums {
        Sums {
            budget: self.budget,
            chunks: self.chunk_bytes,
            used: self.used,
            peak_chunks: self.peak_chunks,
            peak_used: self.peak_used,
        }
    }
}

/// Bytes of a span for so many bytes. Empty buffers have an address too, so they take the least there is.
fn rounded(bytes: u64) -> Option<u64> {
    bytes.max(1).checked_next_multiple_of(ALIGN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A driver that has `memory` bytes and gives them from addresses that grow.
    struct Driver {
        next: u64,
        memory: u64,
        chunks: BTreeMap<u64, u64>,
    }

    impl Driver {
        fn get(&mut self, bytes: u64) -> Option<u64> {
            if self.chunks.values().sum::<u64>() + bytes > self.memory {
                return None;
            }
            let start = self.next;
            // Sometimes chunks touch: spans must not join over their ends.
            self.next += bytes + start / PAGE % 2 * PAGE;
            self.chunks.insert(start, bytes);
            Some(start)
        }
    }

    /// What [`Cuda`](crate::Cuda) does for an allocation.
    fn alloc(pool: &mut Pool, driver: &mut Driver, bytes: u64) -> Option<Span> {
        for last in [false, true] {
            if let Some(span) = pool.take(bytes) {
                return Some(span);
            }
            if let Some(wish) = pool.wish(bytes) {
                for size in [wish.good, wish.least] {
                    if let Some(start) = driver.get(size) {
                        pool.add(start, size);
                        return pool.take(bytes);
                    }
                }
            }
            if !last {
                for chunk in pool.remove_unused() {
                    driver.chunks.remove(&chunk).unwrap();
                }
            }
        }
        None
    }

    #[derive(Debug, Clone)]
    enum Step {
        Take(u64),
        Give(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            2 => (0u64..5000).prop_map(Step::Take),
            2 => (0u64..(9 << 20)).prop_map(Step::Take),
            1 => Just(Step::Take(70 << 20)),
            4 => any::<usize>().prop_map(Step::Give),
        ]
    }

    proptest! {
        #[test]
        fn spans_never_overlap_and_the_budget_holds(
            steps in prop::collection::vec(step(), 1..300),
            budget in 0u64..(200 << 20),
            short in 0u64..(200 << 20),
        ) {
            let mut pool = Pool::new(budget);
            let mut driver = Driver { next: 1 << 30, memory: short.max(budget / 2), chunks: BTreeMap::new() };
            let mut live: Vec<Span> = Vec::new();
            let mut peak = 0;
            for step in steps {
                match step {
                    Step::Take(bytes) => match alloc(&mut pool, &mut driver, bytes) {
                        Some(span) => {
                            prop_assert!(span.bytes >= bytes.max(1) && span.bytes < bytes + 2 * ALIGN);
                            prop_assert_eq!(span.start % ALIGN, 0);
                            let end = span.start + span.bytes;
                            prop_assert!(span.start >= span.chunk);
                            prop_assert!(end <= span.chunk + driver.chunks[&span.chunk]);
                            for other in &live {
                                prop_assert!(other.start + other.bytes <= span.start || other.start >= end);
                            }
                            live.push(span);
                        }
                        // With nothing in use only what is larger than the budget or the memory is refused.
                        None if live.is_empty() => {
                            let least = bytes.max(1).next_multiple_of(PAGE);
                            prop_assert!(least > budget / PAGE * PAGE || least > driver.memory);
                        }
                        None => {}
                    },
                    Step::Give(which) if !live.is_empty() => {
                        let at = which % live.len();
                        pool.give(live.swap_remove(at));
                    }
                    Step::Give(_) => {}
                }
                let sums = pool.sums();
                peak = peak.max(sums.chunks);
                prop_assert!(sums.chunks <= budget);
                prop_assert_eq!(sums.chunks, driver.chunks.values().sum::<u64>());
                prop_assert_eq!(sums.used, live.iter().map(|span| span.bytes).sum::<u64>());
                let free: u64 = pool.chunks.values().flat_map(|chunk| chunk.free.values()).sum();
                prop_assert_eq!(free, sums.chunks - sums.used);
            }
            prop_assert_eq!(pool.sums().peak_chunks, peak);
            // All free parts join again, whatever the order.
            for span in live.drain(..) {
                pool.give(span);
            }
            prop_assert_eq!(pool.remove_unused().len(), driver.chunks.len());
            prop_assert_eq!(pool.sums().chunks, 0);
        }
    }

    #[test]
    fn chunks_are_as_large_as_the_pool_is() {
        let mut pool = Pool::new(4 << 30);
        // A small model takes 4 MiB, not 64.
        assert_eq!(pool.wish(1000), Some(Wish { good: LEAST, least: PAGE }));
        // A large buffer has a chunk of its own size.
        assert_eq!(pool.wish((100 << 20) + 1), Some(Wish { good: 102 << 20, least: 102 << 20 }));
        pool.add(1 << 40, 512 << 20);
        assert_eq!(pool.wish(1000), Some(Wish { good: 64 << 20, least: PAGE }));
        // Of buffers that are not much smaller than the usual chunk one has as many as fit, and no half of one beside.
        assert_eq!(pool.wish(33 << 20), Some(Wish { good: 34 << 20, least: 34 << 20 }));
        assert_eq!(pool.wish(21 << 20), Some(Wish { good: 64 << 20, least: 22 << 20 }));
        assert_eq!(pool.wish(17 << 20), Some(Wish { good: 52 << 20, least: 18 << 20 }));
        pool.add(2 << 40, 3 << 30);
        pool.add(3 << 40, 490 << 20);
        // What the budget leaves.
        assert_eq!(pool.wish(1000), Some(Wish { good: 22 << 20, least: PAGE }));
        assert_eq!(pool.wish((22 << 20) + 1), None);
        assert_eq!(pool.wish(u64::MAX), None);
    }

    #[test]
    fn the_smallest_part_that_does() {
        let mut pool = Pool::new(1 << 30);
        pool.add(1 << 30, 8192);
        let spans: Vec<Span> = [1024, 256, 2048, 256, 512, 256].map(|n| pool.take(n).unwrap()).to_vec();
        for at in [0, 2, 4] {
            pool.give(spans[at]);
        }
        assert_eq!(pool.take(400), Some(spans[4]));
        assert_eq!(pool.take(600).unwrap().start, spans[0].start);
        assert_eq!(pool.take(0).unwrap().bytes, ALIGN);
    }
}
