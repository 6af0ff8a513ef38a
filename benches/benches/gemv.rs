//! Matrix times vector: GB/s of weights per number format, against what plain reading gives.
//!
//! `cargo bench -p airllm-benches --bench gemv`; on a GPU instead: `-- --cuda`
//!
//! The weights of a call are followed by other weights, half a gigabyte in all before they come round
//! again, so that they are read from memory and not from a cache. Bandwidth drifts on shared machines:
//! the table at the end measures all sides in turn, round by round, and shows medians.

use airllm_format::NumFormat;
use airllm_kernels::{Columns, Cpu, CpuBuf, Matrix, Memory, Ops, Tokens};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group};
use std::hint::black_box;
use std::time::{Duration, Instant};

const ROWS: usize = 4096;
const COLS: usize = 4096;
/// Many times the caches of any processor.
const POOL_BYTES: usize = 512 << 20;
const ROUNDS: usize = 9;

/// Matrices of one format, one after the other.
struct Weights {
    format: NumFormat,
    data: Vec<u8>,
    bytes: usize,
    next: usize,
}

impl Weights {
    fn new(format: NumFormat) -> Weights {
        let row_bytes = format.row_bytes(COLS);
        let bytes = ROWS * row_bytes;
        let mut some_rows = vec![0u8; 16 * row_bytes];
        for (i, row) in some_rows.chunks_mut(row_bytes).enumerate() {
            let weights: Vec<f32> = (0..COLS).map(|c| ((i * COLS + c) as f32 * 0.37).sin() * 0.05).collect();
            airllm_quant::pack_row(format, &weights, row).expect("finite weights of the right size");
        }
        Weights { format, data: some_rows.repeat(POOL_BYTES / bytes * ROWS / 16), bytes, next: 0 }
    }

    fn next(&mut self) -> Matrix<&[u8]> {
        let at = self.next;
        self.next = (at + self.bytes) % (self.data.len() / self.bytes * self.bytes);
        let data = &self.data[at..at + self.bytes];
        Matrix { data, format: self.format, rows: ROWS, cols: COLS }
    }
}

/// A device with operands for `n` tokens.
struct Bench {
    cpu: Cpu,
    x: CpuBuf,
    y: CpuBuf,
    n: usize,
}

impl Bench {
    fn new(n: usize) -> Bench {
        let cpu = Cpu::new(0);
        let numbers: Vec<u8> = (0..n * COLS).flat_map(|i| (i as f32 * 0.11).cos().to_le_bytes()).collect();
        let mut x = cpu.alloc(numbers.len()).expect("memory");
        cpu.write(&mut x, 0, &numbers).expect("the size it was made for");
        let y = cpu.alloc(n * ROWS * 4).expect("memory");
        Bench { cpu, x, y, n }
    }

    fn product(&mut self, w: Matrix<&[u8]>) {
        let out = Columns { stride: ROWS, first: 0 };
        self.cpu
            .matmul(w, &self.x, Tokens::few(self.n), &mut self.y, out)
            .expect("operands of the right sizes");
        black_box(&self.y);
    }
}

/// Reads all bytes on as many threads as the device has, and adds them up as words. Each thread reads
/// in four places at once, as the products do: one stream alone does not reach what memory can give.
fn read(bytes: &[u8], threads: usize) -> u64 {
    let part = bytes.len().div_ceil(threads).next_multiple_of(256);
    std::thread::scope(|scope| {
        let sum = |part: &[u8]| {
            let lines = part.as_chunks::<64>().0;
            let quarter = lines.len() / 4;
            let (first, second) = lines.split_at(2 * quarter);
            let ((a, b), (c, d)) = (first.split_at(quarter), second.split_at(quarter));
            let mut sums = [0u64; 8];
            for (((a, b), c), d) in a.iter().zip(b).zip(c).zip(d) {
                for (i, sum) in sums.iter_mut().enumerate() {
                    let word = |line: &[u8; 64]| u64::from_le_bytes(line.as_chunks().0[i]);
                    let words = word(a).wrapping_add(word(b)).wrapping_add(word(c));
                    *sum = sum.wrapping_add(words).wrapping_add(word(d));
                }
            }
            sums.into_iter().fold(0, u64::wrapping_add)
        };
        let parts: Vec<_> = bytes.chunks(part).map(|p| scope.spawn(move || sum(p))).collect();
        parts.into_iter().map(|p| p.join().expect("a sum")).fold(0, u64::wrapping_add)
    })
}

fn gemv(c: &mut Criterion) {
    let mut bench = Bench::new(1);
    let mut group = c.benchmark_group("gemv");
    group.sample_size(20).measurement_time(Duration::from_secs(2)).warm_up_time(Duration::from_secs(1));
    let pool = vec![1u8; POOL_BYTES];
    group.throughput(Throughput::Bytes(pool.len() as u64));
    group.bench_function("read", |b| b.iter(|| black_box(read(&pool, bench.cpu.threads()))));
    drop(pool);
    for format in NumFormat::ALL {
        let mut weights = Weights::new(format);
        group.throughput(Throughput::Bytes(weights.bytes as u64));
        group.bench_function(BenchmarkId::from_parameter(format), |b| {
            b.iter(|| bench.product(weights.next()));
        });
    }
    group.finish();
}

/// Seconds of one call.
fn time(call: impl FnOnce()) -> f64 {
    let start = Instant::now();
    call();
    start.elapsed().as_secs_f64()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// All sides in turn: decode against the read roof, and several tokens a call.
#[expect(clippy::print_stdout, reason = "the table is what the program is for")]
fn table() {
    let mut bench = Bench::new(1);
    let threads = bench.cpu.threads();
    println!("{ROWS}x{COLS}, {threads} threads, {}", bench.cpu.instructions());
    println!("format    gemv GB/s    read GB/s    share");
    for format in NumFormat::ALL {
        let mut weights = Weights::new(format);
        let calls = weights.data.len() / weights.bytes;
        let (mut product, mut roof) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let bytes = weights.data.len() as f64;
            let once = || {
                black_box(read(&weights.data, threads));
            };
            roof.push(bytes / time(once) / 1e9);
            let bytes = (calls * weights.bytes) as f64;
            let all = || (0..calls).for_each(|_| bench.product(weights.next()));
            product.push(bytes / time(all) / 1e9);
        }
        let (product, roof) = (median(product), median(roof));
        let share = 100.0 * product / roof;
        println!("{:>6} {product:>12.1} {roof:>12.1} {share:>7.0}%", format.name());
    }
    println!("format GFLOP/s with this many tokens a call; integers where weights are whole codes");
    let tokens = [1, 2, 4, 8, 32, 96, 512];
    println!("       {}", tokens.map(|n| format!("{n:>7}")).concat());
    for format in NumFormat::ALL {
        let mut weights = Weights::new(format);
        let rates = tokens.map(|n| {
            let mut bench = Bench::new(n);
            let calls = (64 / n).max(1);
            let flops = (2 * ROWS * COLS * n * calls) as f64;
            let mut run = || time(|| (0..calls).for_each(|_| bench.product(weights.next())));
            format!("{:>7.1}", flops / median((0..5).map(|_| run()).collect()) / 1e9)
        });
        println!("{:>6} {}", format.name(), rates.concat());
    }
}

criterion_group!(benches, gemv);

fn main() {
    if std::env::args().any(|arg| arg == "--cuda") {
        return airllm_benches::gpu::gemv::main();
    }
    benches();
    // Without this argument the program is run as a test: once through, no measuring.
    if std::env::args().any(|a| a == "--bench") {
        table();
    }
    Criterion::default().configure_from_args().final_summary();
}
