//! The reference checkpoints as GGUF files: the same model, seen through another container.

use airllm_format::{NumFormat, Repo};
use airllm_tests::gguf::{Convert, Kind, convert};
use airllm_tests::shared;
use airllm_text::{GgufVocabulary, Tokenizer};
use serde_json::Value;
use std::path::Path;

/// Fixtures that GGUF files can express, and what their architecture becomes.
const FIXTURES: &[(&str, &str)] = &[
    ("llama2_mha", "LlamaForCausalLM"),
    ("llama32_gqa_tied", "LlamaForCausalLM"),
    ("llama_bias", "LlamaForCausalLM"),
    ("llama_f32", "LlamaForCausalLM"),
    ("llama_rope_linear", "LlamaForCausalLM"),
    ("llama_rope_yarn", "LlamaForCausalLM"),
    ("llama_v5_config", "LlamaForCausalLM"),
    ("mistral_swa", "MistralForCausalLM"),
    ("mixtral", "MixtralForCausalLM"),
    ("qwen2", "Qwen2ForCausalLM"),
    ("qwen3", "Qwen3ForCausalLM"),
    ("qwen2_moe", "Qwen2MoeForCausalLM"),
    ("qwen3_moe", "Qwen3MoeForCausalLM"),
    ("chatglm", "ChatGLMModel"),
    ("chatglm_rope_ratio", "ChatGLMModel"),
    ("glm_native", "GlmForCausalLM"),
    ("glm4_native", "Glm4ForCausalLM"),
    ("baichuan_7b", "LlamaForCausalLM"),
    ("gemma2", "Gemma2ForCausalLM"),
    ("gemma3_text", "Gemma3ForCausalLM"),
    ("phi3", "Phi3ForCausalLM"),
    ("phi3_longrope", "Phi3ForCausalLM"),
];

/// The checkpoint of a fixture, and the same as a GGUF file.
fn both(shared: &Path, name: &str, how: Convert) -> (Repo, Repo) {
    let dir = shared.join("fixtures").join(name);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    convert(&dir, how).unwrap_or_else(|error| panic!("{name}: {error}")).write(&path).unwrap();
    let gguf = Repo::open(&path).unwrap_or_else(|error| panic!("{name}: {error}"));
    (Repo::open(&dir).unwrap(), gguf)
}

fn numbers(repo: &Repo, name: &str) -> Vec<f32> {
    let info = &repo.tensor(name).unwrap_or_else(|| panic!("no {name}")).info;
    let mut bytes = vec![0; info.bytes as usize];
    repo.read(name, 0..info.bytes, &mut bytes).unwrap();
    let halves = || bytes.as_chunks::<2>().0.iter().map(|pair| u16::from_le_bytes(*pair));
    match info.dtype.format().unwrap() {
        NumFormat::F32 => bytes.as_chunks::<4>().0.iter().map(|four| f32::from_le_bytes(*four)).collect(),
        NumFormat::F16 => halves().map(|bits| half::f16::from_bits(bits).to_f32()).collect(),
        NumFormat::Bf16 => halves().map(|bits| half::bf16::from_bits(bits).to_f32()).collect(),
        other => panic!("{name} is {other}"),
    }
}

/// Rows in which rotary embedding turns neighbours, in the order in which it turns halves.
fn halves(numbers: &[f32], head: usize, cols: usize) -> Vec<f32> {
    let rows: Vec<&[f32]> = numbers.chunks_exact(cols).collect();
    let order = |row: usize| row / head * head + row % head % (head / 2) * 2 + row % head / (head / 2);
    (0..rows.len()).flat_map(|row| rows[order(row)].to_vec()).collect()
}

#[test]
fn weights_are_found_under_their_names_and_are_what_they_were() {
    let Some(shared) = shared::dir() else { return };
    for (name, _) in FIXTURES {
        let (hf, gguf) = both(&shared, name, Convert { kind: Kind::F32, tokenizer: false });
        let config = gguf.config();
        let head = config["head_dim"].as_u64().unwrap_or(0) as usize;
        let mut compared = 0;
        for tensor in hf.tensors() {
            let name = &tensor.info.name;
            if name.contains("inv_freq") || name.contains("W_pack") {
                continue;
            }
            let found = gguf.tensor(name).unwrap_or_else(|| panic!("no {name}"));
            assert_eq!(found.info.shape, tensor.info.shape, "{name}");
            let mut values = numbers(&gguf, name);
            let cols = if tensor.info.shape.len() == 1 { 1 } else { tensor.info.shape[1] };
            if config["rope_interleaved"] == true && (name.contains("q_proj") || name.contains("k_proj")) {
                values = halves(&values, head, cols);
            }
            let offset =
                if config["norm_offset_folded"] == true && name.ends_with("norm.weight") { 1.0 } else { 0.0 };
            let expected: Vec<f32> = numbers(&hf, name).into_iter().map(|n| n + offset).collect();
            assert!(values == expected, "{name}");
            compared += 1;
        }
        assert!(compared > 10, "{name}: {compared}");
        let extra = |name: &str| hf.tensor(name).is_none() && !name.starts_with("rope_");
        let more: Vec<&str> =
            gguf.tensors().map(|t| t.info.name.as_str()).filter(|name| extra(name)).collect();
        assert!(more.is_empty() || *name == "baichuan_7b", "{name}: {more:?}");
    }
}

