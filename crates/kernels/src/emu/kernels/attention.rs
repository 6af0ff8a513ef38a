//! Attention over caches in their formats: chunks for generated tokens, tiles for prompts.

use super::{Bytes, ORDERS, bits, error, launch, normal};
use crate::emu::Order;
use crate::{abi, alibi_slope};
use airllm_format::NumFormat;
use airllm_quant::{pack_row, unpack_row};

#[derive(Debug, Clone, Copy)]
struct Shape {
    first: usize,
    n: usize,
    start: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    value_dim: usize,
    window: usize,
    softcap: f32,
    alibi: bool,
}

impl Shape {
    fn oldest(&self, position: usize) -> usize {
        if self.window == 0 { 0 } else { (position + 1).saturating_sub(self.window) }
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kernel {
    /// With so many heads in a block.
    Chunks(usize),
    Prompt,
}

/// Keys or values of all positions, and some rows behind them that nobody may look at.
#[derive(Clone)]
struct Cache {
    format: NumFormat,
    dim: usize,
    heads: usize,
    bytes: Vec<u8>,
    /// What is stored.
    numbers: Vec<f32>,
}

impl Cache {
    fn new(format: NumFormat, positions: usize, heads: usize, dim: usize, seed: u64, order: Order) -> Cache {
        let numbers = normal(positions * heads * dim, seed);
        let head = format.row_bytes(dim);
        let mut room = Bytes::new((positions + 40) * heads * head);
        let params = abi::Store {
            x: numbers.as_ptr(),
            to: room.start_mut(),
            n: positions as u64,
            heads: heads as u64,
            dim: dim as u64,
            row: (heads * head) as u64,
            head: head as u64,
        };
        match format {
            NumFormat::F16 => {
                let blocks = numbers.len().div_ceil(abi::FLAT_THREADS as usize);
                // SAFETY: there are numbers for all heads, and room for halves of them.
                unsafe { launch(order, "store_f16", &params, [blocks, 1], abi::FLAT_THREADS, 0) };
            }
            NumFormat::Q8 => {
                let blocks = (positions * heads * dim.div_ceil(64)).div_ceil(8);
                // SAFETY: as before, with room for the rows of all heads.
                unsafe { launch(order, "store_q8", &params, [blocks, 1], abi::FLAT_THREADS, 0) };
            }
            _ => room.bytes_mut()[..numbers.len() * 4].copy_from_slice(bytemuck::cast_slice(&numbers)),
        }
        let mut cache = Cache { format, dim, heads, bytes: room.bytes().to_vec(), numbers };
        // What was stored is what packing makes of it.
        for (i, x) in cache.numbers.chunks_mut(dim).enumerate() {
            let row = &cache.bytes[i * head..][..head];
            let mut packed = vec![0u8; head];
            pack_row(format, x, &mut packed).unwrap();
            let used =
                if format == NumFormat::Q8 { dim.next_multiple_of(64) + 2 * dim.div_ceil(64) } else { head };
            assert_eq!(row[..used], packed[..used], "{format}, head {i}");
            unpack_row(format, &packed, x).unwrap();
        }
        cache
    }

    /// Bytes of a head, and of all heads of a position.
    fn steps(&self) -> (u64, u64) {
        let head = self.format.row_bytes(self.dim);
        (head as u64, (head * self.heads) as u64)
    }

    fn poison(&mut self, position: usize) {
        let row = self.steps().1 as usize;
        self.bytes[position * row..][..row].fill(0xff);
    }
}

fn attend(kernel: Kernel, order: Order, q: &[f32], k: &Cache, v: &Cache, shape: &Shape) -> Vec<f32> {
    let Shape { first, n, start, heads, kv_heads, head_dim, value_dim, window, softcap, alibi } = *shape;
    let (k_bytes, v_bytes) = (Bytes::of(&k.bytes), Bytes::of(&v.bytes));
    let mut out = vec![7777f32; (first + n) * heads * value_dim];
    let ((k_head, k_row), (v_head, v_row)) = (k.steps(), v.steps());
    let chunk = shape.oldest(start) / abi::ATTEND_CHUNK;
    let chunks = (start + n - 1) / abi::ATTEND_CHUNK - chunk + 1;
    let mut ends = vec![f32::NAN; n * heads * chunks * 2];
    let mut sums = vec![f32::NAN; n * heads * chunks * value_dim];
    let params = abi::Cached {
        q: q.as_ptr(),
        k: k_bytes.start(),
        v: v_bytes.start(),
        out: out.as_mut_ptr(),
        first: first as u64,
        n: n as u64,
        start: start as u64,
        heads: heads as u64,
        kv_heads: kv_heads as u64,
        head_dim: head_dim as u64,
        value_dim: value_dim as u64,
        window: window as u64,
        k_row,
        k_head,
        v_row,
        v_head,
        scale: 1.0 / (head_dim as f32).sqrt(),
        softcap,
        alibi: u32::from(alibi),
        whole: 1 << heads.ilog2(),
        ends: ends.as_mut_ptr(),
        sums: sums.as_mut_ptr(),
        chunk: chunk as u64,
        chunks: chunks as u64,
    };
    let run = |name: &str, blocks: [usize; 2], shared: usize| {
        // SAFETY: queries, results and caches hold the rows that the shape names, the scratch what chunks leave.
        unsafe { launch(order, name, &params, blocks, abi::ATTEND_THREADS, shared) };
    };
    match kernel {
        Kernel::Chunks(together) => {
            let shared = 4 * together * head_dim.next_multiple_of(abi::ATTEND_COLS);
            let blocks = [n * chunks, kv_heads * (heads / kv_heads).div_ceil(together)];
            run(&format!("attend_chunk_{}_x{together}", k.format), blocks, shared);
            run("attend_join", [n, heads], 0);
        }
        Kernel::Prompt => {
            let width = head_dim.max(value_dim).next_power_of_two().max(64);
            assert!(width <= abi::ATTEND_WIDEST);
            let blocks = [n.div_ceil(abi::ATTEND_QUERIES), heads];
            run(&format!("attend_prompt_{}_{width}", k.format), blocks, 0);
        }
    }
    assert!(out[..first * heads * value_dim].iter().all(|&x| x == 7777.0), "{kernel:?}, {shape:?}");
    out.split_off(first * heads * value_dim)
}

fn reference(q: &[f32], k: &Cache, v: &Cache, shape: &Shape) -> Vec<f64> {
    let Shape { first, n, start, heads, kv_heads, head_dim, value_dim, softcap, .. } = *shape;
    let mut out = Vec::new();
    for (query, head) in (0..n).flat_map(|query| (0..heads).map(move |head| (query, head))) {
        let (position, kv) = (start + query, head / (heads / kv_heads));
        let q = &q[((first + query) * heads + head) * head_dim..][..head_dim];
        let row = |cache: &Cache, j: usize| -> Vec<f64> {
            let row = &cache.numbers[(j * kv_heads + kv) * cache.dim..][..cache.dim];
            row.iter().map(|&x| f64::from(x)).collect()
        };
        let seen = shape.oldest(position)..=position;
        let score = |j: usize| {
            let product: f64 = q.iter().zip(row(k, j)).map(|(&q, k)| f64::from(q) * k).sum();
            let mut score = product * f64::from(1.0 / (head_dim as f32).sqrt());
            if softcap > 0.0 {
                score = f64::from(softcap) * (score / f64::from(softcap)).tanh();
            }
            if shape.alibi {
                score -= f64::from(alibi_slope(head, heads)) * (position - j) as f64;
            }
            score
        };
        let scores: Vec<f64> = seen.clone().map(score).collect();
        let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
        let total: f64 = weights.iter().sum();
        let mut sums = vec![0f64; value_dim];
        for (j, weight) in seen.zip(weights) {
            sums.iter_mut().zip(row(v, j)).for_each(|(sum, v)| *sum += weight / total * v);
        }
        out.extend(sums);
    }
    out
}

const SHAPES: [Shape; 7] = {
    const fn shape(numbers: [usize; 8], softcap: f32, alibi: bool) -> Shape {
        let [first, n, start, heads, kv_heads, head_dim, value_dim, window] = numbers;
        Shape { first, n, start, heads, kv_heads, head_dim, value_dim, window, softcap, alibi }
    }
    [
        shape([0, 1, 0, 1, 1, 64, 64, 0], 0.0, false),
        shape([2, 33, 5, 4, 2, 64, 64, 0], 0.0, false),
        shape([1, 67, 90, 2, 1, 128, 128, 0], 0.0, false),
        shape([0, 9, 300, 14, 2, 80, 48, 65], 2.0, true),
        shape([0, 9, 600, 5, 5, 17, 33, 300], 0.0, true),
        shape([0, 20, 64, 3, 1, 192, 128, 7], 0.0, false),
        shape([0, 18, 250, 2, 2, 256, 256, 0], 30.0, false),
    ]
};

/// What rounding may add: that of f32, and in prompts that of `q8` numbers to halves.
fn bound(kernel: Kernel, format: NumFormat) -> f64 {
    if kernel == Kernel::Prompt && format == NumFormat::Q8 { 2e-7 } else { 1e-12 }
}

#[test]
fn attention_is_right_whoever_shares_the_call() {
    for (i, shape) in SHAPES.iter().enumerate() {
        let &Shape { first, n, start, heads, kv_heads, head_dim, value_dim, .. } = shape;
        let q = normal((first + n) * heads * head_dim, 1);
        // f32 for all, the others in turns.
        for format in [NumFormat::F32, [NumFormat::F16, NumFormat::Q8][i % 2]] {
            let order = ORDERS[i % 3];
            let mut k = Cache::new(format, start + n, kv_heads, head_dim, 2, order);
            let mut v = Cache::new(format, start + n, kv_heads, value_dim, 3, order);
            let expected = reference(&q, &k, &v, shape);
            let width = heads * value_dim;
            for kernel in [Kernel::Chunks([1, 4, 8][i % 3]), Kernel::Prompt] {
                let found = attend(kernel, Order::Forward, &q, &k, &v, shape);
                let case = format!("{kernel:?}, {format}, {shape:?}");
                let error = error(&expected, &found);
                assert!(error <= bound(kernel, format), "{case}: {error:e}");
                for order in &ORDERS[1..] {
                    assert_eq!(
                        bits(&attend(kernel, *order, &q, &k, &v, shape)),
                        bits(&found),
                        "{case}, {order:?}"
                    );
                }
                for (at, count) in [(0, 1), (n / 3, n - n / 3)] {
                    let cut = Shape { first: first + at, n: count, start: start + at, ..*shape };
                    let part = attend(kernel, Order::Forward, &q, &k, &v, &cut);
                    assert_eq!(bits(&part), bits(&found[at * width..][..count * width]), "{case}, from {at}");
                }
            }
            // Nobody but the last query sees the last position, and nobody what is before all windows.
            let sound = [Kernel::Chunks(4), Kernel::Prompt]
                .map(|kernel| attend(kernel, Order::Forward, &q, &k, &v, shape));
            for cache in [&mut k, &mut v] {
                cache.poison(start + n - 1);
                (0..shape.oldest(start)).for_each(|position| cache.poison(position));
            }
            for (kernel, sound) in [Kernel::Chunks(4), Kernel::Prompt].into_iter().zip(sound) {
                let found = attend(kernel, Order::Forward, &q, &k, &v, shape);
                let rest = (n - 1) * width;
                assert_eq!(bits(&found[..rest]), bits(&sound[..rest]), "{kernel:?}, {format}, {shape:?}");
                assert!(found[rest..].iter().all(|x| x.is_nan()), "{kernel:?}, {format}, {shape:?}");
            }
        }
    }
}

#[test]
fn heads_in_a_block_change_nothing() {
    let shape =
        Shape { n: 3, start: 300, heads: 12, kv_heads: 2, head_dim: 130, value_dim: 200, ..SHAPES[0] };
    let q = normal(3 * 12 * 130, 1);
    let k = Cache::new(NumFormat::F32, 303, 2, 130, 2, Order::Forward);
    let v = Cache::new(NumFormat::F32, 303, 2, 200, 3, Order::Forward);
    let found =
        [1, 4, 8].map(|together| bits(&attend(Kernel::Chunks(together), Order::Forward, &q, &k, &v, &shape)));
    assert!(found[0] == found[1] && found[1] == found[2]);
}

/// A NaN and infinities make a NaN of their group, and of no other.
#[test]
fn what_is_not_finite_is_stored_as_such() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut x = normal(128, 4);
        x[70] = bad;
        let mut to = Bytes::new(NumFormat::Q8.row_bytes(128));
        let params = abi::Store {
            x: x.as_ptr(),
            to: to.start_mut(),
            n: 1,
            heads: 1,
            dim: 128,
            row: to.len as u64,
            head: to.len as u64,
        };
        // SAFETY: a head of 128 numbers, and room for its row.
        unsafe { launch(Order::Forward, "store_q8", &params, [1, 1], abi::FLAT_THREADS, 0) };
        let mut back = vec![0f32; 128];
        unpack_row(NumFormat::Q8, to.bytes(), &mut back).unwrap();
        assert!(back[..64].iter().all(|x| x.is_finite()) && back[64..].iter().all(|x| x.is_nan()), "{bad}");
    }
}
