//! What every kind of vocabulary can do.

use std::sync::Arc;

use crate::Result;

/// How special tokens are treated while a text is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Special strings in the text become their ids, and what the model expects around a text is
    /// added.
    Framed,
    /// Special strings in the text become their ids, nothing is added.
    Recognise,
    /// Special strings in the text are text, nothing is added.
    Plain,
}

/// A vocabulary of some file format. [`crate::Tokenizer`] holds one and adds what is the same for all.
pub(crate) trait Vocabulary: Send + Sync {
    /// Cuts a text into ids.
    fn encode(&self, text: &str, mode: Mode) -> Result<Vec<u32>>;
    /// The largest id plus one.
    fn size(&self) -> usize;
    /// The string of an id as the vocabulary file has it (not decoded).
    fn token(&self, id: u32) -> Option<String>;
    /// The id of such a string.
    fn id(&self, token: &str) -> Option<u32>;
    /// Whether a decode that skips special tokens leaves this id out.
    fn is_special(&self, id: u32) -> bool;
    /// The special token that the vocabulary file itself gives a role (`bos_token`, …).
    fn role(&self, role: &str) -> Option<u32>;
    /// A fresh decode.
    fn decoder(self: Arc<Self>) -> Box<dyn Decode>;
}

/// A decode in progress: ids in, text out, in time linear in their number.
pub(crate) trait Decode: Send {
    /// Takes the next id and appends what is certain by now to `out`. An id without a token has no
    /// text.
    fn push(&mut self, id: u32, out: &mut String);
    /// Appends what was held back until the end was known.
    fn finish(&mut self, out: &mut String);
}
