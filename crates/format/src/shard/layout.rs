//! Where everything in a shard goes. Pure: names and shapes in, offsets and header bytes out.

use crate::manifest::TensorEntry;
use crate::safetensors::{Dtype, MAX_HEADER};
use crate::shard::checksum_hex;
use crate::{Error, NumFormat, Result};
use serde_json::{Map, Value, json};
use std::collections::HashSet;
use std::path::Path;

/// The data section and the length of a shard are multiples of this many bytes.
pub const ALIGNMENT: u64 = 4096;

/// Tensors of a shard start at multiples of this many bytes.
pub const TENSOR_ALIGNMENT: u64 = 256;

/// The most numbers a row may have, and the most rows a tensor may have. Far above any model; keeps the
/// arithmetic of sizes clear of overflow.
const MAX_DIM: usize = 1 << 28;

/// What a tensor of a shard is, before it has bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name in the shard. Names that start with `__` are the shard's own.
    pub name: String,
    /// How its rows are packed.
    pub format: NumFormat,
    /// `[d]`, a vector of one row, or `[rows, cols]`.
    pub shape: Vec<usize>,
}

/// Rows of a tensor, counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Rows; 1 for a vector.
    pub rows: usize,
    /// Numbers in a row.
    pub cols: usize,
    /// Bytes of a row.
    pub row_bytes: usize,
    /// Bytes of all rows.
    pub bytes: u64,
}

impl Geometry {
    /// Counts the rows of a shape `[d]` or `[rows, cols]`.
    ///
    /// `None` if the shape has another number of dimensions, a zero, is far larger than any weight (2^28 in
    /// one dimension), or has rows that are not whole blocks of the format.
    pub fn of(format: NumFormat, shape: &[usize]) -> Option<Self> {
        let (rows, cols) = match *shape {
            [d] => (1, d),
            [rows, cols] => (rows, cols),
            _ => return None,
        };
        let whole = cols.is_multiple_of(format.multiple());
        if rows == 0 || cols == 0 || rows > MAX_DIM || cols > MAX_DIM || !whole {
            return None;
        }
        let row_bytes = format.row_bytes(cols);
        Some(Self { rows, cols, row_bytes, bytes: rows as u64 * row_bytes as u64 })
    }
}

/// What a shard says about itself, so that a later run can tell whether it is the one it would write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardTag {
    /// The unit: "embed", "layer.N" or "head".
    pub unit: String,
    /// Fingerprint of the checkpoint it was made from.
    pub source: String,
    /// The [name](crate::Recipe::name) of the recipe it was made by.
    pub recipe: String,
}

/// Bytes that the file of a shard will have: header, padding and checksums included.
///
/// # Errors
/// [`Error::Malformed`] for names or shapes that a shard cannot have.
pub fn file_bytes(tag: &ShardTag, specs: &[TensorSpec]) -> Result<u64> {
    Ok(Layout::new(tag, specs, Path::new(&tag.unit))?.file_len)
}

/// The offsets of a shard and the bytes in front of its data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Length field, JSON and padding: everything up to the data.
    pub(crate) head: Vec<u8>,
    /// Offset in the file and rows of each tensor.
    pub(crate) tensors: Vec<(u64, Geometry)>,
    /// Offset in the file of `__sums`.
    pub(crate) sums: u64,
    /// Length of the file.
    pub(crate) file_len: u64,
}

