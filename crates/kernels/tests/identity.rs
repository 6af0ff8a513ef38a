//! Bit for bit the same, whatever the number of threads, the cut of the rows, the company of tokens.

#![allow(clippy::unwrap_used, reason = "what fails here is the test")]

use airllm_format::NumFormat;
use airllm_kernels::{
    Activation, Attend, Columns, Cpu, CpuBuf, Heads, KvFormat, Matrix, Memory, Ops, Regime, Tokens,
};
use proptest::prelude::*;
use std::sync::LazyLock;

/// Devices of one kind, with 1, 2 and 3 threads.
static DEVICES: LazyLock<[[Cpu; 3]; 3]> =
    LazyLock::new(|| [[1, 2, 3].map(Cpu::new), [1, 2, 3].map(Cpu::portable), [1, 2, 3].map(Cpu::floats)]);

/// One for each instruction set for products of integers.
static LEVELS: LazyLock<Vec<Cpu>> = LazyLock::new(|| Cpu::levels(2));

fn upload(cpu: &Cpu, numbers: &[f32]) -> CpuBuf {
    let mut buf = cpu.alloc(numbers.len() * 4).unwrap();
    cpu.write(&mut buf, 0, bytemuck::cast_slice(numbers)).unwrap();
    buf
}

fn bits(cpu: &Cpu, buf: &CpuBuf) -> Vec<u32> {
    let mut out = vec![0u32; cpu.len(buf) / 4];
    cpu.read(buf, 0, bytemuck::cast_slice_mut(&mut out)).unwrap();
    out
}

/// Numbers whose sums depend on their order.
fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed | 1;
    let mut draw = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| draw() * 3.0 * draw()).collect()
}

