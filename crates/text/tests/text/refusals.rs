//! What is refused, and in which words.

use airllm_text::{Chat, ChatTemplate, DateTime, Error, Tokenizer};
use serde_json::{Value, json};

use crate::common::data;

fn message(result: airllm_text::Result<Tokenizer>) -> String {
    result.expect_err("this should be refused").to_string()
}

#[test]
fn a_folder_without_a_tokenizer() {
    let dir = tempfile::tempdir().unwrap();
    let missing = Tokenizer::open(dir.path().join("nowhere"));
    assert!(matches!(missing, Err(Error::Io { .. })));
    let words = message(Tokenizer::open(dir.path()));
    assert!(words.contains("no vocabulary file is there") && words.contains("tokenizer.json"), "{words}");
    std::fs::write(dir.path().join("tekken.json"), "{}").unwrap();
    std::fs::write(dir.path().join("vocab.json"), "{}").unwrap();
    let words = message(Tokenizer::open(dir.path()));
    assert!(words.contains("it has tekken.json (a Tekken vocabulary), vocab.json (half"), "{words}");
    assert!(words.contains("what can be read is tokenizer.json, tokenizer.model"), "{words}");
}

#[test]
fn broken_files() {
    let dir = tempfile::tempdir().unwrap();
    let good = std::fs::read(data().join("tiny-qwen2/tokenizer.json")).unwrap();
    for (name, bytes, words) in [
        ("tokenizer.json", b"{".to_vec(), "not a tokenizer.json that can be read"),
        ("tokenizer.json", good[..good.len() / 2].to_vec(), "not a tokenizer.json that can be read"),
        ("tokenizer.json", b"{\"version\": \"2.0\"}".to_vec(), "Unknown tokenizer version"),
        ("tokenizer.json", b"\xFF\xFE".to_vec(), "not a tokenizer.json that can be read"),
        (
            "tokenizer.json",
            br#"{"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": ["a b"]}}"#.to_vec(),
            "not a tokenizer.json that can be read",
        ),
        (
            "tokenizer.json",
            br#"{"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}, "post_processor":
                {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "b", "type_id": 0}}],
                "pair": [], "special_tokens": {}}}"#
                .to_vec(),
            "\"b\" is not among its special tokens",
        ),
        ("tokenizer.model", b"not a model".to_vec(), "not a SentencePiece model"),
        ("x.tiktoken", b"IQ== zero\n".to_vec(), "line 1"),
    ] {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let found = message(Tokenizer::open(dir.path()));
        assert!(found.contains(words) && found.contains(name), "{found}");
        std::fs::remove_file(path).unwrap();
    }
    std::fs::write(dir.path().join("tokenizer.json"), good).unwrap();
    std::fs::write(dir.path().join("tokenizer_config.json"), "{\"eos_token\": []}").unwrap();
    let found = message(Tokenizer::open(dir.path()));
    assert!(found.contains("tokenizer_config.json") && found.contains("`eos_token`"), "{found}");
}

#[test]
fn tokens_and_ids_that_do_not_exist() {
    let tokenizer = Tokenizer::open(data().join("tiny-qwen2")).unwrap();
    let size = tokenizer.vocab_size();
    let error = tokenizer.id("<|no_such|>").unwrap_err();
    assert!(matches!(&error, Error::UnknownToken { token } if token == "<|no_such|>"), "{error}");
    let error = tokenizer.check(&[0, size as u32, 1]).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("id {size} at position 1 is out of range: the vocabulary has {size} ids")
    );
    tokenizer.check(&[0, size as u32 - 1]).unwrap();
    // Models have more rows than their vocabulary has ids; such an id has no text.
    assert_eq!(tokenizer.token(size as u32), None);
    assert_eq!(tokenizer.decode(&[size as u32, u32::MAX], false), "");
}

#[test]
fn added_tokens_that_contradict_the_vocabulary() {
    let json = std::fs::read(data().join("tiny-qwen2/tokenizer.json")).unwrap();
    let size = Tokenizer::from_json(&json, None).unwrap().vocab_size() as u32;
    let config = |content: &str, id: u32| json!({"added_tokens_decoder": {id.to_string(): {"content": content, "special": true}}});
    let open = |config: &serde_json::Value| Tokenizer::from_json(&json, Some(config));
    // A token that only the small file knows takes the next id.
    let tokenizer = open(&config("<|new|>", size)).unwrap();
    assert_eq!(tokenizer.encode("a<|new|>", false).unwrap().last(), Some(&size));
    assert!(tokenizer.is_special(size) && tokenizer.vocab_size() == size as usize + 1);
    assert_eq!(tokenizer.decode(&[size], false), "<|new|>");
    assert_eq!(tokenizer.decode(&[size], true), "");
    let words = message(open(&config("<|new|>", size + 5)));
    assert!(words.contains(&format!("should have id {}", size + 5)), "{words}");
    let words = message(open(&config("<|im_end|>", 3)));
    assert!(words.contains("\"<|im_end|>\" is 3 here, but"), "{words}");
}

