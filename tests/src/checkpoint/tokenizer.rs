//! The smallest tokenizer that reads and writes any text: one token a byte.

use super::write_json;
use serde_json::{Map, Value, json};
use std::io;
use std::path::Path;

/// Id of `<s>`.
pub(super) const BOS: u32 = 0;
/// Id of `</s>`.
pub(super) const EOS: u32 = 1;

/// Writes `tokenizer.json`, `tokenizer_config.json` and `generation_config.json`.
///
/// Byte `b` is token `b + 2`. Ids past 257 have no text, as in published models whose vocabulary is padded.
pub(super) fn write(dir: &Path) -> io::Result<()> {
    let mut vocab = Map::from_iter([("<s>".to_owned(), json!(BOS)), ("</s>".to_owned(), json!(EOS))]);
    for byte in 0..=255u8 {
        vocab.insert(spelling(byte).to_string(), json!(u32::from(byte) + 2));
    }
    let special = |id: u32, content: &str| {
        json!({
            "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        })
    };
    let byte_level = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true,
    });
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [special(BOS, "<s>"), special(EOS, "</s>")],
        "normalizer": null,
        "pre_tokenizer": byte_level,
        "post_processor": null,
        "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": false, "vocab": Value::from(vocab), "merges": [],
        },
    });
    write_json(&dir.join("tokenizer.json"), &tokenizer)?;
    let config = json!({
        "bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast",
    });
    write_json(&dir.join("tokenizer_config.json"), &config)?;
    let generation = json!({ "bos_token_id": BOS, "eos_token_id": EOS });
    write_json(&dir.join("generation_config.json"), &generation)
}

/// How byte-level BPE spells a byte: printable Latin-1 as itself, the others as U+0100 onwards.
fn spelling(byte: u8) -> char {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|b| !printable(*b)).count() as u32;
    char::from_u32(0x100 + before).unwrap_or('\u{fffd}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_are_the_known_ones() {
        assert_eq!(spelling(b'A'), 'A');
        assert_eq!(spelling(b' '), 'Ġ');
        assert_eq!(spelling(b'\n'), 'Ċ');
        assert_eq!(spelling(0xad), '\u{143}');
        let all: std::collections::HashSet<char> = (0..=255).map(spelling).collect();
        assert_eq!(all.len(), 256);
    }
}
