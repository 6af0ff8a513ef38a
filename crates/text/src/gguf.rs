//! The tokenizer that a GGUF file carries in its entries.
//!
//! There are two kinds that count here: `llama`, the pieces and scores of a SentencePiece model, and `gpt2`,
//! the tokens and merges of a byte-level vocabulary. Of the latter the file does not say how a text is cut into
//! words, it only names a rule; see [`words`].

mod words;

use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::bytes::fallback_byte;
use crate::config::{AddedToken, Settings, malformed};
use crate::json::JsonVocabulary;
use crate::sentencepiece::{Algorithm, Kind, Model, Piece, SentencePieceVocabulary};
use crate::specials::plain;
use crate::{Result, Tokenizer};

/// The tokenizer's entries of a GGUF file (`tokenizer.ggml.*`), under the names that they have there.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GgufVocabulary {
    /// The kind of vocabulary: `llama` or `gpt2`.
    pub model: String,
    /// The rule by which a text is cut into words (`gpt2` only).
    pub pre: Option<String>,
    /// The tokens by id.
    pub tokens: Vec<String>,
    /// A score for each token (`llama` only).
    pub scores: Option<Vec<f32>>,
    /// What each token is for: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte.
    pub token_type: Option<Vec<i32>>,
    /// Pairs of tokens, with a blank between them, the first to be joined first (`gpt2` only).
    pub merges: Option<Vec<String>>,
    /// Begins a text.
    pub bos: Option<u32>,
    /// Ends a text.
    pub eos: Option<u32>,
    /// Stands for what the vocabulary cannot express.
    pub unknown: Option<u32>,
    /// Fills up the shorter texts of a batch.
    pub padding: Option<u32>,
    /// Whether `bos` is put before a text. The kind of the vocabulary decides where nothing is said.
    pub add_bos: Option<bool>,
    /// Whether `eos` is put after a text.
    pub add_eos: Option<bool>,
    /// Whether a blank is put before a text (`llama` only; it is, where nothing is said).
    pub add_space_prefix: Option<bool>,
    /// Whether runs of blanks become one (`llama` only; they do not, where nothing is said).
    pub remove_extra_whitespaces: Option<bool>,
    /// The chat template, for [`ChatTemplate::parse`](crate::ChatTemplate::parse).
    pub chat_template: Option<String>,
}

/// What stands for a path in messages about a vocabulary that comes from no file of its own.
const HERE: &str = "GGUF tokenizer";

impl GgufVocabulary {
    /// Takes the entries from a JSON object with the keys and values of the file, such as
    /// `{"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": [...], ...}`. Other keys are ignored.
    ///
    /// # Errors
    /// [`Error::Malformed`](crate::Error::Malformed) if an entry is not what its key says, or there are no tokens.
    pub fn from_metadata(metadata: &Value) -> Result<Self> {
        Self::read(metadata, Path::new(HERE))
    }

    /// [`from_metadata`](Self::from_metadata) from the bytes of a file; `path` is for messages.
    pub(crate) fn parse(bytes: &[u8], path: &Path) -> Result<Self> {
        let metadata = serde_json::from_slice(bytes)
            .map_err(|error| malformed(path, format!("not valid JSON: {error}")))?;
        Self::read(&metadata, path)
    }

