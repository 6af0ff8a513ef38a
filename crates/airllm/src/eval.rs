//! How well a model predicts a text: the numbers, and how they are counted.
//!
//! Windows and counting are those of `llama-perplexity`, so that its figures and these compare. The ids of the
//! text are cut into windows of `context` ids side by side; what is left over at the end is not used. What the
//! tokenizer puts before a text (a token for the beginning, where there is one) takes the place of the first ids of each
//! window. Each window is read from its own beginning, and of its predictions only those of the second half count,
//! which have at least half a window before them: from position `context / 2` on, all but the last, whose next
//! token belongs to the next window. Perplexity is `exp` of the mean negative log-likelihood of the counted tokens; its
//! standard error is that of the mean, from the mean of squares, times the perplexity.
//!
//! With a reference, each counted position also has the Kullback-Leibler divergence of the reference's distribution
//! P from the model's Q, `sum P ln(P / Q)`, in nats, and whether the likeliest token of both is the same.

mod run;
mod windows;

pub use run::{Evaluating, Evaluation};
pub(crate) use windows::Shape;
pub use windows::Windows;
pub(crate) use windows::beginning;

use serde::Serialize;

/// What the logits at one position say of the token that comes next.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Judged {
    /// Negative log-likelihood of the next token, in nats.
    pub nll: f64,
    /// The same position as the reference sees it.
    pub against: Option<Against>,
}

/// A reference's view of one position.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Against {
    /// The reference's negative log-likelihood of the next token, in nats.
    pub nll: f64,
    /// Divergence of the reference's distribution from the model's, in nats.
    pub kl: f64,
    /// Whether both find the same token the likeliest.
    pub agrees: bool,
}

/// The normaliser of a row of logits and its largest entry.
struct Normal {
    log_sum: f64,
    max: f64,
    best: usize,
}

impl Normal {
    /// `None` for an empty row. The logits must be finite.
    fn of(logits: &[f32]) -> Option<Normal> {
        let (mut best, mut max) = (0, *logits.first()?);
        for (i, &logit) in logits.iter().enumerate() {
            if logit > max {
                (best, max) = (i, logit);
            }
        }
        let max = f64::from(max);
        let sum: f64 = logits.iter().map(|&logit| (f64::from(logit) - max).exp()).sum();
        Some(Normal { log_sum: sum.ln(), max, best })
    }

    fn log(&self, logit: f32) -> f64 {
        f64::from(logit) - self.max - self.log_sum
    }
}

impl Judged {
    /// Looks at a row of finite logits, and at that of a reference over the same vocabulary. `None` where the next
    /// token has no logit or the rows differ in length.
    pub fn of(logits: &[f32], next: u32, reference: Option<&[f32]>) -> Option<Judged> {
        let normal = Normal::of(logits)?;
        let nll = -normal.log(*logits.get(next as usize)?);
        let Some(theirs) = reference else { return Some(Judged { nll, against: None }) };
        let other = Normal::of(theirs).filter(|_| theirs.len() == logits.len())?;
        let kl: f64 = logits
            .iter()
            .zip(theirs)
            .map(|(&q, &p)| {
                let p = other.log(p);
                p.exp() * (p - normal.log(q))
            })
            .sum();
        let against = Against {
            nll: -other.log(theirs[next as usize]),
            // Never negative but for rounding.
            kl: kl.max(0.0),
            agrees: normal.best == other.best,
        };
        Some(Judged { nll, against: Some(against) })
    }
}

/// A number and its standard error.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Estimate {
    /// The number.
    pub value: f64,
    /// One standard error of it.
    pub error: f64,
}

/// Mean of some numbers as they come.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct Moments {
    sum: f64,
    squares: f64,
}

impl Moments {
    fn push(&mut self, x: f64) {
        self.sum += x;
        self.squares += x * x;
    }

    /// Of `count` numbers, at least two.
    fn mean(&self, count: usize) -> Estimate {
        let n = count as f64;
        let value = self.sum / n;
        // Rounding may leave a little less than no variance.
        let variance = (self.squares / n - value * value).max(0.0);
        Estimate { value, error: (variance / (n - 1.0)).sqrt() }
    }

    /// `exp` of the mean; the error to first order.
    fn perplexity(&self, count: usize) -> Estimate {
        let mean = self.mean(count);
        let value = mean.value.exp();
        Estimate { value, error: value * mean.error }
    }
}

/// What a reference adds to a [`Tally`].
#[derive(Debug, Clone, PartialEq, Default)]
struct Theirs {
    nll: Moments,
    kl: Moments,
    each: Vec<f64>,
    agreed: usize,
}

