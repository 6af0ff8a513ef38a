//! The key/value cache of one sequence.

use crate::{Config, Error, Result};
use airllm_kernels::{Heads, KvFormat, Ops};

/// One sequence: the keys and values of the tokens it holds, for every layer.
///
/// Keys are stored turned by their position, as the reference implementation keeps them.
pub struct Sequence<D: Ops> {
    /// Keys `[capacity, kv_heads, head_dim]` and values `[capacity, kv_heads, value_dim]` of each layer.
    pub(crate) layers: Vec<(D::Buf, D::Buf)>,
    format: KvFormat,
    len: usize,
    capacity: usize,
}

impl<D: Ops> Sequence<D> {
    /// An empty sequence with room for `capacity` tokens, stored as `format`. Takes [`kv_bytes`] of the device at once.
    pub fn new(device: &D, config: &Config, format: KvFormat, capacity: usize) -> Result<Self> {
        let bytes = |row: usize| {
            let bytes = capacity.checked_mul(row).filter(|&bytes| bytes > 0);
            bytes.ok_or_else(|| Error::Input(format!("a cache cannot have room for {capacity} tokens")))
        };
        let [keys, values] = rows(config, format);
        let (keys, values) = (bytes(keys.row_bytes())?, bytes(values.row_bytes())?);
        let layer = |_| Ok((device.alloc(keys)?, device.alloc(values)?));
        let layers = (0..config.layers).map(layer).collect::<Result<_>>()?;
        Ok(Self { layers, format, len: 0, capacity })
    }

    /// One whose every layer writes to the same place: for a walk that is done with a layer before the next. In f32.
    pub(crate) fn of_one_layer(device: &D, config: &Config, capacity: usize) -> Result<Self> {
        let format = KvFormat::F32;
        let [keys, values] =
            rows(config, format).map(|row| device.alloc(capacity.saturating_mul(row.row_bytes())));
        Ok(Self { layers: vec![(keys?, values?)], format, len: 0, capacity })
    }

    /// Keys and values of a layer.
    pub(crate) fn layer(&mut self, layer: usize) -> &mut (D::Buf, D::Buf) {
        let index = if self.layers.len() == 1 { 0 } else { layer };
        &mut self.layers[index]
    }

    /// How keys and values are stored.
    pub fn format(&self) -> KvFormat {
        self.format
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

/// What a position of a layer's cache is: keys, and values.
pub(crate) fn rows(config: &Config, cache: KvFormat) -> [Heads; 2] {
    [config.head_dim, config.value_dim].map(|dim| Heads { heads: config.kv_heads, dim, cache })
}

/// Bytes that a [`Sequence`] with room for `tokens` tokens takes on the device, stored as `format`.
pub fn kv_bytes(config: &Config, format: KvFormat, tokens: usize) -> usize {
    let rows = rows(config, format).into_iter().fold(0, |bytes, row| row.row_bytes().saturating_add(bytes));
    config.layers.saturating_mul(rows).saturating_mul(tokens)
}
