//! What is refused, and in which words.

use airllm_text::{Chat, ChatTemplate, DateTime, Error, Tokenizer};
use serde_json::json;

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
