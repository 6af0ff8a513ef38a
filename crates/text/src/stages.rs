//! The decoders of a `tokenizer.json`, working on a stream of tokens.
//!
//! The file describes a decoder as a chain of steps, each from a list of strings to a list of
//! strings. Here each step is a [`Stage`] that gets the strings one by one and passes on what can no
//! longer change, so that a text can be shown while it is being made. Together they give exactly what
//! the steps give on the whole list; a step of an unknown kind waits for the end.

use serde::Deserialize;
use serde_json::Value;
use tokenizers::decoders::DecoderWrapper;
use tokenizers::normalizers::replace::Replace;
use tokenizers::tokenizer::Decoder;

use crate::bytes::{byte_of, fallback_byte};
use crate::utf8::{Lossy, REPLACEMENT};

/// Some text of one token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Piece {
    pub text: String,
    /// Whether the token ends here. A token that was fused from others comes in many pieces.
    pub last: bool,
}

/// One step of the chain.
pub(crate) trait Stage: Send {
    /// Takes a piece and appends what follows from it.
    fn push(&mut self, piece: Piece, out: &mut Vec<Piece>);
    /// Appends what was held back; no piece comes after this.
    fn finish(&mut self, out: &mut Vec<Piece>);
}

/// All steps of a decoder.
pub(crate) struct Chain {
    stages: Vec<Box<dyn Stage>>,
}

impl Chain {
    /// Builds the stages of a decoder; without one, tokens are joined with blanks.
    pub(crate) fn new(decoder: Option<&DecoderWrapper>) -> Self {
        let mut stages = Vec::new();
        match decoder {
            None => stages.push(Box::new(Join { first: true }) as Box<dyn Stage>),
            Some(decoder) => add_stages(decoder, &mut stages),
        }
        Self { stages }
    }

    /// Takes one token; appends the text that is certain to `out`.
    pub(crate) fn push(&mut self, token: String, out: &mut String) {
        self.run(vec![Piece { text: token, last: true }], 0, out);
    }

    /// Ends the list of tokens.
    pub(crate) fn finish(&mut self, out: &mut String) {
        for i in 0..self.stages.len() {
            let mut rest = Vec::new();
            self.stages[i].finish(&mut rest);
            self.run(rest, i + 1, out);
        }
    }

    fn run(&mut self, mut pieces: Vec<Piece>, from: usize, out: &mut String) {
        for stage in &mut self.stages[from..] {
            let mut next = Vec::with_capacity(pieces.len());
            for piece in pieces {
                stage.push(piece, &mut next);
            }
            pieces = next;
        }
        for piece in pieces {
            out.push_str(&piece.text);
        }
    }
}

fn add_stages(decoder: &DecoderWrapper, stages: &mut Vec<Box<dyn Stage>>) {
    match decoder {
        DecoderWrapper::Sequence(sequence) => {
            for decoder in sequence.get_decoders() {
                add_stages(decoder, stages);
            }
        }
        DecoderWrapper::ByteLevel(_) => stages.push(Box::new(Whole::new(ByteLevel::default()))),
        DecoderWrapper::ByteFallback(_) => stages.push(Box::new(Whole::new(ByteFallback::default()))),
        DecoderWrapper::Fuse(_) => stages.push(Box::new(Fuse)),
        DecoderWrapper::Strip(strip) => {
            stages.push(Box::new(Strip::new(strip.content, strip.start, strip.stop)))
        }
        DecoderWrapper::Metaspace(metaspace) => {
            use tokenizers::pre_tokenizers::metaspace::PrependScheme;
            stages.push(Box::new(Metaspace {
                mark: metaspace.get_replacement(),
                drop_in_first: metaspace.prepend_scheme != PrependScheme::Never,
                first: true,
            }));
        }
        DecoderWrapper::Replace(replace) => {
            let each = ReplaceEach { replace: replace.clone() };
            // One character cannot lie across two pieces; anything longer may.
            if is_one_character(replace) {
                stages.push(Box::new(each));
            } else {
                stages.push(Box::new(Whole::new(each)));
            }
        }
        DecoderWrapper::WordPiece(_) => {
            stages.push(Box::new(Whole::new(WordPiece { decoder: decoder.clone(), first: true })));
        }
        other => stages.push(Box::new(Whole::new(AtTheEnd { decoder: other.clone(), tokens: Vec::new() }))),
    }
}

