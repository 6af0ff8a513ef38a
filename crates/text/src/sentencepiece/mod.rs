//! SentencePiece `.model` files, read by this crate's own code: converting them for another library
//! changes the ids of many texts.

mod cut;
mod decode;
mod model;
mod normalise;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use crate::Result;
use crate::bytes::fallback_byte;
use crate::config::{AddedToken, Settings, malformed};
use crate::prefixes::Prefixes;
use crate::specials::{Part, Specials, plain};
use crate::vocabulary::{Decode, Mode, Vocabulary};

use cut::{Bpe, Unigram};
use decode::{SentencePieceDecode, write_blanks};
pub(crate) use model::{Algorithm, Kind, Model, Piece};
use normalise::Normaliser;

/// Stands for a blank in pieces.
const BLANK: &str = "\u{2581}";

/// A vocabulary out of a `.model` file.
pub(crate) struct SentencePieceVocabulary {
    model: Model,
    cutter: Cutter,
    normaliser: Normaliser,
    user_defined: Prefixes,
    ids: HashMap<Box<str>, u32>,
    unknown: u32,
    /// The id of each byte's piece, if unknown characters are written as bytes.
    bytes: Option<Box<[u32; 256]>>,
    specials: Specials,
    /// Added to the ids of the pieces.
    offset: u32,
    /// Put before and after a text.
    frame: (Vec<u32>, Vec<u32>),
    recognises: Recognises,
    /// Whether line ends and runs of blanks have pieces of their own (ChatGLM-6B).
    writes_blanks: bool,
    /// Whether only the first part of a text begins with a blank.
    one_blank: bool,
}

enum Cutter {
    Bpe(Bpe),
    Unigram(Unigram),
}

/// When special strings in a text become their ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Recognises {
    /// Whenever they are not asked to be plain.
    Always,
    /// In rendered templates, not in a text that is framed.
    Templates,
    /// Never: prompts are put together from ids.
    Never,
}

impl SentencePieceVocabulary {
    /// Understands the bytes of the file; `path` is for messages.
    pub(crate) fn parse(bytes: &[u8], settings: &Settings, path: &Path) -> Result<Self> {
        Self::of_model(Model::parse(bytes, path)?, settings, path)
    }

    /// Takes a model that was read elsewhere; `path` is for messages.
    pub(crate) fn of_model(model: Model, settings: &Settings, path: &Path) -> Result<Self> {
        let mut unknowns = model.pieces.iter().zip(0..).filter(|(piece, _)| piece.kind == Kind::Unknown);
        let unknown = match (unknowns.next(), unknowns.next()) {
            (Some((_, id)), None) => id,
            _ => return Err(malformed(path, "a SentencePiece model should have one unknown piece")),
        };
        let normaliser =
            Normaliser::new(&model).ok_or_else(|| malformed(path, "the table of characters is broken"))?;
        let mut ids = HashMap::with_capacity(model.pieces.len());
        for (piece, id) in model.pieces.iter().zip(0u32..) {
            if ids.insert(piece.text.as_str().into(), id).is_some() {
                return Err(malformed(path, format!("the piece {:?} is there twice", piece.text)));
            }
        }
        let listed = model.pieces.iter().zip(0..).filter(|(piece, _)| piece.kind == Kind::UserDefined);
        let family = Family::of(settings, path);
        let mut vocabulary = Self {
            user_defined: Prefixes::new(listed.map(|(piece, id)| (piece.text.as_str(), id))),
            cutter: match model.algorithm {
                Algorithm::Bpe => Cutter::Bpe(Bpe::new(&model)),
                Algorithm::Unigram => Cutter::Unigram(Unigram::new(&model)),
            },
            bytes: byte_pieces(&model, path)?,
            normaliser,
            ids,
            unknown,
            specials: Specials::default(),
            offset: if family == Family::Glm1 { settings.image_tokens.unwrap_or(20_000) } else { 0 },
            frame: (Vec::new(), Vec::new()),
            recognises: family.recognises(),
            writes_blanks: family == Family::Glm1,
            one_blank: settings.legacy == Some(false),
            model,
        };
        vocabulary.specials = Specials::new(vocabulary.special_tokens(family, settings));
        vocabulary.frame = vocabulary.frame_of(family, settings);
        Ok(vocabulary)
    }

