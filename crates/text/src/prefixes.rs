//! All entries of a word list that a text begins with.

/// A list of byte strings with ids, sorted, so that those a text begins with are found by narrowing a
/// range byte by byte. Needs no memory beyond the list.
#[derive(Debug, Default)]
pub(crate) struct Prefixes {
    entries: Vec<(Box<[u8]>, u32)>,
    /// For each first byte, where its entries begin; one more for the end.
    begin: Vec<usize>,
}

impl Prefixes {
    /// Takes the list; of equal strings the first counts, and empty ones do not.
    pub(crate) fn new<'a>(entries: impl IntoIterator<Item = (&'a str, u32)>) -> Self {
        let mut entries: Vec<(Box<[u8]>, u32)> = entries
            .into_iter()
            .filter(|(text, _)| !text.is_empty())
            .map(|(text, id)| (text.as_bytes().into(), id))
            .collect();
        entries.sort_by(|a, b| a.0.cmp(&b.0));
        entries.dedup_by(|later, first| later.0 == first.0);
        let begin =
            (0..=256).map(|byte| entries.partition_point(|(text, _)| usize::from(text[0]) < byte)).collect();
        Self { entries, begin }
    }

    /// The entries that `text` begins with, as length and id, from the shortest to the longest.
    pub(crate) fn of<'a>(&'a self, text: &'a [u8]) -> impl Iterator<Item = (usize, u32)> + 'a {
        let first = text.first().map(|byte| usize::from(*byte));
        let (mut low, mut high) = match first {
            Some(byte) if !self.begin.is_empty() => (self.begin[byte], self.begin[byte + 1]),
            _ => (0, 0),
        };
        let mut length = 1;
        std::iter::from_fn(move || {
            // All entries in low..high begin with the first `length` bytes of the text.
            while low < high {
                let here = length;
                let found = &self.entries[low];
                let whole = found.0.len() == here;
                let id = found.1;
                if whole {
                    low += 1;
                }
                match text.get(here) {
                    Some(byte) => {
                        let range = &self.entries[low..high];
                        let end = range.partition_point(|(entry, _)| entry[here] <= *byte);
                        let start = range.partition_point(|(entry, _)| entry[here] < *byte);
                        high = low + end;
                        low += start;
                    }
                    None => high = low,
                }
                length += 1;
                if whole {
                    return Some((here, id));
                }
            }
            None
        })
    }

    /// The longest of them.
    pub(crate) fn longest(&self, text: &[u8]) -> Option<(usize, u32)> {
        self.of(text).last()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn finds_what_a_plain_search_finds(
            words in prop::collection::vec("[ab你]{0,4}", 0..20),
            text in "[ab你c]{0,8}",
        ) {
            let list: Vec<(&str, u32)> = words.iter().zip(0..).map(|(word, id)| (word.as_str(), id)).collect();
            let mut expected: Vec<(usize, u32)> = Vec::new();
            for (word, id) in &list {
                let known = list.iter().any(|(other, earlier)| other == word && earlier < id);
                if !word.is_empty() && text.starts_with(word) && !known {
                    expected.push((word.len(), *id));
                }
            }
            expected.sort_unstable();
            let prefixes = Prefixes::new(list);
            prop_assert_eq!(prefixes.of(text.as_bytes()).collect::<Vec<_>>(), expected.clone());
            prop_assert_eq!(prefixes.longest(text.as_bytes()), expected.last().copied());
        }
    }

    #[test]
    fn an_empty_list_finds_nothing() {
        assert_eq!(Prefixes::default().longest(b"a"), None);
        assert_eq!(Prefixes::new([]).longest(b""), None);
    }
}