fn packed(format: NumFormat, weights: &[f32], cols: usize) -> Vec<u8> {
    let row_bytes = format.row_bytes(cols);
    let mut packed = vec![0u8; weights.len() / cols * row_bytes];
    for (weights, row) in weights.chunks(cols).zip(packed.chunks_mut(row_bytes)) {
        airllm_quant::pack_row(format, weights, row).unwrap();
    }
    packed
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, failure_persistence: None, ..Default::default() })]

    #[test]
    fn products(
        format in prop::sample::select(&NumFormat::ALL[..]),
        rows in 1usize..400,
        cols in 1usize..1400,
        n in 1usize..120,
        cut in 1usize..150,
        pick in any::<u64>(),
    ) {
        let cols = cols.next_multiple_of(format.multiple());
        let weights = packed(format, &numbers(rows * cols, pick), cols);
        let x = numbers(n * cols, !pick);
        let row_bytes = format.row_bytes(cols);
        let whole = Matrix { data: &weights[..], format, rows, cols };
        for kind in DEVICES.iter() {
            let at_once = {
                let (cpu, mut y) = (&kind[0], kind[0].alloc(n * rows * 4).unwrap());
                let out = Columns { stride: rows, first: 0 };
                cpu.matmul(whole, &upload(cpu, &x), Tokens::few(n), &mut y, out).unwrap();
                bits(cpu, &y)
            };
            for cpu in kind {
                // The rows cut into calls, at an odd address.
                let odd = [&[0u8; 3][..], &weights].concat();
                let mut y = cpu.alloc(n * rows * 4).unwrap();
                for first in (0..rows).step_by(cut) {
                    let count = cut.min(rows - first);
                    let data = &odd[3 + first * row_bytes..][..count * row_bytes];
                    let part = Matrix { data, format, rows: count, cols };
                    let out = Columns { stride: rows, first };
                    cpu.matmul(part, &upload(cpu, &x), Tokens::few(n), &mut y, out).unwrap();
                }
                prop_assert_eq!(&bits(cpu, &y), &at_once);

                // Single tokens, and a few.
                for count in [1, 2, 5] {
                    let first = pick as usize % n;
                    let count = count.min(n - first);
                    let x = upload(cpu, &x[first * cols..][..count * cols]);
                    let mut y = cpu.alloc(count * rows * 4).unwrap();
                    let out = Columns { stride: rows, first: 0 };
                    cpu.matmul(whole, &x, Tokens::few(count), &mut y, out).unwrap();
                    prop_assert_eq!(&bits(cpu, &y)[..], &at_once[first * rows..][..count * rows]);
                }
            }
        }
    }

    #[test]
    fn products_in_integers_on_all_instruction_sets(
        format in prop::sample::select(&NumFormat::ALL[..]),
        rows in 1usize..70,
        cols in 1usize..1400,
        n in 1usize..40,
        prompt in any::<bool>(),
        bytes in any::<bool>(),
        pick in any::<u64>(),
    ) {
        prop_assume!(LEVELS[0].in_integers(format));
        let cols = cols.next_multiple_of(format.multiple());
        let mut weights = packed(format, &numbers(rows * cols, pick), cols);
        if bytes {
            // Any codes, any scales: some of them are infinite or none.
            let noise = numbers(weights.len(), pick ^ 11);
            weights.iter_mut().zip(noise).for_each(|(w, x)| *w = (x * 1e6) as i32 as u8);
        }
        let x = numbers(n * cols, !pick);
        let regime = if prompt { Regime::Prompt } else { Regime::Token };
        let run = |cpu: &Cpu| {
            let mut y = cpu.alloc(n * rows * 4).unwrap();
            let w = Matrix { data: &weights[..], format, rows, cols };
            let tokens = Tokens { first: 0, n, regime };
            cpu.matmul(w, &upload(cpu, &x), tokens, &mut y, Columns { stride: rows, first: 0 }).unwrap();
            // Which bits a NaN has is not said.
            let nan = f32::NAN.to_bits();
            bits(cpu, &y).into_iter().map(|y| if f32::from_bits(y).is_nan() { nan } else { y }).collect::<Vec<_>>()
        };
        let expected = run(&LEVELS[0]);
        for cpu in &LEVELS[1..] {
            prop_assert_eq!(&run(cpu), &expected, "{}", cpu.instructions());
        }
    }

    #[test]
    fn attention(
        kv_heads in 1usize..5,
        group in 1usize..15,
        head_dim in 1usize..140,
        n in 1usize..40,
        start in 0usize..300,
        cut in 1usize..17,
        window in prop::option::of(1usize..350),
        alibi in any::<bool>(),
        value_dim in prop::option::of(1usize..140),
        cache in prop::sample::select(KvFormat::ALL.to_vec()),
        pick in any::<u64>(),
    ) {
        let heads = kv_heads * group;
        let scale = 1.0 / (head_dim as f32).sqrt();
        let value_dim = value_dim.unwrap_or(head_dim);
        let window = window.unwrap_or(0);
        let shape =
            Attend { first: 0, n, start, heads, kv_heads, head_dim, value_dim, scale, window, alibi, cache, softcap: 0.0, regime: Regime::Token };
        let q = numbers(n * heads * head_dim, pick);
        let k = numbers((start + n) * kv_heads * head_dim, pick ^ 3);
        let v = numbers((start + n) * kv_heads * value_dim, pick ^ 5);
        for kind in DEVICES.iter() {
            let mut expected = Vec::new();
            for cpu in kind {
                // Stored in two calls.
                let stored = |x: &[f32], dim: usize| {
                    let row = Heads { heads: kv_heads, dim, cache };
                    let rows = start + n;
                    let mut to = cpu.alloc(rows * row.row_bytes()).unwrap();
                    let x = upload(cpu, x);
                    cpu.store(&x, 0, start, row, &mut to, 0).unwrap();
                    cpu.store(&x, start, n, row, &mut to, start).unwrap();
                    to
                };
                let (q, k, v) = (upload(cpu, &q), stored(&k, head_dim), stored(&v, value_dim));
                let mut out = cpu.alloc(n * heads * value_dim * 4).unwrap();
                cpu.attend(&q, &k, &v, &mut out, shape).unwrap();
                let at_once = bits(cpu, &out);

                // A few queries a call.
                let mut out = cpu.alloc(n * heads * value_dim * 4).unwrap();
                for first in (0..n).step_by(cut) {
                    let n = cut.min(n - first);
                    let part = Attend { first, n, start: start + first, ..shape };
                    cpu.attend(&q, &k, &v, &mut out, part).unwrap();
                }
                prop_assert_eq!(&bits(cpu, &out), &at_once);
                if expected.is_empty() {
                    expected = at_once;
                } else {
                    prop_assert_eq!(&at_once, &expected);
                }
            }
        }
    }

    #[test]
    fn tokens_by_themselves(
        dim in 1usize..3000,
        n in 1usize..90,
        pick in any::<u64>(),
    ) {
        let x = numbers(n * dim, pick);
        let weight: Vec<u8> = bytemuck::cast_slice(&numbers(dim, pick ^ 9)).to_vec();
        let run = |cpu: &Cpu, x: &[f32]| {
            let n = x.len() / dim;
            let x = upload(cpu, x);
            let mut y = cpu.alloc(cpu.len(&x)).unwrap();
            cpu.rms_norm(&x, &weight, 1e-6, n, dim, &mut y).unwrap();
            cpu.add_bias(&mut y, &weight, n, dim).unwrap();
            cpu.gated(&mut y, &x, n * dim, Activation::GeluTanh).unwrap();
            cpu.gated(&mut y, &x, n * dim, Activation::Silu).unwrap();
            cpu.rms_norm_rows(&mut y, &weight, 1e-6, n, dim).unwrap();
            cpu.add(&mut y, &x, n * dim).unwrap();
            bits(cpu, &y)
        };
        for kind in DEVICES.iter() {
            let together = run(&kind[0], &x);
            for cpu in kind {
                prop_assert_eq!(&run(cpu, &x), &together);
                let token = pick as usize % n;
                let alone = run(cpu, &x[token * dim..][..dim]);
                prop_assert_eq!(&alone[..], &together[token * dim..][..dim]);
            }
        }
    }
}

#[test]
fn calls_repeat_on_a_device_shared_by_threads() {
    let cpu = Cpu::new(2);
    let (rows, cols, n) = (300, 700, 9);
    let weights = packed(NumFormat::Q4, &numbers(rows * cols, 7), cols);
    let x = upload(&cpu, &numbers(n * cols, 8));
    let run = || {
        let mut y = cpu.alloc(n * rows * 4).unwrap();
        let w = Matrix { data: &weights[..], format: NumFormat::Q4, rows, cols };
        cpu.matmul(w, &x, Tokens::few(n), &mut y, Columns { stride: rows, first: 0 }).unwrap();
        bits(&cpu, &y)
    };
    let expected = run();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| (0..20).for_each(|_| assert_eq!(run(), expected)));
        }
    });
}
