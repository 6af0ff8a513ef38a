//! Error-compensated rounding: what it gains, what it depends on, refusals.

#![allow(clippy::unwrap_used, reason = "what fails here is the test")]

use airllm_format::{Layout, NumFormat};
use airllm_quant::{
    Compensated, Error, Feedback, Hessian, compensate, pack_row, pack_row_weighted, unpack_row,
};

/// Numbers that look like N(0, 1): sums of twelve uniform ones.
struct Random(u64);

impl Random {
    fn normal(&mut self) -> f32 {
        let mut uniform = || {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            (self.0 >> 40) as f32 / (1u64 << 24) as f32
        };
        (0..12).map(|_| uniform()).sum::<f32>() - 6.0
    }

    fn many(&mut self, count: usize, size: f32) -> Vec<f32> {
        (0..count).map(|_| size * self.normal()).collect()
    }

    /// Inputs of few directions and some noise, columns of different sizes.
    fn inputs(&mut self, tokens: usize, cols: usize) -> Vec<f32> {
        let rank = (cols / 8).max(2);
        let mix = self.many(rank * cols, 1.0);
        let sizes: Vec<f32> = (0..cols).map(|_| (0.5 * self.normal()).exp()).collect();
        let mut x = self.many(tokens * cols, 0.3);
        for x in x.chunks_mut(cols) {
            for mix in mix.chunks(cols) {
                let a = self.normal() / (rank as f32).sqrt();
                x.iter_mut().zip(mix).for_each(|(x, m)| *x += a * m);
            }
            x.iter_mut().zip(&sizes).for_each(|(x, s)| *x *= s);
        }
        x
    }
}

fn planes() -> impl Iterator<Item = NumFormat> {
    NumFormat::ALL.into_iter().filter(|f| matches!(f.layout(), Layout::Planes { .. }))
}

fn hessian(x: &[f32], cols: usize, width: usize) -> Hessian {
    let mut hessian = Hessian::new(cols, width);
    x.chunks(100 * cols).for_each(|x| hessian.add(x, 1).unwrap());
    hessian
}

/// What the factor stands for, by definition: the mean of products, damped, in blocks of so many columns.
struct Plain {
    cols: usize,
    sums: Vec<f64>,
}

impl Plain {
    fn new(x: &[f32], cols: usize, width: usize, damping: f64) -> Plain {
        let mut sums = vec![0f64; cols * cols];
        for x in x.chunks(cols) {
            for (i, row) in sums.chunks_mut(cols).enumerate() {
                row.iter_mut().zip(x).for_each(|(sum, v)| *sum += f64::from(x[i]) * f64::from(*v));
            }
        }
        let tokens = (x.len() / cols) as f64;
        sums.iter_mut().for_each(|sum| *sum /= tokens);
        let mean = sums.iter().step_by(cols + 1).sum::<f64>() / cols as f64;
        sums.iter_mut().step_by(cols + 1).for_each(|sum| *sum += damping * mean);
        for i in 0..cols {
            for j in 0..cols {
                if i / width != j / width {
                    sums[i * cols + j] = 0.0;
                }
            }
        }
        Plain { cols, sums }
    }

    fn error(&self, off: &[f64]) -> f64 {
        let rows = self.sums.chunks(self.cols).zip(off);
        rows.map(|(row, e)| e * row.iter().zip(off).map(|(h, e)| h * e).sum::<f64>()).sum()
    }

    /// Of packed rows, and of the weights themselves.
    fn compensated(&self, format: NumFormat, weights: &[f32], packed: &[u8]) -> Compensated {
        let mut all = Compensated::default();
        let mut back = vec![0f32; self.cols];
        for (weights, row) in weights.chunks(self.cols).zip(packed.chunks(format.row_bytes(self.cols))) {
            unpack_row(format, row, &mut back).unwrap();
            let off: Vec<f64> = weights.iter().zip(&back).map(|(w, b)| f64::from(w - b)).collect();
            all.error += self.error(&off);
            all.energy += self.error(&weights.iter().map(|&w| f64::from(w)).collect::<Vec<_>>());
        }
        all
    }
}

fn packed(format: NumFormat, weights: &[f32], cols: usize, pack: impl Fn(&[f32], &mut [u8])) -> Vec<u8> {
    let bytes = format.row_bytes(cols);
    let mut out = vec![0xa5; weights.len() / cols * bytes];
    weights.chunks(cols).zip(out.chunks_mut(bytes)).for_each(|(w, to)| pack(w, to));
    out
}

