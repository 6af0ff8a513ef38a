//! Made vocabularies: rules for words, kinds of tokens, what is refused.

use super::*;

/// All bytes in the alphabet of byte-level vocabularies, then these tokens, each made by the merges that
/// join it from left to right.
fn byte_level(pre: &str, more: &[&str]) -> GgufVocabulary {
    let alphabet: Vec<char> =
        (0u32..0x200).filter_map(char::from_u32).filter(|c| crate::bytes::byte_of(*c).is_some()).collect();
    let mut tokens: Vec<String> = alphabet.iter().map(char::to_string).collect();
    let mut merges = Vec::new();
    for token in more {
        let ends: Vec<usize> = token.char_indices().map(|(at, _)| at).skip(1).collect();
        for (i, at) in ends.iter().enumerate() {
            let end = ends.get(i + 1).copied().unwrap_or(token.len());
            let joined = token[..end].to_owned();
            if !tokens.contains(&joined) {
                tokens.push(joined);
                merges.push(format!("{} {}", &token[..*at], &token[*at..end]));
            }
        }
    }
    GgufVocabulary {
        model: "gpt2".into(),
        pre: Some(pre.into()),
        tokens,
        merges: Some(merges),
        ..GgufVocabulary::default()
    }
}

fn cut(tokenizer: &Tokenizer, text: &str) -> Vec<String> {
    let ids = tokenizer.encode(text, false).unwrap();
    assert_eq!(tokenizer.decode(&ids, false), text);
    ids.iter().map(|id| tokenizer.token(*id).unwrap()).collect()
}

fn refusal(vocabulary: GgufVocabulary) -> String {
    Tokenizer::from_gguf(vocabulary).err().unwrap().to_string()
}

#[test]
fn rules_differ_in_digits_case_and_blanks() {
    for (pre, text, words) in [
        ("gpt-2", "12345", &["12345"][..]),
        ("llama-bpe", "12345", &["123", "4", "5"]),
        ("qwen2", "12345", &["1", "2", "3", "4", "5"]),
        ("chatglm-bpe", "12345", &["123", "4", "5"]),
        ("tekken", "12345", &["1", "2", "3", "4", "5"]),
        ("deepseek-llm", "12345", &["1", "2", "3", "4", "5"]),
        ("deepseek-v3", "12345", &["123", "4", "5"]),
        ("default", "12345", &["123", "4", "5"]),
        ("tekken", "abAB", &["ab", "AB"]),
        ("llama-bpe", "abAB", &["abAB"]),
        ("deepseek-llm", "ab\nab", &["ab", "Ċ", "ab"]),
        ("gpt-2", "!cd", &["!", "c", "d"]),
        ("llama-bpe", "!cd", &["!cd"]),
        ("deepseek-v3", "!cd", &["!cd"]),
        ("deepseek-llm", "ab!", &["ab", "!"]),
        ("default", "ab!", &["ab", "!"]),
    ] {
        let tokenizer = Tokenizer::from_gguf(byte_level(pre, &["12345", "abAB", "!cd", "AB"])).unwrap();
        assert_eq!(cut(&tokenizer, text), words, "{pre}: {text}");
    }
}

#[test]
fn every_rule_can_be_used_and_loses_nothing() {
    for pre in words::Rule::names() {
        let tokenizer = Tokenizer::from_gguf(byte_level(pre, &["ab"])).unwrap();
        cut(&tokenizer, "Ab 12\r\n\n 你好，世界！　Ωά ﬁ 𐐀 'll  _x_ \u{0}🦀  ");
    }
}

#[test]
fn characters_are_composed_where_the_original_does() {
    let composed = |pre: &str| {
        let tokenizer = Tokenizer::from_gguf(byte_level(pre, &[])).unwrap();
        tokenizer.decode(&tokenizer.encode("e\u{301}", false).unwrap(), false)
    };
    assert_eq!((composed("qwen2").as_str(), composed("llama-bpe").as_str()), ("é", "e\u{301}"));
}

#[test]
fn kinds_of_tokens() {
    let mut vocabulary = byte_level("llama-bpe", &["ab"]);
    let first = vocabulary.tokens.len() as u32;
    vocabulary.tokens.extend(["<s>", "</s>", "<tool>", "[PAD]"].map(String::from));
    let mut kinds = vec![1; first as usize];
    kinds.extend([3, 3, 4, 5]);
    vocabulary.token_type = Some(kinds);
    (vocabulary.bos, vocabulary.eos) = (Some(first), Some(first + 1));
    let tokenizer = Tokenizer::from_gguf(vocabulary.clone()).unwrap();
    let ids = tokenizer.encode("ab<tool></s>", true).unwrap();
    assert_eq!(ids[0], first);
    assert_eq!(ids[2..], [first + 2, first + 1]);
    assert_eq!(tokenizer.decode(&ids, true), "ab<tool>");
    assert!(tokenizer.is_special(first) && !tokenizer.is_special(first + 2));
    assert!(tokenizer.encode_plain("</s>").unwrap().len() > 1);
    assert_eq!(tokenizer.special().eos.as_ref().unwrap().token, "</s>");
    assert_eq!(tokenizer.vocab_size(), first as usize + 3);

    vocabulary.add_bos = Some(false);
    vocabulary.add_eos = Some(true);
    let ids = Tokenizer::from_gguf(vocabulary).unwrap().encode("ab", true).unwrap();
    assert_eq!(ids[1..], [first + 1]);
}

