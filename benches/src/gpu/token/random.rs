//! A model of random weights that nobody has written: its catalog, and a source that makes the bytes as they are read.

use airllm_format::{LayerSource, NumFormat, Result};
use airllm_model::arch::Role;
use airllm_model::{Config, TensorDecl, UnitDecl};
use airllm_stream::{Catalog, Tensor, TensorId, Unit};
use serde_json::json;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Rows of a matrix before they come again, in another order for each matrix.
const ROWS: usize = 64;
/// Tensors start at multiples of this, as those of shards do.
const TENSOR_ALIGNMENT: u64 = 256;
/// What a reader asks for at best, and no file's offset needs more.
const ALIGNMENT: usize = 4096;
/// Bytes written at once.
const BLOCK: usize = 8 << 20;

/// Sizes of a Llama model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) hidden: usize,
    pub(super) inner: usize,
    pub(super) layers: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) vocab: usize,
}

impl Shape {
    /// Llama 2 of 70 billion weights.
    pub(super) const B70: Shape =
        Shape { hidden: 8192, inner: 28672, layers: 80, heads: 64, kv_heads: 8, vocab: 32_000 };
    /// Llama 3.1 of 405 billion weights.
    pub(super) const B405: Shape =
        Shape { hidden: 16384, inner: 53248, layers: 126, heads: 128, kv_heads: 8, vocab: 128_256 };
    /// For a device that computes on the host.
    pub(super) const QUICK: Shape =
        Shape { hidden: 128, inner: 256, layers: 6, heads: 4, kv_heads: 2, vocab: 264 };

    /// Its configuration.
    pub(super) fn config(self) -> Config {
        let config = json!({
            "architectures": ["LlamaForCausalLM"], "hidden_size": self.hidden, "intermediate_size": self.inner,
            "num_hidden_layers": self.layers, "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads, "vocab_size": self.vocab, "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5, "tie_word_embeddings": false,
        });
        Config::parse(&config).expect("a configuration of sizes that are published")
    }
}

/// How a tensor is stored where `format` is asked for: vectors in f32, embedding and head in no less than 6 bits, as preparing
/// does.
fn stored(decl: &TensorDecl, format: NumFormat) -> NumFormat {
    let floor = match decl.role {
        Role::Embed | Role::Head => decl.floor.min(NumFormat::Q6),
        _ => decl.floor,
    };
    floor.min(format)
}

/// The catalog of what a configuration declares: a file for each unit.
pub(super) fn catalog(config: &Config, format: NumFormat) -> Catalog {
    let unit = |(file, decl): (usize, UnitDecl)| {
        let mut end = 0;
        let tensors = decl.tensors.iter().map(|decl| {
            let tensor = Tensor {
                name: decl.name.clone(),
                file,
                offset: u64::next_multiple_of(end, TENSOR_ALIGNMENT),
                format: stored(decl, format),
                rows: decl.rows(),
                cols: decl.cols(),
                checksum: None,
            };
            end = tensor.offset + tensor.bytes() as u64;
            tensor
        });
        Unit { tensors: tensors.collect(), name: decl.name, on_demand: decl.on_demand }
    };
    let units = config.units().into_iter().enumerate().map(unit).collect();
    let mut catalog = Catalog { units, pass: Vec::new() };
    let pass = config.pass();
    let id = |(unit, tensor): &(String, String)| catalog.find(unit, tensor);
    let pass: Option<Vec<TensorId>> = pass.iter().map(id).collect();
    catalog.pass = pass.expect("a pass of declared tensors");
    catalog
}

/// Bytes of a catalog's file, its last tensor's end.
fn length(unit: &Unit) -> u64 {
    unit.tensors.last().map_or(0, |last| last.offset + last.bytes() as u64)
}

/// Makes the bytes of a catalog: weights that keep the variance of what they multiply, norms about 1.
///
/// A few rows of each kind are random and packed like any weights, and follow each other over and over, so that bytes are
/// made as fast as they are copied.
pub(super) struct Random {
    units: Vec<Unit>,
    rows: HashMap<(NumFormat, usize), Vec<u8>>,
}

