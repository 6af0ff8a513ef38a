//! Sums of bytes and losses, tensor by tensor, as many as memory has room for.

use super::{Origin, Point};

/// How every state after every tensor came about.
#[derive(Debug, Clone)]
pub(super) struct States {
    pub(super) stages: Vec<Stage>,
}

/// The states after one tensor.
#[derive(Debug, Clone, Default)]
pub(super) struct Stage {
    /// The state before it.
    pub(super) from: Vec<u32>,
    /// The useful choice of the tensor.
    choice: Vec<u8>,
}

/// A sum that no other of no more bytes undercuts.
#[derive(Debug, Clone, Copy)]
struct State {
    bytes: u64,
    loss: f64,
    from: u32,
    choice: u8,
}

impl States {
    /// The best sums over tensors whose useful choices `(bytes, loss)` are given, the smallest first, with no more
    /// than about `cap` states between two tensors.
    ///
    /// Returns them with the bytes that thinning may have cost: for each assignment there is a sum
    /// without more loss, and with at most so many bytes more.
    pub(super) fn of(tensors: &[Vec<(u64, f64)>], cap: usize) -> (States, Vec<Point>, u64) {
        let mut now = vec![State { bytes: 0, loss: 0.0, from: 0, choice: 0 }];
        let (mut stages, mut lost, mut next) = (Vec::with_capacity(tensors.len()), 0u64, Vec::new());
        for (i, choices) in tensors.iter().enumerate() {
            extend(&now, choices, &mut next);
            if i + 1 < tensors.len() {
                lost = lost.saturating_add(thin(&mut next, cap));
            }
            stages.push(Stage {
                from: next.iter().map(|state| state.from).collect(),
                choice: next.iter().map(|state| state.choice).collect(),
            });
            std::mem::swap(&mut now, &mut next);
        }
        let point = |(i, state): (usize, &State)| Point {
            bytes: state.bytes,
            loss: state.loss,
            origin: Origin::State(i as u32),
        };
        (States { stages }, now.iter().enumerate().map(point).collect(), lost)
    }

    /// The useful choice of each tensor that led to a state after the last one.
    pub(super) fn choices(&self, state: u32) -> Vec<usize> {
        let mut state = state as usize;
        let taken = self.stages.iter().rev().map(|stage| {
            let choice = usize::from(stage.choice[state]);
            state = stage.from[state] as usize;
            choice
        });
        let mut choices: Vec<usize> = taken.collect();
        choices.reverse();
        choices
    }
}

/// Every state with every choice, less those that another one beats: a merge of one ascending list a choice.
fn extend(states: &[State], choices: &[(u64, f64)], out: &mut Vec<State>) {
    out.clear();
    let mut heads = vec![0usize; choices.len()];
    let mut least = f64::INFINITY;
    loop {
        let mut first: Option<State> = None;
        for (choice, (&head, &(bytes, loss))) in heads.iter().zip(choices).enumerate() {
            let Some(state) = states.get(head) else { continue };
            let (bytes, loss) = (state.bytes + bytes, state.loss + loss);
            if first.is_none_or(|f| bytes < f.bytes || bytes == f.bytes && loss < f.loss) {
                first = Some(State { bytes, loss, from: head as u32, choice: choice as u8 });
            }
        }
        let Some(first) = first else { return };
        heads[usize::from(first.choice)] += 1;
        if first.loss < least {
            least = first.loss;
            out.push(first);
        }
    }
}

/// Leaves two states of every bucket of bytes, where there are more than `cap`; returns by how many bytes one that
/// stays, and loses no more, may be larger than one that goes.
///
/// Losses fall along the states, so the last of a bucket is that of least loss: what is promised rests on it.
/// The other is the one next to the lower convex hull: what comes out rests on it, for whatever is best in
/// the end has taken good steps all along. The very first stays as well: it is the smallest assignment there is.
fn thin(states: &mut Vec<State>, cap: usize) -> u64 {
    let (Some(first), Some(last)) = (states.first(), states.last()) else { return 0 };
    if states.len() <= cap {
        return 0;
    }
    let start = first.bytes;
    let width = (last.bytes - start) / (cap / 2).max(1) as u64 + 1;
    let bucket = |state: &State| (state.bytes - start) / width;
    let above = above_hull(states);
    let (mut kept, mut from) = (1, 1);
    while from < states.len() {
        let this = bucket(&states[from]);
        let to = from + states[from..].partition_point(|state| bucket(state) == this);
        let near = (from..to).min_by(|&a, &b| above[a].total_cmp(&above[b])).unwrap_or(from);
        for i in near..to {
            if i == near || i + 1 == to {
                states[kept] = states[i];
                kept += 1;
            }
        }
        from = to;
    }
    states.truncate(kept);
    width - 1
}

/// By how much the loss of each state is above the lower convex hull of all.
fn above_hull(states: &[State]) -> Vec<f64> {
    let slope =
        |a: usize, b: usize| (states[a].loss - states[b].loss) / (states[b].bytes - states[a].bytes) as f64;
    let mut corners: Vec<usize> = Vec::new();
    for next in 0..states.len() {
        while let [.., before, last] = corners[..]
            && slope(before, last) <= slope(last, next)
        {
            corners.pop();
        }
        corners.push(next);
    }
    let mut above = vec![0.0; states.len()];
    for pair in corners.windows(2) {
        let (low, slope) = (states[pair[0]], slope(pair[0], pair[1]));
        for i in pair[0] + 1..pair[1] {
            above[i] = states[i].loss - low.loss + slope * (states[i].bytes - low.bytes) as f64;
        }
    }
    above
}
