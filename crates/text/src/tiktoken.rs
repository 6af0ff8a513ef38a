//! tiktoken rank files: byte-level BPE, a token in base64 and its rank on each line. Qwen-1, GLM-4 and
//! Meta's own Llama-3 folders have them.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use tokenizers::normalizers::NFC;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{
    NormalizedString, Normalizer, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer,
    SplitDelimiterBehavior,
};

use crate::config::{Settings, malformed};
use crate::merge::merge;
use crate::specials::{Part, Specials, plain};
use crate::utf8::Lossy;
use crate::vocabulary::{Decode, Mode, Vocabulary};
use crate::{Error, Result};

/// How texts are cut into words before merging; the families differ in how many digits go together.
const WORDS_BEFORE_DIGITS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|";
const WORDS_AFTER_DIGITS: &str = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// A vocabulary out of a rank file.
pub(crate) struct TiktokenVocabulary {
    ranks: HashMap<Box<[u8]>, u32>,
    tokens: Vec<Option<Box<[u8]>>>,
    specials: Specials,
    words: Split,
    composes: bool,
    /// Put before a text.
    frame: Vec<u32>,
    bos: Option<u32>,
    eos: Option<u32>,
}

/// Whether a file looks like ranks: its first line is base64, a blank and a number.
pub(crate) fn looks_like(bytes: &[u8]) -> bool {
    bytes.split(|byte| *byte == b'\n').next().is_some_and(|line| parse_line(line).is_some())
}

impl TiktokenVocabulary {
    /// Understands the bytes of the file; `path` is for messages.
    pub(crate) fn parse(bytes: &[u8], settings: &Settings, path: &Path) -> Result<Self> {
        let mut ranks = HashMap::new();
        let mut tokens = Vec::new();
        for (number, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if line.is_empty() {
                continue;
            }
            let at = |what: &str| malformed(path, format!("line {}: {what}", number + 1));
            let (token, rank) =
                parse_line(line).ok_or_else(|| at("expected a token in base64, a blank and a rank"))?;
            // Real files have some hundred thousand; a wild number must not become an allocation.
            if rank >= 1 << 24 {
                return Err(at("the rank is larger than any vocabulary"));
            }
            let slot = rank as usize;
            if tokens.len() <= slot {
                tokens.resize(slot + 1, None);
            }
            if tokens[slot].is_some() {
                return Err(at("the rank was given before"));
            }
            tokens[slot] = Some(token.clone());
            if ranks.insert(token, rank).is_some() {
                return Err(at("the token was given before"));
            }
        }
        if let Some(byte) = (0..=255u8).find(|byte| !ranks.contains_key([*byte].as_slice())) {
            return Err(malformed(path, format!("the byte {byte} has no token of its own")));
        }
        let first = tokens.len() as u32;
        let family = Family::of(settings);
        let mut specials: Vec<_> =
            family.specials().iter().zip(first..).map(|(name, id)| (plain(name), id)).collect();
        specials.extend(settings.added.iter().map(|(id, token)| (token.clone(), *id)));
        let specials = Specials::new(specials);
        let digits = if family == Family::Qwen { r"\p{N}" } else { r"\p{N}{1,3}" };
        let pattern = SplitPattern::Regex([WORDS_BEFORE_DIGITS, digits, WORDS_AFTER_DIGITS].concat());
        let words = Split::new(pattern, SplitDelimiterBehavior::Isolated, false)
            .map_err(|error| malformed(path, error.to_string()))?;
        let frame: &[&str] = match family {
            Family::Qwen => &[],
            Family::Glm => &["[gMASK]", "<sop>"],
            Family::Llama => &["<|begin_of_text|>"],
        };
        let named = |name: &str| if family == Family::Llama { specials.id(name) } else { None };
        Ok(Self {
            frame: frame.iter().filter_map(|name| specials.id(name)).collect(),
            bos: named("<|begin_of_text|>"),
            eos: named("<|end_of_text|>"),
            composes: family == Family::Qwen,
            ranks,
            tokens,
            specials,
            words,
        })
    }