impl Random {
    /// For all units of a catalog as [`catalog`] makes it.
    pub(super) fn new(catalog: &Catalog) -> Random {
        let mut rows = HashMap::new();
        for tensor in catalog.units.iter().flat_map(|unit| &unit.tensors) {
            let (format, cols) = (tensor.format, tensor.cols);
            rows.entry((format, cols)).or_insert_with(|| match format {
                NumFormat::F32 => packed(format, ROWS, cols, 0.1, 1.0),
                _ => packed(format, ROWS, cols, (3.0 / cols as f32).sqrt(), 0.0),
            });
        }
        Random { units: catalog.units.clone(), rows }
    }

    /// Writes its files to a folder, and waits until they are on the disk.
    pub(super) fn write(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        std::fs::create_dir_all(dir)?;
        let mut block = vec![0; BLOCK];
        let mut paths = Vec::new();
        for (number, unit) in self.units.iter().enumerate() {
            let path = dir.join(&unit.name);
            let mut file = File::create(&path)?;
            let end = length(unit);
            for at in (0..end).step_by(BLOCK) {
                let part = &mut block[..BLOCK.min((end - at) as usize)];
                self.read_at(number, at, part).map_err(io::Error::other)?;
                file.write_all(part)?;
            }
            file.sync_all()?;
            paths.push(path);
        }
        Ok(paths)
    }
}

impl LayerSource for Random {
    fn files(&self) -> usize {
        self.units.len()
    }

    fn name(&self, file: usize) -> &str {
        &self.units[file].name
    }

    fn len(&self, file: usize) -> u64 {
        length(&self.units[file])
    }

    fn alignment(&self) -> usize {
        ALIGNMENT
    }

    fn read_at(&self, file: usize, offset: u64, buf: &mut [u8]) -> Result<()> {
        let mut done = 0;
        for (number, tensor) in self.units[file].tensors.iter().enumerate() {
            let at = offset + done as u64;
            let end = tensor.offset + tensor.bytes() as u64;
            if end <= at || done == buf.len() {
                continue;
            }
            // Between tensors lie zeros.
            let gap = (tensor.offset.saturating_sub(at) as usize).min(buf.len() - done);
            buf[done..done + gap].fill(0);
            done += gap;
            let from = (offset + done as u64).saturating_sub(tensor.offset);
            let count = ((end - tensor.offset - from) as usize).min(buf.len() - done);
            let rows = &self.rows[&(tensor.format, tensor.cols)];
            let first = (file * 7 + number * 13) % ROWS * tensor.row_bytes();
            repeat(rows, first as u64 + from, &mut buf[done..done + count]);
            done += count;
        }
        buf[done..].fill(0);
        Ok(())
    }
}

/// What lies at a position of `block`, over and over.
fn repeat(block: &[u8], position: u64, out: &mut [u8]) {
    let mut at = (position % block.len() as u64) as usize;
    let mut rest = out;
    while !rest.is_empty() {
        let (part, after) = rest.split_at_mut(rest.len().min(block.len() - at));
        part.copy_from_slice(&block[at..at + part.len()]);
        (rest, at) = (after, 0);
    }
}

