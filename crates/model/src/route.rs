//! Which experts a token goes through, from its router's scores.

use crate::Moe;

/// The tokens of a pass that go through one expert.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Routed {
    pub expert: usize,
    /// Rows of the hidden state, ascending.
    pub rows: Vec<u32>,
    /// What each row's result is multiplied by.
    pub weights: Vec<f32>,
}

/// Chooses experts for tokens with scores `[tokens, experts]`; experts come in the order of their numbers.
///
/// `bias` is added for the choice alone; empty where there is none. Of equal scores the lower number wins,
/// so that the choice of a token depends on nothing but its scores.
pub(crate) fn route(moe: &Moe, scores: &[f32], bias: &[f32]) -> Vec<Routed> {
    let mut all: Vec<Routed> =
        (0..moe.experts).map(|expert| Routed { expert, rows: Vec::new(), weights: Vec::new() }).collect();
    for (row, scores) in scores.chunks_exact(moe.experts).enumerate() {
        for (expert, weight) in choose(moe, scores, bias) {
            all[expert].rows.push(row as u32);
            all[expert].weights.push(weight);
        }
    }
    all.retain(|routed| !routed.rows.is_empty());
    all
}

/// The experts of one token and their weights.
fn choose(moe: &Moe, scores: &[f32], bias: &[f32]) -> Vec<(usize, f32)> {
    let shares: Vec<f32> = match moe.sigmoid {
        true => scores.iter().map(|&s| 1.0 / (1.0 + (-s).exp())).collect(),
        false => softmax(scores),
    };
    let mut ranks = shares.clone();
    for (rank, bias) in ranks.iter_mut().zip(bias) {
        *rank += bias;
    }
    let (groups, kept) = moe.groups;
    if kept < groups {
        let size = moe.experts / groups;
        // A group counts as much as its best two.
        let sums: Vec<f32> =
            ranks.chunks(size).map(|group| best(group, 2).iter().map(|&i| group[i]).sum()).collect();
        let open = best(&sums, kept);
        for (expert, rank) in ranks.iter_mut().enumerate() {
            if !open.contains(&(expert / size)) {
                *rank = f32::NEG_INFINITY;
            }
        }
    }
    let chosen = best(&ranks, moe.top_k);
    let total: f32 = chosen.iter().map(|&expert| shares[expert]).sum();
    // The reference adds this where scores are sigmoids, which may all be 0.
    let total = if moe.sigmoid { total + 1e-20 } else { total };
    let factor = if moe.normalise { moe.scale / total } else { moe.scale };
    chosen.into_iter().map(|expert| (expert, shares[expert] * factor)).collect()
}

/// Indices of the `count` largest numbers, the largest first. NaN counts as the least.
fn best(numbers: &[f32], count: usize) -> Vec<usize> {
    let key = |i: &usize| if numbers[*i].is_nan() { f32::NEG_INFINITY } else { numbers[*i] };
    let mut order: Vec<usize> = (0..numbers.len()).collect();
    order.sort_by(|a, b| key(b).total_cmp(&key(a)).then(a.cmp(b)));
    order.truncate(count);
    order
}

fn softmax(scores: &[f32]) -> Vec<f32> {
    let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut shares: Vec<f32> = scores.iter().map(|&s| (s - largest).exp()).collect();
    let total: f32 = shares.iter().sum();
    shares.iter_mut().for_each(|share| *share /= total);
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moe(experts: usize, top_k: usize) -> Moe {
        Moe {
            experts,
            top_k,
            inner: 1,
            shared: 0,
            normalise: true,
            scale: 1.0,
            sigmoid: false,
            groups: (1, 1),
            sparse: vec![true],
        }
    }

    #[test]
    fn tokens_are_gathered_by_expert() {
        let scores = [0.0, 2.0, 1.0, -1.0, 3.0, 0.0, 0.0, 3.0];
        let routed = route(&moe(4, 2), &scores, &[]);
        let rows: Vec<_> = routed.iter().map(|r| (r.expert, r.rows.clone())).collect();
        assert_eq!(rows, [(0, vec![1]), (1, vec![0]), (2, vec![0]), (3, vec![1])]);
        let share = 1.0 / (1.0 + (-1.0_f32).exp());
        assert!(
            (routed[1].weights[0] - share).abs() < 1e-6
                && (routed[2].weights[0] - (1.0 - share)).abs() < 1e-6
        );
        assert_eq!(routed[0].weights, [0.5]);
    }

    #[test]
    fn ties_and_numbers_that_are_none_have_an_order() {
        let chosen = |scores: &[f32]| choose(&moe(4, 2), scores, &[]).iter().map(|c| c.0).collect::<Vec<_>>();
        assert_eq!(chosen(&[1.0; 4]), [0, 1]);
        assert_eq!(chosen(&[f32::NAN; 4]).len(), 2);
    }

    #[test]
    fn groups_and_corrections_choose_but_do_not_weigh() {
        let mut moe = moe(8, 2);
        (moe.sigmoid, moe.groups, moe.scale) = (true, (4, 1), 2.0);
        // The largest score is in group 3, the best two together in group 1.
        let scores = [0.0, 0.0, 1.0, 0.9, 0.0, 0.0, 3.0, -9.0];
        let chosen = choose(&moe, &scores, &[]);
        assert_eq!(chosen.iter().map(|c| c.0).collect::<Vec<_>>(), [2, 3]);
        assert!((chosen.iter().map(|c| c.1).sum::<f32>() - 2.0).abs() < 1e-6);
        let mut bias = [0.0; 8];
        bias[0] = 5.0;
        let biased = choose(&moe, &scores, &bias);
        assert_eq!(biased.iter().map(|c| c.0).collect::<Vec<_>>(), [0, 1]);
        assert!((biased[0].1 - 1.0).abs() < 1e-6, "both have equal scores without the correction");
    }
}
