//! Cases of the verbs that read packed weights.

use super::lab::{Lab, MARK, Numbers, squared_distance};
use super::{ARITHMETIC, Failure, INTEGERS, SIZES, TOKENS, Verdict, bound, prompt_bound, whole};
use crate::{Columns, Matrix, Ops, Regime, Tokens};
use airllm_format::{Layout, NumFormat};
use airllm_quant::{pack_row, unpack_row};

/// Sizes at the edges of larger blocks: rows, columns, tokens.
const LARGE: [(usize, usize, usize); 9] = [
    (33, 511, 2),
    (5, 512, 97),
    (64, 513, 96),
    (31, 1025, 95),
    (4, 1500, 193),
    (130, 1024, 3),
    (1000, 257, 1),
    (261, 4136, 1),
    (37, 4127, 4),
];

/// A matrix before and after packing.
struct Weights {
    format: NumFormat,
    rows: usize,
    cols: usize,
    original: Vec<f32>,
    packed: Vec<u8>,
    stored: Vec<f32>,
}

impl Weights {
    fn draw(numbers: &mut Numbers, format: NumFormat, rows: usize, cols: usize) -> Result<Weights, Failure> {
        let original = numbers.normal(rows * cols);
        let row_bytes = format.row_bytes(cols);
        let mut packed = vec![0u8; rows * row_bytes];
        let mut stored = vec![0f32; rows * cols];
        let each = original.chunks(cols).zip(packed.chunks_mut(row_bytes));
        for ((weights, row), stored) in each.zip(stored.chunks_mut(cols)) {
            pack_row(format, weights, row)
                .and_then(|()| unpack_row(format, row, stored))
                .map_err(|e| Failure::Wrong { case: "packing".into(), what: e.to_string() })?;
        }
        Ok(Weights { format, rows, cols, original, packed, stored })
    }

    /// Rows of any bytes, but for their scales, which are finite.
    fn draw_bytes(
        numbers: &mut Numbers,
        format: NumFormat,
        rows: usize,
        cols: usize,
    ) -> Result<Self, Failure> {
        let mut weights = Weights::draw(numbers, format, rows, cols)?;
        let each = weights.packed.chunks_mut(format.row_bytes(cols)).zip(weights.stored.chunks_mut(cols));
        for (row, stored) in each {
            row.fill_with(|| numbers.below(256) as u8);
            for group in 0..format.groups(cols) {
                for (at, bytes) in scales(format, cols, group) {
                    // Half of the exponents: none of them is that of infinities.
                    row[at + bytes - 1] &= 0xbf;
                }
            }
            unpack_row(format, row, stored)
                .map_err(|e| Failure::Wrong { case: "unpacking".into(), what: e.to_string() })?;
        }
        Ok(weights)
    }

    fn matrix<V>(&self, data: V) -> Matrix<V> {
        Matrix { data, format: self.format, rows: self.rows, cols: self.cols }
    }
}

/// Where the numbers of a group lie that scale its codes: offset in the row, and bytes.
fn scales(format: NumFormat, cols: usize, group: usize) -> Vec<(usize, usize)> {
    match format.layout() {
        Layout::Plain(bytes) => vec![(group * bytes, bytes)],
        Layout::Sections { scale, .. } => vec![(format.code_bytes(cols) + group * scale, scale)],
        // Of sixteen groups.
        Layout::Planes { .. } => {
            let scales = cols.div_ceil(32).next_multiple_of(2);
            vec![(format.code_bytes(cols) + scales + group / 16 * 2, 2)]
        }
        Layout::Blocks(bytes) => {
            let halves: &[usize] = match format {
                NumFormat::Q6K => &[208],
                NumFormat::Q3K => &[108],
                NumFormat::Q2K => &[80, 82],
                NumFormat::Q8_0 | NumFormat::Q5_0 | NumFormat::Q4_0 => &[0],
                _ => &[0, 2],
            };
            halves.iter().map(|at| (group * bytes + at, 2)).collect()
        }
    }
}

/// Sizes at the edges of tiles that rows of `format` can have, each once.
fn sizes(format: NumFormat) -> Vec<usize> {
    let mut sizes: Vec<usize> = SIZES.into_iter().map(|cols| whole(format, cols)).collect();
    sizes.dedup();
    sizes
}

/// Widening gives, number by number, what `airllm_quant::unpack_row` gives.
pub fn decode<D: Ops>(device: &D) -> Verdict {
    for format in NumFormat::ALL {
        for cols in sizes(format).into_iter().chain([511, 512, 513, 1000].map(|cols| whole(format, cols))) {
            for rows in [1, 2, 7] {
                let lab = Lab::new(device, format!("decode {format} [{rows}, {cols}]"));
                let draw = if rows == 7 { Weights::draw_bytes } else { Weights::draw };
                let weights = draw(&mut Numbers::new(cols), format, rows, cols)?;
                let mut y = lab.marked(rows * cols)?;
                lab.with_view(&weights.packed, |v| device.decode(weights.matrix(v), &mut y))?;
                let found = lab.download(&y)?;
                lab.equal(&weights.stored, &found)?;
                lab.untouched(&found, rows * cols)?;
            }
        }
    }
    Ok(())
}

