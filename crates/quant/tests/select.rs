//! Selections: within their budget, monotone, above their floors, as good as there is.

#![allow(clippy::unwrap_used, reason = "what fails here is the test")]

use airllm_format::NumFormat;
use airllm_quant::select::{Choice, SelectError, Selection, choices, frontier, select, useful};
use proptest::prelude::*;

/// What weights can be rounded to, widest first, with the error that each makes of a normal matrix.
const WIDTHS: [(NumFormat, f64); 6] = [
    (NumFormat::Q8, 3.5e-5),
    (NumFormat::Q6, 3.7e-4),
    (NumFormat::Q5, 1.5e-3),
    (NumFormat::Q4, 6.9e-3),
    (NumFormat::Q3, 2.2e-2),
    (NumFormat::Q2, 9.2e-2),
];

/// A matrix whose loss is its error times `weight`.
fn matrix(rows: usize, cols: usize, weight: f64) -> Vec<(NumFormat, u64, f64)> {
    let width =
        |(format, error): (NumFormat, f64)| (format, (rows * format.row_bytes(cols)) as u64, weight * error);
    WIDTHS.map(width).to_vec()
}

/// Numbers in [0, 1) that look random and are the same everywhere.
fn numbers() -> impl Iterator<Item = f64> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    std::iter::from_fn(move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        Some((state >> 11) as f64 / (1u64 << 53) as f64)
    })
}

/// Layers of matrices of these shapes, whose sensitivities span three decades.
fn model(layers: usize, shapes: &[(usize, usize)]) -> Vec<Vec<Choice>> {
    let sensitivities = numbers().map(|x| 10f64.powf(3.0 * x - 5.0));
    let shapes = shapes.iter().cycle().take(layers * shapes.len());
    let tensor = |(&(rows, cols), weight)| choices(matrix(rows, cols, weight), NumFormat::Q2);
    shapes.zip(sensitivities).map(tensor).collect()
}

fn sums(tensors: &[Vec<Choice>], selection: &Selection) -> (u64, f64) {
    let chosen = || tensors.iter().zip(&selection.choices).map(|(choices, &i)| choices[i]);
    (chosen().map(|choice| choice.bytes).sum(), chosen().map(|choice| choice.loss).sum())
}

/// The least loss within a budget, by trying every assignment.
fn brute(tensors: &[Vec<Choice>], budget: u64) -> Option<f64> {
    let Some((choices, rest)) = tensors.split_first() else { return Some(0.0) };
    let with = |choice: &Choice| Some(brute(rest, budget.checked_sub(choice.bytes)?)? + choice.loss);
    choices.iter().filter_map(with).min_by(f64::total_cmp)
}

/// Up to six matrices of few shapes, each with its sensitivity and its floor.
fn matrices() -> impl Strategy<Value = Vec<(usize, f64, usize)>> {
    prop::collection::vec((1usize..5, -6f64..0.0, 0usize..6), 1..6)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..Default::default() })]

    #[test]
    fn within_budget_monotone_above_floors_and_optimal(matrices in matrices(), share in 0f64..1.2) {
        let floor = |i: usize| WIDTHS[i].0;
        let tensors: Vec<_> = matrices
            .iter()
            .map(|&(rows, weight, at)| choices(matrix(64 * rows, 256, 10f64.powf(weight)), floor(at)))
            .collect();
        let frontier = frontier(&tensors).unwrap();
        prop_assert_eq!(frontier.slack(), 0);
        let smallest: u64 = tensors.iter().map(|t| t.iter().map(|c| c.bytes).min().unwrap()).sum();
        let largest: u64 = tensors.iter().map(|t| t.iter().map(|c| c.bytes).max().unwrap()).sum();
        let budget = smallest + ((largest - smallest) as f64 * share) as u64;

        let selection = frontier.within(budget).unwrap();
        prop_assert_eq!(&selection, &select(&tensors, budget).unwrap());
        prop_assert!(selection.bytes <= budget);
        let (bytes, loss) = sums(&tensors, &selection);
        prop_assert_eq!(bytes, selection.bytes);
        prop_assert!((loss - selection.loss).abs() <= 1e-12 * loss);
        let best = brute(&tensors, budget).unwrap();
        prop_assert!(loss <= best * (1.0 + 1e-12), "{loss}, every assignment tried gives {best}");
        prop_assert!(frontier.bound(budget) <= best * (1.0 + 1e-12));
        for ((tensor, &choice), &(.., at)) in tensors.iter().zip(&selection.choices).zip(&matrices) {
            prop_assert!(tensor[choice].format <= floor(at));
        }

        let mut last = f64::INFINITY;
        for budget in (smallest..=largest + 100).step_by(((largest - smallest) / 50 + 1) as usize) {
            let selection = frontier.within(budget).unwrap();
            prop_assert!(selection.loss <= last);
            last = selection.loss;
            // The other question has the same answer.
            let back = frontier.reaching(selection.loss).unwrap();
            prop_assert_eq!(back, selection);
        }
        let below = smallest - 1;
        prop_assert_eq!(frontier.within(below), Err(SelectError::Budget { budget: below, smallest }));
        let message = frontier.within(below).unwrap_err().to_string();
        prop_assert!(message.contains(&format!("smallest possible size is {smallest}")), "{message}");
    }

    #[test]
    fn useful_choices(list in prop::collection::vec((0u64..9, 0u32..9), 0..9)) {
        let choice = |&(bytes, loss): &(u64, u32)| Choice { format: NumFormat::Q4, bytes, loss: loss.into() };
        let list: Vec<Choice> = list.iter().map(choice).collect();
        let kept: Vec<Choice> = useful(&list).into_iter().map(|i| list[i]).collect();
        prop_assert!(kept.windows(2).all(|pair| pair[0].bytes < pair[1].bytes && pair[0].loss > pair[1].loss));
        for choice in &list {
            prop_assert!(kept.iter().any(|it| it.bytes <= choice.bytes && it.loss <= choice.loss));
        }
    }
}

