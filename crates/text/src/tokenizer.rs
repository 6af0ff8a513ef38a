//! The tokenizer of a checkpoint.

use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use crate::config::Settings;
use crate::gguf::GgufVocabulary;
use crate::json::JsonVocabulary;
use crate::sentencepiece::SentencePieceVocabulary;
use crate::tiktoken::{self, TiktokenVocabulary};
use crate::vocabulary::{Decode, Mode, Vocabulary};
use crate::{Error, Result};

/// Text to ids and back, as the model of a checkpoint was trained to see it. Cheap to clone; may be
/// used by many threads.
#[derive(Clone)]
pub struct Tokenizer {
    vocabulary: Arc<dyn Vocabulary>,
    special: Arc<SpecialTokens>,
    origin: Arc<str>,
}

/// A special token and its id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Special {
    /// The token, as it is written in the vocabulary.
    pub token: String,
    /// Its id.
    pub id: u32,
}

/// The special tokens that a checkpoint names. A token that has a name but no id in the vocabulary is
/// `None` here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SpecialTokens {
    /// Begins a text.
    pub bos: Option<Special>,
    /// Ends a text. Which ids end a *generation* is said by `generation_config.json`, and may differ.
    pub eos: Option<Special>,
    /// Stands for what the vocabulary cannot express.
    pub unk: Option<Special>,
    /// Fills up the shorter texts of a batch.
    pub pad: Option<Special>,
    /// Separates two texts.
    pub sep: Option<Special>,
    /// Stands for a text as a whole.
    pub cls: Option<Special>,
    /// Hides a word.
    pub mask: Option<Special>,
    /// Others (`additional_special_tokens`).
    pub additional: Vec<Special>,
}

impl Tokenizer {
    /// Reads the tokenizer of a checkpoint folder: `tokenizer.json` if it is there, else a
    /// SentencePiece model (`tokenizer.model`, `ice_text.model`) or tiktoken ranks (`*.tiktoken`, or
    /// under the name of a model), else `tokenizer.gguf.json`, the tokenizer's entries of a GGUF file; with
    /// what `tokenizer_config.json` and `special_tokens_map.json` add, except to the last.
    ///
    /// # Errors
    /// A file is broken, or the folder has no vocabulary of a known kind ([`Error::NoTokenizer`] names
    /// what it has).
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        let entries = std::fs::read_dir(dir).map_err(|source| Error::Io { path: dir.to_owned(), source })?;
        let mut names: Vec<String> =
            entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        let has = |name: &'static str| names.iter().any(|known| known == name).then_some(name);
        let file = has("tokenizer.json")
            .or_else(|| has("tokenizer.model"))
            .or_else(|| has("ice_text.model"))
            .or_else(|| names.iter().map(String::as_str).find(|name| name.ends_with(".tiktoken")))
            .or_else(|| has("tokenizer.gguf.json"));
        match file {
            Some(name) => Self::open_file(dir.join(name)),
            None => Err(nothing_known(dir, &names)),
        }
    }

    /// Reads one vocabulary file, of whichever of those kinds, with the small files beside it.
    ///
    /// # Errors
    /// A file is broken or of no known kind.
    pub fn open_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bytes = std::fs::read(path).map_err(|source| Error::Io { path: path.to_owned(), source })?;
        if path.to_string_lossy().ends_with(".gguf.json") {
            return Self::from_gguf(GgufVocabulary::parse(&bytes, path)?);
        }
        let dir = path.parent().unwrap_or(Path::new(""));
        let mut settings = Settings::open(dir)?;
        let json = path.extension().is_some_and(|ending| ending == "json");
        if !json {
            settings.older_added_tokens(dir)?;
        }
        let vocabulary: Arc<dyn Vocabulary> = if json {
            Arc::new(JsonVocabulary::parse(&bytes, &settings, path)?)
        } else if path.extension().is_some_and(|ending| ending == "tiktoken") || tiktoken::looks_like(&bytes)
        {
            Arc::new(TiktokenVocabulary::parse(&bytes, &settings, path)?)
        } else {
            Arc::new(SentencePieceVocabulary::parse(&bytes, &settings, path)?)
        };
        Ok(Self::new(vocabulary, &settings))
    }

    /// Makes a tokenizer from the content of a `tokenizer.json` and, if there is one, of a
    /// `tokenizer_config.json`.
    ///
    /// # Errors
    /// One of them is broken.
    pub fn from_json(json: &[u8], config: Option<&Value>) -> Result<Self> {
        let config_name = Path::new("tokenizer_config.json");
        let settings = Settings::parse(config.unwrap_or(&Value::Null), config_name)?;
        let vocabulary = JsonVocabulary::parse(json, &settings, Path::new("tokenizer.json"))?;
        Ok(Self::new(Arc::new(vocabulary), &settings))
    }

    /// Cuts a text into ids. Special tokens that are written in the text become their ids; with
    /// `add_special`, what the model expects around a text is added (such as a token for the
    /// beginning). A rendered chat template has those already: encode it with `false`.
    ///
    /// # Errors
    /// The vocabulary has no way to express the text.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        self.vocabulary.encode(text, if add_special { Mode::Framed } else { Mode::Recognise })
    }

    /// Cuts a text into ids without giving a meaning to special tokens written in it: for text from
    /// a source that must not be able to end a turn or begin one. Nothing is added.
    ///
    /// # Errors
    /// The vocabulary has no way to express the text.
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>> {
        self.vocabulary.encode(text, Mode::Plain)
    }

    /// The text of some ids. Bytes that are no UTF-8 become U+FFFD; blanks are never "cleaned up". Ids
    /// without a token (models often have more rows than their vocabulary) have no text; see
    /// [`check`](Self::check).
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        let mut text = String::new();
        let mut stream = self.stream(skip_special);
        for id in ids {
            stream.append(*id, &mut text);
        }
        stream.decode.finish(&mut text);
        text
    }

    /// Begins a decode of ids that come one by one.
    pub fn stream(&self, skip_special: bool) -> Detokenizer {
        Detokenizer {
            decode: Arc::clone(&self.vocabulary).decoder(),
            vocabulary: Arc::clone(&self.vocabulary),
            skip_special,
        }
    }

    /// Refuses ids past the end of the vocabulary.
    ///
    /// # Errors
    /// [`Error::IdOutOfRange`] for the first such id.
    pub fn check(&self, ids: &[u32]) -> Result<()> {
        let size = self.vocab_size();
        match ids.iter().position(|id| *id as usize >= size) {
            Some(position) => Err(Error::IdOutOfRange { id: ids[position], position, size }),
            None => Ok(()),
        }
    }

    /// The number of ids: the largest plus one, added tokens included. The model may have more rows.
    pub fn vocab_size(&self) -> usize {
        self.vocabulary.size()
    }

    /// An id's entry in the vocabulary, as the file has it (`▁Hello`, `Ġworld`, `<0x0A>`).
    pub fn token(&self, id: u32) -> Option<String> {
        self.vocabulary.token(id)
    }

    /// The id of such an entry, special or not.
    ///
    /// # Errors
    /// [`Error::UnknownToken`] if the vocabulary has no such entry.
    pub fn id(&self, token: &str) -> Result<u32> {
        self.vocabulary.id(token).ok_or_else(|| Error::UnknownToken { token: token.to_owned() })
    }

    /// Whether a decode that skips special tokens leaves this id out.
    pub fn is_special(&self, id: u32) -> bool {
        self.vocabulary.is_special(id)
    }

    /// The special tokens that the checkpoint names.
    pub fn special(&self) -> &SpecialTokens {
        &self.special
    }

    /// Where `tokenizer_config.json` says that it came from; empty if it does not.
    pub(crate) fn origin(&self) -> &str {
        &self.origin
    }

    pub(crate) fn new(vocabulary: Arc<dyn Vocabulary>, settings: &Settings) -> Self {
        let find = |token: &String| vocabulary.id(token).map(|id| Special { token: token.clone(), id });
        // Where the small files do not speak of a role, the vocabulary may.
        let named = |role: &str| match settings.named.get(role) {
            Some(token) => find(token),
            None => {
                let id = vocabulary.role(role).filter(|_| !settings.without.contains(&role))?;
                vocabulary.token(id).map(|token| Special { token, id })
            }
        };
        let special = SpecialTokens {
            bos: named("bos_token"),
            eos: named("eos_token"),
            unk: named("unk_token"),
            pad: named("pad_token"),
            sep: named("sep_token"),
            cls: named("cls_token"),
            mask: named("mask_token"),
            additional: settings.additional.iter().filter_map(find).collect(),
        };
        Self { vocabulary, special: Arc::new(special), origin: settings.origin.as_str().into() }
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size())
            .field("special", &self.special)
            .finish()
    }
}

