//! What this machine can do: rates measured on the spot, memory as the system counts it.

use crate::Result;
pub use products::ProductRate;
pub(crate) use products::products;

mod products;

use airllm_format::{FileSource, ReadMethod};
use std::hint::black_box;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Bytes that each way of reading the disk is timed on.
const DISK_SAMPLE: u64 = 64 << 20;

/// Bytes that reading memory is timed on: more than caches hold.
const MEMORY_SAMPLE: usize = 64 << 20;

/// The rate of the disk below `files` in bytes a second, read by `method`, or by the better one where that is
/// [`ReadMethod::Auto`]; and the method.
///
/// Files too small to be timed give the rate 0.
pub(crate) fn disk(files: &[PathBuf], readers: usize, method: ReadMethod) -> Result<(f64, ReadMethod)> {
    let probe = FileSource::probe(files, DISK_SAMPLE, readers)?;
    Ok(match method {
        ReadMethod::Auto => (probe.best(), probe.choose()),
        ReadMethod::Buffered => (probe.buffered.per_second(), method),
        // Where a file system has no direct reads, these are buffered ones.
        _ if probe.direct.bytes == 0 => (probe.buffered.per_second(), method),
        _ => (probe.direct.per_second(), method),
    })
}

/// The rate at which shards are read that lie spread over folders in these shares, `files` being those of one folder after
/// the other, and the method for each. All folders are read at once, and a shard is there when the slowest has given its
/// part.
pub(crate) fn disks(
    files: &[PathBuf],
    shares: &[u32],
    readers: usize,
    method: ReadMethod,
) -> Result<(f64, Vec<ReadMethod>)> {
    let (mut methods, mut rates) = (Vec::new(), Vec::new());
    let mut drives = Vec::new();
    for files in files.chunks((files.len() / shares.len()).max(1)) {
        let (rate, method) = disk(files, readers, method)?;
        rates.push(rate);
        methods.push(method);
        drives.extend(files.first().and_then(|file| std::fs::metadata(file).ok()).map(|meta| meta.dev()));
    }
    drives.sort_unstable();
    drives.dedup();
    // Folders on one drive share its rate.
    let sharing = shares.len() as f64 / drives.len().max(1) as f64;
    let all = f64::from(shares.iter().sum::<u32>());
    let rate = |(rate, share): (&f64, &u32)| rate / sharing * all / f64::from((*share).max(1));
    let slowest = rates.iter().zip(shares).map(rate).fold(f64::INFINITY, f64::min);
    Ok((if slowest.is_finite() { slowest } else { 0.0 }, methods))
}

/// The rate at which `threads` threads together read memory, in bytes a second.
///
/// At most `most` bytes are used, and at least 1 MiB; a sample that fits a cache overstates the rate.
pub(crate) fn memory(threads: usize, most: u64) -> f64 {
    let words = usize::try_from(most).unwrap_or(usize::MAX).clamp(1 << 20, MEMORY_SAMPLE) / 8;
    let sample = vec![1u64; words];
    let part = words.div_ceil(threads.max(1));
    let mut best = f64::INFINITY;
    // The first round also wakes the pages and the clock; the best of a few is the machine's own rate.
    for _ in 0..4 {
        let begin = Instant::now();
        std::thread::scope(|scope| {
            for part in sample.chunks(part) {
                scope.spawn(move || black_box(sum(part)));
            }
        });
        best = best.min(begin.elapsed().as_secs_f64());
    }
    (words * 8) as f64 / best.max(1e-9)
}

/// A sum in eight lanes, so that the loads and not the additions are what is waited for.
fn sum(words: &[u64]) -> u64 {
    let mut lanes = [0u64; 8];
    let chunks = words.chunks_exact(8);
    let rest: u64 = chunks.remainder().iter().sum();
    for chunk in chunks {
        for (lane, word) in lanes.iter_mut().zip(chunk) {
            *lane = lane.wrapping_add(*word);
        }
    }
    lanes.iter().sum::<u64>() + rest
}

/// The instructions that the processor computes with: `avx512-vnni`, `avx-vnni`, `avx2`, `neon` or `portable`.
pub(crate) fn instructions() -> &'static str {
    airllm_kernels::Cpu::new(1).instructions()
}

/// Threads that compute where no number was asked for.
pub(crate) fn cores() -> usize {
    airllm_kernels::Cpu::own_threads()
}

