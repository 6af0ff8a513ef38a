//! The key/value cache of one sequence.

use crate::{Config, Error, Result};
use airllm_kernels::Ops;

/// One sequence: the keys and values of the tokens it holds, for every layer, in f32.
///
/// Keys are stored turned by their position, as the reference implementation keeps them.
pub struct Sequence<D: Ops> {
    /// Keys and values of each layer, both `[capacity, kv_heads, head_dim]`.
    pub(crate) layers: Vec<(D::Buf, D::Buf)>,
    len: usize,
    capacity: usize,
}

impl<D: Ops> Sequence<D> {
    /// An empty sequence with room for `capacity` tokens. Takes [`kv_bytes`] of the device at once.
    pub fn new(device: &D, config: &Config, capacity: usize) -> Result<Self> {
        let bytes = capacity.checked_mul(config.kv_dim() * size_of::<f32>());
        let Some(bytes) = bytes.filter(|&bytes| bytes > 0) else {
            return Err(Error::Input(format!("a cache cannot have room for {capacity} tokens")));
        };
        let layer = |_| Ok((device.alloc(bytes)?, device.alloc(bytes)?));
        let layers = (0..config.layers).map(layer).collect::<Result<_>>()?;
        Ok(Self { layers, len: 0, capacity })
    }

    /// Tokens it holds.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds no token.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Tokens it has room for.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Forgets every token from position `len` on; does nothing where there are none.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    pub(crate) fn grow(&mut self, tokens: usize) {
        self.len = (self.len + tokens).min(self.capacity);
    }
}

/// Bytes that a [`Sequence`] with room for `tokens` tokens takes on the device.
pub fn kv_bytes(config: &Config, tokens: usize) -> usize {
    let token = 2 * config.layers * config.kv_dim() * size_of::<f32>();
    token.saturating_mul(tokens)
}
