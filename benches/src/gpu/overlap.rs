//! `cargo bench --bench overlap [-- --json FILE] [--vram BYTES]`: how much of copying hides behind computing, and the
//! other way round.
//!
//! Layers of random q4 weights, pinned in RAM, are copied to the GPU and multiplied in every pass. The same passes run
//! three times: copied and not multiplied, multiplied and not copied (all of it lives on the device), both. What is hidden
//! is the sum of the two alone less both together, as a share of the shorter one. The timeline is drawn below.

use super::{numbers, packed};
use crate::{Row, median, quick};
use airllm_format::{LayerSource, NumFormat};
use airllm_kernels::{Columns, Cuda, Matrix, Memory, Ops, Regime, Tokens};
use airllm_stream::{
    Catalog, Error, ExpertCache, OnDevice, Options, Pipeline, Tensor, TensorId, Timeline, Unit,
};
use std::sync::Arc;
use std::time::Instant;

const FORMAT: NumFormat = NumFormat::Q4;
/// Matrices of a layer: the feed-forward block of a model of 70 billion weights has three.
const MATRICES: usize = 3;

/// Rows, columns and layers.
fn sizes() -> (usize, usize, usize) {
    if quick() { (64, 256, 4) } else { (28672, 8192, 8) }
}

/// Measures and reports.
pub fn main() {
    let Some(cuda) = super::open() else { return };
    let (height, width, layers) = sizes();
    let bytes = layers * MATRICES * height * FORMAT.row_bytes(width);
    let cuda = Arc::new(cuda);
    let upload = cuda.measure_upload().expect("copies to the device");
    let mut rows = vec![Row::new("copy from pinned memory", upload / 1e9, "GB/s")];
    let counts: &[usize] = if quick() { &[1, 24] } else { &[1, 32, 512] };
    // 0 tokens: nothing is multiplied.
    let copying = passes(&cuda, 0, false).0;
    let rate = bytes as f64 / copying;
    rows.push(Row::new("copies alone", rate / 1e9, "GB/s").against(rate / upload, "copy from pinned memory"));
    let mut picture = String::new();
    for &n in counts {
        let both;
        (both, picture) = passes(&cuda, n, false);
        let rate = bytes as f64 / both;
        let row = Row::new(&format!("{n} tokens: copies and products"), rate / 1e9, "GB/s");
        rows.push(row.against(rate / upload, "copy from pinned memory"));
        if bytes as u64 > super::room(&cuda) / 10 * 9 {
            println!("skipped: {bytes} bytes do not fit the device, so products alone are not measured");
            continue;
        }
        let computing = passes(&cuda, n, true).0;
        let case = format!("{n} tokens: products alone, of the time of copies");
        rows.push(Row::new(&case, computing * 1e3, "ms").against(computing / copying, "copies alone"));
        let hidden = (copying + computing - both) / copying.min(computing);
        let case = format!("{n} tokens: hidden of the shorter one");
        rows.push(Row::new(&case, 100.0 * hidden.clamp(0.0, 1.0), "%"));
        let longer = copying.max(computing);
        let case = format!("{n} tokens: a pass");
        rows.push(Row::new(&case, both * 1e3, "ms").against(longer / both, "speed of the longer one alone"));
    }
    println!("{picture}");
    super::finish(&cuda, "overlap", &rows);
}

/// Every file is the same matrix again.
struct Repeated(Vec<u8>, usize);

impl LayerSource for Repeated {
    fn files(&self) -> usize {
        self.1
    }

    fn name(&self, _: usize) -> &str {
        "random"
    }

    fn len(&self, _: usize) -> u64 {
        (self.0.len() * MATRICES) as u64
    }

    fn alignment(&self) -> usize {
        1
    }

    fn read_at(&self, _: usize, offset: u64, buf: &mut [u8]) -> airllm_format::Result<()> {
        let mut at = offset as usize % self.0.len();
        let mut rest = buf;
        while !rest.is_empty() {
            let length = rest.len().min(self.0.len() - at);
            let (part, after) = rest.split_at_mut(length);
            part.copy_from_slice(&self.0[at..at + length]);
            (rest, at) = (after, 0);
        }
        Ok(())
    }
}

/// Seconds of a pass with so many tokens, and its timeline.
fn passes(cuda: &Arc<Cuda>, n: usize, resident: bool) -> (f64, String) {
    let (height, width, layers) = sizes();
    let row_bytes = FORMAT.row_bytes(width);
    let some = packed(FORMAT, height.min(64), width);
    let source = Repeated(some.repeat(height / height.min(64)), layers);
    let tensor = |layer: usize, i: usize| Tensor {
        name: format!("matrix.{i}"),
        file: layer,
        offset: (i * height * row_bytes) as u64,
        format: FORMAT,
        rows: height,
        cols: width,
        checksum: None,
    };
    let unit = |layer: usize| Unit {
        name: format!("layer.{layer}"),
        tensors: (0..MATRICES).map(|i| tensor(layer, i)).collect(),
        on_demand: false,
    };
    let pass: Vec<TensorId> =
        (0..layers).flat_map(|unit| (0..MATRICES).map(move |tensor| TensorId { unit, tensor })).collect();
    let catalog = Catalog { units: (0..layers).map(unit).collect(), pass: pass.clone() };
    let timeline = Arc::new(Timeline::new(true));
    let options = Options {
        pinned: vec![!resident; layers],
        slots: 4,
        slot_bytes: if quick() { 64 << 10 } else { 32 << 20 },
        readers: 2,
        experts: ExpertCache::default(),
        device: OnDevice { slots: 3, resident: vec![resident; layers], on_host: Vec::new() },
        timeline: timeline.clone(),
    };
    let mut stream =
        Pipeline::start(cuda.clone(), Arc::new(source), catalog, &options).expect("the stream starts");
    let x = numbers(cuda, n.max(1) * width, 17);
    let mut y = numbers(cuda, n.max(1) * height, 18);
    let regime = if n > 16 { Regime::Prompt } else { Regime::Token };
    let mut times = Vec::new();
    // The first pass reads, the second warms up.
    for _ in 0..2 + super::rounds() {
        let start = Instant::now();
        for &id in &pass {
            let product = stream.rows::<Failure, _>(id, |rows| {
                if n == 0 {
                    return Ok(());
                }
                let w = Matrix { data: rows.data, format: FORMAT, rows: rows.count, cols: width };
                let out = Columns { stride: height, first: rows.first };
                Ok(cuda.matmul(w, &x, Tokens { first: 0, n, regime }, &mut y, out)?)
            });
            product.expect("rows come and are multiplied");
        }
        cuda.wait(&cuda.fence().expect("a fence")).expect("the device works");
        times.push(start.elapsed().as_secs_f64());
    }
    (median(&mut times[2..]), timeline.gantt(72))
}

/// Of the stream or of the device.
#[derive(Debug)]
#[allow(dead_code, reason = "printed by `expect`")]
enum Failure {
    Stream(Error),
    Device(airllm_kernels::Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Stream(error)
    }
}

impl From<airllm_kernels::Error> for Failure {
    fn from(error: airllm_kernels::Error) -> Self {
        Failure::Device(error)
    }
}
