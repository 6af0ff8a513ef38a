//! The `.model` file: a protocol buffer (`sentencepiece_model.proto`) of pieces and settings.

use std::path::Path;

use crate::Result;
use crate::config::malformed;

/// How a text is cut into pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Algorithm {
    /// Joins neighbours, best score first.
    Bpe,
    /// Takes the pieces with the best sum of scores.
    Unigram,
}

/// What a piece is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Found by training.
    Normal,
    /// Stands for what cannot be expressed.
    Unknown,
    /// Has no text (`<s>`).
    Control,
    /// Put in by the model's makers; always cut out of a text whole.
    UserDefined,
    /// In the file, but not to be produced.
    Unused,
    /// A byte (`<0x0A>`).
    Byte,
}

/// An entry of the vocabulary.
#[derive(Debug, Clone)]
pub(crate) struct Piece {
    pub text: String,
    pub score: f32,
    pub kind: Kind,
}

/// The content of a file. Defaults are those of the format.
#[derive(Debug, Clone)]
pub(crate) struct Model {
    pub pieces: Vec<Piece>,
    pub algorithm: Algorithm,
    pub byte_fallback: bool,
    /// The text of the unknown piece.
    pub unknown_surface: String,
    /// Ids of the begin, end and padding pieces; negative for none.
    pub bos: i32,
    pub eos: i32,
    pub pad: i32,
    /// A blank belongs to the word before it, not after it.
    pub blank_is_suffix: bool,
    /// A double-array trie and the strings that it maps to.
    pub charsmap: Vec<u8>,
    pub dummy_prefix: bool,
    pub remove_extra_blanks: bool,
    pub escape_blanks: bool,
}

impl Model {
    /// Understands the bytes of a file; `path` is for messages.
    pub(crate) fn parse(bytes: &[u8], path: &Path) -> Result<Self> {
        let mut model = Self {
            pieces: Vec::new(),
            algorithm: Algorithm::Unigram,
            byte_fallback: false,
            unknown_surface: " \u{2047} ".to_owned(),
            bos: 1,
            eos: 2,
            pad: -1,
            blank_is_suffix: false,
            charsmap: Vec::new(),
            dummy_prefix: true,
            remove_extra_blanks: true,
            escape_blanks: true,
        };
        let wrong = |what: String| malformed(path, format!("not a SentencePiece model: {what}"));
        let broken = || wrong("its fields do not fit into its length".to_owned());
        for field in Fields(bytes) {
            match field.ok_or_else(broken)? {
                (1, Field::Bytes(piece)) => {
                    let id = model.pieces.len();
                    model
                        .pieces
                        .push(parse_piece(piece).map_err(|what| wrong(format!("piece {id}: {what}")))?);
                }
                (2, Field::Bytes(spec)) => model.trainer(spec).map_err(wrong)?,
                (3, Field::Bytes(spec)) => model.normaliser(spec).ok_or_else(broken)?,
                _ => {}
            }
        }
        if model.pieces.is_empty() {
            return Err(wrong("it has no pieces".to_owned()));
        }
        Ok(model)
    }

    fn trainer(&mut self, spec: &[u8]) -> std::result::Result<(), String> {
        for field in Fields(spec) {
            match field.ok_or("its trainer settings are cut off")? {
                (3, Field::Number(kind)) => {
                    self.algorithm = match kind {
                        1 => Algorithm::Unigram,
                        2 => Algorithm::Bpe,
                        other => {
                            return Err(format!(
                                "model type {other}; what can be read is 1 (unigram) and 2 (BPE)"
                            ));
                        }
                    };
                }
                (24, Field::Number(flag)) => self.blank_is_suffix = flag != 0,
                (35, Field::Number(flag)) => self.byte_fallback = flag != 0,
                // Negative numbers are written as 64 bits.
                (41, Field::Number(id)) => self.bos = id as i32,
                (42, Field::Number(id)) => self.eos = id as i32,
                (43, Field::Number(id)) => self.pad = id as i32,
                (44, Field::Bytes(text)) => self.unknown_surface = String::from_utf8_lossy(text).into_owned(),
                _ => {}
            }
        }
        Ok(())
    }

    fn normaliser(&mut self, spec: &[u8]) -> Option<()> {
        for field in Fields(spec) {
            match field? {
                (2, Field::Bytes(map)) => self.charsmap = map.to_vec(),
                (3, Field::Number(flag)) => self.dummy_prefix = flag != 0,
                (4, Field::Number(flag)) => self.remove_extra_blanks = flag != 0,
                (5, Field::Number(flag)) => self.escape_blanks = flag != 0,
                _ => {}
            }
        }
        Some(())
    }
}

