//! A model, its stream and its sequences on one device, with the device's type hidden.
//!
//! Everything below is generic over the device and monomorphised for it; here it meets programs that
//! choose the device at run time.

use crate::Result;
use airllm_kernels::{Ops, Work};
use airllm_model::{KvFormat, Model, Observer, Sequence, Span, Want};
use airllm_stream::{Pipeline, Stats, Timeline};
use std::sync::Arc;

/// Some tokens of one sequence, by the sequence's number.
pub(crate) struct Step<'a> {
    pub(crate) seq: usize,
    pub(crate) ids: &'a [u32],
    /// Length of the sequence's prompt; see [`Span::rope_len`].
    pub(crate) prompt: usize,
    pub(crate) want: Want,
}

/// What generation needs of a model, whatever the device.
pub(crate) trait Engine: Send {
    /// Makes room for a sequence of `capacity` tokens and returns its number.
    fn open(&mut self, capacity: usize) -> Result<usize>;
    /// Forgets a sequence.
    fn close(&mut self, seq: usize);
    /// Runs the steps, each of another sequence, in one pass; logits as [`Model::forward`] gives them.
    fn forward(&mut self, steps: &[Step<'_>], observer: Option<&mut Observer<'_>>) -> Result<Vec<Vec<f32>>>;
    /// The most tokens of a pass.
    fn max_tokens(&self) -> usize;
    /// What has been moved so far.
    fn stats(&self) -> Stats;
    /// What has been computed so far.
    fn work(&self) -> Work;
    /// Who was busy when.
    fn timeline(&self) -> &Arc<Timeline>;
    /// Names of the units, by index, for the timeline.
    fn units(&self) -> Vec<String>;
}

pub(crate) struct Runner<D: Ops> {
    model: Model<D>,
    weights: Pipeline<D>,
    kv: KvFormat,
    sequences: Vec<Option<Sequence<D>>>,
}

impl<D: Ops> Runner<D> {
    pub(crate) fn new(model: Model<D>, weights: Pipeline<D>, kv: KvFormat) -> Self {
        Runner { model, weights, kv, sequences: Vec::new() }
    }
}

impl<D: Ops> Engine for Runner<D> {
    fn open(&mut self, capacity: usize) -> Result<usize> {
        let sequence = self.model.sequence(self.kv, capacity)?;
        let free = self.sequences.iter().position(Option::is_none);
        let number = free.unwrap_or_else(|| {
            self.sequences.push(None);
            self.sequences.len() - 1
        });
        self.sequences[number] = Some(sequence);
        Ok(number)
    }

    fn close(&mut self, seq: usize) {
        if let Some(place) = self.sequences.get_mut(seq) {
            *place = None;
        }
    }

    fn forward(&mut self, steps: &[Step<'_>], observer: Option<&mut Observer<'_>>) -> Result<Vec<Vec<f32>>> {
        // Spans borrow their sequences mutably, so each step takes its own out of the list, in the
        // order of the steps.
        let mut sequences: Vec<Option<&mut Sequence<D>>> =
            self.sequences.iter_mut().map(Option::as_mut).collect();
        let mut spans = Vec::with_capacity(steps.len());
        for step in steps {
            let Some(seq) = sequences.get_mut(step.seq).and_then(Option::take) else {
                return Err(crate::Error::Argument {
                    what: format!("sequence {} is closed, or used twice in a pass", step.seq),
                });
            };
            spans.push(Span { ids: step.ids, seq, rope_len: step.prompt, logits: step.want });
        }
        Ok(self.model.forward(&mut self.weights, &mut spans, observer)?)
    }

    fn max_tokens(&self) -> usize {
        self.model.max_tokens()
    }

    fn stats(&self) -> Stats {
        self.weights.stats()
    }

    fn work(&self) -> Work {
        self.weights.device().work()
    }

    fn timeline(&self) -> &Arc<Timeline> {
        self.weights.timeline()
    }

    fn units(&self) -> Vec<String> {
        self.weights.catalog().units.iter().map(|unit| unit.name.clone()).collect()
    }
}
