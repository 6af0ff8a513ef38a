//! Heads of made files, whole and damaged; models as checkpoints.

use super::*;
use crate::safetensors::Dtype;
use crate::{NumFormat, Repo};
use airllm_tests::gguf::{File, Kind, Tensor, Value as Entry};
use proptest::prelude::*;
use serde_json::json;

fn parse(bytes: &[u8]) -> Result<Gguf> {
    Gguf::parse(bytes, bytes.len() as u64, Path::new("x.gguf"))
}

fn refusal(file: &File) -> String {
    parse(&file.bytes()).unwrap_err().to_string()
}

/// A head with every kind of value.
fn values() -> File {
    let mut file = File::new("llama");
    file.entry("a.u8", Entry::U8(200));
    file.entry("a.u16", 60_000u16);
    file.entry("a.u32", 4_000_000_000u32);
    file.entry("a.i32", -7);
    file.entry("a.u64", u64::MAX);
    file.entry("a.f32", 1e-5f32);
    file.entry("a.f64", Entry::F64(0.1));
    file.entry("a.bool", true);
    file.entry("a.text", "你好");
    file.entry("a.texts", vec!["x".to_owned(), String::new()]);
    file.entry("a.bools", Entry::Bools(vec![true, false]));
    file.entry("a.i32s", vec![-1, 2]);
    file.entry("a.f32s", vec![0.5f32, -2.0]);
    file.entry("a.lists", Entry::Lists(vec![Entry::U8s(vec![1, 2]), Entry::Texts(vec!["y".into()])]));
    file
}

#[test]
fn values_of_every_kind() {
    for version in [2, 3] {
        let mut file = values();
        file.version = version;
        let gguf = parse(&file.bytes()).unwrap();
        assert_eq!(gguf.version(), version);
        assert_eq!(gguf.metadata().iter().len(), 15);
        let expected: serde_json::Map<_, _> =
            file.entries.iter().map(|(key, value)| (key.clone(), value.to_json())).collect();
        let found = gguf.metadata().to_json("");
        for (key, value) in expected {
            // The writer gives JSON the double of an f32, the reader the shortest decimal.
            let value = if key == "a.f32" { json!(1e-5) } else { value };
            assert_eq!(found[&key], value, "{key}");
        }
        assert_eq!(gguf.metadata().to_json("a.te"), json!({ "a.text": "你好", "a.texts": ["x", ""] }));
    }
}

#[test]
fn tensors_lie_where_the_table_says() {
    let mut file = values();
    file.alignment = 64;
    file.tensor("one", &[3], Kind::F32, &[1.0, 2.0, 3.0]).unwrap();
    file.tensor("two", &[2, 64], Kind::Q8_0, &[0.5; 128]).unwrap();
    file.tensor("three", &[2, 3, 256], Kind::Q4K, &[0.25; 1536]).unwrap();
    let bytes = file.bytes();
    let gguf = parse(&bytes).unwrap();
    assert!(gguf.data_start().is_multiple_of(64));
    for (made, found) in file.tensors.iter().zip(gguf.tensors()) {
        assert_eq!((&made.name, made.bytes.len() as u64), (&found.name, found.bytes));
        assert!(found.start.is_multiple_of(64));
        assert_eq!(made.shape, found.shape.iter().map(|size| *size as u64).collect::<Vec<_>>());
        assert_eq!(made.bytes, bytes[found.start as usize..(found.start + found.bytes) as usize]);
    }
    assert_eq!(gguf.get("three").unwrap().dtype, Dtype::Packed(NumFormat::Q4K));
}

