//! `cargo bench --bench disk [-- --file FILE] [--slot MIB] [--json FILE]`: source -> ring by every method against every raw
//! way of reading the same file, in GB/s, and what the engine's own probe says beforehand.
//!
//! All methods take turns, several rounds, each on a file dropped from the page cache before, because
//! disks drift more between minutes than methods differ. Printed and written: medians, and the ratio to
//! the best raw method. Not criterion: it finishes one method before it begins the next.

use airllm_benches::{Row, best, median, report};
use airllm_format::{NumFormat, ReadMethod};
use airllm_kernels::Cpu;
use airllm_stream::{
    Catalog, Error, ExpertCache, OnDevice, Options, Pipeline, Tensor, TensorId, Timeline, Unit, open_files,
    probe_reads,
};
use memmap2::{Advice, Mmap, MmapMut, UncheckedAdvice};
use rustix::fs::{Mode, OFlags};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

const ROUNDS: usize = 5;
const FILE_BYTES: u64 = 1 << 30;
const BLOCK: usize = 16 << 20;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let value = |flag: &str| args.iter().position(|a| a == flag).and_then(|i| args.get(i + 1));
    let own = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("disk-bench.bin");
    let path = value("--file").map_or_else(|| own.clone(), PathBuf::from);
    if path == own {
        write_random(&own, FILE_BYTES);
    }
    let bytes =
        std::fs::metadata(&path).expect("the file to read is there").len() / BLOCK as u64 * BLOCK as u64;
    assert!(bytes > 0, "{} is smaller than one block of 16 MiB", path.display());

    let slot = value("--slot").and_then(|mib| mib.parse::<usize>().ok()).map_or(BLOCK, |mib| mib << 20);
    let raw_methods = 7;
    let room = std::time::Duration::from_secs(5);
    let probed = probe_reads(path.parent().unwrap_or(Path::new(".")), std::slice::from_ref(&path), room);
    let probed = probed.expect("the file can be read");

    let methods: Vec<(&str, Method)> = vec![
        ("O_DIRECT, 1 thread, huge pages", Box::new(|p, n| direct(p, n, 1, true))),
        ("O_DIRECT, 2 threads, huge pages", Box::new(|p, n| direct(p, n, 2, true))),
        ("O_DIRECT, 4 threads, huge pages", Box::new(|p, n| direct(p, n, 4, true))),
        ("O_DIRECT, 2 threads, 4 KiB pages", Box::new(|p, n| direct(p, n, 2, false))),
        ("buffered, 1 thread", Box::new(|p, n| buffered(p, n, 1))),
        ("buffered, 2 threads", Box::new(|p, n| buffered(p, n, 2))),
        ("mmap, sequential", Box::new(mapped)),
        ("ring, direct", Box::new(move |p, n| ring(p, n, ReadMethod::Direct, slot))),
        ("ring, io_uring", Box::new(move |p, n| ring(p, n, ReadMethod::Uring, slot))),
        ("ring, buffered", Box::new(move |p, n| ring(p, n, ReadMethod::Buffered, slot))),
    ];
    let mut rates = vec![Vec::new(); methods.len()];
    for round in 0..ROUNDS {
        for turn in 0..methods.len() {
            let index = (turn + round) % methods.len();
            evict(&path);
            let begun = Instant::now();
            let Some(read) = (methods[index].1)(&path, bytes) else { continue };
            rates[index].push(read as f64 / begun.elapsed().as_secs_f64() / 1e9);
        }
    }
    if path == own {
        let _ = std::fs::remove_file(&own);
    }
    let medians: Vec<f64> = rates.iter_mut().map(|rates| median(rates)).collect();
    let raw = best(&medians[..raw_methods]);
    let mut rows: Vec<Row> = methods
        .iter()
        .zip(&medians)
        .map(|((name, _), &rate)| Row::new(name, rate, "GB/s").against(rate / raw, "best raw method"))
        .collect();
    for it in &probed.methods {
        let name = format!("probe: {}, {} threads", it.method, it.threads);
        rows.push(Row::new(&name, it.rate / 1e9, "GB/s").against(it.rate / 1e9 / raw, "best raw method"));
    }
    report("disk", "cargo bench --bench disk", &rows, value("--json").map(Path::new));
}

/// Reads the first bytes of a file and says how many; `None` where the file system does not allow it.
type Method = Box<dyn Fn(&Path, u64) -> Option<u64>>;

