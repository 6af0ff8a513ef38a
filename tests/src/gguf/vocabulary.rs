//! The tokenizer of a checkpoint folder as entries of a GGUF file.

use super::Value;
use serde_json::Value as Json;
use std::collections::HashMap;
use std::io;
use std::path::Path;

const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// The tokenizer of a folder, from `tokenizer.model` if it is a SentencePiece model, else from
/// `tokenizer.json`, with what `tokenizer_config.json` says. Filled up to `rows` tokens.
///
/// # Errors
/// A file that is not there or not of these kinds.
pub fn vocabulary(dir: &Path, rows: usize) -> io::Result<Vec<(String, Value)>> {
    let config = json(&dir.join("tokenizer_config.json")).unwrap_or(Json::Null);
    let model = dir.join("tokenizer.model");
    let blank;
    let (kind, pre, mut tokens, merges) = if model.exists() {
        let (mut tokens, prefix) = pieces(&std::fs::read(model)?);
        blank = prefix;
        let first = tokens.len();
        let file = json(&dir.join("tokenizer.json")).unwrap_or(Json::Null);
        for token in file["added_tokens"].as_array().into_iter().flatten() {
            let id = token["id"].as_u64().unwrap_or_default() as usize;
            if id >= first {
                put(&mut tokens, id, token["content"].as_str().unwrap_or_default(), 0.0, CONTROL);
            }
        }
        ("llama", "default", tokens, None)
    } else {
        let file = json(&dir.join("tokenizer.json"))?;
        blank = file["model"]["byte_fallback"] != true || file["normalizer"].to_string().contains("Prepend");
        from_json(&file)?
    };
    if let Some(added) = config["added_tokens_decoder"].as_object() {
        for (id, token) in added {
            let id: usize = id.parse().map_err(io::Error::other)?;
            let special = if token["special"] == true { CONTROL } else { USER_DEFINED };
            put(&mut tokens, id, token["content"].as_str().unwrap_or_default(), 0.0, special);
        }
    }
    let used = tokens.len();
    (used..rows).for_each(|id| put(&mut tokens, id, &format!("[PAD{id}]"), -1000.0, UNUSED));

    let mut out = Vec::new();
    let mut entry = |key: &str, value: Value| out.push((format!("tokenizer.{key}"), value));
    let map = json(&dir.join("special_tokens_map.json")).unwrap_or(Json::Null);
    let name = |role: &str| {
        let token = if config[role].is_null() { &map[role] } else { &config[role] };
        let name = token.as_str().or_else(|| token["content"].as_str())?;
        tokens.iter().position(|token| token.0 == name)
    };
    entry("ggml.model", kind.into());
    entry("ggml.pre", pre.into());
    for (role, key) in
        [("bos_token", "bos"), ("eos_token", "eos"), ("unk_token", "unknown"), ("pad_token", "padding")]
    {
        if let Some(id) = name(role) {
            entry(&format!("ggml.{key}_token_id"), Value::U32(id as u32));
        }
    }
    for flag in ["add_bos_token", "add_eos_token"] {
        if let Some(value) = config[flag].as_bool() {
            entry(&format!("ggml.{flag}"), value.into());
        }
    }
    if !blank {
        entry("ggml.add_space_prefix", false.into());
    }
    if let Some(template) = config["chat_template"].as_str() {
        entry("chat_template", template.into());
    }
    entry("ggml.tokens", tokens.iter().map(|token| token.0.clone()).collect::<Vec<_>>().into());
    if kind == "llama" {
        entry("ggml.scores", tokens.iter().map(|token| token.1).collect::<Vec<_>>().into());
    }
    entry("ggml.token_type", tokens.iter().map(|token| token.2).collect::<Vec<_>>().into());
    if let Some(merges) = merges {
        entry("ggml.merges", merges.into());
    }
    Ok(out)
}

/// Text, score, type.
type Token = (String, f32, i32);

fn put(tokens: &mut Vec<Token>, id: usize, text: &str, score: f32, kind: i32) {
    while tokens.len() <= id {
        tokens.push((format!("[PAD{}]", tokens.len()), -1000.0, UNUSED));
    }
    tokens[id] = (text.to_owned(), score, kind);
}