/// A decode of ids that come one by one. The pieces it gives, put together, are what
/// [`Tokenizer::decode`] gives for all ids, byte for byte; no piece ends inside a character. Text is
/// given as soon as no later id can change it: with a byte-level vocabulary at the end of each
/// character; with `tokenizer.json` files whose vocabulary falls back to bytes (Llama-2), a run of byte
/// tokens comes at its end, since one wrong byte changes the whole run there. Time is linear in the
/// number of ids.
pub struct Detokenizer {
    vocabulary: Arc<dyn Vocabulary>,
    decode: Box<dyn Decode>,
    skip_special: bool,
}

impl Detokenizer {
    /// Takes the next id; gives the text that is certain now, if there is any.
    pub fn push(&mut self, id: u32) -> Option<String> {
        let mut text = String::new();
        self.append(id, &mut text);
        (!text.is_empty()).then_some(text)
    }

    /// Ends the text; gives what was held back, if anything was. An unfinished character becomes
    /// U+FFFD.
    pub fn finish(mut self) -> Option<String> {
        let mut text = String::new();
        self.decode.finish(&mut text);
        (!text.is_empty()).then_some(text)
    }

    fn append(&mut self, id: u32, text: &mut String) {
        if !(self.skip_special && self.vocabulary.is_special(id)) {
            self.decode.push(id, text);
        }
    }
}

impl std::fmt::Debug for Detokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Detokenizer").field("skip_special", &self.skip_special).finish_non_exhaustive()
    }
}

/// Says which files of a folder look like a vocabulary, and what would be read.
fn nothing_known(dir: &Path, names: &[String]) -> Error {
    let mut found = Vec::new();
    for name in names {
        let kind = match name.as_str() {
            "vocab.json" | "merges.txt" => "half of a BPE vocabulary",
            "vocab.txt" => "a WordPiece vocabulary",
            "tekken.json" => "a Tekken vocabulary",
            "tokenizer_config.json" => "settings without a vocabulary",
            name if name.ends_with(".model") => "a model under an unknown name",
            _ => continue,
        };
        found.push(format!("{name} ({kind})"));
    }
    let found = if found.is_empty() {
        "no vocabulary file is there".to_owned()
    } else {
        format!("it has {}", found.join(", "))
    };
    let known = "what can be read is tokenizer.json, tokenizer.model, ice_text.model and *.tiktoken";
    Error::NoTokenizer { path: dir.to_owned(), what: format!("{found}; {known}") }
}