#[test]
fn configurations_say_the_same() {
    let Some(shared) = shared::dir() else { return };
    for (name, architecture) in FIXTURES {
        let (hf, gguf) = both(&shared, name, Convert { kind: Kind::F16, tokenizer: true });
        let (expected, found) = (hf.config(), gguf.config());
        assert_eq!(found["architectures"][0], *architecture, "{name}");
        // What means the same by default, or only in this container.
        let other = |key: &str| {
            [
                "architectures",
                "model_type",
                "rope_scaling",
                "rope_theta",
                "eos_token_id",
                "attn_implementation",
            ]
            .contains(&key)
        };
        let mut compared = 0;
        for (key, value) in expected.as_object().unwrap() {
            if other(key) || found.get(key).is_none() || value.is_null() {
                continue;
            }
            if key == "sliding_window" && expected["use_sliding_window"] == false {
                continue;
            }
            compared += 1;
            match (value.as_f64(), found[key].as_f64()) {
                (Some(a), Some(b)) => assert!((a - b).abs() <= 1e-6 * a.abs(), "{name}: {key}: {a}, {b}"),
                _ => assert_eq!(&found[key], value, "{name}: {key}"),
            }
        }
        assert!(compared >= 8, "{name}: {compared}");
        if *architecture != "ChatGLMModel" {
            let inner = expected.get("rope_parameters").and_then(|inner| inner.get("rope_theta"));
            let theta = inner.or(expected.get("rope_theta")).and_then(Value::as_f64).unwrap_or(10_000.0);
            assert_eq!(found["rope_theta"].as_f64(), Some(theta), "{name}");
        }
        for key in ["num_local_experts", "num_experts", "moe_intermediate_size", "final_logit_softcapping"] {
            assert_eq!(expected.get(key).is_some(), found.get(key).is_some(), "{name}: {key}");
        }
        let ends = |value: &Value| match value {
            Value::Array(list) => list.clone(),
            Value::Null => Vec::new(),
            one => vec![one.clone()],
        };
        for end in ends(&expected["eos_token_id"]) {
            let all = ends(&gguf.generation_config().unwrap()["eos_token_id"]);
            assert!(all.contains(&end), "{name}: {end} not in {all:?}");
        }
        let kind = |config: &Value| {
            let inner = ["rope_scaling", "rope_parameters"].map(|key| &config[key]);
            let inner = inner.into_iter().find(|inner| inner.is_object())?;
            inner.get("rope_type").or(inner.get("type"))?.as_str().map(str::to_owned)
        };
        let expected = kind(expected).map(|kind| if kind == "llama3" { "factors".to_owned() } else { kind });
        assert_eq!(kind(found), expected.filter(|kind| kind != "default"), "{name}");
    }
}

#[test]
fn quantised_rows_keep_their_format() {
    let Some(shared) = shared::dir() else { return };
    for (kind, format) in [
        (Kind::Q8_0, NumFormat::Q8_0),
        (Kind::Q4_0, NumFormat::Q4_0),
        (Kind::Q4K, NumFormat::Q4K),
        (Kind::Q6K, NumFormat::Q6K),
    ] {
        let (hf, gguf) = both(&shared, "llama32_gqa_tied", Convert { kind, tokenizer: false });
        let name = "model.layers.1.mlp.down_proj.weight";
        let (whole, packed) = (&hf.tensor(name).unwrap().info, &gguf.tensor(name).unwrap().info);
        assert_eq!((packed.dtype.format(), &packed.shape), (Some(format), &whole.shape));
        assert_eq!(packed.bytes, (whole.shape[0] * format.row_bytes(whole.shape[1])) as u64);
    }
}

#[test]
fn tokenizers_give_the_ids_of_the_checkpoint() {
    let Some(shared) = shared::dir() else { return };
    let (mut files, mut cases) = (0, 0);
    for (name, _) in FIXTURES {
        if name.starts_with("chatglm") || name.starts_with("baichuan") {
            // Their own code, not their files, says which special tokens there are.
            continue;
        }
        let dir = shared.join("fixtures").join(name);
        let (_, gguf) = both(&shared, name, Convert { kind: Kind::F16, tokenizer: true });
        let metadata = gguf.gguf().unwrap().metadata().to_json("tokenizer.");
        let vocabulary = GgufVocabulary::from_metadata(&metadata).unwrap();
        let tokenizer = Tokenizer::from_gguf(vocabulary).unwrap_or_else(|error| panic!("{name}: {error}"));
        let golden: Value =
            serde_json::from_slice(&std::fs::read(dir.join("tokenizer_golden.json")).unwrap()).unwrap();
        for case in golden["cases"].as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            let ids: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
            assert_eq!(tokenizer.encode(text, false).unwrap(), ids, "{name}: {text:?}");
            // SentencePiece gives special tokens no text, `tokenizer.json` does.
            if !ids.iter().any(|id| tokenizer.is_special(*id)) {
                assert_eq!(
                    tokenizer.decode(&ids, false),
                    case["decoded"].as_str().unwrap(),
                    "{name}: {text:?}"
                );
            }
            cases += 1;
        }
        files += 1;
    }
    println!("{cases} texts with {files} tokenizers");
}