    fn read(metadata: &Value, path: &Path) -> Result<Self> {
        let get = |key: &str| metadata.get(format!("tokenizer.{key}")).filter(|value| !value.is_null());
        let wrong = |key: &str, what: &str| malformed(path, format!("`tokenizer.{key}`: expected {what}"));
        let text = |key: &str| match get(key) {
            None => Ok(None),
            Some(value) => value.as_str().map(|s| Some(s.to_owned())).ok_or_else(|| wrong(key, "text")),
        };
        let flag = |key: &str| match get(key) {
            None => Ok(None),
            Some(value) => value.as_bool().map(Some).ok_or_else(|| wrong(key, "true or false")),
        };
        let id = |key: &str| match get(key).map(|value| value.as_u64().and_then(|n| u32::try_from(n).ok())) {
            None => Ok(None),
            Some(id) => id.map(Some).ok_or_else(|| wrong(key, "a token id")),
        };
        let model =
            text("ggml.model")?.ok_or_else(|| wrong("ggml.model", "the name of a kind of vocabulary"))?;
        let tokens = list(get("ggml.tokens"), |value| value.as_str().map(str::to_owned))
            .ok_or_else(|| wrong("ggml.tokens", "a list of texts"))?;
        Ok(Self {
            model,
            pre: text("ggml.pre")?,
            tokens: tokens.ok_or_else(|| wrong("ggml.tokens", "a list of texts"))?,
            scores: list(get("ggml.scores"), |value| value.as_f64().map(|score| score as f32))
                .ok_or_else(|| wrong("ggml.scores", "a list of numbers"))?,
            token_type: list(get("ggml.token_type"), |value| i32::try_from(value.as_i64()?).ok())
                .ok_or_else(|| wrong("ggml.token_type", "a list of whole numbers"))?,
            merges: list(get("ggml.merges"), |value| value.as_str().map(str::to_owned))
                .ok_or_else(|| wrong("ggml.merges", "a list of texts"))?,
            bos: id("ggml.bos_token_id")?,
            eos: id("ggml.eos_token_id")?,
            unknown: id("ggml.unknown_token_id")?,
            padding: id("ggml.padding_token_id")?,
            add_bos: flag("ggml.add_bos_token")?,
            add_eos: flag("ggml.add_eos_token")?,
            add_space_prefix: flag("ggml.add_space_prefix")?,
            remove_extra_whitespaces: flag("ggml.remove_extra_whitespaces")?,
            chat_template: text("chat_template")?,
        })
    }

    fn check(&self, path: &Path) -> Result<()> {
        let count = self.tokens.len();
        if count == 0 || u32::try_from(count).is_err() {
            return Err(malformed(path, format!("a vocabulary of {count} tokens")));
        }
        let lengths = [
            ("scores", self.scores.as_ref().map(Vec::len)),
            ("token_type", self.token_type.as_ref().map(Vec::len)),
        ];
        for (key, length) in lengths {
            if length.is_some_and(|length| length != count) {
                let what =
                    format!("`tokenizer.ggml.{key}` has {} entries for {count} tokens", length.unwrap_or(0));
                return Err(malformed(path, what));
            }
        }
        for (key, id) in
            [("bos", self.bos), ("eos", self.eos), ("unknown", self.unknown), ("padding", self.padding)]
        {
            if let Some(id) = id.filter(|id| *id as usize >= count) {
                let what = format!("`tokenizer.ggml.{key}_token_id` is {id}, but there are {count} tokens");
                return Err(malformed(path, what));
            }
        }
        Ok(())
    }

    /// A token; one without text gets a name, as it must have one.
    fn token(&self, id: usize) -> String {
        match self.tokens.get(id).map(String::as_str) {
            None | Some("") => format!("[EMPTY_{id}]"),
            Some(token) => token.to_owned(),
        }
    }

    fn kind(&self, id: usize, path: &Path) -> Result<Kind> {
        let Some(kinds) = &self.token_type else {
            // Without a word on it, only what the other entries imply.
            let named = |other: Option<u32>| other.is_some_and(|other| other as usize == id);
            return Ok(match self.tokens.get(id) {
                _ if named(self.unknown) => Kind::Unknown,
                _ if named(self.bos) || named(self.eos) || named(self.padding) => Kind::Control,
                Some(token) if fallback_byte(token).is_some() => Kind::Byte,
                _ => Kind::Normal,
            });
        };
        match kinds.get(id).copied().unwrap_or(1) {
            0 | 1 => Ok(Kind::Normal),
            2 => Ok(Kind::Unknown),
            3 => Ok(Kind::Control),
            4 => Ok(Kind::UserDefined),
            5 => Ok(Kind::Unused),
            6 => Ok(Kind::Byte),
            other => Err(malformed(path, format!("`tokenizer.ggml.token_type` of token {id} is {other}"))),
        }
    }

    fn kinds(&self, path: &Path) -> Result<Vec<Kind>> {
        (0..self.tokens.len()).map(|id| self.kind(id, path)).collect()
    }

