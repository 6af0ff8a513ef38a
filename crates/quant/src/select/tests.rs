//! Selections with fewer states than sums, against every assignment there is.

use super::*;
use proptest::prelude::*;

const FORMATS: [NumFormat; 4] = [NumFormat::Q8, NumFormat::Q4, NumFormat::Q3, NumFormat::Q2];

/// A few tensors with up to four choices each, in any order of bytes and losses.
fn tensors() -> impl Strategy<Value = Vec<Vec<Choice>>> {
    let choice = (0usize..4, 0u64..60, 0u32..50);
    let choice = choice.prop_map(|(format, bytes, loss)| Choice {
        format: FORMATS[format],
        bytes,
        loss: f64::from(loss) / 8.0,
    });
    prop::collection::vec(prop::collection::vec(choice, 1..5), 0..6)
}

/// The sum of every assignment.
fn all(tensors: &[Vec<Choice>]) -> Vec<(u64, f64)> {
    tensors.iter().fold(vec![(0, 0.0)], |sums, choices| {
        let mut longer = Vec::with_capacity(sums.len() * choices.len());
        for (bytes, loss) in sums {
            longer.extend(choices.iter().map(|choice| (bytes + choice.bytes, loss + choice.loss)));
        }
        longer
    })
}

/// The least loss within a budget, by looking at every assignment. Losses are eighths, so sums are exact.
fn optimum(sums: &[(u64, f64)], budget: u64) -> f64 {
    sums.iter().filter(|sum| sum.0 <= budget).map(|sum| sum.1).fold(f64::INFINITY, f64::min)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..Default::default() })]

    #[test]
    fn few_states_keep_what_slack_promises(tensors in tensors(), cap in 1usize..12) {
        let (sums, frontier) = (all(&tensors), frontier_of(&tensors, cap).unwrap());
        let smallest = sums.iter().map(|sum| sum.0).min().unwrap();
        for budget in 0..=320 {
            match frontier.within(budget) {
                Ok(selection) => {
                    prop_assert!(selection.bytes <= budget);
                    let bytes: u64 = tensors.iter().zip(&selection.choices).map(|(t, &i)| t[i].bytes).sum();
                    let loss: f64 = tensors.iter().zip(&selection.choices).map(|(t, &i)| t[i].loss).sum();
                    prop_assert_eq!((bytes, loss), (selection.bytes, selection.loss));
                    prop_assert!(loss >= optimum(&sums, budget));
                    let promised = budget.checked_sub(frontier.slack()).map_or(f64::INFINITY, |b| optimum(&sums, b));
                    prop_assert!(loss <= promised, "{budget}: {loss}, promised {promised}");
                    prop_assert!(frontier.bound(budget) <= optimum(&sums, budget) + 1e-9);
                }
                Err(error) => {
                    prop_assert_eq!(error, SelectError::Budget { budget, smallest });
                    prop_assert!(budget < smallest);
                    prop_assert_eq!(frontier.bound(budget), f64::INFINITY);
                }
            }
        }
    }

    /// The states alone, without what the hull adds.
    #[test]
    fn thinning_loses_no_more_bytes_than_it_says(tensors in tensors(), cap in 1usize..12) {
        let steps: Vec<Vec<(u64, f64)>> = tensors
            .iter()
            .map(|choices| useful(choices).into_iter().map(|i| (choices[i].bytes, choices[i].loss)).collect())
            .collect();
        let (states, points, lost) = States::of(&steps, cap);
        for (bytes, loss) in all(&tensors) {
            let near = points.iter().any(|point| point.loss <= loss && point.bytes <= bytes + lost);
            prop_assert!(near, "{bytes} bytes lose {loss}, but with {lost} more there is nothing as good");
        }
        let most = states.stages.iter().map(|stage| stage.from.len()).rev().skip(1).max().unwrap_or(0);
        prop_assert!(most <= cap.max(2) + 1, "{most} states, at most {cap} and the first were asked for");
        if lost == 0 {
            let exact: Vec<_> = points.iter().map(|point| (point.bytes, point.loss)).collect();
            let mut best = all(&tensors);
            best.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
            let mut least = f64::INFINITY;
            best.retain(|sum| {
                let better = sum.1 < least;
                least = least.min(sum.1);
                better
            });
            prop_assert_eq!(exact, best);
        }
    }
}
