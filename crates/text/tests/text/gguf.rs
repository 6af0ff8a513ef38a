//! Tokenizers that went through a GGUF file give the ids that they gave before.

use crate::common::{Report, data, lines, shared, vocabulary};
use airllm_text::{GgufVocabulary, Tokenizer};
use serde_json::{Map, Value};
use std::path::Path;

/// The tokenizer of a folder, by way of the entries of a GGUF file.
fn converted(dir: &Path) -> Tokenizer {
    Tokenizer::from_gguf(GgufVocabulary::from_metadata(&metadata(dir)).unwrap()).unwrap()
}

fn metadata(dir: &Path) -> Value {
    let entries = airllm_tests::gguf::vocabulary(dir, 0).unwrap();
    Value::Object(entries.iter().map(|(key, value)| (key.clone(), value.to_json())).collect::<Map<_, _>>())
}

#[test]
fn small_byte_level_vocabularies() {
    for name in ["tiny-llama3", "tiny-qwen2"] {
        let dir = data().join(name);
        let tokenizer = converted(&dir);
        let mut report = Report::default();
        report.vectors(&tokenizer, &lines(&dir.join("vectors.jsonl")));
        report.decodes(&tokenizer, &lines(&dir.join("decode.jsonl")));
        report.end(name);
        assert_eq!(tokenizer.special().eos, Tokenizer::open(&dir).unwrap().special().eos);
    }
}

#[test]
fn small_sentencepiece_vocabulary() {
    let dir = data().join("tiny-llama2");
    let tokenizer = converted(&dir);
    let mut report = Report::default();
    report.plain(&tokenizer, &lines(&dir.join("model.jsonl")));
    report.end("tiny-llama2");
    let original = Tokenizer::open_file(dir.join("tokenizer.model")).unwrap();
    assert_eq!(tokenizer.vocab_size(), original.vocab_size());
    assert_eq!(tokenizer.encode("a</s> b", true).unwrap(), original.encode("a</s> b", true).unwrap());
}

#[test]
fn entries_kept_as_a_file_are_a_tokenizer() {
    let dir = tempfile::tempdir().unwrap();
    let from = data().join("tiny-qwen2");
    let path = dir.path().join("tokenizer.gguf.json");
    std::fs::write(&path, metadata(&from).to_string()).unwrap();
    let tokenizer = Tokenizer::open(dir.path()).unwrap();
    let original = Tokenizer::open(&from).unwrap();
    let text = "你好<|im_end|> hello";
    assert_eq!(tokenizer.encode(text, true).unwrap(), original.encode(text, true).unwrap());
    std::fs::write(&path, "{}").unwrap();
    let message = Tokenizer::open(dir.path()).unwrap_err().to_string();
    assert!(message.contains("tokenizer.gguf.json: `tokenizer.ggml.model`"), "{message}");
}

/// Every published vocabulary of a form that GGUF files carry whole, on all its vectors.
#[test]
fn published_vocabularies() {
    let Some(root) = shared("tokenizers") else { return };
    let manifest: Value =
        serde_json::from_slice(&std::fs::read(root.join("manifest.json")).unwrap()).unwrap();
    let mut sets = 0;
    for name in [
        "llama2-model",
        "mistral-v1",
        "mistral-v3",
        "chinese-llama2",
        "baichuan2",
        "llama3-json",
        "qwen2",
        "qwen2.5",
        "qwen3",
    ] {
        let set = &manifest["vectors"][name];
        let Some(path) = set["vocab"].as_str().and_then(vocabulary) else {
            assert!(set.is_object(), "no set {name}");
            continue;
        };
        let original = Tokenizer::open_file(&path).unwrap();
        let tokenizer = converted(path.parent().unwrap());
        let mut report = Report::default();
        for case in lines(&root.join(set["file"].as_str().unwrap())) {
            report.cases += 1;
            let text = case["text"].as_str().unwrap();
            let ids = original.encode_plain(text).unwrap();
            report.equal(&format!("ids of {text:?}"), tokenizer.encode_plain(text).unwrap(), ids.clone());
            report.decode(&tokenizer, text, &ids, false, &original.decode(&ids, false));
            if name != "baichuan2" {
                // Baichuan's own code gives no meaning to special strings in a text.
                let framed = original.encode(text, true).unwrap();
                report.equal(&format!("full ids of {text:?}"), tokenizer.encode(text, true).unwrap(), framed);
            }
        }
        report.end(name);
        sets += 1;
    }
    println!("{sets} sets");
}