fn compensated(
    format: NumFormat,
    weights: &[f32],
    feedback: &Feedback,
    threads: usize,
) -> (Vec<u8>, Compensated) {
    let cols = feedback.cols();
    let mut out = vec![0xa5; weights.len() / cols * format.row_bytes(cols)];
    let done = compensate(format, weights, feedback, &mut out, threads).unwrap();
    (out, done)
}

fn close(a: f64, b: f64, part: f64) -> bool {
    (a - b).abs() <= part * a.abs().max(b.abs())
}

#[test]
fn errors_are_those_of_the_bytes_and_far_below_nearest() {
    let random = &mut Random(11);
    for cols in [17, 255, 257, 700] {
        let x = random.inputs(3 * cols, cols);
        let hessian = hessian(&x, cols, cols);
        let diagonal = hessian.diagonal();
        let feedback = hessian.factor(0.01, 1).unwrap();
        assert_eq!(feedback.damping(), 0.01);
        let plain = Plain::new(&x, cols, cols, 0.01);
        let weights = random.many(5 * cols, 0.03);
        for format in planes() {
            let (bytes, done) = compensated(format, &weights, &feedback, 1);
            let ours = plain.compensated(format, &weights, &bytes);
            assert!(close(done.error, ours.error, 1e-3), "{format} {cols}: {done:?} {ours:?}");
            assert!(close(done.energy, ours.energy, 1e-3), "{format} {cols}: {done:?} {ours:?}");
            let nearest = packed(format, &weights, cols, |w, to| pack_row(format, w, to).unwrap());
            let by = |w: &[f32], to: &mut [u8]| pack_row_weighted(format, w, &diagonal, to).unwrap();
            let weighted = packed(format, &weights, cols, by);
            for (what, other) in [("nearest", nearest), ("weighted", weighted)] {
                let other = plain.compensated(format, &weights, &other).error;
                let factor = if cols == 17 { 1.5 } else { 3.0 };
                assert!(ours.error * factor < other, "{format} {cols} {what}: {} {other}", ours.error);
            }
        }
    }
}

#[test]
fn the_factor_measures_what_it_was_made_of() {
    let random = &mut Random(12);
    for (cols, width) in [(1, 1), (40, 40), (300, 300), (700, 256), (600, 1)] {
        let x = random.inputs(900, cols);
        let hessian = hessian(&x, cols, width);
        let plain = Plain::new(&x, cols, width.next_multiple_of(256), 0.02);
        for (c, square) in hessian.diagonal().into_iter().enumerate() {
            let mean = x.iter().skip(c).step_by(cols).map(|v| f64::from(v * v)).sum::<f64>() / 900.0;
            assert!(close(f64::from(square), mean, 1e-5), "{square} {mean}");
        }
        assert_eq!((hessian.tokens(), hessian.cols()), (900, cols));
        let feedback = hessian.factor(0.02, 1).unwrap();
        for _ in 0..3 {
            let off = random.many(cols, 1.0);
            let expected = plain.error(&off.iter().map(|&e| f64::from(e)).collect::<Vec<_>>());
            let found = feedback.error(&off);
            assert!(close(found, expected, 1e-4), "{cols} {width}: {found} {expected}");
        }
        assert!(feedback.importance().iter().all(|d| d.is_finite() && *d > 0.0));
        assert!(feedback.error(&vec![1.0; cols + 1]).is_nan());
    }
}

#[test]
fn diagonal_blocks_take_less_memory_and_still_gain() {
    let random = &mut Random(13);
    let cols = 700;
    assert!(Hessian::bytes(cols, 256) < Hessian::bytes(cols, cols));
    let x = random.inputs(2000, cols);
    let feedback = hessian(&x, cols, 200).factor(0.01, 1).unwrap();
    let plain = Plain::new(&x, cols, 256, 0.01);
    let weights = random.many(3 * cols, 1.0);
    for format in planes() {
        let (bytes, done) = compensated(format, &weights, &feedback, 1);
        let ours = plain.compensated(format, &weights, &bytes);
        assert!(close(done.error, ours.error, 1e-3), "{format}: {done:?} {ours:?}");
        let nearest = packed(format, &weights, cols, |w, to| pack_row(format, w, to).unwrap());
        let nearest = plain.compensated(format, &weights, &nearest).error;
        assert!(ours.error * 1.5 < nearest, "{format}: {} {nearest}", ours.error);
    }
}

