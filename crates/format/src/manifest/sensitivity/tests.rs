//! Sensitivities: what follows from the numbers, and what must be refused.

use super::*;
use proptest::prelude::*;

const WIDTHS: [(NumFormat, f64); 4] =
    [(NumFormat::Q8, 1e-4), (NumFormat::Q5, 2e-3), (NumFormat::Q3, 3e-2), (NumFormat::Q2, 0.12)];

fn tensor(unit: &str, name: &str) -> TensorSensitivity {
    let shape = vec![8, 64];
    let width = |(format, error): (NumFormat, f64)| WidthError {
        format,
        bytes: Geometry::of(format, &shape).unwrap().bytes,
        error,
    };
    TensorSensitivity {
        unit: unit.into(),
        name: name.into(),
        floor: NumFormat::Q2,
        kl: 0.003,
        kl_format: NumFormat::Q3,
        output: 0.01,
        widths: WIDTHS.map(width).to_vec(),
        shape,
    }
}

pub(in super::super) fn sensitivity() -> Sensitivity {
    let together = |(format, sum, measured)| Together { format, sum, measured };
    Sensitivity {
        calibration: Calibration {
            name: "built-in".into(),
            xxh3: "0".repeat(32),
            tokens: 4096,
            windows: 8,
            context: 512,
        },
        together: [(NumFormat::Q5, 0.01, 0.02), (NumFormat::Q3, 1.0, 0.8)].map(together).to_vec(),
        tensors: vec![
            tensor("embed", "embed"),
            tensor("layer.0", "q"),
            tensor("layer.0.expert.2", "expert.2.gate"),
            tensor("head", "head"),
        ],
    }
}

#[test]
fn losses_go_with_the_squared_error() {
    let mut tensor = tensor("layer.0.expert.2", "expert.2.gate");
    assert_eq!((tensor.role(), tensor.weights()), ("gate", 512));
    assert_eq!(tensor.loss(NumFormat::Q3), Some(0.003));
    assert!((tensor.loss(NumFormat::Q2).unwrap() - 0.012).abs() < 1e-15);
    assert!((tensor.loss(NumFormat::Q5).unwrap() - 0.0002).abs() < 1e-15);
    assert_eq!(tensor.loss(NumFormat::Q4), None);
    // A matrix of zeros loses nothing; one that its own format holds exactly says nothing of narrower ones.
    tensor.widths[2].error = 0.0;
    assert_eq!(tensor.loss(NumFormat::Q3), Some(0.0));
    assert_eq!(tensor.loss(NumFormat::Q2), None);
}

#[test]
fn expected_divergence() {
    let mut s = sensitivity();
    let near = |a: f64, b: f64| assert!((a - b).abs() <= 1e-12 * b, "{a}, expected {b}");
    near(s.expected(0.01), 0.02);
    near(s.expected(1.0), 0.8);
    near(s.expected(0.1), (0.02f64 * 0.8).sqrt());
    near(s.expected(0.001), 0.002);
    near(s.expected(10.0), 8.0);
    assert_eq!(s.expected(0.0), 0.0);
    s.together.pop();
    near(s.expected(1.0), 2.0);
    near(s.sum_for(2.0), 1.0);
    // Points without a logarithm say nothing.
    s.together[0].sum = 0.0;
    assert_eq!((s.expected(0.3), s.sum_for(0.3)), (0.3, 0.3));
    s.together.clear();
    assert_eq!((s.expected(0.3), s.sum_for(0.3)), (0.3, 0.3));
}

#[test]
fn says_what_is_wrong() {
    let refusal = |change: &dyn Fn(&mut Sensitivity)| {
        let mut s = sensitivity();
        assert_eq!(s.check(), Ok(()));
        change(&mut s);
        s.check().unwrap_err()
    };
    assert!(refusal(&|s| s.calibration.name.clear()).contains("expected a name"));
    assert!(refusal(&|s| s.calibration.xxh3.push('0')).contains("32 hexadecimal"));
    assert!(refusal(&|s| s.calibration.windows = 0).contains("0 windows"));
    assert!(refusal(&|s| s.calibration.tokens = 7).contains("7 tokens in 8 windows"));
    assert!(refusal(&|s| s.together[0].sum = f64::NAN).contains("sum for all in q5 is NaN"));
    assert!(refusal(&|s| s.together[1].measured = -1.0).contains("measured for all in q3 is -1"));
    assert!(refusal(&|s| s.together.reverse()).contains("expected ascending sums"));
    assert!(refusal(&|s| s.tensors.clear()).contains("no tensors"));
    for unit in ["layer", "layer.0.expert", "layer.0.expert.x", "head.expert.1", "layer.01.expert.1", "norm"]
    {
        assert!(refusal(&|s| s.tensors[1].unit = unit.into()).contains("is not a unit"), "{unit}");
    }
    assert!(refusal(&|s| s.tensors[2] = s.tensors[1].clone()).contains("`q` of `layer.0` comes twice"));
    assert!(refusal(&|s| s.tensors[1].name.clear()).contains("not for a weight"));
    assert!(refusal(&|s| s.tensors[1].kl = f64::INFINITY).contains("`q` of `layer.0`: kl is inf"));
    assert!(refusal(&|s| s.tensors[1].output = -0.1).contains("output is -0.1"));
    assert!(refusal(&|s| s.tensors[1].kl_format = NumFormat::Q6).contains("`kl_format` is q6"));
    assert!(refusal(&|s| s.tensors[1].widths.clear()).contains("not among its widths"));
    assert!(refusal(&|s| s.tensors[1].widths.swap(0, 1)).contains("q8 comes after q5"));
    assert!(refusal(&|s| s.tensors[1].widths[1] = s.tensors[1].widths[0]).contains("q8 comes after q8"));
    assert!(refusal(&|s| s.tensors[1].widths[1].bytes += 1).contains("the sensitivity says"));
    assert!(refusal(&|s| s.tensors[1].widths[1].error = f64::NAN).contains("error in q5 is NaN"));
    assert!(refusal(&|s| s.tensors[1].shape = vec![0, 64]).contains("cannot have shape"));
}

proptest! {
    #[test]
    fn expectations_are_monotone_and_go_back(
        points in prop::collection::vec((-8f64..2.0, -8f64..2.0), 0..6),
        sums in prop::collection::vec(-10f64..4.0, 2..20),
    ) {
        let mut s = sensitivity();
        let mut points: Vec<_> = points.iter().map(|(a, b)| (10f64.powf(*a), 10f64.powf(*b))).collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        let format = NumFormat::Q4;
        s.together = points.iter().map(|&(sum, measured)| Together { format, sum, measured }).collect();
        prop_assert_eq!(s.check(), Ok(()));
        let mut sums: Vec<_> = sums.iter().map(|sum| 10f64.powf(*sum)).collect();
        sums.sort_by(f64::total_cmp);
        let expected: Vec<_> = sums.iter().map(|&sum| s.expected(sum)).collect();
        prop_assert!(expected.windows(2).all(|pair| pair[0] <= pair[1]), "{expected:?}");
        for (&sum, &kl) in sums.iter().zip(&expected) {
            // Where the expectation is flat, the largest sum is meant.
            let back = s.sum_for(kl * (1.0 + 1e-9));
            prop_assert!(back >= sum, "{sum} is expected to do {kl}, which allows only {back}");
            prop_assert!(s.expected(s.sum_for(kl)) <= kl * (1.0 + 1e-9));
        }
    }
}
