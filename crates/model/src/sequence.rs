//! The key/value cache of one sequence.

use crate::{Config, Error, Result};
use airllm_kernels::Ops;

/// One sequence: the keys and values of the tokens it holds, for every layer, in f32.
///
/// Keys are stored turned by their position, as the reference implementation keeps them.
pub struct Sequence<D: Ops> {
    /// Keys `[capacity, kv_heads, head_dim]` and values `[capacity, kv_heads, value_dim]` of each layer.
    pub(crate) layers: Vec<(D::Buf, D::Buf)>,
    len: usize,
    capacity: usize,
}

impl<D: Ops> Sequence<D> {
    /// An empty sequence with room for `capacity` tokens. Takes [`kv_bytes`] of the device at once.
    pub fn new(device: &D, config: &Config, capacity: usize) -> Result<Self> {
        let bytes = |width: usize| {
            let bytes = capacity.checked_mul(width * size_of::<f32>()).filter(|&bytes| bytes > 0);
            bytes.ok_or_else(|| Error::Input(format!("a cache cannot have room for {capacity} tokens")))
        };
        let (keys, values) = (bytes(config.key_dim())?, bytes(config.value_width())?);
        let layer = |_| Ok((device.alloc(keys)?, device.alloc(values)?));
        let layers = (0..config.layers).map(layer).collect::<Result<_>>()?;
        Ok(Self { layers, len: 0, capacity })
    }

    /// One whose every layer writes to the same place: for a walk that is done with a layer before the next.
    pub(crate) fn of_one_layer(device: &D, config: &Config, capacity: usize) -> Result<Self> {
        let size = |width: usize| capacity.saturating_mul(width * size_of::<f32>());
        let layer = (device.alloc(size(config.key_dim()))?, device.alloc(size(config.value_width()))?);
        Ok(Self { layers: vec![layer], len: 0, capacity })
    }

    /// Keys and values of a layer.
    pub(crate) fn layer(&mut self, layer: usize) -> &mut (D::Buf, D::Buf) {
        let index = if self.layers.len() == 1 { 0 } else { layer };
        &mut self.layers[index]
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
    let token = config.layers * (config.key_dim() + config.value_width()) * size_of::<f32>();
    token.saturating_mul(tokens)
}
