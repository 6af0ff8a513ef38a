//! `cargo bench --bench attention [-- --json FILE] [--vram BYTES]`: attention on the GPU, with the heads of a model of 70
//! billion weights, over caches of each format.
//!
//! Decode: one query at the end of a context, GB/s of keys and values as share of what the device's memory gives when it
//! is copied. Prompt: as many queries as positions, TFLOP/s of the products with keys and values that the mask leaves.

use super::{milliseconds, numbers};
use crate::{Row, quick};
use airllm_kernels::{Attend, Cuda, CudaBuf, Heads, KvFormat, Memory, Ops, Regime};

const HEADS: usize = 64;
const KV_HEADS: usize = 8;
const HEAD_DIM: usize = 128;
/// Bytes of caches before the first comes again: several times the cache of any GPU.
const POOL: usize = 512 << 20;

/// Measures and reports.
pub fn main() {
    let Some(cuda) = super::open() else { return };
    let copy = cuda.measure_memory().expect("copies on the device");
    let mut rows = vec![Row::new("copy on the device, read and write", copy / 1e9, "GB/s")];
    let contexts: &[usize] = if quick() { &[300] } else { &[2048, 8192, 32768] };
    let formats =
        KvFormat::ALL.into_iter().flat_map(|cache| contexts.iter().map(move |&context| (cache, context)));
    for (cache, context) in formats {
        let shape = Attend { cache, ..shape(1, context - 1, Regime::Token) };
        let (bytes, ms) = (cache_bytes(context, cache), attend(&cuda, context, shape));
        let rate = bytes as f64 / (ms / 1e3);
        let what = format!("decode{}, context of {context}", over(cache));
        rows.push(Row::new(&what, rate / 1e9, "GB/s").against(rate / copy, "copy on the device"));
        rows.push(Row::new(&format!("{what}, time"), ms * 1e3, "µs"));
    }
    let prompts: &[usize] = if quick() { &[96] } else { &[1024, 4096] };
    let formats = KvFormat::ALL.into_iter().flat_map(|cache| prompts.iter().map(move |&n| (cache, n)));
    for (cache, n) in formats {
        let ms = attend(&cuda, n, Attend { cache, ..shape(n, 0, Regime::Prompt) });
        // A query sees itself and what is before it; each pair costs two products of a head's width.
        let pairs = n as f64 * (n + 1) as f64 / 2.0;
        let flops = pairs * (HEADS * HEAD_DIM) as f64 * 4.0 / (ms / 1e3);
        let what = format!("prompt of {n}{}", over(cache));
        rows.push(Row::new(&what, flops / 1e12, "TFLOP/s"));
        rows.push(Row::new(&format!("{what}, time"), ms * 1e3, "µs"));
    }
    super::finish(&cuda, "attention", &rows);
}

fn shape(n: usize, start: usize, regime: Regime) -> Attend {
    Attend {
        n,
        start,
        heads: HEADS,
        kv_heads: KV_HEADS,
        head_dim: HEAD_DIM,
        value_dim: HEAD_DIM,
        scale: 1.0 / (HEAD_DIM as f32).sqrt(),
        regime,
        ..Attend::default()
    }
}

/// Keys and values of so many positions.
fn cache_bytes(context: usize, cache: KvFormat) -> usize {
    2 * context * heads(cache).row_bytes()
}

fn heads(cache: KvFormat) -> Heads {
    Heads { heads: KV_HEADS, dim: HEAD_DIM, cache }
}

/// What is said of a cache that is not f32.
fn over(cache: KvFormat) -> String {
    if cache == KvFormat::F32 { String::new() } else { format!(" over {cache}") }
}

/// Milliseconds of one call; caches follow each other.
fn attend(cuda: &Cuda, context: usize, shape: Attend) -> f64 {
    let pool = if quick() { 1 } else { POOL };
    let count = pool.div_ceil(cache_bytes(context, shape.cache)).max(2);
    let row = heads(shape.cache);
    let cache = |seed| {
        let x = numbers(cuda, context * row.width(), seed);
        let mut to = cuda.alloc(context * row.row_bytes()).expect("memory for a cache");
        cuda.store(&x, 0, context, row, &mut to, 0).expect("operands of the right sizes");
        to
    };
    let caches: Vec<(CudaBuf, CudaBuf)> =
        (0..count as u64).map(|i| (cache(2 * i + 1), cache(2 * i + 2))).collect();
    let q = numbers(cuda, shape.n * HEADS * HEAD_DIM, 91);
    let mut out = numbers(cuda, shape.n * HEADS * HEAD_DIM, 92);
    let mut turn = caches.iter().cycle();
    let calls = if quick() { 1 } else { count.max(20) };
    milliseconds(cuda, calls, || {
        let Some((k, v)) = turn.next() else { return };
        cuda.attend(&q, k, v, &mut out, shape).expect("operands of the right sizes");
    })
}
