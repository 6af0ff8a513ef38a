//! From logits to the next token.

use crate::random::{Rng, exp_nonpositive};
use crate::{Error, Generation, Result};

/// Chooses tokens for one sequence, as a [`Generation`] says.
///
/// The order of the steps is that of the transformers library: repetition penalty, temperature, top-k,
/// top-p, min-p, then a draw. With temperature 0 the largest logit wins (the lowest id among equals).
/// All arithmetic is f64 without library functions, so a seed gives the same tokens on every machine
/// for the same logits.
#[derive(Debug, Clone)]
pub struct Sampler {
    temperature: f64,
    top_k: usize,
    top_p: f64,
    min_p: f64,
    penalty: f32,
    rng: Rng,
    /// One flag a token that occurs in the prompt or the answer; empty without a penalty.
    seen: Vec<bool>,
    scores: Vec<f32>,
    candidates: Vec<(u32, f64)>,
}

impl Sampler {
    /// A sampler for a vocabulary of `vocab` tokens. `seed` is used when `options` has none.
    pub fn new(options: &Generation, vocab: usize, seed: u64) -> Result<Sampler> {
        options.validate()?;
        let penalised = options.repetition_penalty != 1.0;
        Ok(Sampler {
            temperature: f64::from(options.temperature),
            top_k: options.top_k.unwrap_or(0),
            top_p: f64::from(options.top_p),
            min_p: f64::from(options.min_p),
            penalty: options.repetition_penalty,
            rng: Rng::new(options.seed.unwrap_or(seed)),
            seen: vec![false; if penalised { vocab } else { 0 }],
            scores: Vec::new(),
            candidates: Vec::new(),
        })
    }

    /// Notes tokens of the prompt or of the answer, for the repetition penalty.
    pub fn observe(&mut self, ids: &[u32]) {
        for &id in ids {
            if let Some(seen) = self.seen.get_mut(id as usize) {
                *seen = true;
            }
        }
    }

    /// Gives back the memory that choosing takes; what was noted stays.
    pub(crate) fn release(&mut self) {
        (self.scores, self.candidates) = (Vec::new(), Vec::new());
    }

    /// Chooses the token that follows, and notes it.
    ///
    /// `logits` holds one number a token. Not-a-number anywhere is an error: it means that the model's
    /// arithmetic broke, and any token chosen from it would be noise.
    pub fn next(&mut self, logits: &[f32]) -> Result<u32> {
        if let Some(at) = logits.iter().position(|x| x.is_nan()) {
            return Err(Error::Logits { token: at, vocab: logits.len() });
        }
        self.scores.clear();
        self.scores.extend_from_slice(logits);
        for (score, _) in self.scores.iter_mut().zip(&self.seen).filter(|(_, seen)| **seen) {
            *score = if *score < 0.0 { *score * self.penalty } else { *score / self.penalty };
        }
        let id = if self.temperature == 0.0 { self.greedy()? } else { self.draw()? };
        self.observe(&[id]);
        Ok(id)
    }

    fn greedy(&self) -> Result<u32> {
        let mut best = 0;
        for (i, score) in self.scores.iter().enumerate() {
            if *score > self.scores[best] {
                best = i;
            }
        }
        if self.scores.is_empty() {
            return Err(Error::Logits { token: 0, vocab: 0 });
        }
        Ok(best as u32)
    }

