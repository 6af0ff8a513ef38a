//! Products of prompts.

use super::{Bytes, ORDERS, bits, error, launch, normal};
use crate::abi;
use crate::conformance::prompt_bound as bound;
use crate::emu::Order;
use crate::launch::{Form, MatrixTile, matrix_tiles};
use airllm_format::NumFormat;
use airllm_quant::{pack_row, unpack_row};

/// Numbers in a row of the result before and behind those of the matrix.
const BESIDE: usize = 2;
const MARK: f32 = 7777.0;

struct Weights {
    format: NumFormat,
    rows: usize,
    cols: usize,
    packed: Bytes,
    stored: Vec<f32>,
}

impl Weights {
    fn new(format: NumFormat, rows: usize, cols: usize) -> Weights {
        let cols = cols.next_multiple_of(format.multiple());
        let row_bytes = format.row_bytes(cols);
        let mut packed = Bytes::new(rows * row_bytes);
        let mut stored = vec![0f32; rows * cols];
        let each = packed.bytes_mut().chunks_mut(row_bytes).zip(stored.chunks_mut(cols));
        for ((row, stored), weights) in each.zip(normal(rows * cols, 3).chunks(cols)) {
            pack_row(format, weights, row).unwrap();
            unpack_row(format, row, stored).unwrap();
        }
        Weights { format, rows, cols, packed, stored }
    }

    /// The products with some tokens, `[n, rows]`, the same by blocks of all sizes.
    fn times(&self, x: &[f32], order: Order) -> Vec<f32> {
        let mut all = matrix_tiles(self.format).iter().map(|tile| self.times_by(tile, x, order));
        let found = all.next().unwrap();
        all.for_each(|small| assert_eq!(bits(&found), bits(&small), "{}, {order:?}", self.format));
        found
    }

    fn times_by(&self, tile: &MatrixTile, x: &[f32], order: Order) -> Vec<f32> {
        let &Weights { format, rows, cols, .. } = self;
        let n = x.len() / cols;
        let parts = Form::of_prompt(format).unwrap().parts();
        let padded = cols.next_multiple_of(abi::MMA_COLS);
        let mut halves = Bytes::new(parts * n * padded * 2);
        let mut factors = vec![f32::NAN; n];
        let prepare = abi::Prepare {
            x: x.as_ptr(),
            to: halves.start_mut(),
            factors: factors.as_mut_ptr(),
            n: n as u64,
            cols: cols as u64,
            padded: padded as u64,
            parts: parts as u32,
            unused: 0,
        };
        // SAFETY: `x` holds `n` tokens, `halves` and `factors` what is made of them.
        unsafe { launch(order, "gemm_prepare", &prepare, [n, 1], abi::PREPARE_THREADS, 0) };
        let stride = rows + 2 * BESIDE;
        let mut y = vec![MARK; n * stride];
        let product = abi::PromptProduct {
            w: self.packed.start(),
            row_bytes: format.row_bytes(cols) as u64,
            rows: rows as u64,
            cols: cols as u64,
            x: halves.start(),
            factors: factors.as_ptr(),
            n: n as u64,
            padded: padded as u64,
            y: y.as_mut_ptr(),
            stride: stride as u64,
            first: BESIDE as u64,
        };
        let blocks = rows.div_ceil(tile.rows) * n.div_ceil(tile.tokens / parts);
        let kernel = format!("{}_{format}", tile.kernel);
        // SAFETY: the matrix has `rows` rows, the tokens were just prepared, `y` has `n` rows of `stride` numbers.
        unsafe { launch(order, &kernel, &product, [blocks, 1], tile.threads, 0) };
        let mut found = Vec::new();
        for row in y.chunks(stride) {
            assert!(row[..BESIDE].iter().chain(&row[BESIDE + rows..]).all(|&x| x == MARK));
            found.extend(&row[BESIDE..BESIDE + rows]);
        }
        found
    }

