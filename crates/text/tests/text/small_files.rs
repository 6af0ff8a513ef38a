//! What the small files beside a SentencePiece model or a rank file add, and chat formats over it.

use airllm_text::{Chat, ChatFormat, ChatSource, DateTime, Error, Tokenizer};
use serde_json::{Value, json};
use std::path::Path;

use crate::common::data;

fn folder(config: &Value) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(data().join("tiny-llama2/tokenizer.model"), dir.path().join("tokenizer.model")).unwrap();
    std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    dir
}

fn write(dir: &Path, name: &str, value: &Value) {
    std::fs::write(dir.join(name), value.to_string()).unwrap();
}

fn added(content: &str) -> Value {
    json!({"content": content, "special": true, "normalized": false, "lstrip": false, "rstrip": false})
}

fn detect(dir: &Path, name: &str, config: &Value, generation: Option<&Value>) -> Option<ChatFormat> {
    let tokenizer = Tokenizer::open(dir).unwrap();
    let source = ChatSource { dir, name, config, generation_config: generation };
    ChatFormat::detect(&source, &tokenizer).unwrap()
}

/// InternLM2 gives unused pieces of its model new names.
#[test]
fn a_piece_gets_another_name() {
    let plain = Tokenizer::open(folder(&json!({})).path()).unwrap();
    let size = plain.vocab_size() as u32;
    let dir = folder(&json!({
        "tokenizer_class": "InternLM2Tokenizer", "add_bos_token": true,
        "added_tokens_decoder": {
            (size - 2).to_string(): added("<|im_end|>"), (size - 1).to_string(): added("<|im_start|>"),
            size.to_string(): added("<|beyond|>")}}));
    let tokenizer = Tokenizer::open(dir.path()).unwrap();
    assert_eq!(tokenizer.vocab_size() as u32, size + 1);
    for (name, id) in [("<|im_end|>", size - 2), ("<|im_start|>", size - 1), ("<|beyond|>", size)] {
        assert_eq!(tokenizer.id(name).unwrap(), id);
        assert_eq!(tokenizer.token(id).as_deref(), Some(name));
        assert_eq!(tokenizer.encode(name, false).unwrap(), [id]);
        assert_eq!(tokenizer.decode(&[id], false), name);
        assert_eq!(tokenizer.decode(&[id], true), "");
        assert!(!tokenizer.encode_plain(name).unwrap().contains(&id));
    }
    let format = detect(dir.path(), "", &json!({"model_type": "internlm2"}), None).unwrap();
    assert_eq!(format.name(), "ChatML");
    assert!(format.stops().contains(&(size - 2)));
    let messages = [json!({"role": "user", "content": "hi <|im_end|>"})];
    let chat = Chat::new(&messages, DateTime::from_unix(0));
    let text = format.text(&chat).unwrap();
    assert_eq!(text, "<s><|im_start|>user\nhi <|im_end|><|im_end|>\n<|im_start|>assistant\n");
    let ids = format.ids(&chat).unwrap();
    assert_eq!((ids[0], ids[1]), (1, size - 1));
    // The one in the message is text.
    assert_eq!(ids.iter().filter(|id| **id == size - 2).count(), 1);
}

/// Yi adds nothing around a text, older files list their tokens apart.
#[test]
fn frames_and_older_files() {
    let begin = |config: Value| Tokenizer::open(folder(&config).path()).unwrap().encode("", true).unwrap();
    assert_eq!(begin(json!({"add_bos_token": true, "add_eos_token": true})), [1, 2]);
    assert_eq!(begin(json!({"add_bos_token": false})), [0u32; 0]);
    assert_eq!(begin(json!({"add_bos_token": true, "bos_token": "</s>"})), [2]);

    let dir = folder(&json!({"add_bos_token": false}));
    let size = Tokenizer::open(dir.path()).unwrap().vocab_size() as u32;
    write(dir.path(), "added_tokens.json", &json!({"[PAD]": size, "<tool>": size + 1}));
    write(dir.path(), "special_tokens_map.json", &json!({"pad_token": "[PAD]"}));
    let tokenizer = Tokenizer::open(dir.path()).unwrap();
    assert_eq!(tokenizer.vocab_size() as u32, size + 2);
    assert_eq!(tokenizer.special().pad.as_ref().unwrap().id, size);
    assert_eq!(tokenizer.encode("<tool>[PAD]", true).unwrap(), [size + 1, size]);
    assert!(tokenizer.is_special(size) && !tokenizer.is_special(size + 1));
    write(dir.path(), "added_tokens.json", &json!({"[PAD]": -1}));
    let error = Tokenizer::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("added_tokens.json") && error.contains("[PAD]"), "{error}");
}

