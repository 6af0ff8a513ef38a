//! Random Llama and Mixtral checkpoints in the Hugging Face layout, from kilobytes to hundreds of gigabytes.
//!
//! Weights are scaled so that activations keep unit variance and logits have a standard deviation of
//! about 1.5, whatever the size: softmax is neither flat nor a spike, and nothing overflows in half
//! precision. Values come from one block of random numbers written again and again at random offsets,
//! so writing costs a copy and the disk is the limit. Equal arguments give equal bytes.

mod noise;
mod shape;
mod tokenizer;

use half::{bf16, f16};
use noise::Noise;
use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

pub use shape::{Shape, Tensor};

/// How weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// bfloat16.
    Bf16,
}

/// A checkpoint about to be written.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    /// Sizes.
    pub shape: Shape,
    /// Storage of every tensor.
    pub dtype: Dtype,
    /// Number of safetensors files, at least 1.
    pub shards: usize,
    /// Seed of the weights.
    pub seed: u64,
    /// Keys put over the ones of `config.json` (`rope_scaling`, `rope_theta`, …); null removes a key.
    pub config: Map<String, Value>,
}

/// What was written.
#[derive(Debug, Clone)]
pub struct Written {
    /// The safetensors files in order.
    pub files: Vec<PathBuf>,
    /// Bytes of all tensors together.
    pub bytes: u64,
    /// Weights, biases included.
    pub parameters: u64,
}

impl Dtype {
    /// Bytes a weight.
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    fn safetensors(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
        }
    }

    fn torch(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::Bf16 => "bfloat16",
        }
    }

    fn encode(self, values: impl Iterator<Item = f32>) -> Vec<u8> {
        match self {
            Self::F32 => values.flat_map(f32::to_le_bytes).collect(),
            Self::F16 => values.flat_map(|v| f16::from_f32(v).to_le_bytes()).collect(),
            Self::Bf16 => values.flat_map(|v| bf16::from_f32(v).to_le_bytes()).collect(),
        }
    }
}

impl Checkpoint {
    /// bfloat16, one file, seed 0.
    pub fn new(shape: Shape) -> Self {
        Self { shape, dtype: Dtype::Bf16, shards: 1, seed: 0, config: Map::new() }
    }

    /// Sets the storage of the weights.
    pub fn dtype(self, dtype: Dtype) -> Self {
        Self { dtype, ..self }
    }

    /// Sets the number of files; never more than there are tensors.
    pub fn shards(self, shards: usize) -> Self {
        Self { shards, ..self }
    }

    /// Sets the seed.
    pub fn seed(self, seed: u64) -> Self {
        Self { seed, ..self }
    }

    /// Puts a key over the ones of `config.json`; null removes it.
    pub fn config(mut self, key: &str, value: Value) -> Self {
        self.config.insert(key.into(), value);
        self
    }

    /// Writes everything into `dir`, which is created.
    ///
    /// # Errors
    /// A shape that is no Llama model (`InvalidInput`), and whatever the disk says.
    pub fn write(&self, dir: &Path) -> io::Result<Written> {
        self.check()?;
        std::fs::create_dir_all(dir)?;
        let tensors = self.shape.tensors();
        let bytes_of = |t: &Tensor| t.elements() * self.dtype.bytes() as u64;
        let total: u64 = tensors.iter().map(bytes_of).sum();

        // Tensor i goes to the file in which its first byte would lie if files were equally long.
        let shards = self.shards.clamp(1, tensors.len());
        let mut parts: Vec<Vec<&Tensor>> = vec![Vec::new(); shards];
        let mut before = 0u64;
        for tensor in &tensors {
            let part = u128::from(before) * shards as u128 / u128::from(total);
            parts[part as usize].push(tensor);
            before += bytes_of(tensor);
        }
        parts.retain(|part| !part.is_empty());

        let mut noise = Noise::new(self.seed, self.dtype);
        let mut files = Vec::new();
        let mut map = Map::new();
        for (i, part) in parts.iter().enumerate() {
            let name = match parts.len() {
                1 => "model.safetensors".to_owned(),
                n => format!("model-{:05}-of-{n:05}.safetensors", i + 1),
            };
            for tensor in part {
                map.insert(tensor.name.clone(), name.clone().into());
            }
            files.push(dir.join(&name));
            self.write_file(&dir.join(&name), part, &mut noise)?;
        }
        if parts.len() > 1 {
            let index = json!({ "metadata": { "total_size": total }, "weight_map": map });
            write_json(&dir.join("model.safetensors.index.json"), &index)?;
        }
        write_json(&dir.join("config.json"), &self.config_json())?;
        tokenizer::write(dir)?;
        Ok(Written { files, bytes: total, parameters: self.shape.parameters() })
    }

    fn check(&self) -> io::Result<()> {
        let s = &self.shape;
        let wrong = if s.vocab < Shape::MIN_VOCAB {
            format!("a vocabulary of {} tokens: at least {} are needed", s.vocab, Shape::MIN_VOCAB)
        } else if [s.hidden, s.intermediate, s.layers, s.heads, s.kv_heads, s.head_dim].contains(&0) {
            format!("no size may be zero: {s:?}")
        } else if !s.heads.is_multiple_of(s.kv_heads) {
            format!("{} query heads cannot share {} key-value heads", s.heads, s.kv_heads)
        } else if !s.head_dim.is_multiple_of(2) {
            format!("rotary positions need an even head size, not {}", s.head_dim)
        } else {
            return Ok(());
        };
        Err(io::Error::new(io::ErrorKind::InvalidInput, wrong))
    }