    /// What the entries say of special tokens, in the form of the small files of other checkpoints.
    fn settings(&self, kinds: &[Kind], user_defined: bool) -> Settings {
        let mut settings = Settings { add_bos: self.add_bos, add_eos: self.add_eos, ..Settings::default() };
        let roles = [
            ("bos_token", self.bos),
            ("eos_token", self.eos),
            ("unk_token", self.unknown),
            ("pad_token", self.padding),
        ];
        for (role, id) in roles {
            if let Some(id) = id {
                settings.named.insert(role, self.token(id as usize));
            }
        }
        for (id, kind) in (0u32..).zip(kinds) {
            let special = *kind == Kind::Control;
            if special || (user_defined && *kind == Kind::UserDefined) {
                settings.added.insert(id, AddedToken { special, ..plain(&self.token(id as usize)) });
            }
        }
        settings
    }

    fn sentencepiece(&self, path: &Path) -> Result<Tokenizer> {
        let mut kinds = self.kinds(path)?;
        // In some files tokens past the pieces of the model are of the unknown kind, in others none is, as the
        // converter takes it for a control token.
        let unknown = self.unknown.map(|id| id as usize);
        let first = kinds.iter().position(|kind| *kind == Kind::Unknown);
        let unknown = unknown.or(first).unwrap_or(0);
        for (id, kind) in kinds.iter_mut().enumerate() {
            match *kind {
                _ if id == unknown => *kind = Kind::Unknown,
                Kind::Unknown => *kind = Kind::Control,
                _ => {}
            }
        }
        let scores =
            self.scores.as_ref().ok_or_else(|| malformed(path, "there are no `tokenizer.ggml.scores`"))?;
        if let Some(id) = scores.iter().position(|score| score.is_nan()) {
            return Err(malformed(path, format!("the score of token {id} is not a number")));
        }
        let pieces = (0..).zip(scores).zip(&kinds);
        let pieces = pieces
            .map(|((id, score), kind)| Piece { text: self.token(id), score: *score, kind: *kind })
            .collect();
        let id = |id: Option<u32>| id.and_then(|id| i32::try_from(id).ok()).unwrap_or(-1);
        let model = Model {
            pieces,
            algorithm: Algorithm::Bpe,
            byte_fallback: kinds.contains(&Kind::Byte),
            unknown_surface: " \u{2047} ".to_owned(),
            bos: id(self.bos),
            eos: id(self.eos),
            pad: id(self.padding),
            blank_is_suffix: false,
            charsmap: Vec::new(),
            dummy_prefix: self.add_space_prefix.unwrap_or(true),
            remove_extra_blanks: self.remove_extra_whitespaces.unwrap_or(false),
            escape_blanks: true,
        };
        let settings = self.settings(&kinds, false);
        let mut vocabulary = SentencePieceVocabulary::of_model(model, &settings, path)?;
        // ChatGLM2 and 3, whose own code puts these before every text.
        let glm: Vec<u32> = ["[gMASK]", "sop"].iter().filter_map(|name| self.find(name)).collect();
        if glm.len() == 2 {
            vocabulary.set_frame(glm, Vec::new());
        }
        Ok(Tokenizer::new(Arc::new(vocabulary), &settings))
    }

    fn find(&self, token: &str) -> Option<u32> {
        (0..).zip(&self.tokens).find(|(_, known)| *known == token).map(|(id, _)| id)
    }

