//! A text through one model, or through two in lock step.

use super::windows::{Part, Schedule};
use super::{Judged, Scores, Tally, Windows};
use crate::engine::{Engine, Step};
use crate::{AutoModel, Error, Result};
use airllm_model::Want;
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};
use std::sync::MutexGuard;
use std::time::{Duration, Instant};

/// How far an evaluation has come.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Evaluating {
    /// Windows that are counted.
    pub windows: usize,
    /// Windows in all.
    pub of_windows: usize,
    /// Tokens that were read.
    pub read: usize,
    /// Tokens to read in all.
    pub of_read: usize,
    /// The perplexity of the windows that are counted.
    pub perplexity: Option<f64>,
    /// Time since the beginning.
    pub elapsed: Duration,
}

impl Evaluating {
    /// Time left at the rate so far; `None` while nothing can be said.
    pub fn left(&self) -> Option<Duration> {
        let left = self.of_read.checked_sub(self.read).filter(|_| self.read > 0)?;
        Some(self.elapsed.mul_f64(left as f64 / self.read as f64))
    }
}

/// What a text says of a model.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Evaluation {
    /// Tokens of a window.
    pub context: usize,
    /// Windows read.
    pub windows: usize,
    /// The numbers.
    #[serde(flatten)]
    pub scores: Scores,
    /// Passes over the weights of each model.
    pub passes: usize,
    /// Seconds that it took.
    pub seconds: f64,
}

/// One of the models, at work.
struct Side<'a> {
    name: &'static str,
    engine: MutexGuard<'a, Box<dyn Engine>>,
    model: &'a AutoModel,
    /// Its sequences, by window.
    open: HashMap<usize, usize>,
}

impl<'a> Side<'a> {
    fn new(name: &'static str, model: &'a AutoModel) -> Result<Side<'a>> {
        Ok(Side { name, engine: model.engine()?, model, open: HashMap::new() })
    }

    /// The logits of the parts that count, a row a token.
    fn pass(&mut self, parts: &[Part], ids: &BTreeMap<usize, Vec<u32>>) -> Result<Vec<Vec<f32>>> {
        self.model.cancel().check()?;
        let mut steps = Vec::with_capacity(parts.len());
        for part in parts {
            let Some(ids) = ids.get(&part.window) else { continue };
            let seq = match self.open.get(&part.window) {
                Some(seq) => *seq,
                None => {
                    let seq = self.engine.open(ids.len())?;
                    self.open.insert(part.window, seq);
                    seq
                }
            };
            let want = if part.counted { Want::All } else { Want::None };
            steps.push(Step { seq, ids: &ids[part.range.clone()], prompt: ids.len(), want });
        }
        let logits = self.engine.forward(&steps, None);
        // A pass that was broken off because of the cancel flag is no error of its own.
        let logits = logits.or_else(|error| self.model.cancel().check().and(Err(error)))?;
        for part in parts.iter().filter(|part| part.last) {
            if let Some(seq) = self.open.remove(&part.window) {
                self.engine.close(seq);
            }
        }
        let vocab = self.model.config().vocab;
        for (part, logits) in parts.iter().zip(&logits) {
            if let Some(at) = logits.iter().position(|logit| !logit.is_finite()) {
                let (position, token) = (part.range.start + at / vocab, at % vocab);
                let what = format!(
                    "{}: window {}, position {position}: the logit of token {token} of {vocab} is {}: the weights or \
                     the arithmetic are broken",
                    self.name, part.window, logits[at]
                );
                return Err(Error::Input { what });
            }
        }
        Ok(logits)
    }
}

impl Drop for Side<'_> {
    fn drop(&mut self) {
        for (_, seq) in self.open.drain() {
            self.engine.close(seq);
        }
    }
}

