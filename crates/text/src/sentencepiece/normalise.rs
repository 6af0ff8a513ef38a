//! What SentencePiece does to a text before it cuts it: characters are mapped by a table, blanks
//! become `▁`, one may be put before the text.

use super::BLANK;
use super::model::Model;
use crate::prefixes::Prefixes;

/// The normaliser of a model. Follows `normalizer.cc` of SentencePiece 0.2.
#[derive(Debug)]
pub(crate) struct Normaliser {
    trie: Vec<u32>,
    strings: Vec<u8>,
    dummy_prefix: bool,
    blank_is_suffix: bool,
    remove_extra_blanks: bool,
    blank: &'static str,
}

impl Normaliser {
    /// Takes the settings of a model. `None` if its table of characters is broken.
    pub(crate) fn new(model: &Model) -> Option<Self> {
        let (trie, strings) = if model.charsmap.is_empty() {
            (Vec::new(), Vec::new())
        } else {
            // The trie's length in bytes, the trie, strings that end with a zero.
            let (length, rest) = model.charsmap.split_first_chunk::<4>()?;
            let (trie, strings) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
            let (units, []) = trie.as_chunks::<4>() else { return None };
            if strings.last() != Some(&0) {
                return None;
            }
            (units.iter().map(|unit| u32::from_le_bytes(*unit)).collect(), strings.to_vec())
        };
        Some(Self {
            trie,
            strings,
            dummy_prefix: model.dummy_prefix,
            blank_is_suffix: model.blank_is_suffix,
            remove_extra_blanks: model.remove_extra_blanks,
            blank: if model.escape_blanks { BLANK } else { " " },
        })
    }

    /// Normalises a text. User-defined pieces stay as they are. `begins` says whether the text stands
    /// where a blank is put before it.
    pub(crate) fn run(&self, text: &str, user_defined: &Prefixes, begins: bool) -> String {
        let mut out = String::with_capacity(text.len() + text.len() / 4 + 3);
        let mut rest = text;
        if self.remove_extra_blanks {
            while let Some((" ", length)) = self.next(rest, user_defined) {
                rest = &rest[length..];
            }
        }
        if rest.is_empty() {
            return out;
        }
        let dummy = self.dummy_prefix && begins;
        if dummy && !self.blank_is_suffix {
            out.push_str(self.blank);
        }
        let mut after_blank = self.remove_extra_blanks;
        while let Some((mut piece, length)) = self.next(rest, user_defined) {
            rest = &rest[length..];
            if after_blank {
                piece = piece.trim_start_matches(' ');
            }
            if !piece.is_empty() {
                for c in piece.chars() {
                    if c == ' ' {
                        out.push_str(self.blank);
                    } else {
                        out.push(c);
                    }
                }
                after_blank = self.remove_extra_blanks && piece.ends_with(' ');
            }
        }
        if self.remove_extra_blanks {
            out.truncate(out.trim_end_matches(self.blank).len());
        }
        if dummy && self.blank_is_suffix {
            out.push_str(self.blank);
        }
        out
    }

    /// What the beginning of a text becomes, and how many of its bytes that are.
    fn next<'a>(&'a self, text: &'a str, user_defined: &Prefixes) -> Option<(&'a str, usize)> {
        let first = text.chars().next()?.len_utf8();
        if let Some((length, _)) = user_defined.longest(text.as_bytes()) {
            return Some((&text[..length], length));
        }
        Some(self.mapped(text).unwrap_or((&text[..first], first)))
    }

    /// The longest entry of the table that a text begins with.
    ///
    /// A unit of the trie (the layout of Darts-clone) has a label in its low byte, an offset to its
    /// children from bit 10 on, scaled by 256 if bit 9 is set, and in bit 8 whether an entry ends here;
    /// the entry's value is in the child with label zero.
    fn mapped(&self, text: &str) -> Option<(&str, usize)> {
        let offset = |unit: u32| ((unit >> 10) << ((unit & (1 << 9)) >> 6)) as usize;
        let mut at = offset(*self.trie.first()?);
        let mut best = None;
        for (i, byte) in text.bytes().enumerate() {
            at ^= usize::from(byte);
            let Some(unit) = self.trie.get(at).copied() else { break };
            if unit & (1 << 31 | 0xFF) != u32::from(byte) {
                break;
            }
            at ^= offset(unit);
            if unit & (1 << 8) != 0
                && let Some(value) = self.trie.get(at)
            {
                best = Some(((value & !(1 << 31)) as usize, i + 1));
            }
        }
        let (start, length) = best?;
        let string = self.strings.get(start..)?.split(|byte| *byte == 0).next()?;
        // An entry that ended inside a character would be a broken table.
        if !text.is_char_boundary(length) {
            return None;
        }
        Some((std::str::from_utf8(string).ok()?, length))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sentencepiece::model::tests::file;
    use std::path::Path;

    fn normaliser(settings: &[u8]) -> Normaliser {
        let model = Model::parse(&file(&[("<unk>", 0.0, 2)], &[], settings), Path::new("x")).unwrap();
        Normaliser::new(&model).unwrap()
    }

    #[test]
    fn blanks() {
        let none = Prefixes::default();
        let all = normaliser(&[]);
        assert_eq!(all.run("  a  b ", &none, true), "▁a▁b");
        assert_eq!(all.run("   ", &none, true), "");
        let keep = normaliser(&[4 << 3, 0]);
        assert_eq!(keep.run(" a  b ", &none, true), "▁▁a▁▁b▁");
        assert_eq!(keep.run(" a", &none, false), "▁a");
        assert_eq!(keep.run("", &none, true), "");
        let bare = normaliser(&[3 << 3, 0, 4 << 3, 0, 5 << 3, 0]);
        assert_eq!(bare.run(" a ", &none, true), " a ");
    }

    #[test]
    fn a_broken_table_is_refused_or_harmless() {
        for map in
            [vec![1], vec![200, 0, 0, 0, 1], vec![3, 0, 0, 0, 1, 2, 3, 0], vec![4, 0, 0, 0, 1, 2, 3, 4]]
        {
            let mut model = Model::parse(&file(&[("<unk>", 0.0, 2)], &[], &[]), Path::new("x")).unwrap();
            model.charsmap = map;
            assert!(Normaliser::new(&model).is_none());
        }
        let mut model = Model::parse(&file(&[("<unk>", 0.0, 2)], &[], &[]), Path::new("x")).unwrap();
        model.charsmap = vec![4, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0x7F, 0];
        assert_eq!(Normaliser::new(&model).unwrap().run("abc", &Prefixes::default(), true), "▁abc");
    }
}
