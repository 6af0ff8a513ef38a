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
    /// Queries, then the gate: `wide`.
    pub a: M::Buf,
    /// The attention's result, then the other half of the gated product: `wide`.
    pub b: M::Buf,
    /// Keys: `kv_dim`.
    pub k: M::Buf,
    /// Values: `kv_dim`.
    pub v: M::Buf,
    /// Cosines and sines: `rotary.dim`.
    pub table: M::Buf,
    /// A chunk of logits: `logit_numbers` in all.
    pub logits: M::Buf,
    /// Numbers in `logits`.
    pub logit_numbers: usize,
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
        Ok(Self {
            x: alloc(config.hidden, tokens)?,
            h: alloc(config.hidden, tokens)?,
            a: alloc(wide(config), tokens)?,
            b: alloc(wide(config), tokens)?,
            k: alloc(config.kv_dim(), tokens)?,
            v: alloc(config.kv_dim(), tokens)?,
            table: alloc(config.rotary.dim, tokens)?,
            logits: alloc(config.vocab, tokens.min(LOGIT_ROWS))?,
            logit_numbers: config.vocab * tokens.min(LOGIT_ROWS),
        })
    }
}

/// Bytes that a [`Model`](crate::Model) for passes of up to `tokens` tokens takes on the device,
/// the buffer for chunks of logits included.
pub fn activation_bytes(config: &Config, tokens: usize) -> usize {
    let widths = 2 * config.hidden + 2 * wide(config) + 2 * config.kv_dim() + config.rotary.dim;
    let numbers = widths.saturating_mul(tokens).saturating_add(config.vocab * tokens.min(LOGIT_ROWS));
    numbers.saturating_mul(size_of::<f32>())
}

/// Bytes of host memory that [`Model::forward`](crate::Model::forward) takes to return `rows` rows of
/// logits: the rows themselves and a chunk on its way.
pub fn logits_bytes(config: &Config, rows: usize) -> usize {
    let rows = rows.saturating_add(rows.min(LOGIT_ROWS));
    rows.saturating_mul(config.vocab * size_of::<f32>())
}

/// Width of the buffers that serve the attention first and the feed-forward block then.
fn wide(config: &Config) -> usize {
    config.inner.max(config.query_dim())
}
