//! Measures what the planner needs to know of this machine and cannot look up.

use crate::{Error, Result};
use std::hint::black_box;
use std::time::Instant;

/// Larger than any last-level cache that matters, small beside the budgets of real models.
const BUFFER: usize = 128 << 20;

/// Memory read rate of `threads` threads together, in bytes per second: the best of four rounds over a
/// buffer of 128 MiB. Takes about a tenth of a second.
pub fn memory(threads: usize) -> Result<f64> {
    let threads = threads.max(1);
    let mut words: Vec<u64> = Vec::new();
    words.try_reserve_exact(BUFFER / 8).map_err(|error| Error::Memory {
        bytes: BUFFER,
        what: "the memory probe",
        reason: error.to_string(),
    })?;
    words.extend(0..BUFFER as u64 / 8);
    let share = words.len().div_ceil(threads);
    let mut best = f64::INFINITY;
    for _ in 0..4 {
        let begun = Instant::now();
        std::thread::scope(|scope| {
            for part in words.chunks(share) {
                scope.spawn(move || black_box(sum(part)));
            }
        });
        best = best.min(begun.elapsed().as_secs_f64());
    }
    Ok(BUFFER as f64 / best)
}

/// Eight independent sums, so that the additions never wait for each other.
fn sum(words: &[u64]) -> u64 {
    let mut sums = [0u64; 8];
    for chunk in words.chunks_exact(8) {
        for (sum, word) in sums.iter_mut().zip(chunk) {
            *sum = sum.wrapping_add(*word);
        }
    }
    sums.iter().fold(0, |total, sum| total.wrapping_add(*sum))
}

#[cfg(all(test, not(feature = "loom")))]
mod tests {
    #[test]
    fn memory_is_faster_than_any_disk_and_slower_than_light() {
        let rate = super::memory(2).unwrap();
        assert!((1e8..1e13).contains(&rate), "{rate}");
    }
}