impl Layout {
    /// Lays out a shard; `path` is for messages.
    pub(crate) fn new(tag: &ShardTag, specs: &[TensorSpec], path: &Path) -> Result<Self> {
        let fail = |what: String| Err(Error::malformed(path, what));
        let mut names = HashSet::new();
        let mut geometries = Vec::with_capacity(specs.len());
        for spec in specs {
            if spec.name.is_empty() || spec.name.starts_with("__") || !names.insert(&spec.name) {
                return fail(format!(
                    "a shard cannot have a tensor named `{}`: empty, reserved or there twice",
                    spec.name
                ));
            }
            match Geometry::of(spec.format, &spec.shape) {
                Some(g) => geometries.push(g),
                None => {
                    return fail(format!(
                        "tensor `{}` cannot have shape {:?}: [d] or [rows, cols] is needed, 1 to 2^28 each, \
                         rows of {} being whole multiples of {}",
                        spec.name,
                        spec.shape,
                        spec.format,
                        spec.format.multiple()
                    ));
                }
            }
        }
        if specs.is_empty() {
            return fail("a shard needs at least one tensor".to_owned());
        }

        let mut header = Map::new();
        header.insert("__metadata__".to_owned(), metadata(tag, specs));
        let mut at = 0u64;
        let mut pads = 0;
        let mut offsets = Vec::with_capacity(specs.len());
        for (spec, g) in specs.iter().zip(&geometries) {
            let dtype = Dtype::of(spec.format);
            let shape =
                if spec.format.is_quantised() { json!([g.rows, g.row_bytes]) } else { json!(spec.shape) };
            header.insert(spec.name.clone(), entry(dtype, shape, at, g.bytes));
            offsets.push(at);
            at += g.bytes;
            pad(&mut header, &mut at, &mut pads, TENSOR_ALIGNMENT);
        }
        let sums = at;
        let sums_bytes = 8 * specs.len() as u64;
        header.insert("__sums".to_owned(), entry(Dtype::U64, json!([specs.len()]), at, sums_bytes));
        at += sums_bytes;
        pad(&mut header, &mut at, &mut pads, ALIGNMENT);

        let mut json = Value::Object(header).to_string().into_bytes();
        let start = (8 + json.len() as u64).next_multiple_of(ALIGNMENT);
        json.resize(start as usize - 8, b' ');
        if json.len() as u64 > MAX_HEADER {
            return fail(format!("a shard of {} tensors has too large a header", specs.len()));
        }
        let mut head = (json.len() as u64).to_le_bytes().to_vec();
        head.append(&mut json);
        let tensors = offsets.into_iter().map(|o| start + o).zip(geometries).collect();
        Ok(Self { head, tensors, sums: start + sums, file_len: start + at })
    }

    /// The manifest's entries for these tensors.
    pub(crate) fn entries(&self, specs: &[TensorSpec], sums: &[u64]) -> Vec<TensorEntry> {
        let placed = self.tensors.iter().zip(sums);
        specs
            .iter()
            .zip(placed)
            .map(|(spec, ((offset, g), sum))| TensorEntry {
                name: spec.name.clone(),
                format: spec.format,
                shape: spec.shape.clone(),
                offset: *offset,
                bytes: g.bytes,
                checksum: checksum_hex(*sum),
            })
            .collect()
    }
}

/// The strings under `__metadata__`.
fn metadata(tag: &ShardTag, specs: &[TensorSpec]) -> Value {
    let tensors: Vec<Value> = specs
        .iter()
        .map(|s| json!({ "name": s.name, "format": s.format.name(), "shape": s.shape }))
        .collect();
    json!({
        "format": "airllm-shard",
        "version": "1",
        "unit": tag.unit,
        "source": tag.source,
        "bits": tag.recipe,
        "tensors": Value::Array(tensors).to_string(),
    })
}

/// One entry of the header.
fn entry(dtype: Dtype, shape: Value, start: u64, bytes: u64) -> Value {
    json!({ "dtype": dtype.name(), "shape": shape, "data_offsets": [start, start + bytes] })
}

/// Fills up to the next multiple of `to`.
fn pad(header: &mut Map<String, Value>, at: &mut u64, pads: &mut usize, to: u64) {
    let hole = at.next_multiple_of(to) - *at;
    if hole > 0 {
        header.insert(format!("__pad.{pads}"), entry(Dtype::U8, json!([hole]), *at, hole));
        *pads += 1;
        *at += hole;
    }
}