#[test]
fn a_head_may_come_in_pieces() {
    let mut file = values();
    // Longer than what is read at once.
    file.entry("long", vec!["0123456789".repeat(1000); 300]);
    file.tensor("w", &[1], Kind::F32, &[1.0]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.gguf");
    file.write(&path).unwrap();
    let gguf = Gguf::read(&path).unwrap();
    assert_eq!(gguf.tensors().len(), 1);
    let bytes = file.bytes();
    let message = Gguf::parse(&bytes[..1000], bytes.len() as u64, &path).unwrap_err().to_string();
    assert!(message.contains("longer than the 1000 bytes"), "{message}");

    let copy = dir.path().join("copy.gguf");
    gguf.write_metadata(&copy).unwrap();
    let again = Gguf::read(&copy).unwrap();
    assert_eq!((again.metadata(), again.tensors().len()), (gguf.metadata(), 0));
}

#[test]
fn what_is_wrong_is_named() {
    let plain = || {
        let mut file = File::new("llama");
        file.tensor("w", &[2, 32], Kind::F32, &[0.0; 64]).unwrap();
        file
    };
    let with = |change: &dyn Fn(&mut File)| {
        let mut file = plain();
        change(&mut file);
        refusal(&file)
    };
    for (message, words) in [
        (with(&|f| f.version = 1), "version 1"),
        (with(&|f| f.version = 3u32.swap_bytes()), "big-endian"),
        (with(&|f| f.version = 9), "GGUF version 9; 2 and 3 are read"),
        (with(&|f| f.entry("general.architecture", "x")), "`general.architecture` comes twice"),
        (
            with(&|f| f.entry("general.alignment", 24u32)),
            "`general.alignment` is 24; it should be a power of two",
        ),
        (with(&|f| f.entry("general.alignment", "x")), "expected a whole number, found text"),
        (with(&|f| f.tensors[0].kind = 23), "tensor `w`: stored as IQ4_XS; F32, F16,"),
        (with(&|f| f.tensors[0].kind = 39), "tensor `w`: stored as MXFP4;"),
        (with(&|f| f.tensors[0].kind = 77), "tensor `w`: stored as type 77, which is not known"),
        (with(&|f| f.tensors[0].kind = 12), "rows of 32 numbers are no whole blocks of q4_k, which have 256"),
        (with(&|f| f.tensors[0].shape = vec![]), "has 0 dimensions"),
        (with(&|f| f.tensors[0].shape = vec![1; 5]), "has 5 dimensions"),
        (with(&|f| f.tensors[0].shape = vec![0, 4]), "sizes [4, 0] leave no numbers"),
        (with(&|f| f.tensors[0].shape = vec![1 << 40, 1 << 40]), "more than 2^64 bytes"),
        (
            with(&|f| f.tensors[0].shape = vec![3, 32]),
            "384 bytes at 0 of the data, of which the file has 256",
        ),
        (with(&|f| f.tensors.push(f.tensors[0].clone())), "tensor `w` is there twice"),
        (
            with(&|f| {
                let mut deep = Entry::U8s(vec![]);
                (0..5).for_each(|_| deep = Entry::Lists(vec![deep.clone()]));
                f.entry("deep", deep);
            }),
            "`deep`: lists nested more than 4 deep",
        ),
    ] {
        assert!(message.contains(words), "{message}");
    }
    let bytes = plain().bytes();
    for (from, to, words) in [
        (0, &b"GGML"[..], "no GGUF file"),
        (8, &[0xFF; 8], "tensors are said to follow at 24"),
        (16, &[0xFF; 8], "entries are said to follow at 24"),
        (24, &[0xFF; 8], "a key: 18446744073709551615 bytes at 32, but the file ends"),
        (32, &[0xFF], "a key is not UTF-8 at byte 32"),
        (52, &[13], "`general.architecture`: values of type 13"),
    ] {
        let mut bytes = bytes.clone();
        bytes[from..from + to.len()].copy_from_slice(to);
        let message = parse(&bytes).unwrap_err().to_string();
        assert!(message.contains(words), "{from}: {message}");
    }
    let at = (0..bytes.len()).find(|at| offset_of_w(&bytes, *at)).unwrap();
    for (value, words) in
        [(8u64, "offset 8 is no multiple of the alignment, 32"), (u64::MAX - 31, "truncated")]
    {
        let mut bytes = bytes.clone();
        bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        let message = parse(&bytes).unwrap_err().to_string();
        assert!(message.contains(words), "{message}");
    }
}

/// Whether the row of a tensor `w` with two sizes has its offset there.
fn offset_of_w(bytes: &[u8], at: usize) -> bool {
    // Name length, name, number of sizes, two sizes, type.
    const ROW: usize = 8 + 1 + 4 + 16 + 4;
    at >= ROW && bytes[at - ROW..at - ROW + 9] == [1, 0, 0, 0, 0, 0, 0, 0, b'w']
}

#[test]
fn tensors_may_not_overlap() {
    let mut file = File::new("llama");
    file.tensor("a", &[64], Kind::F32, &[0.0; 64]).unwrap();
    file.tensor("b", &[64], Kind::F32, &[0.0; 64]).unwrap();
    // One that is said to be shorter than it is moves its neighbour into it.
    file.tensors[0].bytes.truncate(64);
    file.tensors[1].bytes.extend([0; 256]);
    let message = refusal(&file);
    assert!(
        message.contains("tensor `b` begins at byte 64 of the data, but `a` before it ends at 256"),
        "{message}"
    );
}

/// A tiny model of that architecture with these tensors of two columns.
fn model(arch: &str, tensors: &[(&str, &[usize])]) -> File {
    let mut file = File::new(arch);
    for (key, value) in [("embedding_length", 4), ("block_count", 1), ("attention.head_count", 2)] {
        file.entry(&format!("{arch}.{key}"), value);
    }
    for (name, shape) in tensors {
        let count: usize = shape.iter().product();
        let numbers: Vec<f32> = (0..count).map(|i| i as f32).collect();
        file.tensor(name, shape, Kind::F32, &numbers).unwrap();
    }
    file
}

fn open(file: &File) -> Result<Repo> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    file.write(&path).unwrap();
    Repo::open(&path)
}

