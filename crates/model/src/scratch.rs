//! Memory of a pass beside weights and caches: taken once, used by every layer and every pass.

use crate::{Config, Error, Result};
use airllm_kernels::Memory;

/// How many full rows of logits the device holds at a time; the rest goes to the host chunk by chunk.
const LOGIT_ROWS: usize = 16;

/// The buffers. `n` rows of the given width each, where `n` is the most tokens of a pass.
pub(crate) struct Scratch<M: Memory> {
    /// The hidden state: `hidden`.
    pub x: M::Buf,
    /// What a norm or an output projection makes: `hidden`.
    pub h: M::Buf,
    /// Queries, then the gate.
    pub a: M::Buf,
    /// The attention's result, then the other half of the gated product.
    pub b: M::Buf,
    /// Keys.
    pub k: M::Buf,
    /// Values.
    pub v: M::Buf,
    /// A latent, or the inputs and then the results of an expert.
    pub c: M::Buf,
    /// Scores of experts.
    pub scores: M::Buf,
    /// Cosines and sines.
    pub table: M::Buf,
    /// Those of layers with a window, where they are others.
    pub local_table: M::Buf,
    /// A chunk of logits: `logit_numbers` in all.
    pub logits: M::Buf,
    /// Numbers in `logits`.
    pub logit_numbers: usize,
}

/// Widths of the buffers.
struct Widths {
    /// `a` and `b`, which serve the attention first and the feed-forward block then.
    wide: usize,
    key: usize,
    value: usize,
    c: usize,
    ordered: usize,
    scores: usize,
    table: usize,
    local: usize,
}

impl Widths {
    fn of(config: &Config) -> Widths {
        let (moe, latent) = (config.moe.as_ref(), config.latent);
        let expert = moe.map_or(0, |moe| moe.inner.max(moe.shared));
        let turning = latent.map_or(0, |latent| latent.turning);
        let hidden_of_experts = moe.map_or(0, |_| config.hidden);
        let wide = config
            .inner
            .max(config.query_dim())
            .max(config.heads * config.value_dim)
            .max(expert)
            // Inputs of an expert.
            .max(hidden_of_experts);
        Widths {
            wide,
            key: config.key_dim(),
            // The keys' part that turns is here until it is put to the others.
            value: config.value_width().max(turning),
            c: latent.map_or(0, |l| l.kv.max(l.query.unwrap_or(0))).max(hidden_of_experts),
            ordered: if config.reordered.is_empty() { 0 } else { config.hidden.max(wide) },
            scores: moe.map_or(0, |moe| moe.experts),
            table: config.rotary.dim,
            local: config.local_rotary.as_ref().map_or(0, |rotary| rotary.dim),
        }
    }

    fn sum(&self, hidden: usize) -> usize {
        let attention = self.key + self.value + self.table + self.local;
        2 * hidden + 2 * self.wide + attention + self.c + self.ordered + self.scores
    }
}

/// The buffer for inputs in the order that a matrix has its columns in.
pub(crate) fn ordered<M: Memory>(device: &M, config: &Config, tokens: usize) -> Result<M::Buf> {
    Ok(device.alloc(Widths::of(config).ordered.saturating_mul(tokens).saturating_mul(size_of::<f32>()))?)
}

impl<M: Memory> Scratch<M> {
    pub fn new(device: &M, config: &Config, tokens: usize) -> Result<Self> {
        let alloc = |width: usize, rows: usize| -> Result<M::Buf> {
            let bytes = width.checked_mul(rows).and_then(|n| n.checked_mul(size_of::<f32>()));
            let bytes = bytes.ok_or_else(|| {
                Error::Input(format!("a pass of {tokens} tokens is more than any memory holds"))
            })?;
            Ok(device.alloc(bytes)?)
        };
        let widths = Widths::of(config);
        Ok(Self {
            x: alloc(config.hidden, tokens)?,
            h: alloc(config.hidden, tokens)?,
            a: alloc(widths.wide, tokens)?,
            b: alloc(widths.wide, tokens)?,
            k: alloc(widths.key, tokens)?,
            v: alloc(widths.value, tokens)?,
            c: alloc(widths.c, tokens)?,
            scores: alloc(widths.scores, tokens)?,
            table: alloc(widths.table, tokens)?,
            local_table: alloc(widths.local, tokens)?,
            logits: alloc(config.vocab, tokens.min(LOGIT_ROWS))?,
            logit_numbers: config.vocab * tokens.min(LOGIT_ROWS),
        })
    }
}

/// Bytes that a [`Model`](crate::Model) for passes of up to `tokens` tokens takes on the device,
/// the buffer for chunks of logits included.
pub fn activation_bytes(config: &Config, tokens: usize) -> usize {
    let widths = Widths::of(config).sum(config.hidden);
    let numbers = widths.saturating_mul(tokens).saturating_add(config.vocab * tokens.min(LOGIT_ROWS));
    numbers.saturating_mul(size_of::<f32>())
}

/// Bytes of host memory that [`Model::forward`](crate::Model::forward) takes to return `rows` rows of
/// logits: the rows themselves and a chunk on its way.
pub fn logits_bytes(config: &Config, rows: usize) -> usize {
    let rows = rows.saturating_add(rows.min(LOGIT_ROWS));
    rows.saturating_mul(config.vocab * size_of::<f32>())
}
