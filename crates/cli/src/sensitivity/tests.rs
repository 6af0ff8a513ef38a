//! Tables of a made-up sensitivity.

use super::*;
use airllm::{Calibration, Together, WidthError};

/// Two layers with a feed-forward block and one with two experts; matrices of 64 columns.
pub fn sensitivity() -> Sensitivity {
    let widths = [(NumFormat::Q8, 1e-4), (NumFormat::Q4, 8e-3), (NumFormat::Q2, 0.1)];
    let tensor = |unit: &str, name: &str, rows: usize, kl: f64| {
        let width = |(format, error): (NumFormat, f64)| WidthError {
            format,
            bytes: (rows * format.row_bytes(64)) as u64,
            error,
        };
        TensorSensitivity {
            unit: unit.into(),
            name: name.into(),
            shape: vec![rows, 64],
            floor: NumFormat::Q2,
            kl,
            kl_format: NumFormat::Q4,
            output: 0.02,
            widths: widths.map(width).to_vec(),
        }
    };
    let mut tensors = vec![tensor("embed", "embed", 100, 4e-4)];
    for (layer, kl) in [("layer.0", 3e-3), ("layer.1", 5e-5)] {
        tensors.push(tensor(layer, "q", 64, kl));
        tensors.push(tensor(layer, "o", 64, kl * 2.0));
        tensors.push(tensor(layer, "down", 128, kl / 10.0));
    }
    tensors.push(tensor("layer.2", "q", 64, 2e-4));
    tensors.push(tensor("layer.2", "o", 64, 0.0));
    tensors.push(tensor("layer.2.expert.0", "expert.0.down", 32, 1e-5));
    tensors.push(tensor("layer.2.expert.1", "expert.1.down", 32, 3e-5));
    tensors.push(tensor("head", "head", 100, 7e-4));
    let together = |(format, sum, measured)| Together { format, sum, measured };
    Sensitivity {
        calibration: Calibration {
            name: "prose & <verse>.txt".into(),
            xxh3: "0".repeat(32),
            tokens: 4096,
            windows: 8,
            context: 512,
        },
        together: [(NumFormat::Q8, 1e-4, 1.5e-4), (NumFormat::Q4, 0.0104, 0.013)].map(together).to_vec(),
        tensors,
    }
}

/// The words of the line that starts with `first`, after the line that starts with `after`.
fn words<'a>(text: &'a str, after: &str, first: &str) -> Vec<&'a str> {
    let mut lines = text.lines().skip_while(|line| !line.starts_with(after));
    let line = lines.find(|line| line.split_whitespace().next() == Some(first));
    line.unwrap_or_else(|| panic!("no {first:?} after {after:?} in\n{text}")).split_whitespace().collect()
}

#[test]
fn the_tables_show_where_it_hurts() {
    let it = sensitivity();
    let text = report(&it);
    assert!(text.starts_with("calibration: prose & <verse>.txt, 4096 tokens, read in 8 windows of 512\n"));
    let kl = "mean KL divergence with one matrix alone in q4, 1e-6 nats per token";
    assert_eq!(words(&text, kl, "layer"), ["layer", "q", "o", "down", "attention", "feed-forward", "all"]);
    assert_eq!(words(&text, kl, "embed"), ["embed", "-", "-", "-", "-", "-", "400"]);
    assert_eq!(words(&text, kl, "0"), ["0", "3000", "6000", "300", "9000", "300", "9300"]);
    assert_eq!(words(&text, kl, "1"), ["1", "50.0", "100", "5.00", "150", "5.00", "155"]);
    // Experts are added up, so that rows and columns do add up.
    assert_eq!(words(&text, kl, "2"), ["2", "200", "0", "40.0", "200", "40.0", "240"]);
    assert_eq!(words(&text, kl, "all"), ["all", "3250", "6100", "345", "9350", "345", "10795"]);

    let parts = "where it comes from";
    assert_eq!(words(&text, parts, "attention")[..5], ["attention", "42.5", "%", "86.6", "%"]);
    assert_eq!(words(&text, parts, "first")[..6], ["first", "layer", "28.3", "%", "86.2", "%"]);
    assert_eq!(words(&text, parts, "last")[..6], ["last", "layer", "21.2", "%", "2.2", "%"]);
    let errors = "relative squared error";
    assert_eq!(words(&text, errors, "role"), ["role", "q8", "q4", "q2", "output", "in", "q4"]);
    assert_eq!(words(&text, errors, "down"), ["down", "1.0e-4", "8.0e-3", "0.100", "0.0200"]);
    assert_eq!(words(&text, "all matrices rounded", "q4"), ["q4", "0.0104", "0.0130", "1.25"]);
}

#[test]
fn a_model_that_loses_nothing_has_tables_too() {
    let mut it = sensitivity();
    it.together.clear();
    it.tensors.iter_mut().for_each(|tensor| tensor.kl = 0.0);
    it.tensors[0].kl_format = NumFormat::Q8;
    let text = report(&it);
    assert!(text.contains("alone in q8 or q4, nats per token"), "{text}");
    assert!(!text.contains("NaN") && !text.contains("inf") && !text.contains("at once"), "{text}");
}

#[test]
fn what_a_selection_gave() {
    let it = sensitivity();
    let formats: Vec<NumFormat> = it
        .tensors
        .iter()
        .map(|tensor| if tensor.role() == "down" { NumFormat::Q2 } else { NumFormat::Q4 })
        .collect();
    let text = chosen(&it, &formats);
    let bytes = |format: NumFormat, rows: usize| rows * format.row_bytes(64);
    // 584 rows of q4, 320 of q2.
    let size = |bytes: usize| Size(bytes as u64).to_string();
    let all = bytes(NumFormat::Q4, 584) + bytes(NumFormat::Q2, 320);
    let line = |first: &str| words(&text, "format", first).join(" ");
    let per_weight = |bytes: usize, rows: usize| format!("{:.3}", bytes as f64 / (8 * rows) as f64);
    let q4 = bytes(NumFormat::Q4, 584);
    assert_eq!(line("q4"), format!("q4 8 64.6 % {} {}", size(q4), per_weight(q4, 584)));
    assert_eq!(line("all"), format!("all 12 100.0 % {} {}", size(all), per_weight(all, 904)));
    assert_eq!(words(&text, "matrices", "down"), ["down", "-", "4"]);
    assert_eq!(words(&text, "matrices", "q"), ["q", "3", "-"]);
    let sum: f64 =
        it.tensors.iter().zip(&formats).map(|(tensor, &format)| tensor.loss(format).unwrap()).sum();
    assert!(
        text.ends_with(&format!(
            "expected mean KL divergence  {} nats per token\n",
            digits(it.expected(sum))
        ))
    );
    // Without an expectation for every matrix there is none for the model.
    let unknown = chosen(&it, &vec![NumFormat::Q5; formats.len()]);
    assert!(unknown.contains("q5") && !unknown.contains("expected"), "{unknown}");
}

#[test]
fn three_digits() {
    let cases = [(0.0, "0"), (0.00123, "1.2e-3"), (0.0123, "0.0123"), (0.9949, "0.995"), (0.9951, "1.00")];
    for (value, expected) in
        cases.into_iter().chain([(9.994, "9.99"), (9.996, "10.0"), (99.96, "100"), (2e5, "2.0e5")])
    {
        assert_eq!(digits(value), expected, "{value}");
    }
}
