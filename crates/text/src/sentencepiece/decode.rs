//! Pieces to text, one at a time.

use std::sync::Arc;

use super::model::Kind;
use super::{BLANK, SentencePieceVocabulary};
use crate::utf8::REPLACEMENT;
use crate::vocabulary::Decode;

/// A decode in progress; `sentencepiece_processor.cc` of SentencePiece 0.2.
pub(super) struct SentencePieceDecode {
    vocabulary: Arc<SentencePieceVocabulary>,
    /// Bytes of a character that is not complete.
    bytes: Vec<u8>,
    /// Whether the blank that was put before the text may still come.
    at_begin: bool,
    blank_seen: bool,
    any_text: bool,
    written: Written,
}

impl SentencePieceDecode {
    pub(super) fn new(vocabulary: Arc<SentencePieceVocabulary>) -> Self {
        let written = if vocabulary.writes_blanks { Written::Marks(String::new()) } else { Written::Plain };
        Self { vocabulary, bytes: Vec::new(), at_begin: true, blank_seen: false, any_text: false, written }
    }

    fn write(&mut self, text: &str, out: &mut String) {
        self.any_text |= !text.is_empty();
        self.written.push(text, out);
    }

    /// Writes the characters that are complete. Where bytes are not UTF-8, each is one U+FFFD.
    fn write_bytes(&mut self, end: bool, out: &mut String) {
        let bytes = std::mem::take(&mut self.bytes);
        let mut rest = bytes.as_slice();
        let mut text = String::new();
        while !rest.is_empty() {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    rest = &[];
                }
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(valid));
                    rest = after;
                    if error.error_len().is_none() && !end {
                        break;
                    }
                    text.push(REPLACEMENT);
                    rest = &rest[1..];
                }
            }
        }
        self.bytes = rest.to_vec();
        self.write(&text, out);
    }

    fn piece(&mut self, id: u32, out: &mut String) {
        let vocabulary = Arc::clone(&self.vocabulary);
        if let Some(name) = vocabulary.name(id + vocabulary.offset) {
            // Its name is its text, and what follows begins anew.
            self.write_bytes(true, out);
            self.write(name, out);
            self.at_begin = true;
            self.blank_seen = false;
            self.any_text = false;
            return;
        }
        let Some(piece) = vocabulary.model.pieces.get(id as usize) else { return };
        if piece.kind == Kind::Byte {
            self.bytes.extend(vocabulary.byte_of(id));
            self.write_bytes(false, out);
            return;
        }
        self.write_bytes(true, out);
        if self.blank_seen || self.any_text {
            self.at_begin = false;
        }
        match piece.kind {
            Kind::Control => self.blank_seen = false,
            Kind::Unknown => {
                self.blank_seen = false;
                self.write(&vocabulary.model.unknown_surface, out);
            }
            _ => {
                let model = &vocabulary.model;
                let mut text = piece.text.as_str();
                self.blank_seen = false;
                if self.at_begin
                    && (model.dummy_prefix || model.remove_extra_blanks)
                    && let Some(rest) = text.strip_prefix(BLANK)
                {
                    text = rest;
                    self.blank_seen = !model.remove_extra_blanks;
                }
                self.write(&text.replace(BLANK, " "), out);
            }
        }
    }
}

impl Decode for SentencePieceDecode {
    fn push(&mut self, id: u32, out: &mut String) {
        if let Some(id) = id.checked_sub(self.vocabulary.offset) {
            self.piece(id, out);
        }
    }

    fn finish(&mut self, out: &mut String) {
        self.write_bytes(true, out);
        self.written.finish(out);
    }
}