    fn encode_text(&self, text: &str, ids: &mut Vec<u32>) -> tokenizers::Result<()> {
        let mut words = if self.composes && !text.is_ascii() {
            let mut text = NormalizedString::from(text);
            NFC.normalize(&mut text)?;
            PreTokenizedString::from(text)
        } else {
            PreTokenizedString::from(text)
        };
        self.words.pre_tokenize(&mut words)?;
        for (word, _, _) in words.get_splits(OffsetReferential::Normalized, OffsetType::None) {
            self.encode_word(word.as_bytes(), ids);
        }
        Ok(())
    }

    fn encode_word(&self, word: &[u8], ids: &mut Vec<u32>) {
        if let Some(id) = self.ranks.get(word) {
            ids.push(*id);
            return;
        }
        let bytes: Vec<_> = (0..word.len()).map(|i| (i..i + 1, false)).collect();
        let rank = |range: Range<usize>| self.ranks.get(&word[range]).copied();
        // Every byte is a token, and so is every pair that was joined.
        ids.extend(merge(&bytes, rank).into_iter().filter_map(rank));
    }

    fn bytes(&self, id: u32) -> Option<&[u8]> {
        match self.tokens.get(id as usize) {
            Some(token) => token.as_deref(),
            None => self.specials.token(id).map(|token| token.content.as_bytes()),
        }
    }
}

impl Vocabulary for TiktokenVocabulary {
    fn encode(&self, text: &str, mode: Mode) -> Result<Vec<u32>> {
        let mut ids = if mode == Mode::Framed { self.frame.clone() } else { Vec::new() };
        let parts = if mode == Mode::Plain { vec![Part::Text(text)] } else { self.specials.split(text) };
        for part in parts {
            match part {
                Part::Token(id) => ids.push(id),
                Part::Text(text) => {
                    self.encode_text(text, &mut ids)
                        .map_err(|error| Error::Encode { what: error.to_string() })?;
                }
            }
        }
        Ok(ids)
    }

    fn size(&self) -> usize {
        self.tokens.len().max(self.specials.last().map_or(0, |id| id as usize + 1))
    }

    fn token(&self, id: u32) -> Option<String> {
        self.bytes(id).map(|bytes| String::from_utf8_lossy(bytes).into_owned())
    }

    fn id(&self, token: &str) -> Option<u32> {
        self.specials.id(token).or_else(|| self.ranks.get(token.as_bytes()).copied())
    }

    fn is_special(&self, id: u32) -> bool {
        self.specials.token(id).is_some_and(|token| token.special)
    }

    fn role(&self, role: &str) -> Option<u32> {
        match role {
            "bos_token" => self.bos,
            "eos_token" => self.eos,
            _ => None,
        }
    }

    fn decoder(self: Arc<Self>) -> Box<dyn Decode> {
        Box::new(TiktokenDecode { vocabulary: self, text: Lossy::default() })
    }
}

struct TiktokenDecode {
    vocabulary: Arc<TiktokenVocabulary>,
    text: Lossy,
}

impl Decode for TiktokenDecode {
    fn push(&mut self, id: u32, out: &mut String) {
        if let Some(bytes) = self.vocabulary.bytes(id) {
            self.text.push(bytes, out);
        }
    }

    fn finish(&mut self, out: &mut String) {
        self.text.finish(out);
    }
}

/// The families that publish rank files. Their special tokens and word rules are in their code, not in
/// the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    Qwen,
    Glm,
    Llama,
}

impl Family {
    fn of(settings: &Settings) -> Self {
        match settings.class.as_str() {
            "QWenTokenizer" => Self::Qwen,
            "ChatGLM4Tokenizer" => Self::Glm,
            _ => Self::Llama,
        }
    }