    fn draw(&mut self) -> Result<u32> {
        let candidates = &mut self.candidates;
        candidates.clear();
        candidates
            .extend((0u32..).zip(&self.scores).map(|(id, score)| (id, f64::from(*score) / self.temperature)));
        if candidates.is_empty() {
            return Err(Error::Logits { token: 0, vocab: 0 });
        }
        // Best first, lower ids first among equals: a total order, so nothing depends on the sort.
        let order = |a: &(u32, f64), b: &(u32, f64)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        if self.top_k > 0 && self.top_k < candidates.len() {
            candidates.select_nth_unstable_by(self.top_k - 1, order);
            candidates.truncate(self.top_k);
        }
        candidates.sort_unstable_by(order);
        let best = candidates[0].1;
        let mut total = 0.0;
        for (_, score) in candidates.iter_mut() {
            // An infinite best score leaves the tokens that share it, with equal weight.
            let below = if *score == best { 0.0 } else { *score - best };
            *score = exp_nonpositive(below);
            total += *score;
        }
        if self.top_p < 1.0 {
            // A token stays while those above it hold less than top_p. At least one stays.
            let mut above = 0.0;
            let mut keep = 0;
            for (_, weight) in candidates.iter() {
                if keep > 0 && above >= self.top_p * total {
                    break;
                }
                above += weight;
                keep += 1;
            }
            candidates.truncate(keep);
            total = above;
        }
        if self.min_p > 0.0 {
            // The best weight is 1, so the bound relative to it is min_p itself.
            let keep = candidates.iter().take_while(|(_, weight)| *weight >= self.min_p).count().max(1);
            candidates.truncate(keep);
            total = candidates.iter().map(|(_, weight)| weight).sum();
        }
        let mut left = self.rng.next_unit() * total;
        for (id, weight) in candidates.iter() {
            left -= weight;
            if left < 0.0 {
                return Ok(*id);
            }
        }
        // Rounding may leave a sliver: it belongs to the last token with any weight.
        Ok(candidates.iter().rev().find(|(_, w)| *w > 0.0).map_or(candidates[0].0, |(id, _)| *id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(options: &Generation, logits: &[f32], draws: u64) -> Vec<u64> {
        let mut counts = vec![0; logits.len()];
        let mut sampler = Sampler::new(options, logits.len(), 1).unwrap();
        for _ in 0..draws {
            counts[sampler.next(logits).unwrap() as usize] += 1;
        }
        counts
    }

    fn hot() -> Generation {
        Generation::default().temperature(1.0).seed(3)
    }

    #[test]
    fn greedy_takes_the_first_of_equals() {
        let mut sampler = Sampler::new(&Generation::default(), 4, 0).unwrap();
        assert_eq!(sampler.next(&[1.0, 3.0, 3.0, -1.0]).unwrap(), 1);
        assert_eq!(sampler.next(&[f32::NEG_INFINITY, -2.0, -3.0, -9.0]).unwrap(), 1);
    }

    #[test]
    fn nan_is_refused() {
        let mut sampler = Sampler::new(&Generation::default(), 3, 0).unwrap();
        let error = sampler.next(&[0.0, f32::NAN, 1.0]).unwrap_err().to_string();
        assert!(error.contains("token 1"), "{error}");
        assert!(sampler.next(&[]).is_err());
    }

    #[test]
    fn penalty_as_in_transformers() {
        // Positive scores are divided, negative ones multiplied.
        let options = Generation::default().repetition_penalty(2.0);
        let mut sampler = Sampler::new(&options, 3, 0).unwrap();
        sampler.observe(&[0]);
        assert_eq!(sampler.next(&[3.0, 2.0, 1.0]).unwrap(), 1);
        let mut sampler = Sampler::new(&options, 3, 0).unwrap();
        sampler.observe(&[0]);
        assert_eq!(sampler.next(&[-1.0, -1.5, -3.0]).unwrap(), 1);
        // The second choice counts as seen from then on.
        assert_eq!(sampler.next(&[-1.0, -1.5, -1.9]).unwrap(), 2);
    }

    #[test]
    fn draws_follow_the_softmax() {
        let logits = [0.0, 1.0, 2.0, -1.0];
        let n = 200_000;
        let total: f64 = logits.iter().map(|x: &f32| f64::from(*x).exp()).sum();
        for (count, logit) in counts(&hot(), &logits, n).iter().zip(logits) {
            let expected = f64::from(logit).exp() / total;
            let sigma = (expected * (1.0 - expected) / n as f64).sqrt();
            assert!((*count as f64 / n as f64 - expected).abs() < 5.0 * sigma, "{logit}");
        }
    }

    #[test]
    fn cuts() {
        // Weights e^2, e^1, e^0, e^-1 are 0.644, 0.237, 0.087, 0.032 of the whole.
        let logits = [0.0, 1.0, 2.0, -1.0];
        let zero = |options: Generation, expected: [bool; 4]| {
            let got = counts(&options, &logits, 5_000);
            assert_eq!(got.iter().map(|c| *c > 0).collect::<Vec<_>>(), expected, "{got:?}");
        };
        zero(hot().top_k(2), [false, true, true, false]);
        zero(hot().top_k(100), [true; 4]);
        zero(hot().top_p(0.6), [false, false, true, false]);
        zero(hot().top_p(0.65), [false, true, true, false]);
        zero(hot().top_p(0.9), [true, true, true, false]);
        // min-p is relative to the best: 1, 0.368, 0.135, 0.050.
        zero(hot().min_p(0.2), [false, true, true, false]);
        zero(hot().min_p(0.1), [true, true, true, false]);
        zero(hot().min_p(1.0), [false, false, true, false]);
        // Temperature comes before the cuts: at 2 the shares are 0.455, 0.276, 0.167, 0.102.
        zero(hot().temperature(2.0).top_p(0.6), [false, true, true, false]);
    }

    #[test]
    fn infinite_scores() {
        let logits = [f32::INFINITY, 0.0, f32::INFINITY, f32::NEG_INFINITY];
        let got = counts(&hot(), &logits, 1_000);
        assert!(got[0] > 400 && got[2] > 400 && got[1] == 0 && got[3] == 0, "{got:?}");
    }

    #[test]
    fn a_seed_names_its_tokens() {
        let logits: Vec<f32> = (0..50u16).map(|i| f32::from(i * 37 % 50) * 0.125).collect();
        let run = |seed: u64| -> Vec<u32> {
            let mut sampler = Sampler::new(&hot().seed(seed), 50, 0).unwrap();
            (0..12).map(|_| sampler.next(&logits).unwrap()).collect()
        };
        // From an independent computation. A change here changes what every user's seed means.
        assert_eq!(run(42), [47, 4, 31, 8, 27, 9, 4, 1, 8, 16, 4, 12]);
        assert_eq!(run(43), [47, 16, 35, 5, 27, 27, 8, 36, 43, 4, 47, 4]);
    }
}