#[test]
fn without_tokens_rounding_is_to_nearest() {
    let random = &mut Random(14);
    for x in [vec![], vec![0.0; 3 * 300]] {
        let feedback = hessian(&x, 300, 300).factor(0.01, 1).unwrap();
        assert!(feedback.importance().iter().all(|&d| d == 1.0));
        let weights = random.many(20 * 300, 0.5);
        for format in planes() {
            let (_, done) = compensated(format, &weights, &feedback, 1);
            let nearest = packed(format, &weights, 300, |w, to| pack_row(format, w, to).unwrap());
            let mut back = vec![0f32; 300];
            let mut expected = 0.0;
            for (weights, row) in weights.chunks(300).zip(nearest.chunks(format.row_bytes(300))) {
                unpack_row(format, row, &mut back).unwrap();
                expected += weights.iter().zip(&back).map(|(w, b)| f64::from(w - b).powi(2)).sum::<f64>();
            }
            // More scales are tried here.
            let ratio = done.error / expected;
            assert!((0.85..1.0001).contains(&ratio), "{format}: {ratio}");
        }
    }
}

#[test]
fn neither_threads_nor_neighbours_change_a_bit() {
    let random = &mut Random(15);
    let cols = 600;
    let x = random.inputs(800, cols);
    let make = |threads: usize| {
        let mut hessian = Hessian::new(cols, cols);
        x.chunks(300 * cols).for_each(|x| hessian.add(x, threads).unwrap());
        hessian.factor(0.01, threads).unwrap()
    };
    let feedback = make(1);
    for threads in [0, 2, 5] {
        let other = make(threads);
        assert_eq!(feedback.importance(), other.importance());
        let off = random.many(cols, 1.0);
        assert_eq!(feedback.error(&off).to_bits(), other.error(&off).to_bits());
    }
    let weights = random.many(131 * cols, 1.0);
    for format in [NumFormat::Q5, NumFormat::Q2, NumFormat::Q8] {
        let (bytes, done) = compensated(format, &weights, &feedback, 1);
        for threads in [0, 3] {
            let other = compensated(format, &weights, &feedback, threads);
            assert!(other == (bytes.clone(), done), "{format} on {threads}");
        }
        for (first, count) in [(0, 1), (1, 2), (63, 2), (70, 61)] {
            let part = &weights[first * cols..][..count * cols];
            let row = format.row_bytes(cols);
            assert!(
                compensated(format, part, &feedback, 2).0 == bytes[first * row..][..count * row],
                "{format}"
            );
        }
    }
}

#[test]
fn rows_of_zeros_and_inputs_of_zeros() {
    let random = &mut Random(16);
    let cols = 280;
    let mut x = random.inputs(500, cols);
    for x in x.chunks_mut(cols) {
        x[..20].fill(0.0);
        x[100] = 0.0;
        x[cols - 1] = 0.0;
    }
    let feedback = hessian(&x, cols, cols).factor(0.01, 1).unwrap();
    let mut weights = random.many(3 * cols, 1.0);
    weights[cols..2 * cols].fill(0.0);
    for format in planes() {
        let (bytes, done) = compensated(format, &weights, &feedback, 1);
        assert!(done.error < 0.2 * done.energy, "{format} {done:?}");
        let row = format.row_bytes(cols);
        let nearest =
            packed(format, &weights[cols..2 * cols], cols, |w, to| pack_row(format, w, to).unwrap());
        assert_eq!(bytes[row..2 * row], nearest, "{format}");
        let mut back = vec![0f32; cols];
        for (bytes, weights) in bytes.chunks(row).zip(weights.chunks(cols)) {
            unpack_row(format, bytes, &mut back).unwrap();
            // Far from what matters, but not left out: within the range of the codes.
            let off = back[..20].iter().zip(weights).fold(0f32, |m, (b, w)| m.max((b - w).abs()));
            assert!(off < 3.0, "{format} {off}");
        }
    }
}

#[test]
fn more_damping_where_less_is_not_enough() {
    let random = &mut Random(17);
    // As many directions as 40 tokens have.
    let (cols, tokens) = (300, 40);
    let x = random.many(cols * tokens, 1.0);
    let feedback = hessian(&x, cols, cols).factor(0.0, 1).unwrap();
    let damping = feedback.damping();
    assert!((1e-3..0.2).contains(&damping), "{damping}");
    let plain = Plain::new(&x, cols, cols, damping);
    let off = random.many(cols, 1.0);
    let expected = plain.error(&off.iter().map(|&e| f64::from(e)).collect::<Vec<_>>());
    assert!(close(feedback.error(&off), expected, 1e-3), "{} {expected}", feedback.error(&off));
}