#[test]
fn what_is_wrong_is_named() {
    let good = || byte_level("gpt-2", &["ab"]);
    let with = |change: &dyn Fn(&mut GgufVocabulary)| {
        let mut vocabulary = good();
        change(&mut vocabulary);
        refusal(vocabulary)
    };
    for (message, words) in [
        (
            with(&|v| v.pre = Some("mystery".into())),
            "`tokenizer.ggml.pre` is \"mystery\", which is not known here",
        ),
        (
            with(&|v| v.model = "t5".into()),
            "`tokenizer.ggml.model` is \"t5\"; \"llama\" and \"gpt2\" are known",
        ),
        (with(&|v| v.tokens.clear()), "a vocabulary of 0 tokens"),
        (with(&|v| v.merges = None), "no `tokenizer.ggml.merges`"),
        (with(&|v| v.merges = Some(vec!["ab".into()])), "the merge \"ab\" is not two tokens"),
        (with(&|v| v.merges = Some(vec!["a xyz".into()])), "not a tokenizer.json that can be read"),
        (with(&|v| v.token_type = Some(vec![1])), "`tokenizer.ggml.token_type` has 1 entries for 257 tokens"),
        (with(&|v| v.token_type = Some(vec![9; 257])), "of token 0 is 9"),
        (with(&|v| v.eos = Some(999)), "`tokenizer.ggml.eos_token_id` is 999, but there are 257 tokens"),
        (with(&|v| v.tokens[7] = "ab".into()), "token 256, \"ab\", is token 7 too"),
        (with(&|v| v.model = "llama".into()), "there are no `tokenizer.ggml.scores`"),
        (
            with(&|v| {
                v.model = "llama".into();
                v.scores = Some(vec![f32::NAN; 257]);
            }),
            "the score of token 0 is not a number",
        ),
    ] {
        assert!(message.contains(words), "{message}");
    }
    for (metadata, words) in [
        (json!({}), "`tokenizer.ggml.model`: expected the name"),
        (json!({ "tokenizer.ggml.model": "gpt2" }), "`tokenizer.ggml.tokens`: expected a list of texts"),
        (json!({ "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": [1] }), "a list of texts"),
        (
            json!({ "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": ["a"], "tokenizer.ggml.scores": [null] }),
            "`tokenizer.ggml.scores`: expected a list of numbers",
        ),
        (
            json!({ "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": ["a"], "tokenizer.ggml.bos_token_id": -1 }),
            "`tokenizer.ggml.bos_token_id`: expected a token id",
        ),
    ] {
        let message = GgufVocabulary::from_metadata(&metadata).unwrap_err().to_string();
        assert!(message.contains(words), "{message}");
    }
}

#[test]
fn pieces_without_kinds_get_them_from_the_other_entries() {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(String::from).to_vec();
    tokens.extend((0..256).map(|byte| format!("<0x{byte:02X}>")));
    tokens.extend(["▁", "a", "▁a", ""].map(String::from));
    let scores = (0..tokens.len()).map(|i| -(i as f32)).collect();
    let vocabulary = GgufVocabulary {
        model: "llama".into(),
        tokens,
        scores: Some(scores),
        bos: Some(1),
        eos: Some(2),
        unknown: Some(0),
        ..GgufVocabulary::default()
    };
    let tokenizer = Tokenizer::from_gguf(vocabulary.clone()).unwrap();
    assert_eq!(tokenizer.encode("a</s>é", true).unwrap(), [1, 261, 2, 259, 3 + 0xC3, 3 + 0xA9]);
    assert_eq!(tokenizer.decode(&[1, 261, 3 + 0xC3, 3 + 0xA9, 2], true), "aé");
    assert_eq!(tokenizer.token(262).unwrap(), "[EMPTY_262]");
    let bare = GgufVocabulary { add_space_prefix: Some(false), add_bos: Some(false), ..vocabulary };
    assert_eq!(Tokenizer::from_gguf(bare).unwrap().encode("a", true).unwrap(), [260]);
}
