//! The small files beside a vocabulary: `tokenizer_config.json`, `special_tokens_map.json`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::{Error, Result};

/// The named special tokens, in the order in which they are written.
pub(crate) const ROLES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// A token outside the trained vocabulary, and how it is found in a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AddedToken {
    /// The string that is the token.
    pub content: String,
    /// Takes blanks on its left with it.
    pub lstrip: bool,
    /// Takes blanks on its right with it.
    pub rstrip: bool,
    /// Matches only where no letter or digit touches it.
    pub single_word: bool,
    /// Is looked for in the normalised text, not in the text as given.
    pub normalized: bool,
    /// Is left out of a decode that skips special tokens.
    pub special: bool,
}

/// What the small files say, in one form.
#[derive(Debug, Default)]
pub(crate) struct Settings {
    /// `tokenizer_class` without its `Fast` ending; empty if not given.
    pub class: String,
    /// The strings of the named special tokens, by role (`bos_token`, …).
    pub named: BTreeMap<&'static str, String>,
    /// Roles that the config sets to null: the model has no such token.
    pub without: Vec<&'static str>,
    /// `additional_special_tokens`.
    pub additional: Vec<String>,
    /// `added_tokens_decoder`.
    pub added: BTreeMap<u32, AddedToken>,
    /// `add_bos_token`.
    pub add_bos: Option<bool>,
    /// `add_eos_token`.
    pub add_eos: Option<bool>,
    /// `legacy`: whether SentencePiece's blank begins every part of a text, not only its first.
    pub legacy: Option<bool>,
    /// `num_image_tokens` of ChatGLM-6B: ids before the first piece.
    pub image_tokens: Option<u32>,
    /// `name_or_path`: where the checkpoint came from.
    pub origin: String,
    /// `chat_template`, as it stands.
    pub template: Option<Value>,
}

impl Settings {
    /// Reads the files of `dir`; those that are not there count as empty.
    pub(crate) fn open(dir: &Path) -> Result<Self> {
        let path = dir.join("tokenizer_config.json");
        let config = read_json(&path)?;
        let map_path = dir.join("special_tokens_map.json");
        // Where the config lists its added tokens, the older file is a leftover and not read.
        let listed = config.as_ref().is_some_and(|c| c.get("added_tokens_decoder").is_some());
        let map = if listed { None } else { read_json(&map_path)? };
        let mut settings = Self::parse(&config.unwrap_or(Value::Null), &path)?;
        if let Some(map) = map {
            settings.special_tokens(&map, &map_path)?;
        }
        Ok(settings)
    }

    /// Takes the tokens of `added_tokens.json`, which older folders have in place of
    /// `added_tokens_decoder`: strings with their ids. They are special if a role names them.
    pub(crate) fn older_added_tokens(&mut self, dir: &Path) -> Result<()> {
        let path = dir.join("added_tokens.json");
        let Some(file) = read_json(&path)?.filter(|_| self.added.is_empty()) else { return Ok(()) };
        let tokens =
            file.as_object().ok_or_else(|| malformed(&path, "expected an object of strings and ids"))?;
        for (content, id) in tokens {
            let number = id.as_u64().and_then(|id| u32::try_from(id).ok());
            let number = number.ok_or_else(|| expected(&path, content, "a token id", id))?;
            let special = self.named.values().chain(&self.additional).any(|named| named == content);
            let (content, no) = (content.clone(), false);
            let token = AddedToken {
                content,
                lstrip: no,
                rstrip: no,
                single_word: no,
                normalized: !special,
                special,
            };
            self.added.insert(number, token);
        }
        Ok(())
    }