    fn reference(&self, x: &[f32]) -> Vec<f64> {
        let product =
            |x: &[f32], w: &[f32]| x.iter().zip(w).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum();
        x.chunks(self.cols)
            .flat_map(|x| self.stored.chunks(self.cols).map(|w| product(x, w)).collect::<Vec<_>>())
            .collect()
    }
}

fn formats() -> impl Iterator<Item = NumFormat> {
    NumFormat::ALL.into_iter().filter(|&format| format != NumFormat::F32)
}

#[test]
fn products_of_prompts_are_right() {
    for format in formats() {
        // Rows and columns around the edges of tiles, turns and steps; tokens around a quarter of a tile.
        for (rows, cols, n) in [(40, 1, 2), (70, 80, 33), (129, 257, 17), (3, 96, 130), (16, 1100, 3)] {
            let weights = Weights::new(format, rows, cols);
            let x = normal(n * weights.cols, 5);
            let error = error(&weights.reference(&x), &weights.times(&x, Order::Forward));
            assert!(error <= bound(format), "{format}, {rows} x {cols}, {n} tokens: {error:e}");
        }
    }
}

/// Bands of eight tiles of rows, the last of them smaller, and several tiles of tokens.
#[test]
fn blocks_of_prompts_cover_the_result() {
    for format in [NumFormat::Q4, NumFormat::F16, NumFormat::A4G128] {
        let weights = Weights::new(format, 1300, 32);
        let x = normal(140 * weights.cols, 5);
        let error = error(&weights.reference(&x), &weights.times(&x, Order::Forward));
        assert!(error <= bound(format), "{format}: {error:e}");
    }
}

#[test]
fn products_of_prompts_do_not_depend_on_company_or_order() {
    for format in formats() {
        let weights = Weights::new(format, 67, 150);
        let x = normal(40 * weights.cols, 7);
        let all = bits(&weights.times(&x, Order::Forward));
        for order in ORDERS {
            for (first, count) in [(0, 40), (0, 1), (7, 33), (39, 1)] {
                let some = weights.times(&x[first * weights.cols..][..count * weights.cols], order);
                assert_eq!(
                    bits(&some),
                    all[first * 67..][..count * 67],
                    "{format}, {first}.., {count}, {order:?}"
                );
            }
        }
    }
}

/// Tokens are scaled one by one: none overflows, none vanishes.
#[test]
fn tokens_of_any_size() {
    for format in [NumFormat::Q4, NumFormat::F16, NumFormat::Bf16, NumFormat::Q4K] {
        let weights = Weights::new(format, 5, 200);
        let sizes = [1e36f32, 1e5, 1.0, 1e-20, 1e-33];
        let mut x = normal(sizes.len() * weights.cols, 9);
        for (x, size) in x.chunks_mut(weights.cols).zip(sizes) {
            x.iter_mut().for_each(|x| *x *= size);
        }
        let (expected, found) = (weights.reference(&x), weights.times(&x, Order::Forward));
        for ((expected, found), size) in expected.chunks(5).zip(found.chunks(5)).zip(sizes) {
            let error = error(expected, found);
            assert!(error <= 10.0 * bound(format), "{format}, {size:e}: {error:e}");
        }
        x.fill(0.0);
        assert!(weights.times(&x, Order::Forward).iter().all(|&y| y == 0.0));
    }
}

#[test]
fn what_is_not_finite_stays_in_its_token() {
    for format in formats() {
        let weights = Weights::new(format, 13, 100);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = normal(5 * weights.cols, 11);
            let good = bits(&weights.times(&x, Order::Forward));
            x[3 * weights.cols + 98] = bad;
            let found = weights.times(&x, Order::Forward);
            assert!(found[3 * 13..4 * 13].iter().all(|y| !y.is_finite()), "{format}, {bad}");
            let rest = |all: &[u32]| [&all[..3 * 13], &all[4 * 13..]].concat();
            assert_eq!(rest(&bits(&found)), rest(&good), "{format}, {bad}");
        }
    }
}