#[test]
fn floors_are_kept() {
    let formats = |floor| -> Vec<NumFormat> {
        choices(matrix(4, 64, 1.0), floor).iter().map(|choice| choice.format).collect()
    };
    assert_eq!(formats(NumFormat::Q5), [NumFormat::Q8, NumFormat::Q6, NumFormat::Q5]);
    assert_eq!(formats(NumFormat::Q2).len(), 6);
    assert_eq!(formats(NumFormat::F16), []);
    // As wide is not narrower: an f16 floor lets bf16 stay.
    assert_eq!(choices([(NumFormat::Bf16, 8, 0.0)], NumFormat::F16).len(), 1);
}

#[test]
fn refusals() {
    let good = || choices(matrix(4, 64, 1.0), NumFormat::Q2);
    let refusal = |tensor: Vec<Choice>| frontier(&[good(), tensor]).unwrap_err();
    assert_eq!(refusal(vec![]), SelectError::Empty { tensor: 1 });
    assert_eq!(refusal(vec![good()[0]; 257]), SelectError::TooMany { tensor: 1, found: 257 });
    for loss in [-1e-9, f64::INFINITY, f64::NAN] {
        let mut tensor = good();
        tensor[3].loss = loss;
        let message = refusal(tensor).to_string();
        assert!(message.contains(&format!("tensor 1 in q4 is {loss}")), "{message}");
    }
    let change = |change: &dyn Fn(&mut Choice)| {
        let mut tensor = good();
        change(&mut tensor[0]);
        refusal(tensor)
    };
    assert_eq!(change(&|choice| choice.bytes = u64::MAX), SelectError::Overflow { tensor: 1 });
    let huge = vec![vec![Choice { loss: f64::MAX, ..good()[0] }]; 2];
    assert_eq!(frontier(&huge).unwrap_err(), SelectError::Overflow { tensor: 1 });

    let frontier = frontier(&[good()]).unwrap();
    let least = 3.5e-5;
    assert_eq!(frontier.reaching(1e-5), Err(SelectError::Quality { wanted: 1e-5, least }));
    assert!(matches!(frontier.reaching(f64::NAN), Err(SelectError::Quality { .. })));
    assert_eq!(frontier.reaching(least).unwrap().choices, [0]);
    assert_eq!(frontier.reaching(f64::INFINITY).unwrap().choices, [5]);
}

#[test]
fn nothing_to_choose_takes_nothing() {
    let selection = select(&[], 0).unwrap();
    assert_eq!(selection, Selection { choices: vec![], bytes: 0, loss: 0.0 });
}

/// Shapes of published models: close to what no selection can beat.
#[test]
fn large_models_are_near_the_bound() {
    // 70B: queries, keys, values, output; gate, up, down.
    let dense =
        [(8192, 8192), (1024, 8192), (1024, 8192), (8192, 8192), (28672, 8192), (28672, 8192), (8192, 28672)];
    // 8x7B: attention, then eight experts.
    let attention = [(4096, 4096), (1024, 4096), (1024, 4096), (4096, 4096)];
    let experts = [(14336, 4096), (14336, 4096), (4096, 14336)].repeat(8);
    // 671B: very many experts.
    let many = [(2048, 7168), (2048, 7168), (7168, 2048)].repeat(256);
    let mixture = [&attention[..], &experts].concat();
    for (layers, shapes) in [(80, dense.to_vec()), (32, mixture), (58, many)] {
        let tensors = model(layers, &shapes);
        let weights: u64 =
            shapes.iter().map(|&(rows, cols)| (rows * cols) as u64).sum::<u64>() * layers as u64;
        let start = std::time::Instant::now();
        let frontier = frontier(&tensors).unwrap();
        println!(
            "{} tensors: {} points in {:.2?}, slack {} of {} bytes",
            tensors.len(),
            frontier.points().len(),
            start.elapsed(),
            frontier.slack(),
            frontier.points().last().unwrap().0
        );
        let mut last = f64::INFINITY;
        for quarters in 10..=24 {
            let budget = weights * quarters / 32;
            let selection = frontier.within(budget).unwrap();
            let (bytes, loss) = sums(&tensors, &selection);
            assert_eq!(bytes, selection.bytes);
            assert!(bytes <= budget && selection.loss < last);
            assert!((loss - selection.loss).abs() <= 1e-11 * loss);
            let bound = frontier.bound(budget);
            println!(
                "{} bits: {loss:.6e}, {:.2e} above the bound",
                quarters as f64 / 4.0,
                loss / bound - 1.0
            );
            assert!(loss <= bound * 1.003, "{loss}, the bound is {bound}");
            last = selection.loss;
        }
        assert!(frontier.slack() < weights / 1000);
    }
}