/// Products of every format: each within [`ARITHMETIC`] of the stored weights' product, or within [`INTEGERS`] where the
/// device says so, all together within the format's [`bound`] of the original weights' product.
pub fn matmul<D: Ops>(device: &D) -> Verdict {
    for format in NumFormat::ALL {
        let (mut error, mut power) = (0.0, 0.0);
        let mut case = |rows, cols, n| {
            let (e, p) = product(device, format, rows, cols, n)?;
            (error, power) = (error + e, power + p);
            Ok(())
        };
        for (i, rows) in SIZES.into_iter().enumerate() {
            for (j, cols) in sizes(format).into_iter().enumerate() {
                for k in [0, 3] {
                    case(rows, cols, TOKENS[(i + 3 * j + k) % TOKENS.len()])?;
                }
            }
        }
        LARGE.into_iter().try_for_each(|(rows, cols, n)| case(rows, whole(format, cols), n))?;
        let (found, bound) = (error / power, bound(format));
        if found.is_nan() || found > bound {
            let what = format!("NMSE of all products is {found:.3e}, the bound is {bound:.1e}");
            return Err(Failure::Wrong { case: format!("matmul {format}"), what });
        }
    }
    Ok(())
}

/// Products of tokens of prompts: each within [`prompt_bound`] of the stored weights' product. Fewer sizes: the edges
/// of tiles, one format after the other.
pub fn matmul_prompt<D: Ops>(device: &D) -> Verdict {
    const SHAPES: [(usize, usize, usize); 10] = [
        (1, 1, 1),
        (17, 63, 3),
        (64, 64, 16),
        (65, 33, 17),
        (127, 128, 33),
        (129, 257, 64),
        (33, 511, 65),
        (5, 512, 127),
        (130, 1025, 129),
        (257, 1500, 2),
    ];
    for format in NumFormat::ALL {
        for (rows, cols, n) in SHAPES {
            product_in(device, format, (rows, whole(format, cols), n), Regime::Prompt)?;
        }
    }
    Ok(())
}

/// In both regimes a token's result is the same bit for bit whoever shares its call, and wherever its row is; rows of
/// other tokens stay as they are.
pub fn company<D: Ops>(device: &D) -> Verdict {
    for format in NumFormat::ALL {
        for regime in [Regime::Token, Regime::Prompt] {
            let (rows, cols, n) = (35, whole(format, 100), 37);
            let lab = Lab::new(device, format!("company of tokens, {format} in {regime:?}"));
            let mut numbers = Numbers::new(cols);
            let weights = Weights::draw(&mut numbers, format, rows, cols)?;
            let x = lab.upload(&numbers.normal(n * cols))?;
            let out = Columns { stride: rows, first: 0 };
            let product = |first, n| {
                let mut y = lab.marked(37 * rows)?;
                let tokens = Tokens { first, n, regime };
                lab.with_view(&weights.packed, |v| {
                    device.matmul(weights.matrix(v), &x, tokens, &mut y, out)
                })?;
                lab.download(&y)
            };
            let all = product(0, n)?;
            for (first, n) in [(0, 1), (36, 1), (3, 5), (7, 30), (16, 16), (20, 17)] {
                let found = product(first, n)?;
                let used = first * rows..(first + n) * rows;
                lab.equal(&all[used.clone()], &found[used.clone()])?;
                lab.untouched(&found, used.end)?;
                if found[..used.start].iter().any(|&y| y != MARK) {
                    return Err(lab.wrong(format!("rows before token {first} changed")));
                }
            }
        }
    }
    Ok(())
}

/// One product; returns the squared error against the original weights and what it is measured by.
///
/// That is the sum of all squared terms, not of the results: terms that happen to cancel would make
/// small errors look large.
fn product<D: Ops>(
    device: &D,
    format: NumFormat,
    rows: usize,
    cols: usize,
    n: usize,
) -> Result<(f64, f64), Failure> {
    product_in(device, format, (rows, cols, n), Regime::Token)
}