fn json(path: &Path) -> io::Result<Json> {
    Ok(serde_json::from_slice(&std::fs::read(path)?)?)
}

type Parts = (&'static str, &'static str, Vec<Token>, Option<Vec<String>>);

fn from_json(file: &Json) -> io::Result<Parts> {
    let model = &file["model"];
    let vocab =
        model["vocab"].as_object().ok_or_else(|| io::Error::other("tokenizer.json without a vocabulary"))?;
    let merges: Vec<String> = model["merges"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|merge| match merge.as_array() {
            Some(pair) => pair.iter().filter_map(Json::as_str).collect::<Vec<_>>().join(" "),
            None => merge.as_str().unwrap_or_default().to_owned(),
        })
        .collect();
    let bytes = model["byte_fallback"] == true;
    // As the converter has it for vocabularies without a SentencePiece model: the earlier a token is made, the
    // better its score.
    let rank: HashMap<String, usize> =
        merges.iter().enumerate().rev().map(|(i, merge)| (merge.replace(' ', ""), i)).collect();
    let mut tokens = Vec::new();
    for (text, id) in vocab {
        let id = id.as_u64().unwrap_or_default() as usize;
        let kind = match text.as_str() {
            "<unk>" if bytes => UNKNOWN,
            text if bytes && text.starts_with("<0x") && text.len() == 6 => BYTE,
            _ => NORMAL,
        };
        let score = rank.get(text).map_or(0.0, |rank| -(*rank as f32) - 1.0);
        put(&mut tokens, id, text, score, kind);
    }
    for token in file["added_tokens"].as_array().into_iter().flatten() {
        let text = token["content"].as_str().unwrap_or_default();
        let kind = match token["special"] == true {
            true if bytes && text == "<unk>" => UNKNOWN,
            true => CONTROL,
            false => USER_DEFINED,
        };
        put(&mut tokens, token["id"].as_u64().unwrap_or_default() as usize, text, 0.0, kind);
    }
    if bytes {
        return Ok(("llama", "default", tokens, None));
    }
    let words = file["pre_tokenizer"].to_string();
    let pre = if words.contains("{1,3}") { "llama-bpe" } else { "qwen2" };
    Ok(("gpt2", pre, tokens, Some(merges)))
}

/// The pieces of a SentencePiece model, field 1 of the message, with text, score and type; and whether a blank is
/// put before a text, field 3 of field 3.
fn pieces(mut bytes: &[u8]) -> (Vec<Token>, bool) {
    let mut tokens = Vec::new();
    let mut prefix = true;
    while let Some((number, content)) = field(&mut bytes) {
        if number == 3 {
            let mut rest = content;
            while let Some((number, content)) = field(&mut rest) {
                prefix = if number == 3 { content[0] != 0 } else { prefix };
            }
        }
        if number != 1 {
            continue;
        }
        let (mut rest, mut token) = (content, (String::new(), 0.0, NORMAL));
        while let Some((number, content)) = field(&mut rest) {
            match number {
                1 => token.0 = String::from_utf8_lossy(content).into_owned(),
                2 => token.1 = content.first_chunk().map_or(0.0, |bytes| f32::from_le_bytes(*bytes)),
                3 => token.2 = i32::from(content[0]),
                _ => {}
            }
        }
        tokens.push(token);
    }
    (tokens, prefix)
}

/// The next field of a protocol buffer; a number is given as its bytes.
fn field<'a>(bytes: &mut &'a [u8]) -> Option<(u64, &'a [u8])> {
    let key = number(bytes)?;
    let length = match key & 7 {
        0 => bytes.iter().position(|byte| byte & 0x80 == 0)? + 1,
        1 => 8,
        2 => number(bytes)? as usize,
        _ => 4,
    };
    let (content, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some((key >> 3, content))
}

fn number(bytes: &mut &[u8]) -> Option<u64> {
    let end = bytes.iter().position(|byte| byte & 0x80 == 0)? + 1;
    let value = bytes[..end].iter().rev().fold(0, |value, byte| value << 7 | u64::from(byte & 0x7F));
    *bytes = &bytes[end..];
    Some(value)
}
