//! Prints what rounding costs the outputs of a layer: to nearest, weighted, and compensated.
//!
//! `cargo run --example rounding -p airllm-quant [COLS [ROWS [TOKENS_PER_COLUMN]]]`. Inputs are made up as those of layers are: a
//! spectrum that falls as a power, some noise, columns of different sizes. Errors are measured on inputs other than
//! those that rounding saw.

#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "an example")]

use airllm_format::{Layout, NumFormat};
use airllm_quant::{Feedback, Hessian, compensate, pack_row, pack_row_weighted, unpack_row};
use std::time::Instant;

struct Random(u64);

impl Random {
    fn uniform(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }

    fn normal(&mut self) -> f32 {
        let (a, b) = (self.uniform().max(1e-300), self.uniform());
        ((-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos()) as f32
    }
}

/// `[tokens, cols]`.
fn inputs(random: &mut Random, cols: usize, tokens: usize) -> Vec<f32> {
    let rank = cols / 4;
    let mix: Vec<f32> = (0..rank * cols).map(|_| random.normal()).collect();
    let size: Vec<f32> = (0..cols).map(|_| (0.5 * random.normal()).exp()).collect();
    let mut x = vec![0f32; tokens * cols];
    for x in x.chunks_mut(cols) {
        for (r, mix) in mix.chunks(cols).enumerate() {
            let a = random.normal() / ((r + 1) as f32).sqrt();
            x.iter_mut().zip(mix).for_each(|(x, m)| *x += a * m);
        }
        x.iter_mut().zip(&size).for_each(|(x, s)| *x = s * (*x + 0.5 * random.normal()));
    }
    x
}

fn hessian(x: &[f32], cols: usize) -> Hessian {
    let mut hessian = Hessian::new(cols, cols);
    x.chunks(cols * 512).for_each(|x| hessian.add(x, 1).unwrap());
    hessian
}

/// The relative squared error of the outputs of the first rows.
fn relative(
    format: NumFormat,
    weights: &[f32],
    test: &Feedback,
    pack: impl Fn(usize, &[f32], &mut [u8]),
) -> f64 {
    let cols = test.cols();
    let mut packed = vec![0; format.row_bytes(cols)];
    let mut back = vec![0f32; cols];
    let (mut error, mut energy) = (0.0, 0.0);
    for (row, weights) in weights.chunks(cols).take(64).enumerate() {
        pack(row, weights, &mut packed);
        unpack_row(format, &packed, &mut back).unwrap();
        back.iter_mut().zip(weights).for_each(|(b, w)| *b = w - *b);
        error += test.error(&back);
        energy += test.error(weights);
    }
    error / energy
}

fn main() {
    let mut arguments = std::env::args().skip(1).filter_map(|a| a.parse::<usize>().ok());
    let cols = arguments.next().unwrap_or(1024);
    let rows = arguments.next().unwrap_or(256);
    let tokens = arguments.next().unwrap_or(4) * cols;
    let random = &mut Random(7);
    let x = inputs(random, cols, 2 * tokens);
    let (x, others) = x.split_at(tokens * cols);
    let start = Instant::now();
    let sums = hessian(x, cols);
    println!("{tokens} tokens of {cols} numbers: summed up in {:.1?}", start.elapsed());
    let diagonal = sums.diagonal();
    let start = Instant::now();
    let feedback = sums.factor(0.01, 1).unwrap();
    println!("factored in {:.1?}\n", start.elapsed());
    let test = hessian(others, cols).factor(1e-6, 1).unwrap();
    let weights: Vec<f32> = (0..rows * cols).map(|_| 0.02 * random.normal()).collect();
    println!("| format | nearest | weighted | compensated | gained over weighted, dB | ns per weight |");
    println!("|---|---|---|---|---|---|");
    for format in NumFormat::ALL.into_iter().filter(|f| matches!(f.layout(), Layout::Planes { .. })) {
        let nearest = relative(format, &weights, &test, |_, w, to| pack_row(format, w, to).unwrap());
        let by = |_, w: &[f32], to: &mut [u8]| pack_row_weighted(format, w, &diagonal, to).unwrap();
        let weighted = relative(format, &weights, &test, by);
        let bytes = format.row_bytes(cols);
        let mut out = vec![0; rows * bytes];
        let start = Instant::now();
        compensate(format, &weights, &feedback, &mut out, 1).unwrap();
        let time = start.elapsed().as_nanos() / (rows * cols) as u128;
        let take = |row: usize, _: &[f32], to: &mut [u8]| to.copy_from_slice(&out[row * bytes..][..bytes]);
        let ours = relative(format, &weights, &test, take);
        let gained = 10.0 * (weighted / ours).log10();
        println!("| `{format}` | {nearest:.2e} | {weighted:.2e} | {ours:.2e} | {gained:.2} | {time} |");
    }
}