    /// Understands the content of `tokenizer_config.json`; `path` is for messages.
    pub(crate) fn parse(config: &Value, path: &Path) -> Result<Self> {
        if !config.is_null() && !config.is_object() {
            return Err(malformed(path, format!("expected an object, found {}", kind(config))));
        }
        let mut settings = Self::default();
        if let Some(class) = present(config, "tokenizer_class") {
            let class = class.as_str().ok_or_else(|| expected(path, "tokenizer_class", "a string", class))?;
            settings.class = class.strip_suffix("Fast").unwrap_or(class).to_owned();
        }
        settings.defaults(config);
        settings.special_tokens(config, path)?;
        settings.add_bos = boolean(config, "add_bos_token", path)?;
        settings.add_eos = boolean(config, "add_eos_token", path)?;
        settings.legacy = boolean(config, "legacy", path)?;
        if let Some(count) = present(config, "num_image_tokens") {
            let small = count.as_u64().and_then(|count| u32::try_from(count).ok());
            settings.image_tokens =
                Some(small.ok_or_else(|| expected(path, "num_image_tokens", "a small number", count))?);
        }
        settings.origin = config.get("name_or_path").and_then(Value::as_str).unwrap_or_default().to_owned();
        settings.template = present(config, "chat_template").cloned();
        if let Some(added) = present(config, "added_tokens_decoder") {
            let added = added
                .as_object()
                .ok_or_else(|| expected(path, "added_tokens_decoder", "an object", added))?;
            for (id, token) in added {
                let field = format!("added_tokens_decoder.{id}");
                let number = id
                    .parse::<u32>()
                    .map_err(|_| malformed(path, format!("`{field}`: the key should be a token id")))?;
                settings.added.insert(number, added_token(token, &field, path)?);
            }
        }
        Ok(settings)
    }

    /// Special tokens that a class has where its config does not speak of them.
    fn defaults(&mut self, config: &Value) {
        let defaults: &[(&str, &str)] = match self.class.as_str() {
            "LlamaTokenizer" | "CodeLlamaTokenizer" => {
                &[("unk_token", "<unk>"), ("bos_token", "<s>"), ("eos_token", "</s>")]
            }
            "GemmaTokenizer" => &[
                ("unk_token", "<unk>"),
                ("bos_token", "<bos>"),
                ("eos_token", "<eos>"),
                ("pad_token", "<pad>"),
            ],
            "Qwen2Tokenizer" => &[
                ("unk_token", "<|endoftext|>"),
                ("eos_token", "<|endoftext|>"),
                ("pad_token", "<|endoftext|>"),
            ],
            "GPT2Tokenizer" => &[
                ("unk_token", "<|endoftext|>"),
                ("bos_token", "<|endoftext|>"),
                ("eos_token", "<|endoftext|>"),
            ],
            _ => &[],
        };
        for (role, token) in defaults {
            // An explicit null means that the model has no such token.
            if config.get(role).is_none()
                && let Some(role) = ROLES.iter().find(|known| *known == role)
            {
                self.named.insert(role, (*token).to_owned());
            }
        }
    }

    /// Takes the named special tokens from `source`; what is there replaces what was known.
    fn special_tokens(&mut self, source: &Value, path: &Path) -> Result<()> {
        for role in ROLES {
            if source.get(role).is_some_and(Value::is_null) {
                self.without.push(role);
            }
            if let Some(value) = present(source, role) {
                self.named.insert(role, token_string(value, role, path)?);
            }
        }
        let field = "additional_special_tokens";
        if let Some(list) = present(source, field) {
            let list = list.as_array().ok_or_else(|| expected(path, field, "a list", list))?;
            self.additional =
                list.iter().map(|token| token_string(token, field, path)).collect::<Result<_>>()?;
        }
        Ok(())
    }
}

/// Reads a JSON file; `None` if there is none.
pub(crate) fn read_json(path: &Path) -> Result<Option<Value>> {
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| malformed(path, format!("not valid JSON: {error}"))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Io { path: path.to_owned(), source }),
    }
}

/// An [`Error::Malformed`].
pub(crate) fn malformed(path: &Path, what: impl Into<String>) -> Error {
    Error::Malformed { path: PathBuf::from(path), what: what.into() }
}

/// The field, unless it is missing or null.
fn present<'a>(object: &'a Value, field: &str) -> Option<&'a Value> {
    object.get(field).filter(|value| !value.is_null())
}

fn boolean(object: &Value, field: &str, path: &Path) -> Result<Option<bool>> {
    present(object, field)
        .map(|value| value.as_bool().ok_or_else(|| expected(path, field, "true or false", value)))
        .transpose()
}