fn is_one_character(replace: &Replace) -> bool {
    #[derive(Deserialize)]
    struct Shape {
        pattern: Value,
    }
    serde_json::to_value(replace).and_then(serde_json::from_value::<Shape>).is_ok_and(|shape| {
        shape.pattern.get("String").and_then(Value::as_str).is_some_and(|s| s.chars().count() == 1)
    })
}

/// Gives its inner stage whole tokens only.
struct Whole<S> {
    inner: S,
    begun: String,
}

impl<S> Whole<S> {
    fn new(inner: S) -> Self {
        Self { inner, begun: String::new() }
    }
}

impl<S: Stage> Stage for Whole<S> {
    fn push(&mut self, mut piece: Piece, out: &mut Vec<Piece>) {
        if !piece.last {
            self.begun.push_str(&piece.text);
            return;
        }
        if !self.begun.is_empty() {
            self.begun.push_str(&piece.text);
            piece.text = std::mem::take(&mut self.begun);
        }
        self.inner.push(piece, out);
    }

    fn finish(&mut self, out: &mut Vec<Piece>) {
        self.inner.finish(out);
    }
}

/// Blanks between tokens.
struct Join {
    first: bool,
}

impl Stage for Join {
    fn push(&mut self, mut piece: Piece, out: &mut Vec<Piece>) {
        if !std::mem::take(&mut self.first) {
            piece.text.insert(0, ' ');
        }
        out.push(piece);
    }

    fn finish(&mut self, _: &mut Vec<Piece>) {}
}

/// `ByteLevel`: each character of a token stands for a byte (the GPT-2 alphabet). A token with any
/// other character stands for itself.
#[derive(Default)]
struct ByteLevel {
    text: Lossy,
}

impl Stage for ByteLevel {
    fn push(&mut self, piece: Piece, out: &mut Vec<Piece>) {
        let bytes: Option<Vec<u8>> = piece.text.chars().map(byte_of).collect();
        let mut text = String::new();
        self.text.push(bytes.as_deref().unwrap_or(piece.text.as_bytes()), &mut text);
        if !text.is_empty() {
            out.push(Piece { text, last: false });
        }
    }

    fn finish(&mut self, out: &mut Vec<Piece>) {
        let mut text = String::new();
        self.text.finish(&mut text);
        out.push(Piece { text, last: true });
    }
}

/// `ByteFallback`: tokens like `<0xE4>` are bytes. A run of them is text if the whole run is valid
/// UTF-8, and one U+FFFD for each byte if not; so a run cannot be shown before its end.
#[derive(Default)]
struct ByteFallback {
    run: Vec<u8>,
}

impl ByteFallback {
    fn end_run(&mut self, out: &mut Vec<Piece>) {
        if self.run.is_empty() {
            return;
        }
        match String::from_utf8(std::mem::take(&mut self.run)) {
            Ok(text) => out.push(Piece { text, last: true }),
            Err(error) => {
                let each = Piece { text: REPLACEMENT.to_string(), last: true };
                out.extend(std::iter::repeat_n(each, error.as_bytes().len()));
            }
        }
    }
}

impl Stage for ByteFallback {
    fn push(&mut self, piece: Piece, out: &mut Vec<Piece>) {
        match fallback_byte(&piece.text) {
            Some(byte) => self.run.push(byte),
            None => {
                self.end_run(out);
                out.push(piece);
            }
        }
    }

    fn finish(&mut self, out: &mut Vec<Piece>) {
        self.end_run(out);
    }
}

/// `Fuse`: all tokens become one.
struct Fuse;

impl Stage for Fuse {
    fn push(&mut self, mut piece: Piece, out: &mut Vec<Piece>) {
        piece.last = false;
        out.push(piece);
    }

    fn finish(&mut self, out: &mut Vec<Piece>) {
        out.push(Piece { text: String::new(), last: true });
    }
}

