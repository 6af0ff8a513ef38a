//! Finding special tokens that are written in a text.

use crate::config::AddedToken;
use crate::prefixes::Prefixes;

/// A part of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part<'a> {
    /// Text to be encoded.
    Text(&'a str),
    /// A special token.
    Token(u32),
}

/// The special strings of a vocabulary.
#[derive(Debug, Default)]
pub(crate) struct Specials {
    tokens: Vec<(AddedToken, u32)>,
    /// Finds an index into `tokens`.
    prefixes: Prefixes,
}

impl Specials {
    /// Takes the special tokens with their ids.
    pub(crate) fn new(tokens: Vec<(AddedToken, u32)>) -> Self {
        let prefixes =
            Prefixes::new(tokens.iter().zip(0..).map(|((token, _), i)| (token.content.as_str(), i)));
        Self { tokens, prefixes }
    }

    /// The id of a special string.
    pub(crate) fn id(&self, content: &str) -> Option<u32> {
        self.get(|(token, _)| token.content == content).map(|(_, id)| *id)
    }

    /// The special token with an id.
    pub(crate) fn token(&self, id: u32) -> Option<&AddedToken> {
        self.get(|(_, known)| *known == id).map(|(token, _)| token)
    }

    fn get(&self, wanted: impl Fn(&(AddedToken, u32)) -> bool) -> Option<&(AddedToken, u32)> {
        self.tokens.iter().find(|entry| wanted(entry))
    }

    /// The largest id.
    pub(crate) fn last(&self) -> Option<u32> {
        self.tokens.iter().map(|(_, id)| *id).max()
    }

    /// Cuts a text at its special strings: the leftmost first, the longest of those that begin at one
    /// place. A token may take blanks beside it with it, or ask to stand alone, as slow tokenizers of
    /// transformers have it.
    pub(crate) fn split<'a>(&self, text: &'a str) -> Vec<Part<'a>> {
        let mut parts = Vec::new();
        let mut begin = 0;
        let mut at = 0;
        while at < text.len() {
            let found = self.prefixes.longest(&text.as_bytes()[at..]);
            let Some((length, index)) = found else {
                at += text[at..].chars().next().map_or(1, char::len_utf8);
                continue;
            };
            let (token, id) = &self.tokens[index as usize];
            let (left, right) = (&text[begin..at], &text[at + length..]);
            at += length;
            let alone =
                (left.is_empty() || left.ends_with(' ')) && (right.is_empty() || right.starts_with(' '));
            if token.single_word && !alone {
                continue;
            }
            let left = if token.lstrip { left.trim_end() } else { left };
            if !left.is_empty() {
                parts.push(Part::Text(left));
            }
            parts.push(Part::Token(*id));
            if token.rstrip {
                at = text.len() - right.trim_start().len();
            }
            begin = at;
        }
        if begin < text.len() {
            parts.push(Part::Text(&text[begin..]));
        }
        parts
    }
}

/// A special token without conditions.
pub(crate) fn plain(content: &str) -> AddedToken {
    AddedToken {
        content: content.to_owned(),
        lstrip: false,
        rstrip: false,
        single_word: false,
        normalized: false,
        special: true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_of_the_leftmost() {
        let specials = Specials::new(vec![(plain("<a>"), 1), (plain("<a><b>"), 2), (plain("你"), 3)]);
        assert_eq!(
            specials.split("x<a><b><a>你好"),
            [Part::Text("x"), Part::Token(2), Part::Token(1), Part::Token(3), Part::Text("好")]
        );
        assert_eq!(specials.split(""), []);
        assert_eq!((specials.id("<a>"), specials.token(3).unwrap().content.as_str()), (Some(1), "你"));
    }

    #[test]
    fn conditions() {
        let mut strip = plain("<s>");
        strip.lstrip = true;
        strip.rstrip = true;
        let mut word = plain("w");
        word.single_word = true;
        let specials = Specials::new(vec![(strip, 1), (word, 2)]);
        assert_eq!(
            specials.split("a  <s> \nb w ow"),
            [Part::Text("a"), Part::Token(1), Part::Text("b "), Part::Token(2), Part::Text(" ow")]
        );
    }
}
