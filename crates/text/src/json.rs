//! `tokenizer.json`, read with the `tokenizers` crate.

use std::path::Path;
use std::sync::Arc;

use serde_json::Value;
use tokenizers::tokenizer::{AddedVocabulary, Model, OffsetType, PreTokenizer};
use tokenizers::{AddedToken as LibraryToken, DecoderWrapper, ModelWrapper, Tokenizer as Library};

use crate::config::{AddedToken, Settings, malformed};
use crate::stages::Chain;
use crate::vocabulary::{Decode, Mode, Vocabulary};
use crate::{Error, Result};

/// A vocabulary out of a `tokenizer.json`.
pub(crate) struct JsonVocabulary {
    library: Library,
    /// The added tokens with the special ones left unrecognised.
    plain: AddedVocabulary,
    /// Ids that the class of the tokenizer puts around a text. Where this is `None`, the file's own
    /// post-processor does.
    frame: Option<(Vec<u32>, Vec<u32>)>,
    byte_level: bool,
    size: usize,
}

impl JsonVocabulary {
    /// Understands the bytes of the file; `path` is for messages.
    pub(crate) fn parse(bytes: &[u8], settings: &Settings, path: &Path) -> Result<Self> {
        let mut library = guarded(|| Library::from_bytes(bytes))
            .map_err(|what| malformed(path, format!("not a tokenizer.json that can be read: {what}")))?;
        if let Some(processor) = library.get_post_processor() {
            let processor =
                serde_json::to_value(processor).map_err(|error| malformed(path, error.to_string()))?;
            check_templates(&processor, path)?;
        }
        // A text is never cut or filled up unasked, whatever the file was saved with.
        library.with_padding(None);
        library.with_truncation(None).map_err(|error| malformed(path, error.to_string()))?;
        add_tokens(&mut library, settings, path)?;
        let mut plain = library.get_added_vocabulary().clone();
        plain.set_encode_special_tokens(true);
        let added = library.get_added_vocabulary().get_added_tokens_decoder();
        let last_added = added.keys().max().map_or(0, |id| *id as usize + 1);
        Ok(Self {
            frame: frame(&library, settings),
            byte_level: library.get_decoder().is_some_and(has_byte_level),
            size: library.get_model().get_vocab_size().max(last_added),
            plain,
            library,
        })
    }

    fn encode_plain(&self, text: &str) -> tokenizers::Result<Vec<u32>> {
        let mut pieces = self.plain.extract_and_normalize(self.library.get_normalizer(), text);
        if let Some(pre_tokenizer) = self.library.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut pieces)?;
        }
        let model = self.library.get_model();
        pieces.tokenize(|piece| model.tokenize(piece.get()))?;
        Ok(pieces.into_encoding(None, 0, OffsetType::None)?.get_ids().to_vec())
    }

    /// The string of an id as its decoder wants it.
    fn encoded(&self, id: u32) -> Option<String> {
        let added = self.library.get_added_vocabulary();
        // A byte-level decoder inverts the normaliser that made bytes of an added token's letters;
        // other decoders expect the token as it is written.
        if self.byte_level
            && let Some(token) = added.simple_id_to_token(id)
        {
            return Some(token);
        }
        self.token(id)
    }
}

impl Vocabulary for JsonVocabulary {
    fn encode(&self, text: &str, mode: Mode) -> Result<Vec<u32>> {
        let library_frames = mode == Mode::Framed && self.frame.is_none();
        let ids = guarded(|| match mode {
            Mode::Plain => self.encode_plain(text),
            _ => self.library.encode_fast(text, library_frames).map(|encoding| encoding.get_ids().to_vec()),
        })
        .map_err(|what| Error::Encode { what })?;
        match &self.frame {
            Some((before, after)) if mode == Mode::Framed => Ok([before.as_slice(), &ids, after].concat()),
            _ => Ok(ids),
        }
    }

    fn size(&self) -> usize {
        self.size
    }

    fn token(&self, id: u32) -> Option<String> {
        match self.library.get_added_vocabulary().get_added_tokens_decoder().get(&id) {
            Some(added) => Some(added.content.clone()),
            None => self.library.get_model().id_to_token(id),
        }
    }

    fn id(&self, token: &str) -> Option<u32> {
        self.library.token_to_id(token)
    }

    fn is_special(&self, id: u32) -> bool {
        self.library
            .get_added_vocabulary()
            .get_added_tokens_decoder()
            .get(&id)
            .is_some_and(|token| token.special)
    }

    fn role(&self, role: &str) -> Option<u32> {
        let unknown = match self.library.get_model() {
            ModelWrapper::BPE(model) => model.unk_token.as_deref(),
            ModelWrapper::WordPiece(model) => Some(model.unk_token.as_str()),
            ModelWrapper::WordLevel(model) => Some(model.unk_token.as_str()),
            ModelWrapper::Unigram(_) => None,
        };
        unknown.filter(|_| role == "unk_token").and_then(|token| self.id(token))
    }

