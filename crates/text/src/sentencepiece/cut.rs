//! Cutting a normalised text into pieces: by merging (BPE) or by the best path (Unigram).

use std::collections::HashMap;
use std::ops::Range;

use super::model::{Kind, Model, Piece};
use crate::merge::merge;
use crate::prefixes::Prefixes;

/// Cuts by merging; `bpe_model.cc` of SentencePiece 0.2.
#[derive(Debug)]
pub(crate) struct Bpe {
    /// Score, and whether the piece is unused.
    pieces: HashMap<Box<str>, (Score, bool)>,
    any_unused: bool,
}

impl Bpe {
    /// Takes the pieces of a model that may come out of merges.
    pub(crate) fn new(model: &Model) -> Self {
        let pieces = model
            .pieces
            .iter()
            .filter(|piece| matches!(piece.kind, Kind::Normal | Kind::UserDefined | Kind::Unused))
            .map(|piece| (piece.text.as_str().into(), (Score::new(piece.score), piece.kind == Kind::Unused)))
            .collect();
        Self { pieces, any_unused: model.pieces.iter().any(|piece| piece.kind == Kind::Unused) }
    }

    /// The ranges of the pieces.
    pub(crate) fn cut(&self, text: &str, user_defined: &Prefixes) -> Vec<Range<usize>> {
        let mut parts = Vec::with_capacity(text.len());
        let mut at = 0;
        while let Some(c) = text[at..].chars().next() {
            let found = user_defined.longest(&text.as_bytes()[at..]);
            let length = found.map_or(c.len_utf8(), |(length, _)| length);
            parts.push((at..at + length, found.is_some()));
            at += length;
        }
        let score = |range: Range<usize>| self.pieces.get(&text[range]).map(|(score, _)| *score);
        let cut = merge(&parts, score);
        if !self.any_unused {
            return cut;
        }
        // Unused pieces take part in merging, but are taken apart again in the end.
        let mut out = Vec::with_capacity(cut.len());
        for range in cut {
            self.take_apart(text, range, &mut out);
        }
        out
    }

    fn take_apart(&self, text: &str, range: Range<usize>, out: &mut Vec<Range<usize>>) {
        let unused = self.pieces.get(&text[range.clone()]).is_some_and(|(_, unused)| *unused);
        // The last merge that led here: of all pairs, the one that merging the piece alone ends with.
        let halves = if unused { self.halves(&text[range.clone()]) } else { None };
        match halves {
            Some(middle) => {
                self.take_apart(text, range.start..range.start + middle, out);
                self.take_apart(text, range.start + middle..range.end, out);
            }
            None => out.push(range),
        }
    }

    fn halves(&self, piece: &str) -> Option<usize> {
        let parts: Vec<_> = piece.char_indices().map(|(at, c)| (at..at + c.len_utf8(), false)).collect();
        let inner = merge(&parts, |range| {
            if range.len() == piece.len() {
                return None;
            }
            self.pieces.get(&piece[range]).map(|(score, _)| *score)
        });
        match inner.as_slice() {
            [first, _] => Some(first.end),
            _ => None,
        }
    }
}

/// A score, ordered so that the largest comes first.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Score(f32);

impl Score {
    fn new(score: f32) -> Self {
        // Makes one zero of both.
        Self(score + 0.0)
    }
}

impl Eq for Score {}

impl Ord for Score {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        other.0.total_cmp(&self.0)
    }
}

impl PartialOrd for Score {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// Cuts along the path with the largest sum of scores; `EncodeOptimized` in `unigram_model.cc` of
/// SentencePiece 0.2.
///
/// Source: Kudo, "Subword Regularization", 2018.
#[derive(Debug)]
pub(crate) struct Unigram {
    pieces: Prefixes,
    /// By id.
    scores: Vec<Weight>,
    unknown: f32,
    best: f32,
}

#[derive(Debug, Clone, Copy)]
enum Weight {
    Score(f32),
    /// User-defined pieces outweigh any path through others.
    Always,
}

/// A character that no piece covers costs this much more than the worst piece.
const UNKNOWN_PENALTY: f32 = 10.0;

impl Unigram {
    /// Takes the pieces of a model.
    pub(crate) fn new(model: &Model) -> Self {
        let normal =
            || model.pieces.iter().filter(|piece| piece.kind == Kind::Normal).map(|piece| piece.score);
        let worst = normal().fold(f32::INFINITY, f32::min);
        let worst = if worst.is_finite() { worst } else { 0.0 };
        let wanted = |piece: &Piece| matches!(piece.kind, Kind::Normal | Kind::UserDefined);
        let listed = model.pieces.iter().zip(0..).filter(|(piece, _)| wanted(piece));
        Self {
            pieces: Prefixes::new(listed.map(|(piece, id)| (piece.text.as_str(), id))),
            scores: model
                .pieces
                .iter()
                .map(|piece| {
                    if piece.kind == Kind::UserDefined { Weight::Always } else { Weight::Score(piece.score) }
                })
                .collect(),
            unknown: worst - UNKNOWN_PENALTY,
            best: normal().fold(f32::NEG_INFINITY, f32::max),
        }
    }