#[test]
fn special_tokens_have_roles() {
    let tokenizer = Tokenizer::open(data().join("tiny-qwen2")).unwrap();
    let special = tokenizer.special();
    assert_eq!(special.bos, None);
    let eos = special.eos.as_ref().unwrap();
    assert_eq!((eos.token.as_str(), eos.id), ("<|im_end|>", tokenizer.id("<|im_end|>").unwrap()));
    assert_eq!(special.pad.as_ref().unwrap().token, "<|endoftext|>");
    let tokenizer = Tokenizer::open(data().join("tiny-llama2")).unwrap();
    let special = tokenizer.special();
    assert_eq!(special.bos.as_ref().unwrap().id, 1);
    assert_eq!(special.unk.as_ref().unwrap().id, 0);
    // Without the small files, a SentencePiece model names its own.
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(data().join("tiny-llama2/tokenizer.model"), dir.path().join("tokenizer.model")).unwrap();
    let tokenizer = Tokenizer::open(dir.path()).unwrap();
    let special = tokenizer.special();
    assert_eq!((special.bos.as_ref().unwrap().id, special.eos.as_ref().unwrap().id), (1, 2));
    assert_eq!(special.pad, None);
}

#[test]
fn what_goes_around_a_text() {
    let json = std::fs::read(data().join("tiny-llama2/tokenizer.json")).unwrap();
    let ids = |config: serde_json::Value| {
        Tokenizer::from_json(&json, Some(&config)).unwrap().encode("a", true).unwrap()
    };
    let bare = Tokenizer::from_json(&json, None).unwrap().encode("a", false).unwrap();
    let around = |before: &[u32], after: &[u32]| [before, &bare, after].concat();
    // The file's own post-processor, where no class of tokenizer overrules it.
    assert_eq!(ids(json!({"add_bos_token": false})), around(&[1], &[]));
    assert_eq!(ids(json!({"tokenizer_class": "LlamaTokenizerFast"})), around(&[1], &[]));
    assert_eq!(ids(json!({"tokenizer_class": "LlamaTokenizer", "add_bos_token": false})), bare);
    assert_eq!(ids(json!({"tokenizer_class": "LlamaTokenizer", "add_eos_token": true})), around(&[1], &[2]));
    assert_eq!(ids(json!({"tokenizer_class": "LlamaTokenizer", "bos_token": "</s>"})), around(&[2], &[]));
}

/// Puts `junk` in the place of the `n`-th value, vocabulary and merges apart.
fn replace_nth(value: &mut Value, n: &mut usize, junk: &Value) {
    if *n == 0 {
        *value = junk.clone();
    }
    *n = n.wrapping_sub(1);
    match value {
        Value::Object(map) => {
            for (_, value) in map.iter_mut().filter(|(key, _)| !matches!(key.as_str(), "vocab" | "merges")) {
                replace_nth(value, n, junk);
            }
        }
        Value::Array(list) => list.iter_mut().for_each(|value| replace_nth(value, n, junk)),
        _ => {}
    }
}

#[test]
fn damaged_files_are_refused_or_used_but_never_panic() {
    let junk =
        [json!(null), json!(-1), json!(1e300), json!(""), json!("▁"), json!([]), json!({}), json!(true)];
    let mut refused = 0;
    let mut tried = 0;
    let mut panics = Vec::new();
    for name in ["tiny-llama2", "tiny-qwen2"] {
        let file: Value =
            serde_json::from_slice(&std::fs::read(data().join(name).join("tokenizer.json")).unwrap())
                .unwrap();
        // The many tokens make the file large, not different.
        for (at, junk) in (0..150).flat_map(|at| junk.iter().map(move |junk| (at, junk))) {
            let mut damaged = file.clone();
            replace_nth(&mut damaged, &mut at.clone(), junk);
            if damaged == file {
                continue;
            }
            tried += 1;
            let text = damaged.to_string();
            let outcome = std::panic::catch_unwind(|| match Tokenizer::from_json(text.as_bytes(), None) {
                Err(error) => {
                    assert!(matches!(error, Error::Malformed { .. }), "{error}");
                    1
                }
                Ok(tokenizer) => {
                    if let Ok(ids) = tokenizer.encode("Hello 你好 <s>", true) {
                        tokenizer.decode(&ids, true);
                    }
                    tokenizer.decode(&[0, 1, 300, 1801], false);
                    0
                }
            });
            match outcome {
                Ok(count) => refused += count,
                Err(_) => panics.push((name, at, junk)),
            }
        }
    }
    assert!(panics.is_empty(), "{panics:?}");
    println!("{tried} damaged files, {refused} refused");
    assert!(refused > 100 && refused < tried);
}

#[test]
fn templates_that_fail() {
    let messages = [json!({"role": "user", "content": "x"})];
    let chat = Chat::new(&messages, DateTime::from_unix(0));
    let render =
        |source: &str| ChatTemplate::parse(source).and_then(|template| template.render(&chat)).unwrap_err();
    let error = render("{{ raise_exception('Only user and assistant roles are supported!') }}");
    assert_eq!(
        error.to_string(),
        "the chat template refuses these messages: Only user and assistant roles are supported!"
    );
    for source in ["{% for %}", "{{ messages | nonsense }}", "{{ messages[0].nonsense() }}", "{% if %}"] {
        let error = render(source);
        assert!(matches!(error, Error::Template { .. }), "{source}: {error}");
    }
}