/// The processor's name, where the system tells it.
pub(crate) fn processor() -> Option<String> {
    cpu_name(&std::fs::read_to_string("/proc/cpuinfo").ok()?)
}

/// `model name` of the first processor in `/proc/cpuinfo`.
fn cpu_name(text: &str) -> Option<String> {
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned()).filter(|name| !name.is_empty())
}

/// Bytes of memory of the machine, where the system tells it.
pub(crate) fn all_memory() -> Option<u64> {
    meminfo(&std::fs::read_to_string("/proc/meminfo").ok()?, "MemTotal:")
}

/// Bytes of memory that this process may still take without pushing others out: what the system calls
/// available, but no more than its control groups (containers) leave. `None` where neither says.
pub fn available_memory() -> Option<u64> {
    const AVAILABLE: &str = "MemAvailable:";
    let read = |path: &Path| std::fs::read_to_string(path).ok();
    let meminfo = read(Path::new("/proc/meminfo")).and_then(|text| self::meminfo(&text, AVAILABLE));
    let group = read(Path::new("/proc/self/cgroup")).and_then(|text| cgroup_path(&text));
    let group = group.and_then(|group| cgroup_room(&group, read));
    meminfo.into_iter().chain(group).min()
}

/// A line of `/proc/meminfo`, in bytes.
fn meminfo(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The path of this process in the unified hierarchy, from `/proc/self/cgroup`.
fn cgroup_path(text: &str) -> Option<String> {
    text.lines().find_map(|line| line.strip_prefix("0::")).map(str::to_owned)
}

/// What the tightest memory limit on the way up from `group` leaves. File pages count as taken there,
/// but the kernel gives them up under pressure, so they are counted as free.
fn cgroup_room(group: &str, read: impl Fn(&Path) -> Option<String>) -> Option<u64> {
    let root = Path::new("/sys/fs/cgroup");
    let start = root.join(group.trim_start_matches('/'));
    let room = |dir: &Path| -> Option<u64> {
        let number = |name: &str| read(&dir.join(name))?.trim().parse::<u64>().ok();
        let files = read(&dir.join("memory.stat"))
            .and_then(|text| text.lines().find_map(|l| l.strip_prefix("file ")?.trim().parse::<u64>().ok()))
            .unwrap_or(0);
        // Without a limit the file says "max".
        Some(number("memory.max")?.saturating_sub(number("memory.current")?.saturating_sub(files)))
    };
    start.ancestors().take_while(|dir| dir.starts_with(root)).filter_map(room).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo() {
        let text = "MemTotal:       24000000 kB\nMemFree: 1 kB\nMemAvailable:   16000000 kB\n";
        assert_eq!(super::meminfo(text, "MemAvailable:"), Some(16_000_000 * 1024));
        assert_eq!(super::meminfo(text, "MemTotal:"), Some(24_000_000 * 1024));
        assert_eq!(super::meminfo("MemTotal: 3 kB\n", "MemAvailable:"), None);
        assert_eq!(super::meminfo("MemAvailable: many kB\n", "MemAvailable:"), None);
    }

    #[test]
    fn processors() {
        let text = "processor\t: 0\nmodel name\t: Some CPU @ 3.0: GHz\nmodel name\t: Other\n";
        assert_eq!(cpu_name(text).unwrap(), "Some CPU @ 3.0: GHz");
        assert_eq!(cpu_name("Features\t: fp asimd\nmodel name\t:\n"), None);
    }

    #[test]
    fn the_tightest_group_counts() {
        assert_eq!(cgroup_path("1:cpu:/x\n0::/a/b\n").as_deref(), Some("/a/b"));
        let files = |path: &Path| {
            let text = match path.to_str().unwrap() {
                "/sys/fs/cgroup/a/b/memory.max" => "max",
                "/sys/fs/cgroup/a/b/memory.current" => "10",
                "/sys/fs/cgroup/a/memory.max" => "1000",
                "/sys/fs/cgroup/a/memory.current" => "700",
                "/sys/fs/cgroup/a/memory.stat" => "anon 500\nfile 200\n",
                _ => return None,
            };
            Some(format!("{text}\n"))
        };
        assert_eq!(cgroup_room("/a/b", files), Some(500));
        assert_eq!(cgroup_room("/", files), None);
    }

    #[test]
    fn memory_is_faster_than_a_disk() {
        assert!(memory(2, u64::MAX) > 1e9);
        assert_eq!(sum(&[3; 21]), 63);
    }
}