/// Counts positions, in the order in which they are given: the same order gives the same bits.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Tally {
    tokens: usize,
    bytes: u64,
    nll: Moments,
    theirs: Theirs,
}

impl Tally {
    /// Nothing counted yet.
    pub fn new() -> Tally {
        Tally::default()
    }

    /// Counts a position whose next token stands for `bytes` of the text.
    pub fn push(&mut self, judged: &Judged, bytes: u64) {
        self.tokens += 1;
        self.bytes += bytes;
        self.nll.push(judged.nll);
        if let Some(against) = &judged.against {
            self.theirs.nll.push(against.nll);
            self.theirs.kl.push(against.kl);
            self.theirs.each.push(against.kl);
            self.theirs.agreed += usize::from(against.agrees);
        }
    }

    /// Positions counted.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// The perplexity so far; `None` before anything is counted.
    pub fn perplexity(&self) -> Option<f64> {
        (self.tokens > 0).then(|| (self.nll.sum / self.tokens as f64).exp())
    }

    /// What the counts say; `None` for fewer than two positions, which have no standard error. There is a comparison
    /// where every position had a reference.
    pub fn scores(&self) -> Option<Scores> {
        if self.tokens < 2 {
            return None;
        }
        let bits = self.nll.sum / std::f64::consts::LN_2;
        Some(Scores {
            tokens: self.tokens,
            bytes: self.bytes,
            nll: self.nll.mean(self.tokens),
            perplexity: self.nll.perplexity(self.tokens),
            bits_per_byte: (self.bytes > 0).then(|| bits / self.bytes as f64),
            comparison: self.comparison(),
        })
    }

    fn comparison(&self) -> Option<Comparison> {
        let Theirs { nll, kl, each, agreed } = &self.theirs;
        if each.len() != self.tokens {
            return None;
        }
        let mut sorted = each.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        let share = *agreed as f64 / self.tokens as f64;
        Some(Comparison {
            perplexity: nll.perplexity(self.tokens),
            kl_mean: kl.mean(self.tokens),
            kl_99: quantile(&sorted, 0.99)?,
            kl_max: *sorted.last()?,
            top1_agreement: Estimate {
                value: share,
                error: (share * (1.0 - share) / (self.tokens as f64 - 1.0)).sqrt(),
            },
        })
    }
}

/// The quantile of sorted numbers, between two of them in proportion; `None` where there are none.
pub fn quantile(sorted: &[f64], share: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let place = share.clamp(0.0, 1.0) * last as f64;
    let low = (place as usize).min(last);
    let (a, b) = (sorted[low], sorted[(low + 1).min(last)]);
    Some(a + (b - a) * (place - low as f64))
}

/// How well a model predicts a text.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Scores {
    /// Tokens counted.
    pub tokens: usize,
    /// Bytes of text that they stand for.
    pub bytes: u64,
    /// Mean negative log-likelihood of a token, in nats.
    pub nll: Estimate,
    /// `exp` of it.
    pub perplexity: Estimate,
    /// Bits of information a byte of text; comparable between vocabularies. `None` where the tokens have no text.
    pub bits_per_byte: Option<f64>,
    /// The same positions against a reference.
    pub comparison: Option<Comparison>,
}