/// Line ends, tabs and runs of blanks as ChatGLM-6B writes them before it encodes a text.
pub(super) fn write_blanks(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut blanks = 0;
    let flush = |blanks: &mut usize, out: &mut String| {
        while *blanks >= 2 {
            let run = (*blanks).min(LONGEST_RUN);
            out.push_str(&format!("<|blank_{run}|>"));
            *blanks -= run;
        }
        if std::mem::take(blanks) == 1 {
            out.push(' ');
        }
    };
    for c in text.chars() {
        if c == ' ' {
            blanks += 1;
            continue;
        }
        flush(&mut blanks, &mut out);
        match c {
            '\n' => out.push_str("<n>"),
            '\t' => out.push_str("<|tab|>"),
            c => out.push(c),
        }
    }
    flush(&mut blanks, &mut out);
    out
}

const LONGEST_RUN: usize = 80;

/// The way from decoded text to output.
enum Written {
    Plain,
    /// Marks become the blanks they stand for. What may be the beginning of a mark is held.
    Marks(String),
}

impl Written {
    fn push(&mut self, text: &str, out: &mut String) {
        let held = match self {
            Self::Plain => {
                out.push_str(text);
                return;
            }
            Self::Marks(held) => held,
        };
        for c in text.chars() {
            if c == '<' || held.is_empty() {
                // No mark has a `<` inside.
                out.push_str(&std::mem::take(held));
                if c == '<' {
                    held.push(c);
                } else {
                    out.push(c);
                }
                continue;
            }
            held.push(c);
            if let Some(blank) = blank_of(held) {
                out.push_str(&blank);
                held.clear();
            } else if !may_become_mark(held) {
                out.push_str(&std::mem::take(held));
            }
        }
    }

    fn finish(&mut self, out: &mut String) {
        if let Self::Marks(held) = self {
            out.push_str(&std::mem::take(held));
        }
    }
}

fn blank_of(mark: &str) -> Option<String> {
    match mark {
        "<n>" => Some("\n".to_owned()),
        "<|tab|>" => Some("\t".to_owned()),
        _ => {
            let count = mark.strip_prefix("<|blank_")?.strip_suffix("|>")?;
            let number: usize = count.parse().ok()?;
            let written = (2..=LONGEST_RUN).contains(&number) && number.to_string() == count;
            written.then(|| " ".repeat(number))
        }
    }
}

fn may_become_mark(text: &str) -> bool {
    const BLANK_MARK: &str = "<|blank_";
    match text.strip_prefix(BLANK_MARK) {
        Some(rest) => {
            let rest = rest.strip_suffix('|').unwrap_or(rest);
            rest.len() <= 2 && rest.bytes().all(|byte| byte.is_ascii_digit())
        }
        None => ["<n>", "<|tab|>", BLANK_MARK].iter().any(|mark| mark.starts_with(text)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn blanks_are_written_as_marks() {
        assert_eq!(write_blanks(" a  b\n\tc"), " a<|blank_2|>b<n><|tab|>c");
        assert_eq!(write_blanks(&" ".repeat(81)), "<|blank_80|> ");
        assert_eq!(write_blanks(&" ".repeat(85)), "<|blank_80|><|blank_5|>");
    }

    proptest! {
        #[test]
        fn marks_become_blanks_wherever_they_are_cut(
            parts in prop::collection::vec(prop_oneof![
                Just("<n>"), Just("<"), Just("n"), Just(">"), Just("<|tab|>"), Just("<|bl"), Just("ank_"), Just("<|blank_"),
                Just("7"), Just("0"), Just("|"), Just("|>"), Just("<|blank_12|>"), Just("x"), Just(""),
            ], 0..20)
        ) {
            // As ChatGLM-6B does it: one replacement after the other, in the whole text.
            let mut expected = parts.concat().replace("<n>", "\n").replace("<|tab|>", "\t");
            for count in 2..=LONGEST_RUN {
                expected = expected.replace(&format!("<|blank_{count}|>"), &" ".repeat(count));
            }
            let mut written = Written::Marks(String::new());
            let mut found = String::new();
            for part in parts {
                written.push(part, &mut found);
            }
            written.finish(&mut found);
            prop_assert_eq!(found, expected);
        }
    }
}