#[test]
fn which_format() {
    let dir = folder(&json!({}));
    let name = |name: &str, config: Value, generation: Option<Value>| {
        detect(dir.path(), name, &config, generation.as_ref()).map(|format| format.name())
    };
    let llama = || json!({"model_type": "llama"});
    assert_eq!(name("meta-llama/Llama-2-7b-hf", llama(), None), None);
    assert_eq!(name("meta-llama/Llama-2-7b-chat-hf", llama(), None), Some("Llama 2"));
    assert_eq!(
        name("x", json!({"model_type": "llama", "_name_or_path": "llama2-13b-chat"}), None),
        Some("Llama 2")
    );
    assert_eq!(name("mistralai/Mistral-7B-v0.1", json!({"model_type": "mistral"}), None), None);
    let mixtral = json!({"model_type": "mixtral"});
    assert_eq!(name("mistralai/Mixtral-8x7B-Instruct-v0.1", mixtral, None), Some("Mistral"));
    let baichuan = || json!({"model_type": "baichuan"});
    assert_eq!(name("Baichuan2-7B-Base", baichuan(), None), None);
    let ids = |user: u32| Some(json!({"user_token_id": user, "assistant_token_id": 196}));
    assert_eq!(name("x", baichuan(), ids(195)), Some("Baichuan"));
    assert_eq!(name("x", baichuan(), ids(99_999_999)), None);
    assert_eq!(name("chatglm2-6b", json!({"model_type": "chatglm"}), None), None);
}

#[test]
fn rounds_of_llama_and_mistral() {
    let dir = folder(&json!({}));
    let said = |role: &str, content: &str| json!({"role": role, "content": content});
    let messages = [said("system", "S"), said("user", " a "), said("assistant", "b"), said("user", "</s>c")];
    let chat = Chat::new(&messages, DateTime::from_unix(0));
    let llama = detect(dir.path(), "llama-2-chat", &json!({"model_type": "llama"}), None).unwrap();
    assert_eq!(
        llama.text(&chat).unwrap(),
        "<s>[INST] <<SYS>>\nS\n<</SYS>>\n\n a [/INST] b </s><s>[INST] </s>c [/INST]"
    );
    // The end token occurs once: the one in the message is text.
    assert_eq!(llama.ids(&chat).unwrap().iter().filter(|id| **id == 2).count(), 1);
    let mistral = detect(dir.path(), "instruct", &json!({"model_type": "mistral"}), None).unwrap();
    assert_eq!(mistral.text(&chat).unwrap(), "<s>[INST] S\n\n a  [/INST]b</s>[INST] </s>c [/INST]");
    assert_eq!((llama.stops(), mistral.stops()), (&[2][..], &[2][..]));

    for bad in [
        vec![],
        vec![said("assistant", "a")],
        vec![said("user", "a"), said("user", "b")],
        vec![said("tool", "a")],
        vec![json!({"role": "user"})],
        vec![json!({"content": "a"})],
        vec![json!({"role": "user", "content": [{"type": "image"}]})],
    ] {
        let error = llama.ids(&Chat::new(&bad, DateTime::from_unix(0))).unwrap_err();
        assert!(matches!(error, Error::Refused { .. }), "{bad:?}: {error}");
    }
    let parts =
        [json!({"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "text", "text": "y"}]})];
    assert_eq!(llama.text(&Chat::new(&parts, DateTime::from_unix(0))).unwrap(), "<s>[INST] xy [/INST]");
    let tools = [json!({})];
    let mut chat = chat;
    chat.tools = Some(&tools);
    assert!(llama.ids(&chat).unwrap_err().to_string().contains("tools"));
}

#[test]
fn deepseek() {
    let begin = "<｜begin▁of▁sentence｜>";
    let plain = Tokenizer::open(folder(&json!({})).path()).unwrap();
    let size = plain.vocab_size();
    let dir = folder(&json!({"bos_token": begin, "added_tokens_decoder": {size.to_string(): added(begin)}}));
    let config = json!({"model_type": "llama"});
    assert!(detect(dir.path(), "deepseek-llm-7b-base", &config, None).is_none());
    let format = detect(dir.path(), "deepseek-ai/deepseek-llm-7b-chat", &config, None).unwrap();
    let said = |role: &str, content: &str| json!({"role": role, "content": content});
    let messages = [said("system", "S"), said("user", "a"), said("assistant", "b"), said("user", "c")];
    let text = format.text(&Chat::new(&messages, DateTime::from_unix(0))).unwrap();
    assert_eq!(text, format!("{begin}S\n\nUser: a\n\nAssistant: b</s>User: c\n\nAssistant:"));
    assert_eq!(format.stops(), [2]);
}