impl AutoModel {
    /// Predicts a text, and compares each prediction with that of a reference over the same vocabulary. `each` is
    /// told after every pass.
    ///
    /// As many windows as a pass has room for share it; a reference runs the same passes in turn, and only the logits of
    /// one pass of each model are held. The numbers do not depend on how that is cut, bit for bit. Load both models
    /// with [`Builder::evaluating`](crate::Builder::evaluating), which makes room for this.
    ///
    /// # Errors
    /// Vocabularies of different sizes, windows longer than the room that was made for tokens, logits that are no
    /// finite numbers (with their place), and whatever stops a pass.
    pub fn evaluate(
        &self,
        windows: &Windows,
        reference: Option<&AutoModel>,
        each: &mut dyn FnMut(&Evaluating),
    ) -> Result<Evaluation> {
        let begin = Instant::now();
        let models = || [Some(self), reference].into_iter().flatten();
        let vocab = self.config().vocab;
        if let Some(other) = reference.map(|model| model.config().vocab).filter(|other| *other != vocab) {
            let what = format!(
                "the vocabularies of model and reference differ: {vocab} ids and {other}; divergence is defined \
                 over the same ids only"
            );
            return Err(Error::Input { what });
        }
        let context = windows.context();
        let room = models().map(AutoModel::room).min().unwrap_or(0);
        if context > room {
            return Err(Error::Context { prompt: context, new: 0, context: room });
        }
        let cache = models().map(|model| model.plan().context).min().unwrap_or(0);
        let mut ours = Side::new("the model", self)?;
        let mut theirs = reference.map(|model| Side::new("the reference", model)).transpose()?;
        let most = |side: &Side<'_>| side.engine.max_tokens();
        let tokens = most(&ours).min(theirs.as_ref().map_or(usize::MAX, most));

        let mut tally = Tally::new();
        // Ids and judgements of windows that have begun.
        let mut ids: BTreeMap<usize, Vec<u32>> = BTreeMap::new();
        let mut judged: BTreeMap<usize, Vec<Judged>> = BTreeMap::new();
        let mut now = Evaluating {
            windows: 0,
            of_windows: windows.count(),
            read: 0,
            of_read: windows.count() * (context - 1),
            perplexity: None,
            elapsed: Duration::ZERO,
        };
        let mut passes = 0;
        for parts in Schedule::new(windows.shape(), tokens, cache) {
            for part in parts.iter().filter(|part| part.range.start == 0) {
                ids.extend(windows.ids(part.window).map(|ids| (part.window, ids)));
            }
            let rows = ours.pass(&parts, &ids)?;
            let other = theirs.as_mut().map(|side| side.pass(&parts, &ids)).transpose()?;
            passes += 1;
            for (index, part) in parts.iter().enumerate() {
                now.read += part.range.len();
                if !part.counted {
                    continue;
                }
                let reference = other.as_ref().map(|rows| &rows[index][..]);
                let list = judged.entry(part.window).or_default();
                let ids_of = ids.get(&part.window).map_or(&[][..], Vec::as_slice);
                list.extend(judge(part, ids_of, vocab, &rows[index], reference)?);
                if part.last {
                    let positions = windows.counted();
                    for (position, judged) in positions.zip(judged.remove(&part.window).unwrap_or_default()) {
                        tally.push(&judged, windows.bytes(part.window, position + 1));
                    }
                    ids.remove(&part.window);
                    now.windows += 1;
                }
            }
            (now.perplexity, now.elapsed) = (tally.perplexity(), begin.elapsed());
            each(&now);
        }
        let scores = tally.scores().ok_or_else(|| Error::Input { what: "nothing was counted".to_owned() })?;
        let seconds = begin.elapsed().as_secs_f64();
        Ok(Evaluation { context, windows: now.windows, scores, passes, seconds })
    }
}

/// Looks at every row of a part; the next token of the last one is the window's.
fn judge(
    part: &Part,
    ids: &[u32],
    vocab: usize,
    rows: &[f32],
    reference: Option<&[f32]>,
) -> Result<Vec<Judged>> {
    let row = |number: usize, position: usize| {
        let at = number * vocab..(number + 1) * vocab;
        let ours = rows.get(at.clone())?;
        let theirs = match reference {
            Some(theirs) => Some(theirs.get(at)?),
            None => None,
        };
        Judged::of(ours, *ids.get(position + 1)?, theirs)
    };
    let judged = part.range.clone().enumerate().map(|(number, position)| row(number, position));
    judged.collect::<Option<_>>().ok_or_else(|| Error::Input {
        what: format!("window {}: a pass has not returned the logits of {:?}", part.window, part.range),
    })
}
