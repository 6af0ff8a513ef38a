//! Layer by layer: hidden states stay with the caller, and a layer may be run as often as it takes.

use super::{Inputs, Model, Pass, Span, Want, regime};
use crate::{Binding, Config, Error, Result, Sequence};
use airllm_kernels::Ops;
use airllm_stream::Weights;
use std::sync::Arc;

/// The same computation as [`Model::forward`], cut between layers.
///
/// It is for work that needs all of a text at one layer before it goes on to the next, as calibrating does.
/// Each call says by which binding the weights are met, so that a tensor may have one format now and another
/// one later.
pub struct Walk<D: Ops> {
    model: Model<D>,
    sequences: Vec<Sequence<D>>,
}

impl<D: Ops> Walk<D> {
    /// A walk for calls of up to `windows` windows of up to `context` tokens each.
    pub fn new(
        device: Arc<D>,
        config: Config,
        binding: Binding,
        windows: usize,
        context: usize,
    ) -> Result<Self> {
        let sequences = (0..windows).map(|_| Sequence::of_one_layer(&*device, &config, context));
        let sequences = sequences.collect::<Result<_>>()?;
        let model = Model::new(device, config, binding, windows.saturating_mul(context))?;
        Ok(Self { model, sequences })
    }

    /// The model's configuration.
    pub fn config(&self) -> &Config {
        self.model.config()
    }

    /// The most windows of a call.
    pub fn windows(&self) -> usize {
        self.sequences.len()
    }

    /// Hidden states `[tokens of all windows, hidden]` of the embeddings, to `x`.
    pub fn embed<W: Weights<D>>(
        &mut self,
        binding: &Binding,
        weights: &mut W,
        windows: &[&[u32]],
        x: &mut Vec<f32>,
    ) -> Result<()> {
        x.resize(self.numbers(windows)?, 0.0);
        self.pass(binding, weights, windows, None, |pass, spans, scratch| {
            pass.embed(spans, scratch)?;
            Ok(pass.device.read(&scratch.x, 0, bytemuck::cast_slice_mut(x))?)
        })
    }

    /// Runs a layer over hidden states `x`, `[tokens of all windows, hidden]`, in place. `inputs` sees what
    /// each of its matrices is multiplied with.
    pub fn layer<W: Weights<D>>(
        &mut self,
        binding: &Binding,
        weights: &mut W,
        layer: usize,
        windows: &[&[u32]],
        x: &mut [f32],
        inputs: Option<&mut Inputs<'_>>,
    ) -> Result<()> {
        self.expect(windows, x)?;
        self.pass(binding, weights, windows, inputs, |pass, spans, scratch| {
            pass.table(spans, scratch)?;
            pass.device.write(&mut scratch.x, 0, bytemuck::cast_slice(x))?;
            pass.attention(layer, spans, scratch)?;
            pass.feed_forward(layer, scratch)?;
            Ok(pass.device.read(&scratch.x, 0, bytemuck::cast_slice_mut(x))?)
        })
    }

    /// Shows what the head is multiplied with, from the hidden states behind the last layer.
    pub fn head_inputs<W: Weights<D>>(
        &mut self,
        binding: &Binding,
        weights: &mut W,
        windows: &[&[u32]],
        x: &[f32],
        inputs: &mut Inputs<'_>,
    ) -> Result<()> {
        self.expect(windows, x)?;
        self.pass(binding, weights, windows, Some(inputs), |pass, _, scratch| {
            pass.device.write(&mut scratch.h, 0, bytemuck::cast_slice(x))?;
            pass.final_norm(pass.tokens, scratch)
        })
    }

    /// Logits `[tokens, vocab]` of each window, from the hidden states behind the last layer.
    pub fn logits<W: Weights<D>>(
        &mut self,
        binding: &Binding,
        weights: &mut W,
        windows: &[&[u32]],
        x: &[f32],
    ) -> Result<Vec<Vec<f32>>> {
        self.expect(windows, x)?;
        self.pass(binding, weights, windows, None, |pass, spans, scratch| {
            pass.device.write(&mut scratch.x, 0, bytemuck::cast_slice(x))?;
            pass.head(spans, scratch)
        })
    }

    fn numbers(&self, windows: &[&[u32]]) -> Result<usize> {
        let tokens: usize = windows.iter().map(|ids| ids.len()).sum();
        let most = self.sequences.first().map_or(0, Sequence::capacity);
        if windows.len() > self.sequences.len()
            || windows.iter().any(|ids| ids.is_empty() || ids.len() > most)
        {
            return Err(Error::Input(format!(
                "{} windows of {tokens} tokens were given, {} of 1 to {most} each are the most",
                windows.len(),
                self.sequences.len()
            )));
        }
        Ok(tokens * self.config().hidden)
    }

    fn expect(&self, windows: &[&[u32]], x: &[f32]) -> Result<()> {
        let numbers = self.numbers(windows)?;
        if x.len() != numbers {
            return Err(Error::Input(format!("hidden states are {} numbers, expected {numbers}", x.len())));
        }
        Ok(())
    }

    fn pass<W: Weights<D>, T>(
        &mut self,
        binding: &Binding,
        weights: &mut W,
        windows: &[&[u32]],
        inputs: Option<&mut Inputs<'_>>,
        f: impl FnOnce(&mut Pass<'_, '_, D, W>, &mut [Span<'_, D>], &mut crate::scratch::Scratch<D>) -> Result<T>,
    ) -> Result<T> {
        let spans = windows.iter().zip(&mut self.sequences);
        let mut spans: Vec<Span<'_, D>> =
            spans.map(|(ids, seq)| Span { ids, seq, rope_len: ids.len(), logits: Want::All }).collect();
        let tokens = self.model.check_ids(&spans)?;
        let mut pass = Pass {
            config: &self.model.config,
            binding,
            device: &*self.model.device,
            ordered: &mut self.model.ordered,
            adapters: &mut self.model.adapters,
            host: &mut self.model.host,
            weights,
            tokens,
            regimes: regime::of_spans(&spans),
            observer: None,
            inputs,
        };
        f(&mut pass, &mut spans, &mut self.model.scratch)
    }
}
