//! A source that fails on demand, for the tests of everything that reads.

use super::fill::{Stop, fill};
use crate::{Error, LayerSource, Result};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Wraps a [`LayerSource`] and makes its faults programmable.
///
/// Reads are numbered from 0 in the order in which they start. Every fault is off until it is asked for;
/// they can be combined.
///
/// ```
/// use airllm_format::{FaultSource, LayerSource, MemorySource};
/// let memory = MemorySource::new(vec![("a".to_owned(), vec![7; 100])]);
/// let source = FaultSource::new(memory).fail_read(1).flip_bit(0, 3, 0);
/// let mut buf = [0; 4];
/// source.read_at(0, 0, &mut buf)?;
/// assert_eq!(buf, [7, 7, 7, 6]);
/// assert!(source.read_at(0, 0, &mut buf).is_err());
/// # Ok::<(), airllm_format::Error>(())
/// ```
#[derive(Debug)]
pub struct FaultSource<S> {
    inner: S,
    reads: AtomicU64,
    fail: Vec<u64>,
    fail_from: Option<u64>,
    delay: Option<(u64, Duration)>,
    truncate: Vec<(usize, u64)>,
    flips: Vec<(usize, u64, u8)>,
    short: Option<u64>,
}

impl<S: LayerSource> FaultSource<S> {
    /// A source without faults.
    pub fn new(inner: S) -> Self {
        Self {
            inner,
            reads: AtomicU64::new(0),
            fail: Vec::new(),
            fail_from: None,
            delay: None,
            truncate: Vec::new(),
            flips: Vec::new(),
            short: None,
        }
    }

    /// Read number `n` fails with an I/O error; the ones after it work.
    #[must_use]
    pub fn fail_read(mut self, n: u64) -> Self {
        self.fail.push(n);
        self
    }

    /// Read number `n` and all after it fail with an I/O error.
    #[must_use]
    pub fn fail_from(mut self, n: u64) -> Self {
        self.fail_from = Some(n);
        self
    }

    /// Every `every`-th read (0 and 1: each one) takes `time` longer.
    #[must_use]
    pub fn delay(mut self, every: u64, time: Duration) -> Self {
        self.delay = Some((every.max(1), time));
        self
    }

    /// The file turns out to end after `len` bytes, although its length was said to be more.
    #[must_use]
    pub fn truncate(mut self, file: usize, len: u64) -> Self {
        self.truncate.push((file, len));
        self
    }

    /// Bit `bit` (0 to 7) of the byte at `offset` of a file is the other one.
    #[must_use]
    pub fn flip_bit(mut self, file: usize, offset: u64, bit: u8) -> Self {
        self.flips.push((file, offset, bit % 8));
        self
    }

    /// The system underneath returns less than asked, in steps that `seed` decides, and interrupts some
    /// reads; both are healed as a file source heals them, so callers see whole reads.
    #[must_use]
    pub fn short_reads(mut self, seed: u64) -> Self {
        self.short = Some(seed);
        self
    }

    /// How many reads have been started.
    pub fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }

    /// The source underneath.
    pub fn inner(&self) -> &S {
        &self.inner
    }

    /// Reads in pieces.
    fn read_short(&self, seed: u64, file: usize, offset: u64, buf: &mut [u8]) -> Result<()> {
        let mut state = seed ^ offset.rotate_left(32) ^ (file as u64).rotate_left(48);
        let mut inner_error = None;
        // The end of the file is the inner source's business, so here everything asked for is there.
        let len = offset.saturating_add(buf.len() as u64);
        let done = fill(len, offset, buf, |part, at| {
            // Splitmix64: a small generator whose whole state is the seed.
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            z ^= z >> 31;
            if z.is_multiple_of(5) {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let step = (z >> 8) as usize % part.len() + 1;
            match self.inner.read_at(file, at, &mut part[..step]) {
                Ok(()) => Ok(step),
                Err(e) => {
                    inner_error = Some(e);
                    Err(io::Error::other("read"))
                }
            }
        });
        match (done, inner_error) {
            (Ok(()), _) => Ok(()),
            (Err(_), Some(e)) => Err(e),
            (Err(Stop::Io(at, e)), None) => {
                Err(Error::io(Path::new(self.name(file)), format!("reading at {at}"))(e))
            }
            (Err(Stop::Ended(at)), None) => {
                Err(Error::malformed(Path::new(self.name(file)), format!("the file ends at {at}")))
            }
        }
    }
}