fn product_in<D: Ops>(
    device: &D,
    format: NumFormat,
    (rows, cols, n): (usize, usize, usize),
    regime: Regime,
) -> Result<(f64, f64), Failure> {
    let lab = Lab::new(device, format!("matmul {format} [{rows}, {cols}] x {n} in {regime:?}"));
    let mut numbers = Numbers::new(rows * 10_007 + cols * 101 + n);
    let weights = Weights::draw(&mut numbers, format, rows, cols)?;
    let x = numbers.normal(n * cols);
    let out = Columns { first: numbers.below(5), stride: rows + 7 };

    let device_x = lab.upload(&x)?;
    let mut y = lab.marked(n * out.stride)?;
    let tokens = Tokens { first: 0, n, regime };
    lab.with_view(&weights.packed, |v| device.matmul(weights.matrix(v), &device_x, tokens, &mut y, out))?;
    let found = lab.download(&y)?;
    lab.untouched(&found, n * out.stride)?;

    let (mut results, mut stored, mut original) = (Vec::new(), Vec::new(), Vec::new());
    let mut power = 0.0;
    for (x, y) in x.chunks(cols).zip(found.chunks(out.stride)) {
        let (before, rest) = y.split_at(out.first);
        let (y, after) = rest.split_at(rows);
        if before.iter().chain(after).any(|&x| x != MARK) {
            return Err(lab.wrong("columns outside of the result changed".into()));
        }
        results.extend_from_slice(y);
        let dot = |w: &[f32]| -> f64 { terms(w, x).sum() };
        stored.extend(weights.stored.chunks(cols).map(dot));
        original.extend(weights.original.chunks(cols).map(dot));
        power += weights.original.chunks(cols).flat_map(|w| terms(w, x)).map(|t| t * t).sum::<f64>();
    }
    let allowed = match regime {
        _ if device.in_integers(format) => INTEGERS,
        Regime::Token => ARITHMETIC,
        Regime::Prompt => prompt_bound(format),
    };
    lab.close(&stored, &results, power, allowed)?;
    Ok((squared_distance(&original, &results), power))
}

fn terms(w: &[f32], x: &[f32]) -> impl Iterator<Item = f64> {
    w.iter().zip(x).map(|(&w, &x)| f64::from(w) * f64::from(x))
}

/// NaN and infinities in weights and activations reach exactly the results that depend on them.
pub fn not_finite<D: Ops>(device: &D) -> Verdict {
    for format in NumFormat::ALL {
        let (rows, cols) = (13, whole(format, 100));
        for (n, regime) in [(1, Regime::Token), (2, Regime::Prompt), (5, Regime::Token)] {
            for (what, half, single) in [("NaN", 0x7e00u16, f32::NAN), ("inf", 0x7c00, f32::INFINITY)] {
                // Column 99 lies in the last, partial vector and step.
                for (at, bad_row) in [(3, 0), (64, 5), (99, 12)] {
                    let lab = Lab::new(device, format!("{what} in {format} weight {at}, n = {n}"));
                    let mut numbers = Numbers::new(at);
                    let mut weights = Weights::draw(&mut numbers, format, rows, cols)?;
                    let row = &mut weights.packed[bad_row * format.row_bytes(cols)..];
                    let (scale, bytes) = scales(format, cols, at / format.group())[0];
                    let row = &mut row[scale..][..bytes];
                    match (format, bytes) {
                        (NumFormat::Bf16, _) => row.copy_from_slice(&single.to_le_bytes()[2..]),
                        (_, 2) => row.copy_from_slice(&half.to_le_bytes()),
                        _ => row.copy_from_slice(&single.to_le_bytes()),
                    }
                    let x = numbers.normal(n * cols);
                    finite_except(&lab, &weights, &x, (n, regime), |_, row| row == bad_row)?;
                }
                let lab = Lab::new(device, format!("{what} in an activation, {format}, n = {n}"));
                let mut numbers = Numbers::new(n);
                let weights = Weights::draw(&mut numbers, format, rows, cols)?;
                let mut x = numbers.normal(n * cols);
                x[(n - 1) * cols + 98] = single;
                finite_except(&lab, &weights, &x, (n, regime), |token, _| token == n - 1)?;
            }
        }
    }
    Ok(())
}

fn finite_except<D: Ops>(
    lab: &Lab<'_, D>,
    weights: &Weights,
    x: &[f32],
    (n, regime): (usize, Regime),
    bad: impl Fn(usize, usize) -> bool,
) -> Verdict {
    let rows = weights.rows;
    let device_x = lab.upload(x)?;
    let mut y = lab.marked(n * rows)?;
    let out = Columns { stride: rows, first: 0 };
    let tokens = Tokens { first: 0, n, regime };
    lab.with_view(&weights.packed, |v| lab.device.matmul(weights.matrix(v), &device_x, tokens, &mut y, out))?;
    let found = lab.download(&y)?;
    for (i, y) in found[..n * rows].iter().enumerate() {
        if y.is_finite() == bad(i / rows, i % rows) {
            return Err(lab.wrong(format!("row {} of token {} is {y}", i % rows, i / rows)));
        }
    }
    Ok(())
}