    /// Puts these ids before and after a text, whatever the settings say.
    pub(crate) fn set_frame(&mut self, before: Vec<u32>, after: Vec<u32>) {
        self.frame = (before, after);
    }

    /// The special tokens: those of the family's code, and those that the small files name.
    fn special_tokens(&self, family: Family, settings: &Settings) -> Vec<(AddedToken, u32)> {
        let first = self.model.pieces.len() as u32;
        let mut tokens: Vec<_> =
            family.specials(settings).iter().zip(first..).map(|(name, id)| (plain(name), id)).collect();
        if family == Family::Glm2 {
            // Its code knows these and no others, whatever its config names.
            return tokens;
        }
        let known = |tokens: &[(AddedToken, u32)], id: u32| tokens.iter().any(|(_, other)| *other == id);
        for (id, token) in &settings.added {
            if !known(&tokens, *id) {
                tokens.push((token.clone(), *id));
            }
        }
        for name in settings.named.values().chain(&settings.additional) {
            if let Some(id) = self.ids.get(name.as_str()).map(|id| id + self.offset)
                && !known(&tokens, id)
            {
                tokens.push((plain(name), id));
            }
        }
        tokens
    }

    fn frame_of(&self, family: Family, settings: &Settings) -> (Vec<u32>, Vec<u32>) {
        let ids = |names: &[&str]| names.iter().filter_map(|name| self.id(name)).collect::<Vec<_>>();
        match family {
            Family::Glm1 => (Vec::new(), ids(&["[gMASK]", "<sop>"])),
            Family::Glm2 => (ids(&["[gMASK]", "sop"]), Vec::new()),
            Family::Baichuan | Family::Other => {
                let one = |wanted: bool, role: &str| -> Vec<u32> {
                    let named = settings.named.get(role).and_then(|name| self.id(name));
                    named.or_else(|| self.role(role)).filter(|_| wanted).into_iter().collect()
                };
                (
                    one(settings.add_bos.unwrap_or(true), "bos_token"),
                    one(settings.add_eos == Some(true), "eos_token"),
                )
            }
        }
    }

    fn encode_part(&self, text: &str, first: bool, ids: &mut Vec<u32>) {
        let begins = first || !self.one_blank;
        let normal = if self.writes_blanks {
            self.normaliser.run(&write_blanks(text), &self.user_defined, begins)
        } else {
            self.normaliser.run(text, &self.user_defined, begins)
        };
        let cut = match &self.cutter {
            Cutter::Bpe(bpe) => bpe.cut(&normal, &self.user_defined),
            Cutter::Unigram(unigram) => unigram.cut(&normal),
        };
        let mut after_unknown = false;
        for range in cut {
            let piece = &normal[range];
            let known = self.ids.get(piece).copied().filter(|id| *id != self.unknown);
            match (known, &self.bytes) {
                (Some(id), _) => ids.push(id + self.offset),
                (None, Some(bytes)) => {
                    ids.extend(piece.bytes().map(|byte| bytes[usize::from(byte)] + self.offset));
                }
                // Unknown neighbours are one.
                (None, None) if after_unknown => {}
                (None, None) => ids.push(self.unknown + self.offset),
            }
            after_unknown = known.is_none();
        }
    }

    /// The name of a special token that is no piece, or that has a piece's id and another name (as
    /// InternLM2 has it).
    fn name(&self, id: u32) -> Option<&str> {
        let name = self.specials.token(id)?.content.as_str();
        let piece = id.checked_sub(self.offset).and_then(|id| self.model.pieces.get(id as usize));
        Some(name).filter(|name| piece.is_none_or(|piece| piece.text != *name))
    }

    fn byte_of(&self, id: u32) -> Option<u8> {
        fallback_byte(&self.model.pieces.get(id as usize)?.text)
    }

    fn kind(&self, id: u32) -> Option<Kind> {
        Some(self.model.pieces.get(id.checked_sub(self.offset)? as usize)?.kind)
    }
}