fn parse_piece(bytes: &[u8]) -> std::result::Result<Piece, String> {
    let mut piece = Piece { text: String::new(), score: 0.0, kind: Kind::Normal };
    for field in Fields(bytes) {
        match field.ok_or("it is cut off")? {
            (1, Field::Bytes(text)) => {
                piece.text = std::str::from_utf8(text).map_err(|_| "its text is not UTF-8")?.to_owned();
            }
            (2, Field::Four(bytes)) => piece.score = f32::from_le_bytes(bytes),
            (3, Field::Number(kind)) => {
                piece.kind = match kind {
                    1 => Kind::Normal,
                    2 => Kind::Unknown,
                    3 => Kind::Control,
                    4 => Kind::UserDefined,
                    5 => Kind::Unused,
                    6 => Kind::Byte,
                    other => return Err(format!("type {other} is not known")),
                };
            }
            _ => {}
        }
    }
    if piece.text.is_empty() {
        return Err("it has no text".to_owned());
    }
    if piece.score.is_nan() {
        return Err("its score is not a number".to_owned());
    }
    Ok(piece)
}

/// A field of a protocol buffer.
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    Four([u8; 4]),
    Eight,
}

/// The fields of a message, with their numbers; `None` where the bytes make no sense, and then no more.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn next_field(&mut self) -> Option<(u64, Field<'a>)> {
        let key = self.number()?;
        let field = match key & 7 {
            0 => Field::Number(self.number()?),
            1 => {
                self.take(8)?;
                Field::Eight
            }
            2 => {
                let length = usize::try_from(self.number()?).ok()?;
                Field::Bytes(self.take(length)?)
            }
            5 => Field::Four(self.take(4)?.try_into().ok()?),
            _ => return None,
        };
        Some((key >> 3, field))
    }

    fn number(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let [byte] = *self.take(1)? else { return None };
            value |= u64::from(byte & 0x7F) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Option<(u64, Field<'a>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.next_field();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Writes a file with these pieces, further fields of the trainer and of the normaliser.
    pub(crate) fn file(pieces: &[(&str, f32, u8)], trainer: &[u8], normaliser: &[u8]) -> Vec<u8> {
        let message = |number: u8, content: &[u8]| {
            let mut out = vec![number << 3 | 2];
            let mut length = content.len();
            while length >= 0x80 {
                out.push(length as u8 | 0x80);
                length >>= 7;
            }
            out.push(length as u8);
            out.extend_from_slice(content);
            out
        };
        let mut out = Vec::new();
        for (text, score, kind) in pieces {
            let mut piece = message(1, text.as_bytes());
            piece.push(2 << 3 | 5);
            piece.extend_from_slice(&score.to_le_bytes());
            piece.extend_from_slice(&[3 << 3, *kind]);
            out.extend(message(1, &piece));
        }
        out.extend(message(2, trainer));
        out.extend(message(3, normaliser));
        out
    }

    fn parse(bytes: &[u8]) -> Result<Model> {
        Model::parse(bytes, Path::new("x.model"))
    }

    #[test]
    fn fields_are_read() {
        let bytes =
            file(&[("<unk>", 0.0, 2), ("a", -1.5, 1)], &[3 << 3, 2, 0x98, 2, 1], &[3 << 3, 0, 5 << 3, 0]);
        let model = parse(&bytes).unwrap();
        assert_eq!((model.pieces[1].text.as_str(), model.pieces[1].score), ("a", -1.5));
        assert_eq!((model.pieces[0].kind, model.algorithm), (Kind::Unknown, Algorithm::Bpe));
        assert!(
            model.byte_fallback && !model.dummy_prefix && !model.escape_blanks && model.remove_extra_blanks
        );
    }

    #[test]
    fn broken_files_are_refused() {
        let good = file(&[("<unk>", 0.0, 2), ("a", -1.5, 1)], &[3 << 3, 2], &[]);
        for (bytes, words) in [
            (Vec::new(), "no pieces"),
            (good[..good.len() - 3].to_vec(), "do not fit"),
            (b"hello, world".to_vec(), "not a SentencePiece model"),
            (file(&[("a", 0.0, 9)], &[], &[]), "piece 0: type 9"),
            (file(&[("", 0.0, 1)], &[], &[]), "piece 0: it has no text"),
            (file(&[("a", f32::NAN, 1)], &[], &[]), "not a number"),
            (file(&[("a", 0.0, 1)], &[3 << 3, 4], &[]), "model type 4"),
        ] {
            let message = parse(&bytes).unwrap_err().to_string();
            assert!(message.contains(words), "{message}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
        }
    }
}
