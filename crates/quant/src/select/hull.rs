//! The lower convex hull of all assignments: the best steps first.

use super::{Origin, Point};
use std::cmp::Ordering;

/// One tensor made wider.
#[derive(Debug, Clone, Copy)]
struct Step {
    tensor: u32,
    /// Its useful choice from here on.
    to: u8,
    /// Bytes more.
    bytes: u64,
    /// Loss less.
    gain: f64,
}

/// The way along the hull, from the smallest assignment to the best one.
#[derive(Debug, Clone)]
pub(super) struct Hull {
    tensors: usize,
    steps: Vec<Step>,
    /// Bytes and loss before the first step and after each.
    points: Vec<(u64, f64)>,
}

impl Hull {
    /// The hull of tensors whose useful choices `(bytes, loss)` are given, the smallest first.
    pub(super) fn of(tensors: &[Vec<(u64, f64)>]) -> (Hull, Vec<Point>) {
        let mut steps: Vec<Step> = tensors.iter().enumerate().flat_map(|(i, t)| steps(i as u32, t)).collect();
        // Stable: what gains as much stays in the order of the tensors, and of each tensor in its own.
        steps.sort_by(order);
        // Losses are added up from the best assignment on, so that small ones are not what remains of large ones.
        let best = |t: &[(u64, f64)]| t.last().map_or(0.0, |choice| choice.1);
        let mut loss: f64 = tensors.iter().map(|t| best(t)).sum();
        let mut losses: Vec<f64> = vec![loss];
        for step in steps.iter().rev() {
            loss += step.gain;
            losses.push(loss);
        }
        let mut bytes: u64 = tensors.iter().filter_map(|t| t.first()).map(|choice| choice.0).sum();
        let added = std::iter::once(0).chain(steps.iter().map(|step| step.bytes));
        let bytes = added.map(|more| {
            bytes += more;
            bytes
        });
        let points: Vec<(u64, f64)> = bytes.zip(losses.into_iter().rev()).collect();
        let numbered = points.iter().enumerate();
        let list =
            numbered.map(|(i, &(bytes, loss))| Point { bytes, loss, origin: Origin::Hull(i) }).collect();
        (Hull { tensors: tensors.len(), steps, points }, list)
    }

    /// The useful choice of each tensor after so many steps.
    pub(super) fn choices(&self, steps: usize) -> Vec<usize> {
        let mut choices = vec![0; self.tensors];
        for step in &self.steps[..steps] {
            choices[step.tensor as usize] = usize::from(step.to);
        }
        choices
    }

    /// The loss on the line between the points next to `budget`.
    pub(super) fn bound(&self, budget: u64) -> f64 {
        let after = self.points.partition_point(|point| point.0 <= budget);
        match (after.checked_sub(1).map(|i| self.points[i]), self.points.get(after)) {
            (None, _) => f64::INFINITY,
            (Some(last), None) => last.1,
            (Some((b0, l0)), Some(&(b1, l1))) => {
                let part = (budget - b0) as f64 / (b1 - b0) as f64;
                l1 + (l0 - l1) * (1.0 - part)
            }
        }
    }
}

/// What gains more a byte comes first.
fn order(a: &Step, b: &Step) -> Ordering {
    slope(b).total_cmp(&slope(a))
}

fn slope(step: &Step) -> f64 {
    step.gain / step.bytes as f64
}

/// The steps along the lower convex hull of one tensor's choices; they gain less a byte each.
fn steps(tensor: u32, choices: &[(u64, f64)]) -> Vec<Step> {
    let step = |from: usize, to: usize| Step {
        tensor,
        to: to as u8,
        bytes: choices[to].0 - choices[from].0,
        gain: choices[from].1 - choices[to].1,
    };
    let mut corners: Vec<usize> = Vec::new();
    for next in 0..choices.len() {
        while let [.., before, last] = corners[..]
            && slope(&step(before, last)) <= slope(&step(last, next))
        {
            corners.pop();
        }
        corners.push(next);
    }
    corners.windows(2).map(|pair| step(pair[0], pair[1])).collect()
}