impl Vocabulary for SentencePieceVocabulary {
    fn encode(&self, text: &str, mode: Mode) -> Result<Vec<u32>> {
        let framed = mode == Mode::Framed;
        let mut ids = if framed { self.frame.0.clone() } else { Vec::new() };
        let parts = match (mode, self.recognises) {
            (Mode::Plain, _) | (_, Recognises::Never) | (Mode::Framed, Recognises::Templates) => {
                vec![Part::Text(text)]
            }
            _ => self.specials.split(text),
        };
        for (i, part) in parts.into_iter().enumerate() {
            match part {
                Part::Token(id) => ids.push(id),
                Part::Text(text) => self.encode_part(text, i == 0, &mut ids),
            }
        }
        if framed {
            ids.extend_from_slice(&self.frame.1);
        }
        Ok(ids)
    }

    fn size(&self) -> usize {
        let pieces = self.model.pieces.len() + self.offset as usize;
        pieces.max(self.specials.last().map_or(0, |id| id as usize + 1))
    }

    fn token(&self, id: u32) -> Option<String> {
        if let Some(name) = self.name(id) {
            return Some(name.to_owned());
        }
        let piece = self.model.pieces.get(id.checked_sub(self.offset)? as usize)?;
        Some(piece.text.clone())
    }

    fn id(&self, token: &str) -> Option<u32> {
        self.specials.id(token).or_else(|| self.ids.get(token).map(|id| id + self.offset))
    }

    fn is_special(&self, id: u32) -> bool {
        self.kind(id) == Some(Kind::Control) || self.specials.token(id).is_some_and(|token| token.special)
    }

    fn role(&self, role: &str) -> Option<u32> {
        let id = match role {
            "unk_token" => return Some(self.unknown + self.offset),
            "bos_token" => self.model.bos,
            "eos_token" => self.model.eos,
            "pad_token" => self.model.pad,
            _ => return None,
        };
        let id = u32::try_from(id).ok().filter(|id| (*id as usize) < self.model.pieces.len())?;
        Some(id + self.offset)
    }

    fn decoder(self: Arc<Self>) -> Box<dyn Decode> {
        Box::new(SentencePieceDecode::new(self))
    }
}

/// Families whose code treats texts in a way that their files do not tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    /// ChatGLM-6B.
    Glm1,
    /// ChatGLM2 and ChatGLM3.
    Glm2,
    Baichuan,
    /// Llama and all that follow it.
    Other,
}

impl Family {
    fn of(settings: &Settings, path: &Path) -> Self {
        match settings.class.as_str() {
            // The class has one name for all three.
            "ChatGLMTokenizer" if path.file_name().is_some_and(|name| name == "ice_text.model") => Self::Glm1,
            "ChatGLMTokenizer" => Self::Glm2,
            "BaichuanTokenizer" => Self::Baichuan,
            _ => Self::Other,
        }
    }

    fn recognises(self) -> Recognises {
        match self {
            Self::Glm1 | Self::Baichuan => Recognises::Never,
            Self::Glm2 => Recognises::Templates,
            Self::Other => Recognises::Always,
        }
    }

    /// Special tokens with the ids after the last piece.
    fn specials(self, settings: &Settings) -> &'static [&'static str] {
        const GLM: [&str; 9] = [
            "[MASK]",
            "[gMASK]",
            "[sMASK]",
            "sop",
            "eop",
            "<|system|>",
            "<|user|>",
            "<|assistant|>",
            "<|observation|>",
        ];
        match self {
            // ChatGLM2 has the first five. Nothing else in its folder tells it from ChatGLM3.
            Self::Glm2 if settings.origin.to_ascii_lowercase().contains("chatglm2") => &GLM[..5],
            Self::Glm2 => &GLM,
            _ => &[],
        }
    }
}

fn byte_pieces(model: &Model, path: &Path) -> Result<Option<Box<[u32; 256]>>> {
    if !model.byte_fallback {
        return Ok(None);
    }
    let mut ids = [None; 256];
    for (piece, id) in model.pieces.iter().zip(0..).filter(|(piece, _)| piece.kind == Kind::Byte) {
        let byte = fallback_byte(&piece.text).ok_or_else(|| {
            malformed(path, format!("the byte piece {:?} should look like <0x0A>", piece.text))
        })?;
        ids[usize::from(byte)] = Some(id);
    }
    let mut out = Box::new([0; 256]);
    for (byte, (id, slot)) in ids.into_iter().zip(out.iter_mut()).enumerate() {
        *slot = id.ok_or_else(|| malformed(path, format!("there is no piece for the byte {byte}")))?;
    }
    Ok(Some(out))
}