#[test]
fn experts_are_tensors_of_their_own() {
    let mut file = model(
        "llama",
        &[
            ("token_embd.weight", &[3, 4]),
            ("blk.0.ffn_down_exps.weight", &[3, 4, 2]),
            ("rope_freqs.weight", &[1]),
        ],
    );
    file.tensors[2].bytes = 8f32.to_le_bytes().to_vec();
    file.entry("llama.expert_count", 3u32);
    file.entry("llama.expert_used_count", 2u32);
    let repo = open(&file).unwrap();
    let mut bytes = [0; 8];
    repo.read("model.layers.0.block_sparse_moe.experts.2.w2.weight", 8..16, &mut bytes).unwrap();
    assert_eq!(bytes, [18f32.to_le_bytes(), 19f32.to_le_bytes()].concat()[..]);
    let expert = &repo.tensor("model.layers.0.block_sparse_moe.experts.1.w2.weight").unwrap().info;
    assert_eq!((expert.shape.as_slice(), expert.bytes), (&[4, 2][..], 32));
    assert_eq!(repo.tensors().len(), 5);
    let config = repo.config();
    assert_eq!(config["architectures"], json!(["MixtralForCausalLM"]));
    assert_eq!((&config["num_local_experts"], &config["num_experts_per_tok"]), (&json!(3), &json!(2)));
    assert_eq!(config["rope_interleaved"], json!(true));
    assert_eq!(
        config["rope_scaling"],
        json!({ "rope_type": "factors", "tensor": "rope_freqs.weight", "factors": [8.0] })
    );
    assert_eq!(config["tie_word_embeddings"], json!(true));
}

#[test]
fn models_that_are_not_known_keep_their_names() {
    let repo = open(&model("mamba", &[("token_embd.weight", &[3, 4]), ("blk.0.ssm_a", &[2])])).unwrap();
    assert_eq!(repo.config()["architectures"], json!(["gguf:mamba"]));
    assert!(repo.tensor("blk.0.ssm_a").is_some());
}