impl<S: LayerSource> LayerSource for FaultSource<S> {
    fn files(&self) -> usize {
        self.inner.files()
    }

    fn name(&self, file: usize) -> &str {
        self.inner.name(file)
    }

    fn len(&self, file: usize) -> u64 {
        self.inner.len(file)
    }

    fn alignment(&self) -> usize {
        self.inner.alignment()
    }

    fn read_at(&self, file: usize, offset: u64, buf: &mut [u8]) -> Result<()> {
        let number = self.reads.fetch_add(1, Ordering::Relaxed);
        if let Some((_, time)) = self.delay.filter(|(every, _)| number.is_multiple_of(*every)) {
            std::thread::sleep(time);
        }
        if self.fail.contains(&number) || self.fail_from.is_some_and(|n| number >= n) {
            let doing = format!("reading {} bytes at {offset} (read number {number})", buf.len());
            return Err(Error::io(Path::new(self.name(file)), doing)(io::Error::other("injected fault")));
        }
        let end = offset.saturating_add(buf.len() as u64).min(self.len(file));
        if let Some((_, len)) = self.truncate.iter().find(|(f, len)| *f == file && end > *len) {
            let what = format!("the file ends at {len}, it had {} bytes when it was opened", self.len(file));
            return Err(Error::malformed(Path::new(self.name(file)), what));
        }
        match self.short {
            Some(seed) => self.read_short(seed, file, offset, buf)?,
            None => self.inner.read_at(file, offset, buf)?,
        }
        for (_, at, bit) in self.flips.iter().filter(|(f, ..)| *f == file) {
            if let Some(byte) = at.checked_sub(offset).and_then(|i| buf.get_mut(usize::try_from(i).ok()?)) {
                *byte ^= 1 << bit;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemorySource;
    use proptest::prelude::*;

    fn memory() -> MemorySource {
        MemorySource::new(vec![("a".into(), (0..200).collect()), ("b".into(), vec![1; 50])])
    }

    #[test]
    fn fails_where_it_was_told_to() {
        let source = FaultSource::new(memory()).fail_read(1).fail_from(3);
        let mut buf = [0; 8];
        let outcomes: Vec<bool> = (0..5).map(|_| source.read_at(0, 0, &mut buf).is_ok()).collect();
        assert_eq!(outcomes, [true, false, true, false, false]);
        assert_eq!(source.reads(), 5);
    }

    #[test]
    fn truncates_and_delays() {
        let source = FaultSource::new(memory()).truncate(0, 100).delay(2, Duration::from_millis(30));
        let mut buf = [0; 10];
        let start = std::time::Instant::now();
        source.read_at(0, 90, &mut buf).unwrap();
        assert!(start.elapsed() >= Duration::from_millis(30));
        assert!(source.read_at(0, 91, &mut buf).unwrap_err().to_string().contains("ends at 100"));
        source.read_at(1, 40, &mut buf).unwrap();
        assert!(source.read_at(1, 41, &mut buf).is_err());
    }

    proptest! {
        #[test]
        fn short_reads_are_healed(seed: u64, offset in 0u64..200, len in 0usize..200) {
            let len = len.min(200 - offset as usize);
            let (mut plain, mut short) = (vec![0; len], vec![0; len]);
            memory().read_at(0, offset, &mut plain).unwrap();
            FaultSource::new(memory()).short_reads(seed).read_at(0, offset, &mut short).unwrap();
            prop_assert_eq!(plain, short);
        }
    }
}