/// Packed rows of random numbers no further than `width` from `middle`.
fn packed(format: NumFormat, rows: usize, cols: usize, width: f32, middle: f32) -> Vec<u8> {
    let row_bytes = format.row_bytes(cols);
    let mut out = vec![0; rows * row_bytes];
    for (seed, row) in out.chunks_mut(row_bytes).enumerate() {
        let words = crate::gpu::random(cols * 4, (cols + seed) as u64 + 1);
        let number = |word: &[u8; 4]| i32::from_le_bytes(*word) as f32 / -(i32::MIN as f32) * width + middle;
        let numbers: Vec<f32> = words.as_chunks().0.iter().map(number).collect();
        airllm_quant::pack_row(format, &numbers, row).expect("finite weights of the right size");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use airllm_format::{FileSource, ReadMethod};

    #[test]
    fn shapes_are_those_of_their_models() {
        for (shape, weights, bytes) in [(Shape::B70, 69.0e9, 37.0e9), (Shape::B405, 405.9e9, 218.0e9)] {
            let catalog = catalog(&shape.config(), NumFormat::Q4);
            let tensors = || catalog.units.iter().flat_map(|unit| &unit.tensors);
            let count: usize = tensors().map(|tensor| tensor.rows * tensor.cols).sum();
            assert!((count as f64 / weights - 1.0).abs() < 0.01, "{count}");
            let sum: usize = tensors().map(Tensor::bytes).sum();
            assert!((sum as f64 / bytes - 1.0).abs() < 0.02, "{sum}");
            // Every matrix of a layer has the width that is asked for.
            let layer = catalog.units.iter().find(|unit| unit.name == "layer.0").unwrap();
            let matrices = layer.tensors.iter().filter(|tensor| tensor.rows > 1);
            assert_eq!(matrices.filter(|tensor| tensor.format == NumFormat::Q4).count(), 7);
        }
    }

    #[test]
    fn any_part_is_the_part_of_the_whole_and_of_the_file() {
        let catalog = catalog(&Shape::QUICK.config(), NumFormat::Q4);
        let source = Random::new(&catalog);
        let dir = tempfile::tempdir().unwrap();
        let files = FileSource::open(&source.write(dir.path()).unwrap(), ReadMethod::Buffered).unwrap();
        for file in 0..source.files() {
            let mut whole = vec![1; source.len(file) as usize];
            source.read_at(file, 0, &mut whole).unwrap();
            for (offset, length) in [(0, 1), (5, 700), (256, 4096), (whole.len() / 2, whole.len() / 3)] {
                let (mut part, mut read) = (vec![2; length], vec![3; length]);
                source.read_at(file, offset as u64, &mut part).unwrap();
                assert_eq!(part, whole[offset..offset + length], "{file}: {length} bytes at {offset}");
                files.read_at(file, offset as u64, &mut read).unwrap();
                assert_eq!(read, part);
            }
        }
    }

    #[test]
    fn weights_are_random_and_of_a_sane_size() {
        let catalog = catalog(&Shape::QUICK.config(), NumFormat::Q4);
        let source = Random::new(&catalog);
        let layer = catalog.units.iter().position(|unit| unit.name == "layer.1").unwrap();
        for tensor in &catalog.units[layer].tensors {
            let mut rows = vec![0; tensor.bytes()];
            source.read_at(layer, tensor.offset, &mut rows).unwrap();
            let numbers: Vec<f32> = rows
                .chunks(tensor.row_bytes())
                .flat_map(|row| {
                    let mut out = vec![0.0; tensor.cols];
                    airllm_quant::unpack_row(tensor.format, row, &mut out).unwrap();
                    out
                })
                .collect();
            let count = numbers.len() as f32;
            let mean = numbers.iter().sum::<f32>() / count;
            let square = numbers.iter().map(|n| n * n).sum::<f32>() / count;
            match tensor.rows {
                1 => assert!((mean - 1.0).abs() < 0.05, "{}: {mean}", tensor.name),
                // A product of numbers of variance 1 has variance 1.
                _ => {
                    assert!((square * tensor.cols as f32 - 1.0).abs() < 0.15, "{}: {square}", tensor.name);
                    // Some pad the rows.
                    let zeros = rows.iter().filter(|&&byte| byte == 0).count();
                    assert!(zeros * 4 < rows.len(), "{}: {zeros} of {}", tensor.name, rows.len());
                }
            }
        }
        // Matrices of one shape differ.
        let named = |name: &str| {
            let tensor = &catalog.units[layer].tensors.iter().find(|tensor| tensor.name == name).unwrap();
            let mut rows = vec![0; tensor.bytes()];
            source.read_at(layer, tensor.offset, &mut rows).unwrap();
            rows
        };
        assert_ne!(named("gate"), named("up"));
    }
}
