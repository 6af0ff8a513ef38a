//! Prompts that are continued side by side, and how many at a time.
//!
//! One pass over the weights serves all sequences at once, so more of them are fewer passes; but their caches and their
//! tokens take memory that could hold weights. How many are best is what [`Company`] finds out, by asking for plans.

use crate::forecast::Forecast;
use crate::{Generation, Result};
use std::cmp::Reverse;

/// A prompt as token ids, and how it is to be continued.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Prompt {
    /// The ids, to which nothing is added.
    pub ids: Vec<u32>,
    /// How to choose tokens, how many, and what ends them.
    pub options: Generation,
}

impl Prompt {
    /// This prompt, to be continued like this.
    pub fn new(ids: Vec<u32>, options: Generation) -> Prompt {
        Prompt { ids, options }
    }
}

/// The most sequences side by side where nothing else is said: beyond, arithmetic is what a pass waits for.
const MOST: usize = 512;

/// The prompts of a run, as numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Company {
    /// Tokens of each prompt, and the most that are added to it.
    sizes: Vec<(usize, usize)>,
    /// The most side by side.
    most: usize,
}

/// Sequences side by side and tokens a pass, to be planned for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Try {
    pub(crate) sequences: usize,
    /// Tokens of key/value cache: so many that these are enough of the largest.
    pub(crate) cache: usize,
    /// Tokens of a pass that reads what so many have to read.
    pub(crate) tokens: usize,
}

impl Company {
    /// Of prompts, with sequences of up to `limit` tokens, and no more than `most` at a time.
    pub(crate) fn new(prompts: &[(usize, usize)], limit: usize, most: Option<usize>) -> Company {
        let size = |&(prompt, new): &(usize, usize)| (prompt, new.min(limit.saturating_sub(prompt)));
        let mut sizes: Vec<_> = prompts.iter().map(size).collect();
        sizes.sort_unstable_by_key(|&(prompt, new)| Reverse(prompt.saturating_add(new)));
        let most = most.unwrap_or(MOST).min(sizes.len()).max(1);
        Company { sizes, most }
    }

    /// What to plan for, the most sequences first; one at a time comes last.
    fn tries(&self) -> impl Iterator<Item = Try> + '_ {
        let halves = std::iter::successors(Some(self.most), |n| (*n > 1).then_some(n / 2));
        halves.map(|sequences| {
            let first = self.sizes.iter().take(sequences);
            let cache = first.clone().map(|(prompt, new)| prompt.saturating_add(*new));
            let sum = |sizes: &mut dyn Iterator<Item = usize>| sizes.fold(0, usize::saturating_add).max(1);
            let tokens = sum(&mut first.map(|(prompt, _)| *prompt));
            Try { sequences, cache: sum(&mut cache.into_iter()), tokens }
        })
    }

    /// About how many passes it takes: those that read what comes first, then one for each new token of so many
    /// sequences, on which later prompts ride.
    pub(crate) fn passes(&self, sequences: usize, tokens: usize) -> f64 {
        let sequences = sequences.min(tokens).max(1);
        let (mut first, mut later, mut new, mut longest) = (0_usize, 0_usize, 0_usize, 0);
        for (index, &(prompt, most)) in self.sizes.iter().enumerate() {
            let read = if index < sequences { &mut first } else { &mut later };
            *read = read.saturating_add(prompt);
            new = new.saturating_add(most);
            longest = longest.max(most);
        }
        let room = tokens.saturating_sub(sequences).max(1);
        let decode = (new as f64 / sequences as f64).max(longest as f64);
        first.div_ceil(tokens.max(1)) as f64 + decode.max(later as f64 / room as f64)
    }

    /// The plan with which the run is over first, of those that `plan` makes: of a number of sequences and tokens a pass,
    /// the most tokens first.
    ///
    /// # Errors
    /// What `plan` says of one sequence at a time, if there is no other.
    pub(crate) fn best(&self, plan: impl Fn(Try) -> Result<Vec<Forecast>>) -> Result<Forecast> {
        let mut best: Option<(f64, Forecast)> = None;
        let mut refusal = None;
        for attempt in self.tries() {
            match plan(attempt) {
                Ok(forecasts) => {
                    for forecast in forecasts {
                        let passes = self.passes(forecast.sequences, forecast.batch_tokens);
                        let seconds = passes * forecast.plan.seconds_per_token;
                        if best.as_ref().is_none_or(|(least, _)| seconds < *least) {
                            best = Some((seconds, forecast));
                        }
                    }
                }
                Err(error) => refusal = Some(error),
            }
        }
        match (best, refusal) {
            (Some((_, forecast)), _) => Ok(forecast),
            (None, Some(refusal)) => Err(refusal),
            (None, None) => Err(crate::Error::Input { what: "there was no prompt".to_owned() }),
        }
    }
}
