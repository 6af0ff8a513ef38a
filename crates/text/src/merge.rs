//! Byte-pair merging: neighbours are joined, the best pair first, until no pair is in the vocabulary.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::Range;

/// Joins neighbouring parts of a text. `rank` says whether a range that two parts make up is in the
/// vocabulary, and how early it is to be joined: the smallest rank first, the leftmost of equals
/// first. Parts marked frozen are never joined. Takes n log n steps for n parts.
///
/// Source: Sennrich et al., "Neural Machine Translation of Rare Words with Subword Units", 2016; the
/// order of merges is that of SentencePiece and tiktoken.
pub(crate) fn merge<R: Ord>(
    parts: &[(Range<usize>, bool)],
    rank: impl Fn(Range<usize>) -> Option<R>,
) -> Vec<Range<usize>> {
    let mut list: Vec<Part> = parts
        .iter()
        .enumerate()
        .map(|(i, (range, frozen))| Part {
            range: range.clone(),
            frozen: *frozen,
            previous: i.checked_sub(1),
            next: (i + 1 < parts.len()).then_some(i + 1),
        })
        .collect();
    let mut heap = BinaryHeap::new();
    // The pair of a part and its next one, if it may be joined.
    let pair = |list: &[Part], left: usize| {
        let next = list[left].next?;
        if list[left].frozen || list[next].frozen {
            return None;
        }
        let end = list[next].range.end;
        rank(list[left].range.start..end).map(|rank| Reverse((rank, left, end)))
    };
    for left in 0..list.len() {
        heap.extend(pair(&list, left));
    }
    while let Some(Reverse((_, left, end))) = heap.pop() {
        // An entry is stale if either part was joined to another since.
        let Some(next) =
            list[left].next.filter(|next| !list[left].range.is_empty() && list[*next].range.end == end)
        else {
            continue;
        };
        list[left].range.end = end;
        list[left].next = list[next].next;
        list[next].range.start = end;
        list[next].next = None;
        if let Some(after) = list[left].next {
            list[after].previous = Some(left);
        }
        if let Some(previous) = list[left].previous {
            heap.extend(pair(&list, previous));
        }
        heap.extend(pair(&list, left));
    }
    list.into_iter().map(|part| part.range).filter(|range| !range.is_empty()).collect()
}

struct Part {
    /// Empty once the part was joined to its left neighbour.
    range: Range<usize>,
    frozen: bool,
    previous: Option<usize>,
    next: Option<usize>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition: look at all pairs, join the best, start again.
    fn slow(text: &str, frozen: &[bool], rank: impl Fn(&str) -> Option<usize>) -> Vec<String> {
        let mut parts: Vec<(String, bool)> =
            text.chars().map(String::from).zip(frozen.iter().copied()).collect();
        loop {
            let best = (1..parts.len())
                .filter(|i| !parts[i - 1].1 && !parts[*i].1)
                .filter_map(|i| rank(&(parts[i - 1].0.clone() + &parts[i].0)).map(|rank| (rank, i)))
                .min();
            let Some((_, i)) = best else {
                return parts.into_iter().map(|part| part.0).collect();
            };
            let right = parts.remove(i).0;
            parts[i - 1].0 += &right;
        }
    }

    proptest! {
        #[test]
        fn joins_in_the_defined_order(
            text in "[abc]{0,24}",
            vocabulary in prop::collection::vec("[abc]{2,5}", 0..30),
            frozen in prop::collection::vec(prop::bool::weighted(0.1), 24),
        ) {
            // Several entries share a rank, so that the leftmost rule matters.
            let rank = |piece: &str| vocabulary.iter().position(|entry| entry == piece).map(|i| i / 3);
            let parts: Vec<_> = (0..text.len()).map(|i| (i..i + 1, frozen[i])).collect();
            let found: Vec<String> =
                merge(&parts, |range| rank(&text[range])).into_iter().map(|range| text[range].to_owned()).collect();
            prop_assert_eq!(found, slow(&text, &frozen, rank));
        }
    }
}