    /// Special tokens with the ids after the last rank.
    fn specials(self) -> Vec<String> {
        let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        match self {
            Self::Qwen => {
                let mut names = list(&["<|endoftext|>", "<|im_start|>", "<|im_end|>"]);
                names.extend((0..205).map(|i| format!("<|extra_{i}|>")));
                names
            }
            // GLM-4 lists them in its config.
            Self::Glm => Vec::new(),
            Self::Llama => {
                let mut names = list(&[
                    "<|begin_of_text|>",
                    "<|end_of_text|>",
                    "<|reserved_special_token_0|>",
                    "<|reserved_special_token_1|>",
                    "<|finetune_right_pad_id|>",
                    "<|step_id|>",
                    "<|start_header_id|>",
                    "<|end_header_id|>",
                    "<|eom_id|>",
                    "<|eot_id|>",
                    "<|python_tag|>",
                ]);
                let rest = 256 - names.len();
                names.extend((0..rest).map(|i| format!("<|reserved_special_token_{}|>", i + 2)));
                names
            }
        }
    }
}

fn parse_line(line: &[u8]) -> Option<(Box<[u8]>, u32)> {
    let line = std::str::from_utf8(line).ok()?;
    let (token, rank) = line.trim_end().split_once(' ')?;
    let token = base64(token)?;
    if token.is_empty() {
        return None;
    }
    Some((token.into(), rank.parse().ok()?))
}

/// Standard base64 with padding.
fn base64(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=');
    if !text.len().is_multiple_of(4) || text.len() - digits.len() > 2 {
        return None;
    }
    let mut out = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut count) = (0u32, 0);
    for c in digits.bytes() {
        let digit = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(digit);
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8);
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(text: &str) -> Result<TiktokenVocabulary> {
        TiktokenVocabulary::parse(text.as_bytes(), &Settings::default(), Path::new("x.tiktoken"))
    }

    #[test]
    fn base64_of_the_standard() {
        for (text, bytes) in
            [("", ""), ("Zg==", "f"), ("Zm8=", "fo"), ("Zm9v", "foo"), ("Zm9vYmFy", "foobar")]
        {
            assert_eq!(base64(text).unwrap(), bytes.as_bytes());
        }
        assert_eq!(base64("+/8=").unwrap(), [0xFB, 0xFF]);
        assert!(base64("Zg").is_none() && base64("Z===").is_none() && base64("Z*==").is_none());
    }

    #[test]
    fn broken_files_are_refused_with_the_line() {
        for (text, words) in [
            ("IQ== 0\nIg== x\n", "line 2: expected a token in base64"),
            ("IQ== 0\nIg== 0\n", "line 2: the rank was given before"),
            ("IQ== 0\nIQ== 1\n", "line 2: the token was given before"),
            ("IQ== 99999999\n", "line 1: the rank is larger"),
            ("IQ== 0\n", "the byte 0 has no token of its own"),
        ] {
            let message = parse(text).err().unwrap().to_string();
            assert!(message.contains(words), "{message}");
        }
        assert!(
            looks_like(b"IQ== 0\nIg== 1\n")
                && !looks_like(b"\n\x0e\n\x05<unk>")
                && !looks_like(b"hello there")
        );
    }

    #[test]
    fn special_tokens_of_a_config_come_with_their_ids() {
        let settings = json!({"tokenizer_class": "ChatGLM4Tokenizer",
            "added_tokens_decoder": {"300": {"content": "[gMASK]", "special": true}}});
        let settings = Settings::parse(&settings, Path::new("c")).unwrap();
        let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/".as_bytes();
        let ranks: String = (0..256usize)
            .map(|b| {
                format!("{}{}== {b}\n", char::from(alphabet[b >> 2]), char::from(alphabet[(b & 3) << 4]))
            })
            .collect();
        let vocabulary = TiktokenVocabulary::parse(ranks.as_bytes(), &settings, Path::new("x")).unwrap();
        assert_eq!(vocabulary.size(), 301);
        assert_eq!(vocabulary.encode("a[gMASK]", Mode::Framed).unwrap(), [300, 97, 300]);
        assert_eq!(vocabulary.encode("[g", Mode::Plain).unwrap(), [91, 103]);
    }
}