/// `Strip`: up to `start` marks are cut off each token's beginning and up to `stop` off its end.
struct Strip {
    mark: char,
    start: usize,
    stop: usize,
    /// Marks that may still be cut off the beginning of the token at hand.
    may_cut: usize,
    /// Marks at the end of what was seen of it, at most `stop`, not passed on yet.
    held: usize,
}

impl Strip {
    fn new(mark: char, start: usize, stop: usize) -> Self {
        Self { mark, start, stop, may_cut: start, held: 0 }
    }
}

impl Stage for Strip {
    fn push(&mut self, piece: Piece, out: &mut Vec<Piece>) {
        let mut text = String::with_capacity(piece.text.len());
        for c in piece.text.chars() {
            if c == self.mark {
                if self.may_cut > 0 {
                    self.may_cut -= 1;
                } else if self.held < self.stop {
                    self.held += 1;
                } else {
                    text.push(c);
                }
            } else {
                self.may_cut = 0;
                text.extend(std::iter::repeat_n(self.mark, std::mem::take(&mut self.held)));
                text.push(c);
            }
        }
        if piece.last {
            self.may_cut = self.start;
            self.held = 0;
        }
        out.push(Piece { text, last: piece.last });
    }

    fn finish(&mut self, _: &mut Vec<Piece>) {}
}

/// `Metaspace`: marks become blanks, and vanish in the first token if the encoder puts one there.
struct Metaspace {
    mark: char,
    drop_in_first: bool,
    first: bool,
}

impl Stage for Metaspace {
    fn push(&mut self, mut piece: Piece, out: &mut Vec<Piece>) {
        let blank = if self.first && self.drop_in_first { "" } else { " " };
        piece.text = piece.text.replace(self.mark, blank);
        self.first &= !piece.last;
        out.push(piece);
    }

    fn finish(&mut self, _: &mut Vec<Piece>) {}
}

/// `Replace`, on each piece.
struct ReplaceEach {
    replace: Replace,
}

impl Stage for ReplaceEach {
    fn push(&mut self, mut piece: Piece, out: &mut Vec<Piece>) {
        // A pattern that fails on a text (too much backtracking) leaves it as it is.
        if let Ok(replaced) = self.replace.decode_chain(vec![piece.text.clone()]) {
            piece.text = replaced.concat();
        }
        out.push(piece);
    }

    fn finish(&mut self, _: &mut Vec<Piece>) {}
}

/// `WordPiece`: a blank before each token but the first, except where the token continues a word.
struct WordPiece {
    decoder: DecoderWrapper,
    first: bool,
}

impl Stage for WordPiece {
    fn push(&mut self, mut piece: Piece, out: &mut Vec<Piece>) {
        // The library's step only asks whether a token is the first of its list.
        let tokens = if std::mem::take(&mut self.first) {
            vec![piece.text.clone()]
        } else {
            vec![String::new(), piece.text.clone()]
        };
        if let Some(text) = self.decoder.decode_chain(tokens).ok().and_then(|mut tokens| tokens.pop()) {
            piece.text = text;
        }
        out.push(piece);
    }

    fn finish(&mut self, _: &mut Vec<Piece>) {}
}

/// A step of another kind, which gets the whole list when it is complete.
struct AtTheEnd {
    decoder: DecoderWrapper,
    tokens: Vec<String>,
}

impl Stage for AtTheEnd {
    fn push(&mut self, piece: Piece, _: &mut Vec<Piece>) {
        self.tokens.push(piece.text);
    }

