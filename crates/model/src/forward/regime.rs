//! What the tokens of a pass are to a device: of a prompt, or generated.
//!
//! It is a property of the token alone. So a prompt that is run in several passes, and one that shares its passes with
//! other sequences, get the same bits as one that is run by itself.

use crate::Span;
use airllm_kernels::{Ops, Regime, Tokens};

/// The regime of each token of all spans.
pub(super) fn of_spans<D: Ops>(spans: &[Span<'_, D>]) -> Vec<Regime> {
    let of = |span: &Span<'_, D>| of_positions(span.seq.len(), span.ids.len(), span.rope_len);
    spans.iter().flat_map(of).collect()
}

/// The regimes of `n` tokens from position `start` on, in a sequence whose prompt is `prompt` tokens long.
fn of_positions(start: usize, n: usize, prompt: usize) -> impl Iterator<Item = Regime> {
    (start..start + n).map(move |position| if position < prompt { Regime::Prompt } else { Regime::Token })
}

/// Tokens that follow each other in one regime, as the calls of a verb take them.
pub(super) fn runs(regimes: impl IntoIterator<Item = Regime>) -> Vec<Tokens> {
    let mut runs: Vec<Tokens> = Vec::new();
    for (row, regime) in regimes.into_iter().enumerate() {
        match runs.last_mut() {
            Some(run) if run.regime == regime => run.n += 1,
            _ => runs.push(Tokens { first: row, n: 1, regime }),
        }
    }
    runs
}

/// The runs of a span whose first token is row `first` of the pass.
pub(super) fn of_span<D: Ops>(span: &Span<'_, D>, first: usize) -> Vec<Tokens> {
    let mut runs = runs(of_positions(span.seq.len(), span.ids.len(), span.rope_len));
    runs.iter_mut().for_each(|run| run.first += first);
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_end_where_they_end() {
        let of = |start, n, prompt| runs(of_positions(start, n, prompt));
        let run = |first, n, regime| Tokens { first, n, regime };
        assert_eq!(of(0, 5, 5), [run(0, 5, Regime::Prompt)]);
        assert_eq!(of(5, 1, 5), [run(0, 1, Regime::Token)]);
        assert_eq!(of(3, 4, 5), [run(0, 2, Regime::Prompt), run(2, 2, Regime::Token)]);
        assert_eq!(of(2, 3, 0), [run(0, 3, Regime::Token)]);
        assert!(of(2, 0, 9).is_empty());
    }
}
