//! Products in integers against products in f32, and against what plain reading gives: alternating, medians.
//!
//! `cargo run --release -p airllm-kernels --example products -- [THREADS] [FORMAT,..] [ROWSxCOLS,..] [TOKENS,..] [ROUNDS]`
//!
//! Weights of a call are followed by others, so that they come from memory and not from a cache.

#![allow(clippy::print_stdout, reason = "the table is what the program is for")]

use airllm_format::NumFormat;
use airllm_kernels::{Columns, Cpu, CpuBuf, Matrix, Memory, Ops, Tokens};
use std::hint::black_box;
use std::time::Instant;

/// Many times the caches of any processor.
const POOL_BYTES: usize = 256 << 20;

/// Runs for so many seconds.
fn timed<T>(call: impl FnOnce() -> T) -> (T, f64) {
    let start = Instant::now();
    let answer = call();
    (answer, start.elapsed().as_secs_f64())
}

struct Bench {
    cpu: Cpu,
    x: CpuBuf,
    y: CpuBuf,
}

impl Bench {
    fn new(cpu: Cpu, (rows, cols): (usize, usize), n: usize) -> airllm_kernels::Result<Bench> {
        let numbers: Vec<u8> = (0..n * cols).flat_map(|i| (i as f32 * 0.11).cos().to_le_bytes()).collect();
        let mut x = cpu.alloc(numbers.len())?;
        cpu.write(&mut x, 0, &numbers)?;
        let y = cpu.alloc(n * rows * 4)?;
        Ok(Bench { cpu, x, y })
    }

    /// Seconds of one call, some calls one after the other.
    fn time(
        &mut self,
        format: NumFormat,
        (rows, cols): (usize, usize),
        n: usize,
        data: &[u8],
    ) -> airllm_kernels::Result<f64> {
        let out = Columns { stride: rows, first: 0 };
        let matrices = data.chunks_exact(rows * format.row_bytes(cols));
        let calls = if n > 64 { 1 } else { matrices.len().min(256 / n) };
        let (answer, seconds) = timed(|| {
            for data in matrices.take(calls) {
                let w = Matrix { data, format, rows, cols };
                self.cpu.matmul(w, &self.x, Tokens::few(n), &mut self.y, out)?;
                black_box(&self.y);
            }
            Ok(())
        });
        answer.map(|()| seconds / calls as f64)
    }
}

/// Seconds for reading all bytes, each thread in four places at once, as the products do.
fn read(bytes: &[u8], threads: usize) -> f64 {
    let part = bytes.len().div_ceil(threads).next_multiple_of(256);
    let (_, seconds) = timed(|| {
        std::thread::scope(|scope| {
            let mut parts = bytes.chunks(part);
            let own = parts.next().unwrap_or_default();
            for part in parts {
                scope.spawn(move || add_up(part));
            }
            add_up(own);
        });
    });
    seconds
}

/// Adds up words, from four places at once.
fn add_up(part: &[u8]) {
    let (blocks, _) = part.as_chunks::<64>();
    let quarter = blocks.len() / 4;
    let (first, second) = blocks[..4 * quarter].split_at(2 * quarter);
    let ((a, b), (c, d)) = (first.split_at(quarter), second.split_at(quarter));
    let mut sums = [0u64; 8];
    for (((a, b), c), d) in a.iter().zip(b).zip(c).zip(d) {
        for place in [a, b, c, d] {
            for (sum, word) in sums.iter_mut().zip(place.as_chunks::<8>().0) {
                *sum = sum.wrapping_add(u64::from_le_bytes(*word));
            }
        }
    }
    black_box(sums);
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let mut next = |other: &str| args.next().unwrap_or_else(|| other.into());
    let threads: usize = next("2").parse()?;
    let formats = next("q4,q8,q4_k");
    let shapes = next("4096x4096");
    let tokens = next("1,4,8,512");
    let rounds: usize = next("7").parse()?;
    let name = Cpu::new(threads).instructions();
    println!("{threads} threads, {name}; GB/s of packed weights, of reading, GFLOP/s, integers over f32");
    for format in NumFormat::ALL.into_iter().filter(|f| formats.split(',').any(|name| name == f.name())) {
        for shape in shapes.split(',') {
            let (rows, cols) = shape.split_once('x').ok_or("ROWSxCOLS")?;
            let shape @ (rows, cols) = (rows.parse::<usize>()?, cols.parse::<usize>()?);
            let row_bytes = format.row_bytes(cols);
            let mut some = vec![0u8; 16 * row_bytes];
            for (i, row) in some.chunks_mut(row_bytes).enumerate() {
                let weights: Vec<f32> =
                    (0..cols).map(|c| ((i * cols + c) as f32 * 0.37).sin() * 0.05).collect();
                airllm_quant::pack_row(format, &weights, row)?;
            }
            let bytes = rows * row_bytes;
            let data = some.repeat((POOL_BYTES / bytes).max(2) * rows / 16);
            for n in tokens.split(',') {
                let n: usize = n.parse()?;
                let mut sides = [Cpu::new(threads), Cpu::floats(threads)]
                    .map(|cpu| Bench::new(cpu, shape, n))
                    .into_iter()
                    .collect::<Result<Vec<_>, _>>()?;
                let (mut times, mut roof) = ([Vec::new(), Vec::new()], Vec::new());
                for _ in 0..rounds {
                    roof.push(data.len() as f64 / read(&data, threads) / 1e9);
                    for (side, times) in sides.iter_mut().zip(&mut times) {
                        times.push(side.time(format, shape, n, &data)?);
                    }
                }
                let [new, old] = times.map(median);
                let roof = median(roof);
                let rate = |seconds: f64| bytes as f64 / seconds / 1e9;
                let flops = |seconds: f64| 2.0 * (rows * cols * n) as f64 / seconds / 1e9;
                println!(
                    "{:>6} {rows:>5}x{cols:<5} x{n:<4} {:>6.1} ({:>3.0}%) was {:>6.1} ({:>3.0}%) of {roof:>5.1} | {:>7.1} was {:>7.1} | {:.2}x",
                    format.name(),
                    rate(new),
                    100.0 * rate(new) / roof,
                    rate(old),
                    100.0 * rate(old) / roof,
                    flops(new),
                    flops(old),
                    old / new
                );
            }
        }
    }
    Ok(())
}
