//! What there is to stream: tensors at offsets of files, grouped into units, in the order of a pass.

use airllm_format::NumFormat;

/// One tensor: `rows` packed rows, one after the other, at `offset` of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    /// Name for messages and for binding ("q", "attn_norm").
    pub name: String,
    /// Index of the file in the [`LayerSource`](airllm_format::LayerSource).
    pub file: usize,
    /// Byte offset of the first row in that file.
    pub offset: u64,
    /// How each row is packed.
    pub format: NumFormat,
    /// Rows; 1 for a vector.
    pub rows: usize,
    /// Numbers in a row.
    pub cols: usize,
    /// Wrapping sum over rows of `xxh3_64(row bytes, seed = row index)`, checked when the rows first
    /// pass by; `None` where the file has no checksums.
    pub checksum: Option<u64>,
}

impl Tensor {
    /// Bytes of one row.
    pub fn row_bytes(&self) -> usize {
        self.format.row_bytes(self.cols)
    }

    /// Bytes of all rows.
    pub fn bytes(&self) -> usize {
        self.rows * self.row_bytes()
    }
}

/// Tensors that live and move together: a layer, the embedding, the head, an expert.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// Name for tables ("embed", "layer.17", "head").
    pub name: String,
    /// Its tensors, in the order of their bytes and of their use.
    pub tensors: Vec<Tensor>,
    /// Read only when requested: an expert, which a pass may or may not use. None of its tensors is in
    /// [`Catalog::pass`].
    pub on_demand: bool,
}

impl Unit {
    /// Bytes of all its tensors.
    pub fn bytes(&self) -> usize {
        self.tensors.iter().map(Tensor::bytes).sum()
    }
}

/// Names one tensor of a [`Catalog`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TensorId {
    /// Index into [`Catalog::units`].
    pub unit: usize,
    /// Index into [`Unit::tensors`].
    pub tensor: usize,
}

/// Everything a model streams, and in which order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Catalog {
    /// The units. Each is pinned in memory or streamed as a whole.
    pub units: Vec<Unit>,
    /// The tensors of one pass, in the order of use; cyclic over passes. A tensor that is only ever
    /// gathered row by row (an untied embedding) is not in it, nor is any of a unit that is read
    /// [on demand](Unit::on_demand); one that is used twice may be.
    pub pass: Vec<TensorId>,
}

impl Catalog {
    /// The tensor that `id` names, if there is one.
    pub fn get(&self, id: TensorId) -> Option<&Tensor> {
        self.units.get(id.unit)?.tensors.get(id.tensor)
    }

    /// Finds a tensor by the names of its unit and itself.
    pub fn find(&self, unit: &str, tensor: &str) -> Option<TensorId> {
        let unit = self.units.iter().position(|u| u.name == unit)?;
        let tensor = self.units[unit].tensors.iter().position(|t| t.name == tensor)?;
        Some(TensorId { unit, tensor })
    }
}