fn write_random(path: &Path, bytes: u64) {
    let mut file = File::create(path).expect("the bench's file can be created");
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    let mut block = vec![0u8; 4 << 20];
    for _ in 0..bytes / block.len() as u64 {
        for word in block.chunks_exact_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
        file.write_all(&block).expect("there is room for the bench's file");
    }
    file.sync_all().expect("the bench's file reaches the disk");
}

fn evict(path: &Path) {
    let file = File::open(path).expect("the file can be opened");
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).expect("the cache can be emptied");
}

fn memory(bytes: usize, huge: bool) -> MmapMut {
    let memory = MmapMut::map_anon(bytes).expect("there is memory");
    let _ = memory.advise(if huge { Advice::HugePage } else { Advice::NoHugePage });
    memory
}

/// Blocks handed out to threads, each with a buffer of its own that it uses again and again.
fn blocks(path: &Path, bytes: u64, threads: usize, flags: OFlags, huge: bool) -> Option<u64> {
    let file = rustix::fs::open(path, OFlags::RDONLY | flags, Mode::empty()).ok()?;
    let next = AtomicU64::new(0);
    let worked = std::thread::scope(|scope| {
        let readers: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| -> Option<()> {
                    let mut buffer = memory(BLOCK, huge);
                    loop {
                        let at = next.fetch_add(BLOCK as u64, Ordering::Relaxed);
                        if at >= bytes {
                            return Some(());
                        }
                        let mut done = 0;
                        while done < BLOCK {
                            let read =
                                rustix::io::pread(&file, &mut buffer[done..], at + done as u64).ok()?;
                            done += (read > 0).then_some(read)?;
                        }
                    }
                })
            })
            .collect();
        readers.into_iter().all(|reader| matches!(reader.join(), Ok(Some(()))))
    });
    worked.then_some(bytes)
}

fn direct(path: &Path, bytes: u64, threads: usize, huge: bool) -> Option<u64> {
    blocks(path, bytes, threads, OFlags::DIRECT, huge)
}

fn buffered(path: &Path, bytes: u64, threads: usize) -> Option<u64> {
    let file = File::open(path).ok()?;
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Sequential).ok()?;
    blocks(path, bytes, threads, OFlags::empty(), true)
}

fn mapped(path: &Path, bytes: u64) -> Option<u64> {
    let file = File::open(path).ok()?;
    // SAFETY: nobody changes the file while the bench runs.
    let map = unsafe { Mmap::map(&file) }.ok()?;
    map.advise(Advice::Sequential).ok()?;
    let mut sum = 0u64;
    for block in map[..bytes as usize].chunks(BLOCK) {
        sum += block.iter().step_by(4096).map(|&byte| u64::from(byte)).sum::<u64>();
        let at = block.as_ptr() as usize - map.as_ptr() as usize;
        // SAFETY: the pages are clean pages of a file; they are not read again.
        unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, at, block.len()) }.ok()?;
    }
    std::hint::black_box(sum);
    Some(bytes)
}

/// One pass of the engine's own stream over the file, nothing computed. What was read ahead for the next
/// pass meanwhile counts: it is in the ring.
fn ring(path: &Path, bytes: u64, method: ReadMethod, slot_bytes: usize) -> Option<u64> {
    let source = open_files(&[path.to_path_buf()], method).ok()?;
    // What fell back is another method's figure.
    (source.method() == method).then_some(())?;
    let cols = 4096;
    let rows = (bytes / (cols as u64 * 2)) as usize;
    let tensor =
        Tensor { name: "w".into(), file: 0, offset: 0, format: NumFormat::Bf16, rows, cols, checksum: None };
    let id = TensorId { unit: 0, tensor: 0 };
    let catalog = Catalog {
        units: vec![Unit { name: "layer".into(), tensors: vec![tensor], on_demand: false }],
        pass: vec![id],
    };
    let (experts, timeline) = (ExpertCache::default(), Arc::new(Timeline::new(false)));
    let options = Options {
        pinned: vec![],
        slots: 4,
        slot_bytes,
        readers: 2,
        experts,
        device: OnDevice::default(),
        timeline,
    };
    let mut stream = Pipeline::start(Arc::new(Cpu::new(1)), Arc::new(source), catalog, &options).ok()?;
    stream.rows::<Error, _>(id, |_| Ok(())).ok()?;
    Some(stream.stats().bytes_read)
}