#[test]
fn families_are_known_by_their_names_and_sizes() {
    let found = |arch: &str, layers: u32, entries: &[&str]| {
        let mut file = File::new(arch);
        file.entry(&format!("{arch}.embedding_length"), 8u32);
        file.entry(&format!("{arch}.attention.head_count"), 2u32);
        file.entry(&format!("{arch}.rope.dimension_count"), if arch == "chatglm" { 2u32 } else { 4 });
        file.entry(&format!("{arch}.block_count"), layers);
        entries.iter().for_each(|key| file.entry(&format!("{arch}.{key}"), 2u32));
        file.tensor("token_embd.weight", &[3, 8], Kind::F32, &[0.0; 24]).unwrap();
        if arch == "chatglm" {
            file.tensor("blk.0.attn_qkv.weight", &[16, 8], Kind::F32, &[0.0; 128]).unwrap();
        }
        let config = open(&file).unwrap().config().clone();
        let name = config["architectures"][0].as_str().unwrap().to_owned();
        (name, config["rope_interleaved"] == true, config["norm_offset_folded"] == true)
    };
    let experts = &["expert_count", "expert_used_count"][..];
    for (arch, layers, entries, name, interleaved, folded) in [
        ("llama", 1, &[][..], "LlamaForCausalLM", true, false),
        ("llama", 1, &["attention.sliding_window"], "MistralForCausalLM", true, false),
        ("llama", 1, experts, "MixtralForCausalLM", true, false),
        ("internlm2", 1, &[], "LlamaForCausalLM", true, false),
        ("baichuan", 32, &[], "LlamaForCausalLM", true, false),
        ("baichuan", 40, &[], "gguf:baichuan", false, false),
        ("baichuan", 32, &["attention.max_alibi_bias"], "gguf:baichuan", false, false),
        ("qwen", 1, &[], "QWenLMHeadModel", false, false),
        ("qwen2", 1, &[], "Qwen2ForCausalLM", false, false),
        ("qwen3", 1, &[], "Qwen3ForCausalLM", false, false),
        ("qwen2moe", 1, experts, "Qwen2MoeForCausalLM", false, false),
        ("qwen3moe", 1, experts, "Qwen3MoeForCausalLM", false, false),
        ("phi3", 1, &[], "Phi3ForCausalLM", false, false),
        ("gemma2", 1, &[], "Gemma2ForCausalLM", false, true),
        ("gemma3", 1, &[], "Gemma3ForCausalLM", false, true),
        ("chatglm", 1, &[], "ChatGLMModel", false, false),
        ("glm4", 1, &[], "Glm4ForCausalLM", false, false),
        ("deepseek2", 1, &[], "gguf:deepseek2", false, false),
    ] {
        assert_eq!(found(arch, layers, entries), (name.to_owned(), interleaved, folded), "{arch}");
    }
}

#[test]
fn entries_that_change_the_mathematics_are_not_ignored() {
    let base = || model("llama", &[("token_embd.weight", &[3, 4])]);
    for (key, value, words) in [
        ("rope.scaling.type", Entry::from("su"), "`llama.rope.scaling.type` is \"su\""),
        ("attention.value_length", 3.into(), "`llama.attention.value_length` differs"),
        ("attention.head_count_kv", vec![1, 2].into(), "expected a whole number, the same for all layers"),
        ("attention.layer_norm_rms_epsilon", f32::NAN.into(), "expected a finite number"),
        ("rope.scaling.yarn_log_multiplier", 0.1f32.into(), "is not known here"),
    ] {
        let mut file = base();
        file.entry(&format!("llama.{key}"), value);
        file.entry("llama.rope.scaling.factor", 4.0f32);
        let message = open(&file).unwrap_err().to_string();
        assert!(message.contains(words), "{message}");
    }
    let strange = open(&model("llama", &[("token_embd.weight", &[3, 4]), ("blk.0.attn_sinks.weight", &[2])]));
    let message = strange.unwrap_err().to_string();
    assert!(
        message.contains("tensor `blk.0.attn_sinks.weight`: LlamaForCausalLM has no such tensor"),
        "{message}"
    );
    let mut headless = base();
    headless.tensors.clear();
    assert!(open(&headless).unwrap_err().to_string().contains("no tensor `token_embd.weight`"));
    let mut nameless = base();
    nameless.entries.remove(0);
    assert!(open(&nameless).unwrap_err().to_string().contains("no `general.architecture`"));
}

#[test]
fn ends_of_texts_turns_and_messages() {
    let mut file = model("llama", &[("token_embd.weight", &[3, 4])]);
    file.entry("tokenizer.ggml.model", "gpt2");
    file.entry("tokenizer.ggml.tokens", ["a", "<|im_end|>", "</s>"].map(String::from).to_vec());
    file.entry("tokenizer.ggml.eos_token_id", 2u32);
    file.entry("tokenizer.chat_template", "{{ x }}");
    let repo = open(&file).unwrap();
    assert_eq!(repo.generation_config(), Some(&json!({ "eos_token_id": [2, 1] })));
    let texts = repo.side_texts();
    assert_eq!(texts[1], ("chat_template.jinja", "{{ x }}".to_owned()));
    let tokenizer: serde_json::Value = serde_json::from_str(&texts[0].1).unwrap();
    assert_eq!((texts[0].0, &tokenizer["tokenizer.ggml.model"]), ("tokenizer.gguf.json", &json!("gpt2")));
    assert!(repo.side_files().unwrap().is_empty());
    file.entry("tokenizer.ggml.eot_token_id", 0u32);
    assert_eq!(open(&file).unwrap().generation_config(), Some(&json!({ "eos_token_id": [2, 0] })));
}