    /// The ranges of the pieces.
    pub(crate) fn cut(&self, text: &str) -> Vec<Range<usize>> {
        /// The best way to the text up to here.
        #[derive(Clone, Copy)]
        struct Node {
            from: usize,
            score: f32,
        }
        let mut ends: Vec<Option<Node>> = vec![None; text.len() + 1];
        for (at, c) in text.char_indices() {
            let before = ends[at].map_or(0.0, |node| node.score);
            let mut reach = |end: usize, score: f32| {
                let score = score + before;
                if ends[end].is_none_or(|known| score > known.score) {
                    ends[end] = Some(Node { from: at, score });
                }
            };
            let mut single = false;
            for (length, id) in self.pieces.of(&text.as_bytes()[at..]) {
                let score = match self.scores[id as usize] {
                    Weight::Score(score) => score,
                    Weight::Always => (f64::from(length as f32 * self.best) - 0.1) as f32,
                };
                reach(at + length, score);
                single |= length == c.len_utf8();
            }
            if !single {
                reach(at + c.len_utf8(), self.unknown);
            }
        }
        let mut out = Vec::new();
        let mut end = text.len();
        while end > 0 {
            let from = ends[end].map_or(0, |node| node.from);
            out.push(from..end);
            end = from;
        }
        out.reverse();
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sentencepiece::model::tests::file;
    use proptest::prelude::*;
    use std::path::Path;

    fn model(pieces: &[(&str, f32, u8)]) -> Model {
        Model::parse(&file(pieces, &[], &[]), Path::new("x")).unwrap()
    }

    fn words(text: &str, cut: Vec<Range<usize>>) -> Vec<&str> {
        cut.into_iter().map(|range| &text[range]).collect()
    }

    #[test]
    fn merging_takes_the_best_score_and_leaves_user_defined_pieces_whole() {
        let model =
            model(&[("ab", -2.0, 1), ("bc", -1.0, 1), ("abc", -3.0, 1), ("<x>", 0.0, 4), ("c<", 5.0, 1)]);
        let bpe = Bpe::new(&model);
        assert_eq!(words("abc", bpe.cut("abc", &Prefixes::default())), ["abc"]);
        let user = Prefixes::new([("<x>", 3)]);
        assert_eq!(words("abc<x>ab", bpe.cut("abc<x>ab", &user)), ["abc", "<x>", "ab"]);
    }

    #[test]
    fn unused_pieces_are_taken_apart() {
        let model = model(&[("ab", -1.0, 1), ("abc", -2.0, 5), ("abcd", -3.0, 5)]);
        assert_eq!(words("abcd", Bpe::new(&model).cut("abcd", &Prefixes::default())), ["ab", "c", "d"]);
    }

    proptest! {
        #[test]
        fn no_other_path_has_a_larger_sum(text in "[abc]{0,9}", scores in prop::collection::vec(-50i8..0, 8)) {
            let names = ["a", "b", "ab", "bc", "abc", "ba", "aa", "cab"];
            let pieces: Vec<(&str, f32, u8)> =
                names.iter().zip(&scores).map(|(name, score)| (*name, f32::from(*score), 1)).collect();
            let model = model(&pieces);
            let worst = f32::from(*scores.iter().min().unwrap());
            let score = |word: &str| match pieces.iter().find(|piece| piece.0 == word) {
                Some(piece) => Some(piece.1),
                None if word.len() == 1 => Some(worst - UNKNOWN_PENALTY),
                None => None,
            };
            let mut best = f32::NEG_INFINITY;
            // Each bit says whether a cut is made there.
            for bits in 0..1u32 << text.len().saturating_sub(1) {
                let (mut sum, mut from) = (0.0, 0);
                for end in 1..=text.len() {
                    if end == text.len() || bits & (1 << (end - 1)) != 0 {
                        sum += score(&text[from..end]).unwrap_or(f32::NEG_INFINITY);
                        from = end;
                    }
                }
                best = best.max(sum);
            }
            let cut = words(&text, Unigram::new(&model).cut(&text));
            prop_assert_eq!(cut.concat(), text.clone());
            let found: f32 = cut.iter().map(|word| score(word).unwrap()).sum();
            prop_assert!(text.is_empty() || found == best, "{:?}: {} < {}", cut, found, best);
        }
    }
}