    fn write_file(&self, path: &Path, tensors: &[&Tensor], noise: &mut Noise) -> io::Result<()> {
        let mut header = Map::from_iter([("__metadata__".to_owned(), json!({ "format": "pt" }))]);
        let mut at = 0;
        for tensor in tensors {
            let end = at + tensor.elements() * self.dtype.bytes() as u64;
            let entry = json!({
                "dtype": self.dtype.safetensors(),
                "shape": tensor.shape,
                "data_offsets": [at, end],
            });
            header.insert(tensor.name.clone(), entry);
            at = end;
        }
        let mut header = Value::from(header).to_string();
        header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));

        let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(header.as_bytes())?;
        for tensor in tensors {
            noise.write(tensor, &mut file)?;
        }
        file.flush()
    }

    fn config_json(&self) -> Value {
        let s = &self.shape;
        let mut config = json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": s.hidden,
            "intermediate_size": s.intermediate,
            "num_hidden_layers": s.layers,
            "num_attention_heads": s.heads,
            "num_key_value_heads": s.kv_heads,
            "head_dim": s.head_dim,
            "vocab_size": s.vocab,
            "max_position_embeddings": s.context,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "attention_bias": s.attention_bias,
            "mlp_bias": s.mlp_bias,
            "tie_word_embeddings": s.tied,
            "bos_token_id": tokenizer::BOS,
            "eos_token_id": tokenizer::EOS,
            "torch_dtype": self.dtype.torch(),
        });
        if s.experts > 0 {
            for (key, value) in [
                ("architectures", json!(["MixtralForCausalLM"])),
                ("model_type", json!("mixtral")),
                ("num_local_experts", json!(s.experts)),
                ("num_experts_per_tok", json!(s.top_k)),
            ] {
                config[key] = value;
            }
        }
        for (key, value) in &self.config {
            match (value, config.as_object_mut()) {
                (Value::Null, Some(object)) => drop(object.shift_remove(key)),
                _ => config[key] = value.clone(),
            }
        }
        config
    }
}

fn write_json(path: &Path, value: &Value) -> io::Result<()> {
    std::fs::write(path, format!("{value:#}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Header and tensors of a file, read back without the writer's code.
    fn read(path: &Path) -> (Value, Vec<u8>) {
        let bytes = std::fs::read(path).unwrap();
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
        (header, bytes[8 + length..].to_vec())
    }

    #[test]
    fn every_tensor_lies_in_the_file_that_the_index_names() {
        let dir = tempfile::tempdir().unwrap();
        let made = Checkpoint::new(Shape::TINY).shards(3).write(dir.path()).unwrap();
        assert_eq!(made.files.len(), 3);
        let index: Value =
            serde_json::from_slice(&std::fs::read(dir.path().join("model.safetensors.index.json")).unwrap())
                .unwrap();
        for tensor in Shape::TINY.tensors() {
            let file = index["weight_map"][&tensor.name].as_str().unwrap();
            let (header, data) = read(&dir.path().join(file));
            let entry = &header[&tensor.name];
            assert_eq!(entry["shape"], json!(tensor.shape));
            let end = entry["data_offsets"][1].as_u64().unwrap();
            assert!(end <= data.len() as u64, "{}", tensor.name);
        }
        assert_eq!(made.parameters * 2, made.bytes);
    }

    #[test]
    fn weights_have_the_deviation_that_was_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        Checkpoint::new(Shape::TINY).dtype(Dtype::F32).write(dir.path()).unwrap();
        let (header, data) = read(&dir.path().join("model.safetensors"));
        let offsets = &header["model.embed_tokens.weight"]["data_offsets"];
        let range = offsets[0].as_u64().unwrap() as usize..offsets[1].as_u64().unwrap() as usize;
        let values: Vec<f32> =
            data[range].chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        let mean = values.iter().sum::<f32>() / values.len() as f32;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / values.len() as f32;
        assert!(mean.abs() < 0.05 && (variance - 1.0).abs() < 0.05, "mean {mean}, variance {variance}");
    }

    #[test]
    fn seeds_decide_the_bytes() {
        let bytes = |seed| {
            let dir = tempfile::tempdir().unwrap();
            let made = Checkpoint::new(Shape::TINY).seed(seed).write(dir.path()).unwrap();
            std::fs::read(&made.files[0]).unwrap()
        };
        assert_eq!(bytes(1), bytes(1));
        assert_ne!(bytes(1), bytes(2));
    }

    #[test]
    fn shapes_of_a_size_are_that_large() {
        for bytes in [1_000_000, 100_000_000, 2_000_000_000, 15_000_000_000, 140_000_000_000] {
            let shape = Shape::of_size(bytes, Dtype::Bf16);
            let written = shape.parameters() * 2;
            assert!((bytes..bytes + bytes / 2).contains(&written), "{bytes}: {written}, {shape:?}");
        }
    }

    #[test]
    fn config_keys_are_replaced_and_removed() {
        let config = Checkpoint::new(Shape::TINY)
            .config("rope_theta", json!(500000.0))
            .config("head_dim", Value::Null)
            .config_json();
        assert_eq!(config["rope_theta"], 500000.0);
        assert_eq!(config.get("head_dim"), None);
        assert_eq!(config["hidden_size"], 64);
    }
}