/// How far a model is from a reference.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Comparison {
    /// The reference's own perplexity.
    pub perplexity: Estimate,
    /// Mean divergence of the reference's distribution from the model's, in nats.
    pub kl_mean: Estimate,
    /// 99 of 100 positions have a divergence no larger than this.
    pub kl_99: f64,
    /// The largest divergence.
    pub kl_max: f64,
    /// Share of positions where both find the same token the likeliest.
    pub top1_agreement: Estimate,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(a: f64, b: f64) {
        assert!((a - b).abs() <= 1e-12 * b.abs().max(1.0), "{a} {b}");
    }

    /// Logits of a distribution, moved by a constant that must not matter.
    fn logits(shares: &[f32]) -> Vec<f32> {
        shares.iter().map(|p| p.ln() + 3.0).collect()
    }

    #[test]
    fn one_position() {
        let (p, q) = (logits(&[0.5, 0.25, 0.25]), logits(&[0.25, 0.5, 0.25]));
        let alone = Judged::of(&q, 1, None).unwrap();
        assert!((alone.nll - 2f64.ln()).abs() < 1e-6 && alone.against.is_none(), "{alone:?}");
        let both = Judged::of(&q, 0, Some(&p)).unwrap();
        assert!((both.nll - 4f64.ln()).abs() < 1e-6, "{both:?}");
        let against = both.against.unwrap();
        // 0.5 ln 2 + 0.25 ln 0.5.
        assert!((against.kl - 0.25 * 2f64.ln()).abs() < 1e-6, "{against:?}");
        assert!((against.nll - 2f64.ln()).abs() < 1e-6 && !against.agrees);
        let same = Judged::of(&p, 0, Some(&p)).unwrap().against.unwrap();
        assert!(same.kl == 0.0 && same.agrees);
        // Not the same the other way round.
        let skewed = logits(&[0.9, 0.05, 0.05]);
        let there = Judged::of(&p, 0, Some(&skewed)).unwrap().against.unwrap().kl;
        let back = Judged::of(&skewed, 0, Some(&p)).unwrap().against.unwrap().kl;
        assert!((there - (0.9 * 1.8f64.ln() + 0.1 * 0.2f64.ln())).abs() < 1e-6, "{there}");
        assert!((back - (0.5 * (5f64 / 9.0).ln() + 0.5 * 5f64.ln())).abs() < 1e-6, "{back}");
        // Far apart, and still finite.
        let far = Judged::of(&[0.0, 1e30], 0, Some(&[1e30, 0.0])).unwrap();
        assert!(far.nll.is_finite() && far.against.unwrap().kl > 1e29);
    }

    #[test]
    fn rows_that_do_not_fit() {
        assert!(Judged::of(&[], 0, None).is_none());
        assert!(Judged::of(&[1.0, 2.0], 2, None).is_none());
        assert!(Judged::of(&[1.0, 2.0], 1, Some(&[1.0])).is_none());
    }

    #[test]
    fn sums_and_errors() {
        let mut tally = Tally::new();
        assert!(tally.scores().is_none() && tally.perplexity().is_none());
        for (nll, bytes, kl, agrees) in
            [(1.0, 4, 0.0, true), (2.0, 2, 0.5, true), (3.0, 0, 0.25, false), (6.0, 2, 0.25, true)]
        {
            tally.push(&Judged { nll, against: Some(Against { nll: nll / 2.0, kl, agrees }) }, bytes);
        }
        near(tally.perplexity().unwrap(), 3f64.exp());
        let scores = tally.scores().unwrap();
        assert_eq!((scores.tokens, scores.bytes, tally.tokens()), (4, 8, 4));
        // Mean 12 / 4, mean of squares 50 / 4: variance 3.5, over 3.
        near(scores.nll.value, 3.0);
        near(scores.nll.error, (3.5f64 / 3.0).sqrt());
        near(scores.perplexity.value, 3f64.exp());
        near(scores.perplexity.error, 3f64.exp() * (3.5f64 / 3.0).sqrt());
        near(scores.bits_per_byte.unwrap(), 1.5 / 2f64.ln());
        let comparison = scores.comparison.unwrap();
        near(comparison.perplexity.value, 1.5f64.exp());
        near(comparison.kl_mean.value, 0.25);
        // Mean of squares 0.375 / 4.
        near(comparison.kl_mean.error, ((0.375f64 / 4.0 - 0.0625) / 3.0).sqrt());
        // Place 2.97 of 0, 0.25, 0.25, 0.5.
        near(comparison.kl_99, 0.25 + 0.25 * 0.97);
        near(comparison.kl_max, 0.5);
        near(comparison.top1_agreement.value, 0.75);
        near(comparison.top1_agreement.error, (0.1875f64 / 3.0).sqrt());
        // A position that the reference has not seen: there is nothing to compare as a whole.
        tally.push(&Judged { nll: 0.0, against: None }, 0);
        assert!(tally.scores().unwrap().comparison.is_none());
    }

    #[test]
    fn edges() {
        let mut tally = Tally::new();
        let judged = Judged { nll: 0.1, against: None };
        tally.push(&judged, 0);
        assert!(tally.scores().is_none());
        tally.push(&judged, 0);
        let scores = tally.scores().unwrap();
        assert_eq!((scores.nll.error, scores.bits_per_byte, scores.comparison), (0.0, None, None));
    }

    #[test]
    fn quantiles() {
        assert_eq!(quantile(&[], 0.5), None);
        assert_eq!(quantile(&[3.0], 0.99), Some(3.0));
        assert_eq!(quantile(&[1.0, 2.0, 4.0], 0.5), Some(2.0));
        assert_eq!(quantile(&[1.0, 2.0, 4.0], 0.75), Some(3.0));
        assert_eq!(quantile(&[1.0, 2.0, 4.0], 1.0), Some(4.0));
    }
}
