//! Products of packed weights and tokens: every format against the device's memory and against cuBLAS.

use super::cublas::Cublas;
use super::{Weights, milliseconds, numbers};
use crate::{Row, quick};
use airllm_format::NumFormat;
use airllm_kernels::{Columns, Cuda, Ops, Regime, Tokens};

/// Rows and columns of the weights: square, and the up projection of a model of 70 billion weights.
fn shapes() -> &'static [(usize, usize)] {
    if quick() { &[(96, 256)] } else { &[(8192, 8192), (28672, 8192)] }
}

/// Bytes of cuBLAS's weights before they come again.
fn pool() -> usize {
    if quick() { 1 } else { 768 << 20 }
}

/// What a product is measured against.
#[derive(Clone, Copy)]
pub enum Roof {
    /// The memory that its weights come from: for few tokens.
    Memory,
    /// Operations: for many.
    Compute,
}

/// A row for each format, shape and number of tokens, and one more against cuBLAS where that is there.
pub fn measure(cuda: &Cuda, counts: &[usize], regime: Regime, roof: Roof) -> Vec<Row> {
    let copy = cuda.measure_memory().expect("copies on the device");
    let mut rows = vec![Row::new("copy on the device, read and write", copy / 1e9, "GB/s")];
    let cublas = Cublas::open().inspect_err(|why| println!("{why}")).ok();
    for &(height, width) in shapes() {
        let theirs: Vec<Option<f64>> = counts
            .iter()
            .map(|&n| cublas.as_ref().and_then(|cublas| cublas.milliseconds(height, width, n, pool())))
            .collect();
        for (n, ms) in counts.iter().zip(&theirs) {
            if let Some(ms) = ms {
                let case = format!("cuBLAS f16 {height} x {width}, {n} columns");
                rows.push(Row::new(&case, ms * 1e3, "µs"));
            }
        }
        for format in NumFormat::ALL {
            let Some(mut weights) = Weights::new(cuda, format, height, width) else {
                println!("skipped: {format} {height} x {width} does not fit the device");
                continue;
            };
            for (&n, theirs) in counts.iter().zip(&theirs) {
                let ms = product(cuda, &mut weights, n, regime, (height, width));
                let case = format!("{format} {height} x {width}, {n} columns");
                rows.push(match roof {
                    Roof::Memory => {
                        let rate = weights.bytes() as f64 / (ms / 1e3);
                        Row::new(&case, rate / 1e9, "GB/s").against(rate / copy, "copy on the device")
                    }
                    Roof::Compute => {
                        let flops = 2.0 * (height * width * n) as f64 / (ms / 1e3);
                        Row::new(&case, flops / 1e12, "TFLOP/s")
                    }
                });
                if let Some(theirs) = theirs {
                    let row = Row::new(&format!("{case}, time"), ms * 1e3, "µs");
                    rows.push(row.against(theirs / ms, "speed of cuBLAS f16"));
                }
            }
        }
    }
    rows
}

/// Milliseconds of one product.
fn product(cuda: &Cuda, weights: &mut Weights, n: usize, regime: Regime, shape: (usize, usize)) -> f64 {
    let (height, width) = shape;
    let x = numbers(cuda, n * width, 7);
    let mut y = numbers(cuda, n * height, 8);
    let calls = if quick() { 1 } else { weights.count().max(20) };
    let tokens = Tokens { first: 0, n, regime };
    milliseconds(cuda, calls, || {
        let out = Columns { stride: height, first: 0 };
        cuda.matmul(weights.next(cuda), &x, tokens, &mut y, out).expect("operands of the right sizes");
    })
}
