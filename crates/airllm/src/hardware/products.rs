//! How fast the processor multiplies weights of each number format.

use crate::{Error, Result};
use airllm_format::NumFormat;
use airllm_kernels::{Columns, Cpu, CpuBuf, Matrix, Memory, Ops, Tokens};
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// Columns of the matrices that are timed: a row is as long as those of a layer.
const COLS: usize = 4096;
/// Rows, so that a product takes long compared with waking threads, as a layer's do.
const ROWS: usize = 1024;
/// Tokens of a prompt's pass. More are computed in blocks of no more than so many.
pub(crate) const PROMPT: usize = 128;
/// Packed rows that differ; the others are copies of them.
const DIFFERENT: usize = 16;

/// What one number format reaches, all threads together.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ProductRate {
    /// How weights are packed.
    #[serde(with = "name")]
    pub format: NumFormat,
    /// Bytes of packed weights a second, multiplied with one token, out of memory.
    pub token: f64,
    /// Weights times tokens a second, with many tokens of a prompt. A product is two operations.
    pub prompt: f64,
}

mod name {
    use airllm_format::NumFormat;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(format: &NumFormat, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(format)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<NumFormat, D::Error> {
        let name = String::deserialize(from)?;
        let known = NumFormat::ALL.into_iter().find(|format| format.to_string() == name);
        known.ok_or_else(|| D::Error::custom(format!("{name:?} is not a number format")))
    }
}

impl ProductRate {
    /// Nanoseconds for a matrix of so many bytes and one token, and for so many weights and tokens of a prompt.
    pub(crate) fn ns(&self, bytes: f64, weights: f64, tokens: f64) -> (f64, f64) {
        let one = bytes / self.token * 1e9;
        (one, (weights * tokens / self.prompt * 1e9).max(one))
    }
}

/// Measures some formats on `threads` threads, about `time` for each, with no more than `most` bytes of memory, but enough for
/// one matrix of each format in turn.
pub(crate) fn products(
    formats: &[NumFormat],
    threads: usize,
    most: u64,
    time: Duration,
) -> Result<Vec<ProductRate>> {
    let cpu = Cpu::new(threads);
    let rows = |rows: usize| Product::new(&cpu, rows);
    let (mut one, mut prompt) = (rows(1)?, rows(PROMPT)?);
    formats
        .iter()
        .map(|&format| {
            let weights = Weights::new(format, most)?;
            let token = one.rate(&cpu, &weights, time / 2)? * weights.matrix as f64;
            let prompt = prompt.rate(&cpu, &weights, time / 2)? * (weights.rows * COLS * PROMPT) as f64;
            Ok(ProductRate { format, token, prompt })
        })
        .collect()
}

/// Matrices one after the other, so many that no cache holds them all where memory allows.
struct Weights {
    format: NumFormat,
    rows: usize,
    /// Bytes of one.
    matrix: usize,
    data: Vec<u8>,
}

impl Weights {
    fn new(format: NumFormat, most: u64) -> Result<Weights> {
        let row_bytes = format.row_bytes(COLS);
        let mut some = vec![0u8; DIFFERENT * row_bytes];
        for (i, row) in some.chunks_mut(row_bytes).enumerate() {
            let weights: Vec<f32> = (0..COLS).map(|c| ((i * COLS + c) as f32 * 0.37).sin() * 0.05).collect();
            let packed = airllm_quant::pack_row(format, &weights, row);
            packed.map_err(|error| Error::Input { what: format!("a sample of {format}: {error}") })?;
        }
        let most = usize::try_from(most).unwrap_or(usize::MAX).min(super::MEMORY_SAMPLE);
        let rows = (most / row_bytes / DIFFERENT * DIFFERENT).clamp(DIFFERENT, ROWS);
        let matrix = rows * row_bytes;
        let data = some.repeat((most / matrix).max(1) * rows / DIFFERENT);
        Ok(Weights { format, rows, matrix, data })
    }
}

/// Operands for some tokens.
struct Product {
    x: CpuBuf,
    y: CpuBuf,
    tokens: usize,
}

impl Product {
    fn new(cpu: &Cpu, tokens: usize) -> Result<Product> {
        let numbers: Vec<u8> =
            (0..tokens * COLS).flat_map(|i| (i as f32 * 0.11).cos().to_le_bytes()).collect();
        let mut x = cpu.alloc(numbers.len())?;
        cpu.write(&mut x, 0, &numbers)?;
        Ok(Product { x, y: cpu.alloc(tokens * ROWS * 4)?, tokens })
    }

    /// Matrices a second: the median of products over `time`, three at least. The first, which wakes threads, does not count.
    fn rate(&mut self, cpu: &Cpu, weights: &Weights, time: Duration) -> Result<f64> {
        let begin = Instant::now();
        let mut seconds = Vec::new();
        let out = Columns { stride: ROWS, first: 0 };
        for data in weights.data.chunks_exact(weights.matrix).cycle() {
            let start = Instant::now();
            let matrix = Matrix { data, format: weights.format, rows: weights.rows, cols: COLS };
            cpu.matmul(matrix, &self.x, Tokens::few(self.tokens), &mut self.y, out)?;
            seconds.push(start.elapsed().as_secs_f64());
            if seconds.len() > 3 && begin.elapsed() >= time {
                break;
            }
        }
        let rest = &mut seconds[1..];
        rest.sort_by(f64::total_cmp);
        Ok(1.0 / rest[rest.len() / 2].max(1e-9))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_have_rates_inside_little_memory() {
        let formats = [NumFormat::F16, NumFormat::Q4];
        let rates = products(&formats, 1, 1 << 20, Duration::from_millis(4)).unwrap();
        assert_eq!(rates.iter().map(|rate| rate.format).collect::<Vec<_>>(), formats);
        assert!(rates.iter().all(|rate| rate.token > 1e6 && rate.prompt > 1e6), "{rates:?}");
        let weights = Weights::new(NumFormat::F32, 1 << 20).unwrap();
        assert_eq!((weights.rows, weights.data.len()), (64, 1 << 20));
        assert_eq!(Weights::new(NumFormat::F32, 0).unwrap().rows, DIFFERENT);
    }

    #[test]
    fn times() {
        let rate = ProductRate { format: NumFormat::Q8, token: 1e9, prompt: 1e12 };
        let (one, prompt) = rate.ns(2e9, 2e9, 512.0);
        assert!((one - 2e9).abs() < 1.0 && (prompt - 2e9).abs() < 1.0, "no prompt is faster than one token");
        assert!((rate.ns(2e9, 2e9, 4096.0).1 - 8.192e9).abs() < 1.0);
    }
}