#[test]
fn folders_and_parts() {
    let file = model(
        "llama",
        &[("token_embd.weight", &[3, 4]), ("output_norm.weight", &[4]), ("output.weight", &[3, 4])],
    );
    let dir = tempfile::tempdir().unwrap();
    let paths = file.write_split(dir.path(), "m", 3).unwrap();
    for path in [dir.path(), paths[2].as_path()] {
        let repo = Repo::open(path).unwrap();
        assert_eq!((repo.path(), repo.dir(), repo.files()), (path, dir.path(), paths.as_slice()));
        assert_eq!((repo.tensor("lm_head.weight").unwrap().file, repo.tensors().len()), (2, 3));
        let mut bytes = [0; 4];
        repo.read("lm_head.weight", 4..8, &mut bytes).unwrap();
        assert_eq!(f32::from_le_bytes(bytes), 1.0);
        assert!(repo.gguf().is_some());
    }
    let one = Repo::open(dir.path()).unwrap().fingerprint().unwrap();
    assert_eq!(one, Repo::open(&paths[1]).unwrap().fingerprint().unwrap());

    std::fs::copy(&paths[0], &paths[1]).unwrap();
    let message = Repo::open(dir.path()).unwrap_err().to_string();
    assert!(message.contains("tensor `token_embd.weight` is in an earlier part too"), "{message}");
    std::fs::remove_file(&paths[1]).unwrap();
    let message = Repo::open(dir.path()).unwrap_err().to_string();
    assert!(message.contains("00002-of-00003.gguf: this part is missing (1 of 3 are)"), "{message}");
    std::fs::remove_file(&paths[0]).unwrap();
    let message = Repo::open(dir.path()).unwrap_err().to_string();
    assert!(message.contains("but not the first one"), "{message}");
    std::fs::rename(&paths[2], dir.path().join("a.gguf")).unwrap();
    let message = Repo::open(dir.path()).unwrap_err().to_string();
    assert!(message.contains("`split.no` is 2, but the files that are there make it 0"), "{message}");
    file.write(&dir.path().join("b.gguf")).unwrap();
    let message = Repo::open(dir.path()).unwrap_err().to_string();
    assert!(message.contains("several GGUF files, give the path of one: a.gguf, b.gguf"), "{message}");
    assert_eq!(Repo::open(&dir.path().join("b.gguf")).unwrap().tensors().len(), 3);
}

/// A file with something of everything, to be damaged.
fn rich() -> Vec<u8> {
    let mut file = values();
    file.entries.retain(|(key, _)| key != "general.architecture");
    let more = model("llama", &[("token_embd.weight", &[3, 4]), ("blk.0.ffn_down_exps.weight", &[3, 4, 2])]);
    file.entries.extend(more.entries);
    file.entry("llama.expert_count", 3u32);
    file.entry("llama.expert_used_count", 1u32);
    file.tensors.extend(more.tensors);
    file.tensors.push(Tensor {
        name: "output.weight".into(),
        shape: vec![1, 256],
        kind: 14,
        bytes: vec![1; 210],
    });
    file.bytes()
}

proptest! {
    #[test]
    fn damage_is_refused_or_harmless(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in prop::option::weighted(0.3, any::<prop::sample::Index>()),
    ) {
        let mut bytes = rich();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(gguf) = parse(&bytes) {
            let mut end = gguf.data_start();
            for tensor in gguf.tensors() {
                prop_assert!(tensor.start >= end && tensor.bytes > 0);
                end = tensor.start + tensor.bytes;
            }
            prop_assert!(gguf.tensors().is_empty() || end <= bytes.len() as u64);
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("m.gguf");
            std::fs::write(&path, &bytes).unwrap();
            if let Ok(repo) = Repo::open(&path) {
                let whole = repo.tensors().all(|t| t.info.start + t.info.bytes <= bytes.len() as u64);
                prop_assert!(whole);
            }
        }
        // A head that ends early asks for more, or is refused.
        let _ = Gguf::parse(&bytes[..bytes.len() / 2], bytes.len() as u64, Path::new("x"));
    }

    #[test]
    fn any_bytes_are_read_or_refused(rest in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse(&rest);
        let _ = parse(&[b"GGUF\x03\0\0\0", rest.as_slice()].concat());
    }
}
