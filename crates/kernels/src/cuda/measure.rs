//! Measurements: how long queued work takes, how wide the lanes are.

use super::handles::{Event, Pinned};
use super::{Cuda, CudaBuf};
use crate::{Error, Memory, Result};
use std::time::Instant;

/// Bytes of one copy from the host.
const UPLOAD: usize = 64 << 20;
/// Bytes of one copy on the device: with its target more than any cache holds.
const COPY: usize = 256 << 20;
/// Bytes of noise that the host makes.
const NOISE: usize = 4 << 20;
/// Measurements, of which the best counts, and copies in each.
const ROUNDS: usize = 3;
const COPIES: usize = 4;

impl Cuda {
    /// Runs `work`, and measures how long the device takes for what it queues, in milliseconds. Waits for its end.
    ///
    /// # Errors
    ///
    /// What `work` answers, or [`Error::Device`].
    pub fn time<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<(T, f64)> {
        let shared = &self.shared;
        shared.enter()?;
        let event = || shared.told(Event::create(shared.api, true));
        let (start, end) = (event()?, event()?);
        shared.told(start.record(&shared.compute))?;
        let answer = work()?;
        shared.enter()?;
        let launches = shared.health.launches();
        shared.told(end.record(&shared.compute))?;
        shared.wait(&end, launches)?;
        Ok((answer, shared.told(Event::elapsed(&start, &end))?))
    }

    /// Bytes a second that are copied from page-locked host memory to the device.
    ///
    /// Takes up to 64 MiB of both for a moment, at most a quarter of what is left of the budget.
    pub fn measure_upload(&self) -> Result<f64> {
        let shared = &self.shared;
        let bytes = self.spare(UPLOAD)?;
        let host = shared.told(Pinned::alloc(shared.api, bytes))?;
        let to = self.alloc(bytes)?;
        self.wait(&self.fence()?)?;
        let round = || {
            let start = Instant::now();
            for _ in 0..COPIES {
                // SAFETY: both have so many bytes. The zeros of the buffer are done; nothing else uses either, and they
                // are dropped after the copies, below.
                let copied = unsafe {
                    let from = host.start().as_ptr().cast();
                    shared.api.cuMemcpyHtoDAsync_v2(
                        to.address().addr() as u64,
                        from,
                        bytes,
                        shared.copy.raw(),
                    )
                };
                shared.told(copied.done())?;
            }
            shared.told(shared.copy.finish())?;
            Ok((bytes * COPIES) as f64 / start.elapsed().as_secs_f64())
        };
        let best = best(round);
        // Also where a copy failed the others have ended before the memory goes.
        shared.told(shared.finish())?;
        best
    }

    /// Bytes a second that the device's memory moves when it is copied: those read and those written.
    ///
    /// Copies bytes without a pattern. Takes up to 512 MiB for a moment, at most half of what is left of the budget.
    pub fn measure_memory(&self) -> Result<f64> {
        let shared = &self.shared;
        let bytes = self.spare(COPY)?;
        let (mut from, to) = (self.alloc(bytes)?, self.alloc(bytes)?);
        self.fill(&mut from, bytes)?;
        let (from, to) = (from.address().addr() as u64, to.address().addr() as u64);
        best(|| {
            let ((), milliseconds) = self.time(|| {
                for _ in 0..COPIES {
                    // SAFETY: both buffers have so many bytes, and are used by what is queued alone.
                    let copied =
                        unsafe { shared.api.cuMemcpyDtoDAsync_v2(to, from, bytes, shared.compute.raw()) };
                    shared.told(copied.done())?;
                }
                Ok(())
            })?;
            if milliseconds <= 0.0 {
                let what = format!("{milliseconds} ms for copies of {} bytes", bytes * COPIES);
                return Err(Error::Device { call: "cuEventElapsedTime", what });
            }
            Ok((2 * bytes * COPIES) as f64 / (milliseconds / 1e3))
        })
    }

    /// Writes bytes without a pattern: memory that is all zeros may be moved faster than weights are. A block comes from
    /// the host, and is copied over and over.
    fn fill(&self, buf: &mut CudaBuf, bytes: usize) -> Result<()> {
        let shared = &self.shared;
        let block = noise(bytes.min(NOISE));
        self.write(buf, 0, &block)?;
        let start = buf.address().addr() as u64;
        let mut done = block.len();
        while done < bytes {
            let part = done.min(bytes - done);
            // SAFETY: the buffer has so many bytes, is used by what is queued alone, and the two parts do not overlap.
            let copied = unsafe {
                shared.api.cuMemcpyDtoDAsync_v2(start + done as u64, start, part, shared.compute.raw())
            };
            shared.told(copied.done())?;
            done += part;
        }
        Ok(())
    }

    /// At most so many bytes, and at most a quarter of what is left.
    fn spare(&self, most: usize) -> Result<usize> {
        let memory = self.memory()?;
        let left = (memory.budget - memory.overhead - memory.used).min(memory.free) / 4;
        Ok((left as usize / 4096 * 4096).clamp(4096, most))
    }
}

/// So many bytes of a generator by shifts (Marsaglia's xorshift64), the same each time.
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut out: Vec<u8> = (0..bytes.div_ceil(8)).flat_map(|_| next()).collect();
    out.truncate(bytes);
    out
}

fn best(mut round: impl FnMut() -> Result<f64>) -> Result<f64> {
    (0..ROUNDS).try_fold(0f64, |best, _| Ok(best.max(round()?)))
}

#[cfg(test)]
mod tests {
    use super::noise;

    #[test]
    fn noise_has_all_bytes_about_as_often() {
        let bytes = noise((1 << 20) + 3);
        assert_eq!(bytes.len(), (1 << 20) + 3);
        let mut counts = [0_u32; 256];
        bytes.iter().for_each(|&byte| counts[byte as usize] += 1);
        assert!(counts.iter().all(|count| (3600..4600).contains(count)), "{counts:?}");
    }
}
