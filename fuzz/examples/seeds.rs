//! Writes the inputs the fuzzer starts from to `fuzz/corpus/TARGET/`: small made ones, and, for each folder
//! given as an argument, the headers, indexes and configurations of the checkpoints in it.

use airllm_format::shard::{ShardTag, ShardWriter, TensorSpec};
use airllm_format::{Bits, Manifest, NumFormat, Recipe, SourceEntry};
use airllm_tests::gguf;
use serde_json::{Value, json};
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let mut count = 0;
    let mut put = |target: &str, bytes: &[u8]| -> std::io::Result<()> {
        let dir = corpus.join(target);
        fs::create_dir_all(&dir)?;
        count += 1;
        fs::write(dir.join(format!("seed-{count}")), bytes)
    };
    headers(&mut put)?;
    put(
        "index",
        &serde_json::to_vec(&json!({
            "metadata": { "total_size": 10 },
            "weight_map": { "a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors" },
        }))?,
    )?;
    for config in configs() {
        put("config", &serde_json::to_vec(&config)?)?;
    }
    ggufs(&mut put)?;
    let manifest = manifest()?;
    put("manifest", &manifest)?;
    let mut body: Value = serde_json::from_slice(&manifest)?;
    body.as_object_mut().map(|o| o.remove("xxh3"));
    put("manifest", &serde_json::to_vec(&body)?)?;
    for folder in std::env::args_os().skip(1) {
        checkpoints(Path::new(&folder), &mut put)?;
    }
    println!("{count} seeds in {}", corpus.display());
    Ok(())
}

type Put<'a> = &'a mut dyn FnMut(&str, &[u8]) -> std::io::Result<()>;

/// Headers in the short form of the target: a zero byte, the length of the data, JSON.
fn headers(put: Put) -> Result<(), Box<dyn Error>> {
    for (len, json) in [
        (0u16, json!({})),
        (
            12,
            json!({ "__metadata__": { "format": "pt" }, "w": { "dtype": "F16", "shape": [2, 3], "data_offsets": [0, 12] } }),
        ),
        (
            24,
            json!({
                "a": { "dtype": "F32", "shape": [], "data_offsets": [0, 4] },
                "b": { "dtype": "I64", "shape": [2], "data_offsets": [4, 20] },
                "c": { "dtype": "F4", "shape": [8, 1], "data_offsets": [20, 24] },
            }),
        ),
    ] {
        let mut bytes = vec![0];
        bytes.extend_from_slice(&len.to_le_bytes());
        bytes.extend_from_slice(json.to_string().as_bytes());
        put("header", &bytes)?;
    }
    Ok(())
}

/// GGUF files of small models: a dense one and one with experts.
fn ggufs(put: Put) -> Result<(), Box<dyn Error>> {
    for experts in [0, 2] {
        let mut file = gguf::File::new("llama");
        for (key, value) in [("embedding_length", 4), ("block_count", 1), ("attention.head_count", 2)] {
            file.entry(&format!("llama.{key}"), value);
        }
        file.entry("llama.expert_count", experts);
        file.entry("llama.expert_used_count", 1);
        file.entry("llama.rope.freq_base", 10_000f32);
        file.entry("llama.rope.scaling.type", "none");
        file.entry("tokenizer.ggml.model", "gpt2");
        file.entry("tokenizer.ggml.tokens", vec!["a".to_owned(), "b".to_owned()]);
        file.entry("tokenizer.ggml.token_type", vec![1, 3]);
        file.entry("tokenizer.ggml.eos_token_id", 1);
        file.tensor("token_embd.weight", &[2, 4], gguf::Kind::F16, &[1.0; 8])?;
        file.tensor("rope_freqs.weight", &[1], gguf::Kind::F32, &[8.0])?;
        if experts > 0 {
            file.tensor("blk.0.ffn_up_exps.weight", &[2, 1, 32], gguf::Kind::Q8_0, &[1.0; 64])?;
        } else {
            file.tensor("blk.0.ffn_up.weight", &[1, 32], gguf::Kind::Q4_0, &[1.0; 32])?;
        }
        put("gguf", &file.bytes())?;
    }
    Ok(())
}

fn configs() -> Vec<Value> {
    let base = json!({
        "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 176, "vocab_size": 320,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
        "tie_word_embeddings": true, "attention_bias": true, "mlp_bias": false, "torch_dtype": "bfloat16",
        "eos_token_id": [1, 2],
    });
    let scalings = [
        json!({ "rope_scaling": { "type": "linear", "factor": 4.0 } }),
        json!({ "rope_scaling": { "rope_type": "dynamic", "factor": 2.0 } }),
        json!({ "rope_scaling": { "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64,
            "beta_fast": 32, "beta_slow": 1, "attention_factor": 1.1, "mscale": 1.0, "mscale_all_dim": 1.0, "truncate": false } }),
        json!({ "rope_parameters": { "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192 } }),
    ];
    let with = |extra: &Value| {
        let mut config = base.clone();
        if let (Some(config), Some(extra)) = (config.as_object_mut(), extra.as_object()) {
            config.extend(extra.clone());
        }
        config
    };
    std::iter::once(base.clone()).chain(scalings.iter().map(with)).collect()
}

/// A manifest of a shard that was really written.
fn manifest() -> Result<Vec<u8>, Box<dyn Error>> {
    let dir = std::env::temp_dir().join(format!("airllm-fuzz-seeds-{}", std::process::id()));
    let tag = ShardTag { unit: "layer.0".into(), source: "abc".into(), recipe: Recipe::uniform(Bits::Q4).name() };
    let specs = vec![
        TensorSpec { name: "attn_norm".into(), format: NumFormat::F32, shape: vec![32] },
        TensorSpec { name: "q".into(), format: NumFormat::Q4, shape: vec![2, 32] },
    ];
    let mut writer = ShardWriter::create(&dir, "layer.0.safetensors", &tag, specs)?;
    writer.write(&[0; 128 + 2 * 32])?;
    let shard = writer.finish()?;
    let source = SourceEntry { id: Some("org/name".into()), fingerprint: "abc".into() };
    let config = json!({ "hidden_size": 32, "rms_norm_eps": 1e-5 });
    let mut manifest = Manifest::new("LlamaForCausalLM".into(), source, Recipe::uniform(Bits::Q4), config);
    manifest.shards.push(shard);
    let bytes = manifest.to_bytes(Path::new("airllm.json"))?;
    fs::remove_dir_all(&dir)?;
    Ok(bytes)
}

/// Seeds from published checkpoints.
fn checkpoints(folder: &Path, put: Put) -> Result<(), Box<dyn Error>> {
    let mut dirs = vec![folder.to_path_buf()];
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            dirs.push(path);
        }
    }
    for dir in dirs {
        let files: Vec<PathBuf> = fs::read_dir(&dir)?.flatten().map(|e| e.path()).collect();
        for path in files {
            match path.file_name().and_then(|n| n.to_str()) {
                Some("config.json") => put("config", &fs::read(&path)?)?,
                Some("model.safetensors.index.json") => put("index", &fs::read(&path)?)?,
                Some(name) if name.starts_with("model") && name.ends_with(".safetensors") => {
                    let file = fs::read(&path)?;
                    let Some(len) = file.first_chunk::<8>().map(|n| u64::from_le_bytes(*n) as usize) else {
                        continue;
                    };
                    if let (Ok(data), Some(json)) =
                        (u16::try_from(file.len() - 8 - len), file.get(8..8 + len))
                    {
                        put("header", &[&[0], &data.to_le_bytes()[..], json].concat())?;
                    }
                }
                _ => {}
            }
        }
    }
    Ok(())
}