/// A special token is written as a string, or as an object whose `content` is the string.
fn token_string(value: &Value, field: &str, path: &Path) -> Result<String> {
    value
        .as_str()
        .or_else(|| value.get("content").and_then(Value::as_str))
        .map(str::to_owned)
        .ok_or_else(|| expected(path, field, "a string or an object with `content`", value))
}

fn added_token(value: &Value, field: &str, path: &Path) -> Result<AddedToken> {
    let flag = |name: &str| boolean(value, name, path).map(Option::unwrap_or_default);
    let special = flag("special")?;
    Ok(AddedToken {
        content: token_string(value, field, path)?,
        lstrip: flag("lstrip")?,
        rstrip: flag("rstrip")?,
        single_word: flag("single_word")?,
        normalized: boolean(value, "normalized", path)?.unwrap_or(!special),
        special,
    })
}

fn expected(path: &Path, field: &str, wanted: &str, found: &Value) -> Error {
    malformed(path, format!("`{field}`: expected {wanted}, found {}", kind(found)))
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(config: Value) -> Result<Settings> {
        Settings::parse(&config, Path::new("tokenizer_config.json"))
    }

    #[test]
    fn tokens_are_strings_or_objects() {
        let settings = parse(json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": {"__type": "AddedToken", "content": "<s>", "normalized": true},
            "eos_token": "</s>", "pad_token": null,
            "additional_special_tokens": ["<a>", {"content": "<b>"}],
            "added_tokens_decoder": {"7": {"content": "<a>", "special": true}},
        }))
        .unwrap();
        assert_eq!(settings.class, "PreTrainedTokenizer");
        assert_eq!(settings.named["bos_token"], "<s>");
        assert_eq!(settings.named["eos_token"], "</s>");
        assert!(!settings.named.contains_key("pad_token"));
        assert_eq!(settings.additional, ["<a>", "<b>"]);
        assert!(settings.added[&7].special && !settings.added[&7].normalized);
    }

    #[test]
    fn a_class_has_defaults_that_null_takes_away() {
        let settings = parse(json!({"tokenizer_class": "LlamaTokenizer", "bos_token": null})).unwrap();
        assert!(!settings.named.contains_key("bos_token"));
        assert_eq!(settings.named["eos_token"], "</s>");
    }

    #[test]
    fn wrong_kinds_are_named() {
        for (config, words) in [
            (json!([1]), "expected an object, found a list"),
            (
                json!({"bos_token": 3}),
                "`bos_token`: expected a string or an object with `content`, found a number",
            ),
            (json!({"add_bos_token": "yes"}), "`add_bos_token`: expected true or false, found a string"),
            (json!({"added_tokens_decoder": {"x": {"content": "a"}}}), "the key should be a token id"),
            (json!({"added_tokens_decoder": {"1": {}}}), "`added_tokens_decoder.1`: expected a string"),
            (json!({"tokenizer_class": 1}), "`tokenizer_class`: expected a string"),
        ] {
            let message = parse(config).unwrap_err().to_string();
            assert!(message.contains(words), "{message}");
        }
    }

    #[test]
    fn the_older_map_counts_only_without_a_list_of_added_tokens() {
        let dir = tempfile::tempdir().unwrap();
        let write =
            |name: &str, value: Value| std::fs::write(dir.path().join(name), value.to_string()).unwrap();
        write("special_tokens_map.json", json!({"eos_token": "<from map>"}));
        write("tokenizer_config.json", json!({"eos_token": "<from config>"}));
        assert_eq!(Settings::open(dir.path()).unwrap().named["eos_token"], "<from map>");
        write("tokenizer_config.json", json!({"eos_token": "<from config>", "added_tokens_decoder": {}}));
        assert_eq!(Settings::open(dir.path()).unwrap().named["eos_token"], "<from config>");
        std::fs::write(dir.path().join("tokenizer_config.json"), "{").unwrap();
        assert!(Settings::open(dir.path()).unwrap_err().to_string().contains("not valid JSON"));
    }
}