    fn finish(&mut self, out: &mut Vec<Piece>) {
        let tokens = std::mem::take(&mut self.tokens);
        // Some steps of the library cannot take an empty list.
        if !tokens.is_empty()
            && let Ok(tokens) = self.decoder.decode_chain(tokens)
        {
            out.extend(tokens.into_iter().map(|text| Piece { text, last: true }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    /// Chains as published models have them, and some that only the rules of the format allow.
    fn chains() -> Vec<Value> {
        let replace = json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "});
        let regex = json!({"type": "Replace", "pattern": {"Regex": "a+ ?"}, "content": "<a>"});
        let fuse = json!({"type": "Fuse"});
        let bytes = json!({"type": "ByteFallback"});
        let strip = |start: usize, stop: usize| json!({"type": "Strip", "content": " ", "start": start, "stop": stop});
        let sequence = |steps: &[&Value]| json!({"type": "Sequence", "decoders": steps});
        vec![
            json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}),
            sequence(&[&replace, &bytes, &fuse, &strip(1, 0)]),
            sequence(&[&replace, &bytes, &fuse]),
            sequence(&[&bytes, &fuse, &regex, &strip(2, 0)]),
            sequence(&[&fuse, &replace, &strip(1, 0)]),
            sequence(&[&replace, &bytes, &strip(1, 0)]),
            json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true}),
            sequence(&[
                &fuse,
                &json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": true}),
            ]),
            json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": true}),
            json!({"type": "WordPiece", "prefix": "##", "cleanup": true}),
            json!({"type": "BPEDecoder", "suffix": "</w>"}),
            json!({"type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": true}),
        ]
    }

    fn token() -> impl Strategy<Value = String> {
        prop_oneof![
            Just("▁Hello".to_owned()),
            Just("▁".to_owned()),
            Just("▁▁ ".to_owned()),
            Just("<0xE4>".to_owned()),
            Just("<0xBD>".to_owned()),
            Just("<0xA0>".to_owned()),
            Just("<0x20>".to_owned()),
            Just("ä½".to_owned()),
            Just("ł".to_owned()),
            Just("Ġa a".to_owned()),
            Just("##ly".to_owned()),
            Just("aa</w>".to_owned()),
            Just("<pad>".to_owned()),
            Just("你".to_owned()),
            Just(" ".to_owned()),
            Just(String::new()),
            "[ a▁b|]{0,4}",
        ]
    }

    proptest! {
        #[test]
        fn a_stream_equals_the_decode_of_the_whole_list(tokens in prop::collection::vec(token(), 1..24)) {
            for json in chains() {
                let decoder: DecoderWrapper = serde_json::from_value(json.clone()).unwrap();
                let expected = decoder.decode(tokens.clone()).unwrap();
                let mut chain = Chain::new(Some(&decoder));
                let mut found = String::new();
                for token in &tokens {
                    chain.push(token.clone(), &mut found);
                }
                chain.finish(&mut found);
                prop_assert_eq!(&found, &expected, "{} {:?}", json, &tokens);
            }
        }

        #[test]
        fn marks_are_cut_off_both_ends(text in "[ ab]{0,12}", start in 0usize..3, stop in 0usize..3, cut in 0usize..13) {
            let mut strip = Strip::new(' ', start, stop);
            let mut out = Vec::new();
            let cut = cut.min(text.len());
            strip.push(Piece { text: text[..cut].to_owned(), last: false }, &mut out);
            strip.push(Piece { text: text[cut..].to_owned(), last: true }, &mut out);
            let found: String = out.into_iter().map(|piece| piece.text).collect();
            let mut rest = text.as_str();
            for _ in 0..start {
                rest = rest.strip_prefix(' ').unwrap_or(rest);
            }
            for _ in 0..stop {
                rest = rest.strip_suffix(' ').unwrap_or(rest);
            }
            prop_assert_eq!(found, rest);
        }
    }

    #[test]
    fn tokens_without_a_decoder_are_joined_with_blanks() {
        let mut chain = Chain::new(None);
        let mut out = String::new();
        for token in ["a", "b", "c"] {
            chain.push(token.to_owned(), &mut out);
        }
        chain.finish(&mut out);
        assert_eq!(out, "a b c");
    }

    #[test]
    fn a_run_of_bytes_waits_for_its_end() {
        let decoder: DecoderWrapper = serde_json::from_value(
            json!({"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]}),
        )
        .unwrap();
        let mut chain = Chain::new(Some(&decoder));
        let mut out = String::new();
        for token in ["<0xE4>", "<0xBD>", "<0xA0>"] {
            chain.push(token.to_owned(), &mut out);
            assert_eq!(out, "");
        }
        chain.push("!".to_owned(), &mut out);
        assert_eq!(out, "你!");
    }
}