    fn byte_level(&self, path: &Path) -> Result<Tokenizer> {
        let name = self.pre.as_deref().unwrap_or("default");
        let rule = words::Rule::find(name).ok_or_else(|| {
            let known = words::Rule::names().join(", ");
            malformed(
                path,
                format!("`tokenizer.ggml.pre` is {name:?}, which is not known here; known are {known}"),
            )
        })?;
        let kinds = self.kinds(path)?;
        // Models often have more rows than their vocabulary: those have no text.
        let used = kinds.iter().rposition(|kind| *kind != Kind::Unused).map_or(0, |last| last + 1);
        let mut vocabulary = Map::with_capacity(used);
        for id in 0..used {
            if let Some(other) = vocabulary.insert(self.token(id), json!(id)) {
                let what = format!("token {id}, {:?}, is token {other} too", self.token(id));
                return Err(malformed(path, what));
            }
        }
        let merges =
            self.merges.as_ref().ok_or_else(|| malformed(path, "there are no `tokenizer.ggml.merges`"))?;
        let merges = merges.iter().map(|merge| pair(merge, path)).collect::<Result<Vec<_>>>()?;
        let settings = self.settings(&kinds, true);
        let around = |wanted: bool, id: Option<u32>| id.filter(|_| wanted).into_iter().collect::<Vec<_>>();
        let mut before = around(self.add_bos.unwrap_or(rule.begins), self.bos);
        let glm: Vec<u32> = ["[gMASK]", "<sop>"].iter().filter_map(|name| self.find(name)).collect();
        if rule.glm && glm.len() == 2 && self.add_bos != Some(false) {
            before = glm;
        }
        let after = around(self.add_eos == Some(true), self.eos);
        let file = json!({
            "version": "1.0",
            "added_tokens": [],
            "normalizer": if rule.composes { json!({ "type": "NFC" }) } else { Value::Null },
            "pre_tokenizer": rule.pre_tokenizer(),
            "post_processor": self.frame(&before, &after),
            "decoder": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false },
            "model": {
                "type": "BPE", "unk_token": null, "fuse_unk": false, "byte_fallback": false,
                "ignore_merges": rule.whole_words, "vocab": vocabulary, "merges": merges,
            },
        });
        let vocabulary = JsonVocabulary::parse(file.to_string().as_bytes(), &settings, path)?;
        Ok(Tokenizer::new(Arc::new(vocabulary), &settings))
    }

    /// A post-processor that puts ids before and after a text.
    fn frame(&self, before: &[u32], after: &[u32]) -> Value {
        if before.is_empty() && after.is_empty() {
            return Value::Null;
        }
        let one = |id: &u32| json!({ "SpecialToken": { "id": self.token(*id as usize), "type_id": 0 } });
        let text = |name: &str| json!({ "Sequence": { "id": name, "type_id": 0 } });
        let around = |texts: Vec<Value>| -> Vec<Value> {
            before.iter().map(one).chain(texts).chain(after.iter().map(one)).collect()
        };
        let special = before.iter().chain(after).map(|id| {
            let token = self.token(*id as usize);
            (token.clone(), json!({ "id": token, "ids": [id], "tokens": [token] }))
        });
        json!({
            "type": "TemplateProcessing",
            "single": around(vec![text("A")]),
            "pair": around(vec![text("A"), text("B")]),
            "special_tokens": special.collect::<Map<_, _>>(),
        })
    }
}

impl Tokenizer {
    /// Makes a tokenizer from the entries of a GGUF file.
    ///
    /// Texts get the ids that the tokenizer of the original checkpoint gives them, as far as the file has
    /// kept it: tables of characters that some SentencePiece models have (Baichuan 1) are not in it.
    ///
    /// # Errors
    /// [`Error::Malformed`](crate::Error::Malformed) if the entries contradict each other, or name a kind of vocabulary or a rule for words
    /// that is not known here.
    pub fn from_gguf(vocabulary: GgufVocabulary) -> Result<Self> {
        let path = Path::new(HERE);
        vocabulary.check(path)?;
        match vocabulary.model.as_str() {
            "llama" => vocabulary.sentencepiece(path),
            "gpt2" => vocabulary.byte_level(path),
            other => {
                let what = format!("`tokenizer.ggml.model` is {other:?}; \"llama\" and \"gpt2\" are known");
                Err(malformed(path, what))
            }
        }
    }
}

/// The entries of a list, if there is one: `None` if it is something else, or one of them is.
#[expect(clippy::option_option, reason = "an entry may be absent, or wrong")]
fn list<T>(value: Option<&Value>, each: impl Fn(&Value) -> Option<T>) -> Option<Option<Vec<T>>> {
    match value {
        None => Some(None),
        Some(value) => value.as_array()?.iter().map(each).collect::<Option<Vec<_>>>().map(Some),
    }
}

/// The two tokens of a merge. They have no blanks, except that the first may begin with one.
fn pair<'a>(merge: &'a str, path: &Path) -> Result<[&'a str; 2]> {
    let first = merge.chars().next().map_or(0, char::len_utf8);
    let blank = merge[first..].find(' ').map(|at| first + at);
    let halves = blank.map(|at| [&merge[..at], &merge[at + 1..]]);
    halves.filter(|[_, right]| !right.is_empty()).ok_or_else(|| {
        malformed(path, format!("the merge {merge:?} is not two tokens with a blank between them"))
    })
}

#[cfg(test)]
mod tests;
