//! The CUDA kernels, thread by thread on the host, against the cases that every device must pass.

use airllm_format::NumFormat;
use airllm_kernels::{
    Attend, Columns, Emu, EmuBuf, Error, Heads, KvFormat, Matrix, Memory, Ops, Order, Regime, Rung, Tokens,
    conformance,
};

conformance!(forward, Emu::new(Order::Forward));
conformance!(reverse, Emu::new(Order::Reverse));
conformance!(random, Emu::new(Order::Random(1)));

// The verbs whose ladders have a naive rung.
conformance!(naive, Emu::with(Order::Forward, Rung::Naive), matmul not_finite rms_norm rms_norm_rows attend empty);

fn upload(emu: &Emu, numbers: &[f32]) -> EmuBuf {
    upload_bytes(emu, &numbers.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>())
}

fn upload_bytes(emu: &Emu, bytes: &[u8]) -> EmuBuf {
    let mut buf = emu.alloc(bytes.len()).unwrap();
    emu.write(&mut buf, 0, bytes).unwrap();
    buf
}

fn bits(emu: &Emu, buf: &EmuBuf) -> Vec<u32> {
    let mut out = vec![0u8; emu.len(buf)];
    emu.read(buf, 0, &mut out).unwrap();
    out.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect()
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

/// Products are the same bit for bit, however many tokens share a call, wherever the rows are cut and in whatever order
/// threads run: few tokens go through `gemv`, many through `gemm`, and sizes leave one step of a slice, a part of a step,
/// and several rounds of 4096 columns.
#[test]
fn products_do_not_depend_on_company_cut_or_order() {
    for format in NumFormat::ALL {
        for (rows, cols) in [(67usize, 80usize), (5, 1100), (3, 9000)] {
            let cols = cols.next_multiple_of(format.multiple());
            let (row_bytes, n) = (format.row_bytes(cols), 37);
            let mut packed = vec![0u8; rows * row_bytes];
            let weights = numbers(rows * cols, 3);
            for (weights, row) in weights.chunks(cols).zip(packed.chunks_mut(row_bytes)) {
                airllm_quant::pack_row(format, weights, row).unwrap();
            }
            let x = numbers(n * cols, 5);
            let product = |order, first: usize, count: usize, token: usize, tokens: usize| {
                let emu = Emu::new(order);
                let w = upload_bytes(&emu, &packed[first * row_bytes..][..count * row_bytes]);
                let data = emu.view(&w, 0..count * row_bytes).unwrap();
                let x = upload(&emu, &x[token * cols..][..tokens * cols]);
                let mut y = emu.alloc(tokens * count * 4).unwrap();
                let out = Columns { stride: count, first: 0 };
                emu.matmul(Matrix { data, format, rows: count, cols }, &x, Tokens::few(tokens), &mut y, out)
                    .unwrap();
                bits(&emu, &y)
            };
            let all = product(Order::Forward, 0, rows, 0, n);
            let case = format!("{format} [{rows}, {cols}]");
            assert!(product(Order::Random(9), 0, rows, 0, n) == all, "{case} in random order");
            for (token, tokens) in [(0, 1), (36, 1), (5, 2), (3, 3), (8, 8), (20, 16), (11, 17)] {
                let found = product(Order::Reverse, 0, rows, token, tokens);
                assert!(found == all[token * rows..][..tokens * rows], "{case}, tokens {token} + {tokens}");
            }
            for first in [1, 2] {
                let count = rows - first;
                for (t, found) in product(Order::Forward, first, count, 0, 4).chunks(count).enumerate() {
                    assert!(found == &all[t * rows + first..][..count], "{case}, rows from {first} on");
                }
            }
        }
    }
}

/// What a query gets depends on the cache and its position, not on the queries beside it.
#[test]
fn attention_does_not_depend_on_the_cut() {
    for (window, cache) in [(0, KvFormat::F32), (70, KvFormat::F32), (0, KvFormat::F16), (70, KvFormat::Q8)] {
        let (n, start, heads, kv_heads, head_dim, value_dim) = (9, 190, 6, 2, 40, 24);
        let whole = Attend {
            first: 0,
            n,
            start,
            heads,
            kv_heads,
            head_dim,
            value_dim,
            scale: 0.2,
            softcap: 0.0,
            window,
            alibi: true,
            regime: Regime::Token,
            cache,
        };
        let run = |order, cut: usize| {
            let emu = Emu::new(order);
            let stored = |dim: usize, seed| {
                let (rows, row) = (start + n, Heads { heads: kv_heads, dim, cache });
                let x = upload(&emu, &numbers(rows * kv_heads * dim, seed));
                let mut to = emu.alloc(rows * row.row_bytes()).unwrap();
                emu.store(&x, 0, start, row, &mut to, 0).unwrap();
                emu.store(&x, start, n, row, &mut to, start).unwrap();
                to
            };
            let q = upload(&emu, &numbers(n * heads * head_dim, 7));
            let (k, v) = (stored(head_dim, 8), stored(value_dim, 9));
            let mut out = emu.alloc(n * heads * value_dim * 4).unwrap();
            for first in (0..n).step_by(cut) {
                let part = Attend { first, n: cut.min(n - first), start: start + first, ..whole };
                emu.attend(&q, &k, &v, &mut out, part).unwrap();
            }
            bits(&emu, &out)
        };
        let at_once = run(Order::Forward, n);
        for (order, cut) in [(Order::Forward, 1), (Order::Reverse, 4), (Order::Random(3), 2)] {
            assert!(run(order, cut) == at_once, "{cache}, window {window}, {cut} queries a call, {order:?}");
        }
    }
}

#[test]
fn what_kernels_cannot_read_is_refused() {
    let emu = Emu::default();
    let w = emu.alloc(4096).unwrap();
    let (x, mut y) = (emu.alloc(4096).unwrap(), emu.alloc(4096).unwrap());
    let mut product = |format, at: usize| {
        let data = emu.view(&w, at..at + 1024).unwrap();
        emu.matmul(
            Matrix { data, format, rows: 1, cols: 32 },
            &x,
            Tokens::few(1),
            &mut y,
            Columns { stride: 1, first: 0 },
        )
    };
    product(NumFormat::Q4, 16).unwrap();
    product(NumFormat::F16, 3).unwrap();
    let refused = |answer: Result<(), Error>, words: &str| {
        let said = answer.unwrap_err().to_string();
        assert!(said.contains(words), "{said}");
    };
    refused(product(NumFormat::Q4, 8), "w starts 8 bytes after a multiple of 16");
    let bias = emu.view(&w, 2..34).unwrap();
    refused(emu.add_bias(&mut y, bias, 1, 8), "bias starts 2 bytes after a multiple of 4");
    let mut out = emu.alloc(32768).unwrap();
    let regime = Regime::Prompt;
    let one = Attend { n: 1, heads: 1, kv_heads: 1, head_dim: 1, scale: 1.0, regime, ..Attend::default() };
    let v = emu.alloc(32768).unwrap();
    emu.attend(&x, &x, &v, &mut out, Attend { value_dim: 1981, ..one }).unwrap();
    refused(
        emu.attend(&x, &x, &v, &mut out, Attend { value_dim: 1982, ..one }),
        "heads of 1 and 1982 numbers",
    );
}
