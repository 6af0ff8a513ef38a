//! Bookkeeping of the page-locked memory that small copies to the device pass through. Asks no driver anything.
//!
//! Two halves are filled in turn. When one is full, the queue is marked; the half is filled anew once that mark has been
//! passed, so that the host waits only where a whole half is still to be copied.

use std::ops::Range;

/// Pieces start at multiples of this.
const ALIGN: usize = 64;

/// Two halves of a memory of which the caller knows where it lies. `M` is a mark in a queue.
#[derive(Debug)]
pub(super) struct Ring<M> {
    half: usize,
    /// The half that is being filled, and how many of its bytes are taken.
    current: usize,
    used: usize,
    /// Passed when nothing reads a half any more that has been filled.
    marks: [Option<M>; 2],
}

impl<M> Ring<M> {
    /// Halves of `bytes / 2` bytes each, in whole pieces, at least one.
    pub(super) fn new(bytes: usize) -> Ring<M> {
        let half = (bytes / 2 / ALIGN * ALIGN).max(ALIGN);
        Ring { half, current: 0, used: 0, marks: [None, None] }
    }

    /// Bytes of both halves.
    pub(super) fn bytes(&self) -> usize {
        2 * self.half
    }

    /// Where to put the next bytes, of which there are `wanted`: as many of them as the answer is long, at least one.
    ///
    /// Everything that reads earlier pieces must have been queued. `mark` marks the queue as it is, `pass` waits for a
    /// mark. An error of theirs leaves the ring as it was.
    pub(super) fn take<E>(
        &mut self,
        wanted: usize,
        mark: impl FnOnce() -> Result<M, E>,
        pass: impl FnOnce(&M) -> Result<(), E>,
    ) -> Result<Range<usize>, E> {
        if self.used == self.half {
            if self.marks[self.current].is_none() {
                self.marks[self.current] = Some(mark()?);
            }
            let next = 1 - self.current;
            if let Some(mark) = &self.marks[next] {
                pass(mark)?;
            }
            self.marks[next] = None;
            (self.current, self.used) = (next, 0);
        }
        let bytes = wanted.min(self.half - self.used);
        let start = self.current * self.half + self.used;
        self.used = (self.used + bytes).next_multiple_of(ALIGN).min(self.half);
        Ok(start..start + bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::cell::Cell;

    proptest! {
        /// A queue that runs as late as it may: pieces count as read by it until a mark behind them is passed.
        #[test]
        fn no_piece_is_overwritten_before_it_was_read(
            bytes in 0usize..2000,
            writes in prop::collection::vec(1usize..700, 1..200),
        ) {
            let mut ring = Ring::new(bytes);
            let mut queued: Vec<Range<usize>> = Vec::new();
            // How many of the queued pieces have been read.
            let done = Cell::new(0);
            let waits = Cell::new(0);
            for mut rest in writes {
                while rest > 0 {
                    let marked = queued.len();
                    let piece = ring.take(
                        rest,
                        || Ok::<_, ()>(marked),
                        |&mark| { done.set(done.get().max(mark)); waits.set(waits.get() + 1); Ok(()) },
                    ).unwrap();
                    prop_assert!(!piece.is_empty() && piece.len() <= rest && piece.end <= ring.bytes());
                    for unread in &queued[done.get()..] {
                        prop_assert!(unread.end <= piece.start || unread.start >= piece.end);
                    }
                    rest -= piece.len();
                    queued.push(piece);
                }
            }
            // A wait for a half, never for a piece.
            let taken: usize = queued.iter().map(|piece| piece.len().next_multiple_of(ALIGN)).sum();
            prop_assert!(waits.get() <= taken / (ring.bytes() / 2));
        }
    }

    #[test]
    fn an_error_changes_nothing() {
        let mut ring = Ring::<u32>::new(128);
        let first = ring.take(64, || Err("mark"), |_| Err("pass")).unwrap();
        assert_eq!(first, 0..64);
        assert_eq!(ring.take(64, || Err("mark"), |_| Err("pass")), Err("mark"));
        assert_eq!(ring.take(64, || Ok(1), |_| Err("pass")), Ok(64..128));
        assert_eq!(ring.take(64, || Ok(2), |_| Err("pass")), Err("pass"));
        // The mark of the second half stands, the first half is still waited for.
        let mut passed = 0;
        let pass = |mark: &u32| {
            passed = *mark;
            Ok::<_, &str>(())
        };
        assert_eq!(ring.take(10, || Err("a second mark"), pass), Ok(0..10));
        assert_eq!(passed, 1);
    }
}