    fn decoder(self: Arc<Self>) -> Box<dyn Decode> {
        Box::new(JsonDecode { chain: Chain::new(self.library.get_decoder()), vocabulary: self })
    }
}

struct JsonDecode {
    vocabulary: Arc<JsonVocabulary>,
    chain: Chain,
}

impl Decode for JsonDecode {
    fn push(&mut self, id: u32, out: &mut String) {
        if let Some(token) = self.vocabulary.encoded(id) {
            self.chain.push(token, out);
        }
    }

    fn finish(&mut self, out: &mut String) {
        self.chain.finish(out);
    }
}

/// Runs code of the library, which panics on some broken files (merges that lead out of the
/// vocabulary, for one); here that is an error like others.
fn guarded<T>(work: impl FnOnce() -> tokenizers::Result<T>) -> std::result::Result<T, String> {
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(panic) => {
            let words = panic.downcast_ref::<String>().map(String::as_str);
            let words =
                words.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it contradicts itself");
            Err(words.to_owned())
        }
    }
}

/// The library takes for granted that a template's special tokens are in the template's list.
fn check_templates(processor: &Value, path: &Path) -> Result<()> {
    for step in processor["processors"].as_array().into_iter().flatten() {
        check_templates(step, path)?;
    }
    let pieces = ["single", "pair"].iter().filter_map(|field| processor[field].as_array()).flatten();
    for name in pieces.filter_map(|piece| piece["SpecialToken"]["id"].as_str()) {
        if processor["special_tokens"].get(name).is_none() {
            return Err(malformed(
                path,
                format!("`post_processor`: {name:?} is not among its special tokens"),
            ));
        }
    }
    Ok(())
}

/// Adds the tokens that only the small files know.
fn add_tokens(library: &mut Library, settings: &Settings, path: &Path) -> Result<()> {
    let mut tokens = Vec::new();
    let named: Vec<&str> = settings.named.values().chain(&settings.additional).map(String::as_str).collect();
    for (id, token) in &settings.added {
        // The small file's word on how a token is found counts more than the large one's.
        tokens.push(library_token(token, token.special || named.contains(&token.content.as_str())));
        if let Some(known) = library.token_to_id(&token.content)
            && known != *id
        {
            return Err(malformed(
                &path.with_file_name("tokenizer_config.json"),
                format!(
                    "`added_tokens_decoder`: {:?} is {id} here, but {known} in tokenizer.json",
                    token.content
                ),
            ));
        }
    }
    let listed: Vec<&str> = settings.added.values().map(|token| token.content.as_str()).collect();
    let added = library.get_added_vocabulary();
    for token in named {
        // A special token that no file gives an id to cannot occur.
        if !listed.contains(&token)
            && !added.get_vocab().contains_key(token)
            && library.token_to_id(token).is_some()
        {
            tokens.push(LibraryToken::from(token, true));
        }
    }
    library.add_tokens(tokens).map_err(|error| malformed(path, error.to_string()))?;
    for (id, token) in &settings.added {
        let given = library.token_to_id(&token.content);
        if given != Some(*id) {
            let found = given.map_or_else(|| "none".to_owned(), |id| id.to_string());
            return Err(malformed(
                &path.with_file_name("tokenizer_config.json"),
                format!(
                    "`added_tokens_decoder`: {:?} should have id {id}, but the next free id of tokenizer.json is {found}",
                    token.content
                ),
            ));
        }
    }
    Ok(())
}

fn library_token(token: &AddedToken, special: bool) -> LibraryToken {
    LibraryToken::from(token.content.clone(), special)
        .lstrip(token.lstrip)
        .rstrip(token.rstrip)
        .single_word(token.single_word)
        .normalized(token.normalized)
}

/// Some classes of fast tokenizers replace the file's post-processor by what `add_bos_token` and
/// `add_eos_token` of their config say.
fn frame(library: &Library, settings: &Settings) -> Option<(Vec<u32>, Vec<u32>)> {
    if !matches!(
        settings.class.as_str(),
        "LlamaTokenizer" | "CodeLlamaTokenizer" | "GemmaTokenizer" | "CohereTokenizer"
    ) {
        return None;
    }
    let one = |wanted: bool, role: &str| -> Vec<u32> {
        let token = settings.named.get(role).filter(|_| wanted);
        token.and_then(|token| library.token_to_id(token)).into_iter().collect()
    };
    Some((
        one(settings.add_bos.unwrap_or(true), "bos_token"),
        one(settings.add_eos.unwrap_or(false), "eos_token"),
    ))
}

fn has_byte_level(decoder: &DecoderWrapper) -> bool {
    match decoder {
        DecoderWrapper::ByteLevel(_) => true,
        DecoderWrapper::Sequence(sequence) => sequence.get_decoders().iter().any(has_byte_level),
        _ => false,
    }
}