#[test]
fn other_formats_are_packed_and_measured() {
    let random = &mut Random(18);
    let cols = 512;
    let x = random.inputs(700, cols);
    let feedback = hessian(&x, cols, cols).factor(0.01, 1).unwrap();
    let plain = Plain::new(&x, cols, cols, 0.01);
    let weights = random.many(3 * cols, 1.0);
    for format in NumFormat::ALL.into_iter().filter(|f| !matches!(f.layout(), Layout::Planes { .. })) {
        let (bytes, done) = compensated(format, &weights, &feedback, 1);
        assert_eq!(
            bytes,
            packed(format, &weights, cols, |w, to| pack_row(format, w, to).unwrap()),
            "{format}"
        );
        let expected = plain.compensated(format, &weights, &bytes);
        assert!(close(done.error, expected.error, 1e-2), "{format} {done:?} {expected:?}");
        assert!(close(done.energy, expected.energy, 1e-3), "{format} {done:?} {expected:?}");
    }
}

#[test]
fn weights_of_any_size() {
    let random = &mut Random(19);
    let cols = 300;
    let x = random.inputs(600, cols);
    for size in [1e-12, 1e-3, 1e3] {
        let x: Vec<f32> = x.iter().map(|v| v * size).collect();
        let feedback = hessian(&x, cols, cols).factor(0.01, 1).unwrap();
        for by in [1e-30, 1e-9, 1e-5, 1.0, 1e4, 1e5] {
            let weights = random.many(cols, by);
            for format in planes() {
                let (bytes, done) = compensated(format, &weights, &feedback, 1);
                let mut back = vec![0f32; cols];
                unpack_row(format, &bytes, &mut back).unwrap();
                assert!(back.iter().all(|b| b.is_finite()), "{format} {by}");
                assert!(done.error <= done.energy * 1.0001, "{format} {size} {by} {done:?}");
            }
        }
    }
}

#[test]
fn refusals() {
    let mut hessian = Hessian::new(3, 3);
    assert_eq!(hessian.add(&[1.0; 4], 1), Err(Error::Inputs { cols: 3, found: 4 }));
    let error = hessian.add(&[1.0, 2.0, 3.0, 4.0, f32::INFINITY, 6.0], 1);
    assert_eq!(error, Err(Error::Input { token: 1, column: 1, value: f32::INFINITY }));
    assert_eq!((hessian.tokens(), hessian.diagonal()), (0, vec![0.0; 3]));
    for damping in [-1.0, f64::NAN, f64::INFINITY] {
        assert!(matches!(hessian.clone().factor(damping, 1), Err(Error::Damping { .. })));
    }
    let mut huge = hessian.clone();
    huge.add(&[1.0, 1e30, 1.0], 1).unwrap();
    assert!(matches!(huge.factor(0.01, 1), Err(Error::Indefinite { column: 1, .. })));

    let feedback = hessian.factor(0.01, 1).unwrap();
    let mut out = vec![0; 2 * NumFormat::Q3.row_bytes(3)];
    let mut pack = |weights: &[f32]| compensate(NumFormat::Q3, weights, &feedback, &mut out, 1);
    for few in [3, 5, 9] {
        assert!(matches!(pack(&vec![1.0; few]), Err(Error::Rows { cols: 3, weights, .. }) if weights == few));
    }
    let Err(Error::Row { row: 1, error }) = pack(&[1.0, 2.0, 3.0, 4.0, f32::NAN, 6.0]) else { panic!() };
    assert!(matches!(*error, Error::NotFinite { position: 1, .. }));
    let Err(Error::Row { row: 0, error }) = pack(&[1.0, 2.0, 1e30, 4.0, 5.0, 6.0]) else { panic!() };
    assert!(matches!(*error, Error::TooLarge { position: 2, .. }));
    let blocks = compensate(NumFormat::Q4K, &[1.0; 3], &feedback, &mut [], 1);
    assert!(matches!(blocks, Err(Error::PartBlock { .. })));

    let nothing = Hessian::new(0, 0).factor(0.01, 1).unwrap();
    assert_eq!(compensate(NumFormat::Q3, &[], &nothing, &mut [], 1).unwrap(), Compensated::default());
    assert!(compensate(NumFormat::Q3, &[1.0], &nothing, &mut [], 1).is_err());
}
