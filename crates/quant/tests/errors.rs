//! What rounding costs: the table in the crate's documentation, and what importance does to errors.

#![allow(clippy::unwrap_used, reason = "what fails here is the test")]

use airllm_format::NumFormat;
use airllm_quant::{Error, nmse, pack_row, pack_row_weighted, unpack_row};
use std::fmt::Write as _;

fn unpack(format: NumFormat, row: &[u8], cols: usize) -> Vec<f32> {
    let mut weights = vec![f32::NAN; cols];
    unpack_row(format, row, &mut weights).unwrap();
    weights
}

fn round_trip(format: NumFormat, weights: &[f32]) -> Vec<f32> {
    let mut row = vec![0; format.row_bytes(weights.len())];
    pack_row(format, weights, &mut row).unwrap();
    unpack(format, &row, weights.len())
}

/// Random numbers of SplitMix64.
struct Draw(u64);

impl Draw {
    /// Between 0 and 1, neither of them.
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (((z ^ (z >> 31)) >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }

    /// From N(0, 1), by Box and Muller.
    fn normal(&mut self) -> f64 {
        let radius = (-2.0 * self.uniform().ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// From Student's t with five degrees of freedom.
    fn student(&mut self) -> f64 {
        let square: f64 = (0..5).map(|_| self.normal().powi(2)).sum();
        self.normal() / (square / 5.0).sqrt()
    }
}

fn normal(count: usize) -> Vec<f32> {
    let mut draw = Draw(1);
    (0..count).map(|_| draw.normal() as f32).collect()
}

fn student(count: usize) -> Vec<f32> {
    let mut draw = Draw(1);
    (0..count).map(|_| draw.student() as f32).collect()
}

/// The line of a format in the table: bits per weight, then error and decibels for either kind of weights.
fn line(format: NumFormat, errors: [f64; 2]) -> String {
    // So long that what a row has once does not show.
    let bits = format.row_bytes(1 << 24) as f64 * 8.0 / f64::from(1 << 24);
    let mut line = format!("| `{format}` | {} |", (bits * 1e4).floor() / 1e4);
    for error in errors {
        match error {
            0.0 => line.push_str(" 0 | |"),
            error => write!(line, " {error:.2e} | {:.1} |", 10.0 * error.log10()).unwrap(),
        }
    }
    line
}

/// The table in the crate's documentation is what comes out; it fails with the right one.
#[test]
fn documented_errors() {
    let weights = [normal(1 << 20), student(1 << 20)];
    let rows = |weights: &[f32], format| -> f64 {
        let back: Vec<f32> = weights.chunks(4096).flat_map(|w| round_trip(format, w)).collect();
        nmse(weights, &back)
    };
    let (_, table) = include_str!("../src/lib.rs").split_once("# What it costs").unwrap();
    let mut found = String::new();
    let mut wrong = Vec::new();
    for format in NumFormat::ALL {
        let errors = [rows(&weights[0], format), rows(&weights[1], format)];
        let line = line(format, errors);
        writeln!(found, "//! {line}").unwrap();
        let head = format!("//! | `{format}` | ");
        let documented = table.lines().find(|line| line.starts_with(&head));
        let number = |line: &str, column: usize| line.split('|').nth(column)?.trim().parse::<f64>().ok();
        let close = |a: Option<f64>, b: f64| a.is_some_and(|a| (a - b).abs() <= 0.01 * b);
        let same = documented.is_some_and(|old| {
            number(old, 2) == number(&line, 2)
                && close(number(old, 3), errors[0])
                && close(number(old, 5), errors[1])
                && [4, 6]
                    .into_iter()
                    .all(|c| number(old, c).zip(number(&line, c)).is_none_or(|(a, b)| (a - b).abs() < 0.11))
        });
        if !same {
            wrong.push(format.name());
        }
    }
    assert!(wrong.is_empty(), "the documentation is wrong of {wrong:?}; right is\n{found}");
}

#[test]
fn importance_moves_the_error_away() {
    let weights = normal(1 << 14);
    // Columns differ by up to a thousand times, without a pattern that groups could have.
    let importance: Vec<f32> =
        (0..weights.len()).map(|c| 10f32.powf(3.0 * (c as f32 * 0.618).fract())).collect();
    for format in [NumFormat::Q6, NumFormat::Q5, NumFormat::Q4, NumFormat::Q3, NumFormat::Q2] {
        let mut row = vec![0; format.row_bytes(weights.len())];
        pack_row_weighted(format, &weights, &importance, &mut row).unwrap();
        let weighted = |back: &[f32]| -> f64 {
            let each = weights.iter().zip(back).zip(&importance);
            each.map(|((w, b), v)| f64::from(v * (w - b) * (w - b))).sum()
        };
        let (with, without) =
            (weighted(&unpack(format, &row, weights.len())), weighted(&round_trip(format, &weights)));
        assert!(with < 0.9 * without, "{format}: {with} of {without}");
    }
}

#[test]
fn bad_importance_is_named() {
    let pack = |importance: &[f32]| {
        pack_row_weighted(NumFormat::Q3, &[1.0; 3], importance, &mut vec![0; NumFormat::Q3.row_bytes(3)])
    };
    let refused = Error::Count { format: NumFormat::Q3, cols: 3, what: "importances", expected: 3, found: 2 };
    assert_eq!(pack(&[1.0; 2]), Err(refused));
    assert_eq!(pack(&[1.0, 0.0, -1.0]), Err(Error::Importance { position: 2, value: -1.0 }));
    for bad in [f32::NAN, f32::INFINITY] {
        assert!(matches!(pack(&[1.0, bad, 1.0]), Err(Error::Importance { position: 1, .. })));
    }
}
